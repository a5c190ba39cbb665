"""Windows on images: where they stand."""

import enum
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from volform.errors import NetworkError


class Padding(enum.Enum):
    """Rule for what a window sees beyond the edge of an image.

    Attributes:
        SAME: zeros; there are as many windows as pixels, divided by the strides, rounded up.
        VALID: nothing, as all windows lie inside.
        CIRCULAR: the opposite edge; as many windows as for SAME.
    """

    SAME = enum.auto()
    VALID = enum.auto()
    CIRCULAR = enum.auto()


class Window(NamedTuple):
    """Windows of one shape on a grid of pixels of any number of dimensions.

    Attributes:
        shape: pixels in each direction.
        strides: from one window to the next.
        padding: what lies outside.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Padding

    def counts(self, pixels: tuple[int, ...]) -> tuple[int, ...]:
        """Number of windows in each direction."""
        if self.padding is not Padding.VALID:
            return tuple(-(-n // step) for n, step in zip(pixels, self.strides, strict=True))
        sizes = zip(pixels, self.shape, self.strides, strict=True)
        return tuple((n - size) // step + 1 for n, size, step in sizes)

    def pads(self, pixels: tuple[int, ...]) -> list[tuple[int, int]]:
        """Pixels beyond each edge, before and behind; one more behind if they are odd."""
        if self.padding is Padding.VALID:
            return [(0, 0)] * len(pixels)
        sizes = zip(self.counts(pixels), self.strides, self.shape, pixels, strict=True)
        extra = [max((count - 1) * step + size - n, 0) for count, step, size, n in sizes]
        return [(pad // 2, pad - pad // 2) for pad in extra]

    def padded(self, x: Float[Array, "n ... d"]) -> Float[Array, "n ... d"]:
        """Images with what lies outside, so that all windows lie inside."""
        pads = [(0, 0), *self.pads(x.shape[1:-1]), (0, 0)]
        return jnp.pad(x, pads, mode="wrap" if self.padding is Padding.CIRCULAR else "constant")

    def seen(self, pixels: tuple[int, ...]) -> list[Int[np.ndarray, "windows size"]]:
        """The numbers of the pixels in each window, direction by direction; -1 beyond the edge."""
        sizes = (pixels, self.counts(pixels), self.strides, self.pads(pixels), self.shape)
        return [
            self._inside(np.arange(count)[:, None] * step - before + np.arange(size), n)
            for n, count, step, (before, _), size in zip(*sizes, strict=True)
        ]

    def _inside(self, at: Int[np.ndarray, "windows size"], n: int) -> Int[np.ndarray, "..."]:
        if self.padding is Padding.CIRCULAR:
            return at % n
        return np.where((at < 0) | (at >= n), -1, at)

    def table(self, pixels: tuple[int, ...]) -> Int[np.ndarray, "windows size"]:
        """The numbers of the pixels in each window; those outside have the number of all pixels."""
        index = np.zeros((1, 1), int)
        for n, at in zip(pixels, self.seen(pixels), strict=True):
            shape = len(index) * len(at), index.shape[1] * at.shape[1]
            rows, columns = index[:, None, :, None], at[:, None, :]
            outside = (rows < 0) | (columns < 0)
            index = np.where(outside, -1, rows * n + columns).reshape(shape)
        return np.where(index < 0, math.prod(pixels), index)

    def placed(self, shape: tuple[int, ...], layer: str) -> tuple[int, ...]:
        """Windows in each direction on examples of this shape.

        Raises:
            NetworkError: when they are no images, or smaller than the window.
        """
        names = ", ".join(["height", "width"] if len(self.shape) == 2 else ["n"] * len(self.shape))
        if len(shape) != len(self.shape) + 1:
            raise NetworkError(
                f"`{layer}` with a window of {self.shape} got examples of shape {shape}; it takes "
                f"images of shape ({names}, channels): write a single channel as `x[..., None]`, "
                "or leave out a `Flatten()`."
            )
        counts = self.counts(shape[:-1])
        if min(counts) < 1:
            raise NetworkError(
                f"`{layer}` has a window of {self.shape}, larger than images of {shape[:-1]} "
                "pixels; choose a smaller one, or `padding=Padding.SAME`."
            )
        return counts


class SpreadWindow(Window):
    """Windows on images whose pixels are spread out, with `strides - 1` zeros behind each of them.

    The windows of a transposed convolution: one at each place. For `CIRCULAR` the spread image
    lies on a circle.
    """

    def counts(self, pixels: tuple[int, ...]) -> tuple[int, ...]:
        """As many as places; for `VALID` all that see a pixel, and those between two of them."""
        sizes = zip(pixels, self.strides, self.shape, strict=True)
        beyond = 1 if self.padding is Padding.VALID else 0
        return tuple(n * step + beyond * max(size - step, 0) for n, step, size in sizes)

    def pads(self, pixels: tuple[int, ...]) -> list[tuple[int, int]]:
        """Places beyond each edge, as `jax.lax.conv_transpose` has them."""
        if self.padding is Padding.VALID:
            sizes = zip(self.strides, self.shape, strict=True)
            return [(size - 1, max(size - step, 0)) for step, size in sizes]
        pads = []
        for step, size in zip(self.strides, self.shape, strict=True):
            before = size - 1 if step > size - 1 else -(-(size + step - 2) // 2)
            pads.append((before, size - 1 - before))
        return pads

    def padded(self, x: Float[Array, "n ... d"]) -> Float[Array, "n ... d"]:
        """Images spread out, with what lies outside."""
        gaps = [(0, step - 1, step - 1) for step in self.strides]
        return super().padded(jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *gaps, (0, 0, 0)]))

    def seen(self, pixels: tuple[int, ...]) -> list[Int[np.ndarray, "windows size"]]:
        """The numbers of the pixels in each window, direction by direction; -1 in gaps too."""
        sizes = (pixels, self.counts(pixels), self.strides, self.pads(pixels), self.shape)
        found = []
        for n, count, step, (before, _), size in zip(*sizes, strict=True):
            at = self._inside(np.arange(count)[:, None] - before + np.arange(size), n * step)
            found.append(np.where((at < 0) | (at % step > 0), -1, at // step))
        return found


def window(shape: Any, strides: Any, padding: Any, layer: str, name: str) -> Window:
    """A window of this shape, which `layer` calls `name`; strides of 1 if None.

    Raises:
        NetworkError: when shape or strides are no tuples of positive integers, or the padding is
            no `Padding`.
    """
    strides = (1,) * len(shape) if strides is None and isinstance(shape, tuple) else strides
    for argument, value in ((name, shape), ("strides", strides)):
        wanted = isinstance(value, tuple) and value and len(value) == len(shape)
        if not (wanted and all(isinstance(n, int) and n > 0 for n in value)):
            raise NetworkError(
                f"`{argument}` of {layer} is {value!r}; it should be a tuple of positive "
                "integers, one for each direction: (3, 3) for images, (3,) for sequences."
            )
    if not isinstance(padding, Padding):
        raise NetworkError(
            f"`padding` of {layer} is {padding!r}; it should be `Padding.SAME`, `Padding.VALID` or "
            "`Padding.CIRCULAR`."
        )
    return Window(shape, strides, padding)

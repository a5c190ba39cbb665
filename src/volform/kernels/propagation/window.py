"""Windows on images: where they stand, and what they do to kernels."""

import enum
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from volform.errors import NetworkError
from volform.kernels.propagation.moments import Moments, of_products
from volform.kernels.propagation.state import KernelState


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

    def table(self, pixels: tuple[int, ...]) -> Int[np.ndarray, "windows size"]:
        """The numbers of the pixels in each window; those outside have the number of all pixels."""
        index, outside = np.zeros((1, 1), int), np.zeros((1, 1), bool)
        sizes = (pixels, self.counts(pixels), self.strides, self.pads(pixels), self.shape)
        for n, count, step, (before, _), size in zip(*sizes, strict=True):
            at = np.arange(count)[:, None] * step - before + np.arange(size)
            at = at % n if self.padding is Padding.CIRCULAR else at
            beyond = (at < 0) | (at >= n)
            shape = len(index) * count, index.shape[1] * size
            index = (index[:, None, :, None] * n + at[:, None, :]).reshape(shape)
            outside = (outside[:, None, :, None] | beyond[:, None, :]).reshape(shape)
        return np.where(outside, math.prod(pixels), index)

    def placed(self, shape: tuple[int, ...], layer: str) -> tuple[int, ...]:
        """Windows in each direction on examples of this shape.

        Raises:
            NetworkError: when they are no images, or smaller than the window.
        """
        names = ", ".join(["height", "width"] if len(self.shape) == 2 else ["n"] * len(self.shape))
        if len(shape) != len(self.shape) + 1:
            raise NetworkError(
                f"`{layer}` with a window of {self.shape} got examples of shape {shape}; it takes "
                f"images of shape ({names}, channels): reshape `x`, or leave out a `Flatten()`."
            )
        counts = self.counts(shape[:-1])
        if min(counts) < 1:
            raise NetworkError(
                f"`{layer}` has a window of {self.shape}, larger than images of {shape[:-1]} "
                "pixels; choose a smaller one, or `padding=Padding.SAME`."
            )
        return counts


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


def window_mean(state: KernelState, table: Int[np.ndarray, "windows size"]) -> KernelState:
    """Means over each window of the kernels of its pixels, the same ones of both examples.

    The kernels of a sum over the window with independent weights of variance 1 / size.
    """
    parts = state.moments, state.ntk, state.self_moments
    moments, ntk, within = _mean_of_equal(parts, jnp.asarray(table.T), bool(state.self_moments))
    return state.replace(moments=moments, ntk=ntk, self_moments=within)


@partial(jax.jit, static_argnums=2)  # or the loop would be compiled anew in every call
def _mean_of_equal(
    parts: tuple[Moments, Array, tuple[Moments, ...]],
    columns: Int[Array, "size windows"],
    is_full: bool,
) -> tuple[Moments, Array, tuple[Moments, ...]]:
    moments, ntk, within = parts

    def at(column: Int[Array, " windows"]) -> tuple[Moments, Array, tuple[Moments, ...]]:
        shifted = tuple(_moments_at(m, column, is_full) for m in (moments, *within))
        return shifted[0], _both_at(ntk, column, is_full), shifted[1:]

    def add(total: tuple, column: Int[Array, " windows"]) -> tuple[tuple, None]:
        (m, t, w), (m1, t1, w1) = total, at(column)
        return (m.plus(m1), t + t1, tuple(a.plus(b) for a, b in zip(w, w1, strict=True))), None

    m, t, w = jax.lax.scan(add, at(columns[0]), columns[1:])[0]
    part = 1 / len(columns)
    return m.times(part), part * t, tuple(own.times(part) for own in w)


def _moments_at(moments: Moments, at: Int[Array, " windows"], is_full: bool) -> Moments:
    left = _at(moments.left, at, -2 if is_full else -1)
    cross, area = (_both_at(pair, at, is_full) for pair in moments[2:])
    return Moments(left, _at(moments.right, at, -1), cross, area)


def _both_at(x: Array, at: Int[Array, " windows"], is_full: bool) -> Array:
    return _at(_at(x, at, -2), at, -1) if is_full else _at(x, at, -1)


def _at(x: Array, at: Int[Array, "..."], axis: int) -> Array:
    return jnp.take(x, at, axis=axis, mode="fill", fill_value=0)


def pool(state: KernelState, table: Int[np.ndarray, "windows size"]) -> KernelState:
    """The kernels of means over each window, from those of all pairs of pixels."""
    at = jnp.asarray(table)

    def mean(x: Float[Array, "... P P"]) -> Float[Array, "... windows windows"]:
        rows = jnp.mean(_at(x, at, -1), -1).mT
        return jnp.mean(_at(rows, at, -1), -1).mT

    every = (state.moments, *state.self_moments)
    crosses, same = [mean(m.cross) for m in every], [_same_windows(m, at) for m in every]
    return mixed(state, crosses, mean(state.ntk), same)


def mixed(
    state: KernelState,
    crosses: list[Float[Array, "..."]],
    ntk: Float[Array, "n1 n2 P P"],
    is_same: list[Bool[Array, "..."]],
) -> KernelState:
    """The state after a linear map of each example's pixels, which gave these kernels.

    Args:
        state: with all pairs of pixels.
        crosses: the cross-moments, and those within the examples of either list.
        ntk: the neural tangent kernel.
        is_same: for each of the cross-moments, which pixels are the same but for a sign.
    """
    own = [jnp.diagonal(cross, axis1=-2, axis2=-1) for cross in crosses[1:]]
    ends = [(variance[:, :, None], variance[:, None, :]) for variance in own]
    ends = [(own[0][:, None, :, None], own[1][None, :, None, :]), *ends]
    parts = zip(ends, crosses, is_same, strict=True)
    moments, *within = [of_products(*end, cross, same) for end, cross, same in parts]
    return state.replace(moments=moments, ntk=ntk, self_moments=tuple(within))


def _same_windows(moments: Moments, at: Int[Array, "windows size"]) -> Bool[Array, "..."]:
    """Tell whether the pixels of two windows are parallel and of one size, each by itself."""
    same = moments.is_parallel
    edge = [(0, 0)] * (same.ndim - 2) + [(0, 1), (0, 1)]
    same = jnp.pad(same, edge).at[..., -1, -1].set(True)
    return jnp.all(same[..., at[:, None, :], at[None, :, :]], -1)

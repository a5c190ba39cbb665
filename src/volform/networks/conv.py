"""Layers of images and sequences: convolutions, with weights that pixels share or do not."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.networks.dense import WeightLayer
from volform.networks.layer import Place
from volform.networks.parametrization import Fans
from volform.networks.window import Padding, SpreadWindow, Window, window


class WindowLayer(WeightLayer):
    """A layer whose units at a pixel see the channels in a window of the image before it."""

    width: int = eqx.field(static=True)
    filter_shape: tuple[int, ...] = eqx.field(static=True)
    w_std: Any = 1.0
    b_std: Any = None
    strides: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)
    padding: Padding = eqx.field(static=True, default=Padding.SAME, kw_only=True)

    def __check_init__(self) -> None:
        _ = self.window  # checks it

    @property
    def window(self) -> Window:
        """Its windows."""
        name = type(self).__name__
        return window(self.filter_shape, self.strides, self.padding, name, "filter_shape")

    def fans(self, shape: tuple[int, ...], place: Place) -> Fans:
        """As many inputs as channels times pixels of a window."""
        self.pixels(shape)
        fan_in = shape[-1] * math.prod(self.filter_shape)
        return Fans(fan_in, self.width, place.is_first, place.is_last)

    def pixels(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One for each window."""
        return self.window.placed(shape, f"{type(self).__name__}({self.width})")


class Conv(WindowLayer):
    """Convolution: the units at a pixel see the channels in a window around it.

    What lies outside the image counts as zero, unless the padding is circular. `fan_in` is the
    number of channels times the size of the window; a row of weights is a window (height, width,
    channels), flattened.

    Images have the shape (n, height, width, channels), sequences (n, length, channels).

    Args:
        width: number of output channels.
        filter_shape: size of the window in each direction, such as (3, 3).
        w_std: standard deviation of `W sqrt(fan_in)`; a number or a traced value.
        b_std: standard deviation of the biases, one for each channel; no biases if None.
        strides: from one window to the next in each direction; 1 if None.
        padding: what windows see beyond the edge.

    Raises:
        NetworkError: when width, `filter_shape` or `strides` are not positive integers, `w_std` is
            not positive, `b_std` negative, or `padding` no `Padding`.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.Conv(64, (3, 3)), nn.Relu(), nn.Flatten(), nn.Dense(1))
    >>> round(float(k.kernel(net, jnp.ones((1, 4, 4, 1))).nngp[0, 0]), 6)
    0.347222
    """

    def product(
        self, weight: Float[Array, "width fan_in"], x: Float[Array, "n ... channels"]
    ) -> Float[Array, "n ... width"]:
        """The convolution, without reversing the filter."""
        return _slid(weight, self.window.padded(x), self.filter_shape, self.window.strides)


class ConvTranspose(WindowLayer):
    """Transposed convolution, as decoders enlarge images by it: strides lie between inputs.

    The image is spread out, with `strides - 1` zeros behind each pixel, and a window moved over it
    pixel by pixel: that of `jax.lax.conv_transpose`, with strides times as many pixels (for
    `VALID`, `filter_shape - strides` more, where that is positive). Filters are not reversed.
    `fan_in` is that of `Conv`: channels times the size of the window. A unit sees about one part of
    them in the product of the strides, so that its variance is smaller by that.

    Args:
        width: number of output channels.
        filter_shape: size of the window in each direction, such as (3, 3).
        w_std: standard deviation of `W sqrt(fan_in)`; a number or a traced value.
        b_std: standard deviation of the biases, one for each channel; no biases if None.
        strides: output pixels for each pixel in each direction; 1 if None.
        padding: what windows see beyond the edge; for `CIRCULAR` the opposite edge of the image
            that is spread out.

    Raises:
        NetworkError: as for `Conv`.

    References:
        Dumoulin & Visin (2016), A guide to convolution arithmetic for deep learning, section 4.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> decoder = nn.ConvTranspose(8, (2,), w_std=2.0, strides=(2,))
    >>> decoder.parameters((5, 3), nn.whole(None))[1]
    (10, 8)
    >>> k.kernel(nn.serial(decoder, nn.Flatten()), jnp.ones((1, 5, 3))).nngp.tolist()
    [[2.0]]
    """

    @property
    def window(self) -> Window:
        """Its windows on the image that is spread out."""
        return SpreadWindow(*super().window)

    def product(
        self, weight: Float[Array, "width fan_in"], x: Float[Array, "n ... channels"]
    ) -> Float[Array, "n ... width"]:
        """The convolution of the image that is spread out."""
        ones = (1,) * len(self.filter_shape)
        return _slid(weight, self.window.padded(x), self.filter_shape, ones)


class ConvLocal(WindowLayer):
    """Locally connected layer: the windows of `Conv`, with weights and biases for each of them.

    Different pixels are uncorrelated: both kernels of two pixels are those of `Conv` if they are
    one, and zero if not. `w` has the shape (height, width, units, fan_in) for so many windows on an
    image, `b` has (height, width, units).

    Units may change places at each pixel by itself. Of these copies of a mode those at all pixels
    at once are counted, and an evidence says that there are others.

    Args:
        width: number of output channels.
        filter_shape: size of the window in each direction, such as (3, 3).
        w_std: standard deviation of `W sqrt(fan_in)`; a number or a traced value.
        b_std: standard deviation of the biases, one for each channel and pixel; no biases if None.
        strides: from one window to the next in each direction; 1 if None.
        padding: what windows see beyond the edge.

    Raises:
        NetworkError: as for `Conv`.

    References:
        Novak et al. (2019), Bayesian deep convolutional networks with many channels are Gaussian
        processes, section 5.1, of networks without weight sharing.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.ConvLocal(64, (1,)), nn.GlobalSumPool())
    >>> k.kernel(net, jnp.ones((1, 5, 1))).nngp.tolist()  # a sum of five, which nothing ties
    [[5.0]]
    """

    def unshared(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """All pixels of its output."""
        return self.pixels(shape)

    def product(
        self, weight: Float[Array, "*pixels width fan_in"], x: Float[Array, "n ... channels"]
    ) -> Float[Array, "n ... width"]:
        """Each window times the weights of its own."""
        pixels = weight.shape[:-2]
        table = self.window.table(x.shape[1:-1])
        # Behind the last pixel are zeros, which the windows see beyond the edge.
        flat = jnp.pad(x.reshape(len(x), -1, x.shape[-1]), [(0, 0), (0, 1), (0, 0)])
        seen = jnp.take(flat, table, axis=1, mode="clip").reshape(len(x), len(table), -1)
        own = weight.reshape(len(table), *weight.shape[-2:])
        return jnp.einsum("npf,pwf->npw", seen, own).reshape(len(x), *pixels, self.width)


def _slid(
    weight: Float[Array, "width fan_in"],
    padded: Float[Array, "n ... channels"],
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> Float[Array, "n ... width"]:
    """Products of a filter with all windows of images that lie inside."""
    dtype = jnp.result_type(padded, weight)
    return jax.lax.conv_general_dilated(
        padded.astype(dtype),
        weight.reshape(len(weight), *shape, padded.shape[-1]).astype(dtype),
        strides,
        "VALID",
        dimension_numbers=_layout(padded.ndim),
    )


def _layout(rank: int) -> jax.lax.ConvDimensionNumbers:
    """Channels last, in filters the outputs first."""
    axes = (0, rank - 1, *range(1, rank - 1))
    return jax.lax.ConvDimensionNumbers(axes, axes, axes)

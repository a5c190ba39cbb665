"""Layers of images and sequences: convolution and pooling."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.networks.dense import WeightLayer
from volform.networks.layer import Place, Weightless
from volform.networks.parametrization import Fans
from volform.networks.window import Padding, Window, window


class Conv(WeightLayer):
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
        return window(self.filter_shape, self.strides, self.padding, "Conv", "filter_shape")

    def fans(self, shape: tuple[int, ...], place: Place) -> Fans:
        """As many inputs as channels times pixels of a window."""
        self.pixels(shape)
        fan_in = shape[-1] * math.prod(self.filter_shape)
        return Fans(fan_in, self.width, place.is_first, place.is_last)

    def pixels(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One for each window."""
        return self.window.placed(shape, f"Conv({self.width})")

    def product(
        self, weight: Float[Array, "width fan_in"], x: Float[Array, "n ... channels"]
    ) -> Float[Array, "n ... width"]:
        """The convolution, without reversing the filter."""
        dtype = jnp.result_type(x, weight)
        return jax.lax.conv_general_dilated(
            self.window.padded(x).astype(dtype),
            weight.reshape(self.width, *self.filter_shape, x.shape[-1]).astype(dtype),
            self.window.strides,
            "VALID",
            dimension_numbers=_layout(x.ndim),
        )


class AvgPool(Weightless):
    """Means over windows.

    Args:
        window_shape: size of the window in each direction.
        strides: from one window to the next; `window_shape` if None.
        padding: what windows see beyond the edge. Zeros count in the mean.

    Raises:
        NetworkError: as for `Conv`.

    >>> import jax.numpy as jnp
    >>> from volform import networks as nn
    >>> nn.AvgPool((2,)).apply((), jnp.arange(4.0)[None, :, None])[0, :, 0].tolist()
    [0.5, 2.5]
    """

    window_shape: tuple[int, ...] = eqx.field(static=True)
    strides: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)
    padding: Padding = eqx.field(static=True, default=Padding.VALID, kw_only=True)

    def __check_init__(self) -> None:
        _ = self.window  # checks it

    @property
    def window(self) -> Window:
        """Its windows."""
        strides = self.window_shape if self.strides is None else self.strides
        return window(self.window_shape, strides, self.padding, "AvgPool", "window_shape")

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One pixel for each window."""
        return (*self.window.placed(shape, "AvgPool"), shape[-1])

    def forward(
        self, params: tuple[()], x: Float[Array, "n ... channels"], place: Place
    ) -> Float[Array, "n ... channels"]:
        """The mean over each window."""
        self.shape_of(x.shape[1:])
        size, strides = (1, *self.window_shape, 1), (1, *self.window.strides, 1)
        padded = self.window.padded(x)
        total = jax.lax.reduce_window(padded, 0.0, jax.lax.add, size, strides, "VALID")
        return total / math.prod(size)


class GlobalAvgPool(Weightless):
    """The mean over all pixels; blind to translations, if padding is circular.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.GlobalAvgPool(), nn.Dense(1))
    >>> k.kernel(net, jnp.array([[[1.0], [3.0]]])).nngp.tolist()
    [[4.0]]
    """

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The number of channels."""
        return shape[-1:]

    def forward(
        self, params: tuple[()], x: Float[Array, "n ... channels"], place: Place
    ) -> Float[Array, "n channels"]:
        """The mean over all pixels."""
        return jnp.mean(x.reshape(len(x), -1, x.shape[-1]), 1)


def _layout(rank: int) -> jax.lax.ConvDimensionNumbers:
    """Channels last, in filters the outputs first."""
    axes = (0, rank - 1, *range(1, rank - 1))
    return jax.lax.ConvDimensionNumbers(axes, axes, axes)

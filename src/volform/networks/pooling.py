"""Pooling of images and sequences: means and sums over windows, and over all pixels."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.networks.layer import Place, Weightless
from volform.networks.window import Padding, Window, window


class WindowPool(Weightless):
    """One number for each window of each channel."""

    window_shape: tuple[int, ...] = eqx.field(static=True)
    strides: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)
    padding: Padding = eqx.field(static=True, default=Padding.VALID, kw_only=True)

    def __check_init__(self) -> None:
        _ = self.window  # checks it

    @property
    def window(self) -> Window:
        """Its windows."""
        strides = self.window_shape if self.strides is None else self.strides
        name = type(self).__name__
        return window(self.window_shape, strides, self.padding, name, "window_shape")

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One pixel for each window."""
        return (*self.window.placed(shape, type(self).__name__), shape[-1])

    def total(self, x: Float[Array, "n ... channels"]) -> Float[Array, "n ... channels"]:
        """The sum over each window."""
        self.shape_of(x.shape[1:])
        size, strides = (1, *self.window_shape, 1), (1, *self.window.strides, 1)
        padded = self.window.padded(x)
        return jax.lax.reduce_window(padded, 0.0, jax.lax.add, size, strides, "VALID")


class AvgPool(WindowPool):
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

    def forward(
        self, params: tuple[()], x: Float[Array, "n ... channels"], place: Place
    ) -> Float[Array, "n ... channels"]:
        """The mean over each window."""
        return self.total(x) / math.prod(self.window_shape)


class SumPool(WindowPool):
    """Sums over windows: means times the number of their pixels, whose square is in both kernels.

    Args:
        window_shape: size of the window in each direction.
        strides: from one window to the next; `window_shape` if None.
        padding: what windows see beyond the edge.

    Raises:
        NetworkError: as for `Conv`.

    >>> import jax.numpy as jnp
    >>> from volform import networks as nn
    >>> nn.SumPool((2,)).apply((), jnp.arange(4.0)[None, :, None])[0, :, 0].tolist()
    [1.0, 5.0]
    """

    def forward(
        self, params: tuple[()], x: Float[Array, "n ... channels"], place: Place
    ) -> Float[Array, "n ... channels"]:
        """The sum over each window."""
        return self.total(x)


class GlobalPool(Weightless):
    """One number for each channel, over all pixels."""

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The number of channels."""
        return shape[-1:]


class GlobalAvgPool(GlobalPool):
    """The mean over all pixels; blind to translations, if padding is circular.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.GlobalAvgPool(), nn.Dense(1))
    >>> k.kernel(net, jnp.array([[[1.0], [3.0]]])).nngp.tolist()
    [[4.0]]
    """

    def forward(
        self, params: tuple[()], x: Float[Array, "n ... channels"], place: Place
    ) -> Float[Array, "n channels"]:
        """The mean over all pixels."""
        return jnp.mean(_pixels(x), 1)


class GlobalSumPool(GlobalPool):
    """The sum over all pixels: the mean times their number, whose square is in both kernels.

    For what adds up over the parts of an example, as energies do over the atoms of a molecule.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.GlobalSumPool(), nn.Dense(1))
    >>> k.kernel(net, jnp.array([[[1.0], [3.0]]])).nngp.tolist()
    [[16.0]]
    """

    def forward(
        self, params: tuple[()], x: Float[Array, "n ... channels"], place: Place
    ) -> Float[Array, "n channels"]:
        """The sum over all pixels."""
        return jnp.sum(_pixels(x), 1)


def _pixels(x: Float[Array, "n ... channels"]) -> Float[Array, "n pixels channels"]:
    return x.reshape(len(x), -1, x.shape[-1])

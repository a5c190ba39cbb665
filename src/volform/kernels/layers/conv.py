"""Layers of images and sequences: convolution, pooling, and what makes vectors of them."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.kernels.layers.dense import WeightLayer, require_weights
from volform.kernels.layers.layer import Pointwise, Weightless
from volform.kernels.propagation.moments import Moments
from volform.kernels.propagation.state import KernelState, LayerContext, Pairs
from volform.kernels.propagation.window import Padding, Window, pool, window, window_mean
from volform.networks.parametrization import Fans


class Conv(WeightLayer):
    """Convolution: the units at a pixel see the channels in a window around it.

    As `Dense`, with K and T of two pixels replaced by their means over the window: at the pixels p
    and p', `1/size sum_d K(p + d, p' + d)`. What lies outside the image counts as zero, unless the
    padding is circular. `fan_in` is the number of channels times the size of the window.

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

    References:
        Novak et al. (2019), Bayesian deep convolutional networks with many channels are Gaussian
        processes; Garriga-Alonso, Rasmussen & Aitchison (2019), Deep convolutional networks as
        shallow Gaussian processes.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> net = k.serial(k.Conv(64, (3, 3)), k.Relu(), k.Flatten(), k.Dense(1))
    >>> round(float(net.kernel(jnp.ones((1, 4, 4, 1))).nngp[0, 0]), 6)
    0.347222
    """

    width: int = eqx.field(static=True)
    filter_shape: tuple[int, ...] = eqx.field(static=True)
    w_std: Any = 1.0
    b_std: Any = None
    strides: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)
    padding: Padding = eqx.field(static=True, default=Padding.SAME, kw_only=True)

    def __check_init__(self) -> None:
        _ = self._window  # checks it

    @property
    def _window(self) -> Window:
        return window(self.filter_shape, self.strides, self.padding, "Conv", "filter_shape")

    def pairs_needed(self, pairs: Pairs) -> Pairs:
        """The same pairs, and pixels rather than means."""
        return max(pairs, Pairs.EQUAL)

    def propagate(self, state: KernelState, place: LayerContext) -> KernelState:
        """Means over the windows, then as for `Dense`."""
        counts, fans = self._sizes(state.shape, place)
        means = window_mean(state, self._window.table(state.shape[:-1]))
        return self.affine(means.replace(shape=(*counts, self.width)), fans, place)

    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], place: LayerContext
    ) -> tuple[dict[str, Array], tuple[int, ...]]:
        """Weights (width, *filter_shape, channels) and biases (width,)."""
        counts, fans = self._sizes(shape, place)
        weights = (self.width, *self.filter_shape, shape[-1])
        return self.draw_weights(key, weights, fans, place), (*counts, self.width)

    def forward(
        self, params: dict[str, Array], x: Float[Array, "n ... channels"], place: LayerContext
    ) -> Float[Array, "n ... width"]:
        """`m (x * w) + m' b`, without reversing the filter."""
        _, fans = self._sizes(x.shape[1:], place)
        w = params["w"]
        require_weights(w, (self.width, *self.filter_shape, x.shape[-1]), f"images {x.shape[1:]}")
        layout = (0, x.ndim - 1, *range(1, x.ndim - 1))  # channels last, outputs first
        dtype = jnp.result_type(x, w)
        product = jax.lax.conv_general_dilated(
            self._window.padded(x).astype(dtype),
            w.astype(dtype),
            self._window.strides,
            "VALID",
            dimension_numbers=jax.lax.ConvDimensionNumbers(layout, layout, layout),
        )
        return self.scaled(product, params.get("b"), fans, place)

    def _sizes(self, shape: tuple[int, ...], place: LayerContext) -> tuple[tuple[int, ...], Fans]:
        counts = self._window.placed(shape, f"Conv({self.width})")
        fan_in = shape[-1] * math.prod(self.filter_shape)
        return counts, Fans(fan_in, self.width, place.is_first, place.is_last)


class AvgPool(Weightless):
    """Means over windows: `K'(p, p') = 1/size^2 sum_{d, d'} K(p + d, p' + d')`, likewise T.

    It needs the kernels of all pairs of pixels in the layers before it: P^2 numbers for P pixels
    and each pair of examples.

    Args:
        window_shape: size of the window in each direction.
        strides: from one window to the next; `window_shape` if None.
        padding: what windows see beyond the edge. Zeros count in the mean.

    Raises:
        NetworkError: as for `Conv`.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> k.AvgPool((2,)).apply((), jnp.arange(4.0)[None, :, None])[0, :, 0].tolist()
    [0.5, 2.5]
    """

    window_shape: tuple[int, ...] = eqx.field(static=True)
    strides: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)
    padding: Padding = eqx.field(static=True, default=Padding.VALID, kw_only=True)

    def __check_init__(self) -> None:
        _ = self._window  # checks it

    @property
    def _window(self) -> Window:
        strides = self.window_shape if self.strides is None else self.strides
        return window(self.window_shape, strides, self.padding, "AvgPool", "window_shape")

    def pairs_needed(self, pairs: Pairs) -> Pairs:
        """All pairs."""
        return Pairs.ALL

    def propagate(self, state: KernelState, place: LayerContext) -> KernelState:
        """Means of both kernels over pairs of pixels."""
        shape = self.shape_of(state.shape)
        return pool(state, self._window.table(state.shape[:-1])).replace(shape=shape)

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One pixel for each window."""
        return (*self._window.placed(shape, "AvgPool"), shape[-1])

    def forward(
        self, params: tuple[()], x: Float[Array, "n ... channels"], place: LayerContext
    ) -> Float[Array, "n ... channels"]:
        """The mean over each window."""
        self.shape_of(x.shape[1:])
        size, strides = (1, *self.window_shape, 1), (1, *self._window.strides, 1)
        padded = self._window.padded(x)
        total = jax.lax.reduce_window(padded, 0.0, jax.lax.add, size, strides, "VALID")
        return total / math.prod(size)


class GlobalAvgPool(Weightless):
    """The mean over all pixels: kernels are means over all pairs of pixels.

    It makes the network blind to translations, if padding is circular, and needs the kernels of all
    pairs of pixels in the layers before it.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> net = k.serial(k.GlobalAvgPool(), k.Dense(1))
    >>> net.kernel(jnp.array([[[1.0], [3.0]]])).nngp.tolist()
    [[4.0]]
    """

    def pairs_needed(self, pairs: Pairs) -> Pairs:
        """All pairs."""
        return Pairs.ALL

    def propagate(self, state: KernelState, place: LayerContext) -> KernelState:
        """Means of both kernels over all pairs of pixels."""
        if not state.has_pixels:
            return state
        state = pool(state, np.arange(state.moments.cross.shape[-1])[None])
        moments = Moments(*(moment[..., 0, 0] for moment in state.moments))
        shape = self.shape_of(state.shape)
        return state.replace(
            moments=moments, ntk=state.ntk[..., 0, 0], shape=shape, self_moments=()
        )

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The number of channels."""
        return shape[-1:]

    def forward(
        self, params: tuple[()], x: Float[Array, "n ... channels"], place: LayerContext
    ) -> Float[Array, "n channels"]:
        """The mean over all pixels."""
        return jnp.mean(x.reshape(len(x), -1, x.shape[-1]), 1)


class Flatten(Weightless):
    """Examples of any shape as vectors: kernels are means over pixels, each with itself."""

    def pairs_needed(self, pairs: Pairs) -> Pairs:
        """Means are enough."""
        return Pairs.NONE

    def propagate(self, state: KernelState, place: LayerContext) -> KernelState:
        """Means of both kernels over the pixels; their law is not that of one Gaussian process."""
        shape = self.shape_of(state.shape)
        if not state.has_pixels:
            return state.replace(shape=shape)
        state = window_mean(state, np.arange(state.moments.cross.shape[-1])[None])
        moments = Moments(*(moment[..., 0] for moment in state.moments))
        return state.replace(moments=moments, ntk=state.ntk[..., 0], shape=shape, is_gaussian=False)

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The number of all features."""
        return (math.prod(shape),)

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: LayerContext) -> Array:
        """Each example as a vector."""
        return x.reshape(len(x), -1)


class Identity(Pointwise):
    """Outputs are inputs: a skip connection in `summed`."""

    def propagate(self, state: KernelState, place: LayerContext) -> KernelState:
        """The state itself."""
        return state

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: LayerContext) -> Array:
        """The inputs."""
        return x

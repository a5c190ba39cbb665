"""Layers with weights for each input, and dense ones."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import require_positive
from volform.errors import NetworkError
from volform.kernels.layers.layer import Wide
from volform.kernels.propagation.moments import constant
from volform.kernels.propagation.state import KernelState, LayerContext, Pairs
from volform.networks.parametrization import Fans


class WeightLayer(Wide):
    """A layer of `z = m w x + m' b`, multipliers and priors of the place.

    With `W = m w`: `K' = fan_in Var(W) K + Var(m' b)`, and
    `T' = fan_in Var(W) T + m^2 fan_in K + m'^2`, with K and T means over a unit's inputs.
    """

    w_std: eqx.AbstractVar[Any]
    b_std: eqx.AbstractVar[Any]

    def __check_init__(self) -> None:
        if not isinstance(self.width, int) or self.width < 1:
            raise NetworkError(
                f"`width` of {type(self).__name__} is {self.width!r}; it should be a positive "
                "integer, the number of units (of outputs in the last layer)."
            )
        require_positive(self.w_std, "w_std", "the standard deviation of weights times sqrt(n)")
        if self.b_std is not None and not _is_zero(self.b_std):
            require_positive(self.b_std, "b_std", "or None for a layer without biases")

    @property
    def has_weights(self) -> bool:
        """It has."""
        return True

    @property
    def is_centered(self) -> bool:
        """Its weights have zero mean."""
        return True

    def affine(self, state: KernelState, fans: Fans, place: LayerContext) -> KernelState:
        """Scaled by the weights, plus a constant for the biases and a term for its gradients."""
        weight = place.parametrization.weight(fans, self.w_std)
        spread = fans.fan_in * weight.weight_deviation**2
        ntk = spread * state.ntk + weight.multiplier**2 * fans.fan_in * state.moments.cross
        state = state.map(lambda moments: moments.times(spread))
        if self.b_std is not None:
            bias = place.parametrization.bias(fans, self.b_std)
            variance = bias.weight_deviation**2
            state = state.map(lambda moments: moments.plus(constant(variance, moments)))
            ntk += bias.multiplier**2
        shape = (*state.shape[:-1], self.width)
        return state.replace(ntk=ntk, shape=shape, is_gaussian=True)

    def draw_weights(
        self, key: PRNGKeyArray, shape: tuple[int, ...], fans: Fans, place: LayerContext
    ) -> dict[str, Array]:
        """Weights of this shape, and biases (width,)."""
        w_key, b_key = jax.random.split(key)
        deviation = place.parametrization.weight(fans, self.w_std).deviation
        params = {"w": deviation * jax.random.normal(w_key, shape)}
        if self.b_std is not None:
            deviation = place.parametrization.bias(fans, self.b_std).deviation
            params["b"] = deviation * jax.random.normal(b_key, (self.width,))
        return params

    def scaled(
        self, product: Float[Array, "n ... width"], b: Array | None, fans: Fans, place: LayerContext
    ) -> Float[Array, "n ... width"]:
        """`m product + m' b`."""
        z = place.parametrization.weight(fans, self.w_std).multiplier * product
        if b is None:
            return z
        b = jnp.expand_dims(b, range(z.ndim - 1))
        return z + place.parametrization.bias(fans, self.b_std).multiplier * b


class Dense(WeightLayer):
    """Every unit sees every input, `z = m w x + m' b`, multipliers and priors of the place.

    With `W = m w`: `K' = fan_in Var(W) K + Var(m' b)`, and
    `T' = fan_in Var(W) T + m^2 fan_in K + m'^2`.

    Args:
        width: number of units.
        w_std: standard deviation of `W sqrt(fan_in)`; a number or a traced value.
        b_std: standard deviation of the biases; no biases if None.

    Raises:
        NetworkError: when the width is no positive integer, `w_std` is not positive or `b_std`
            negative.
    """

    width: int = eqx.field(static=True)
    w_std: Any = 1.0
    b_std: Any = None

    def pairs_needed(self, pairs: Pairs) -> Pairs:
        """Vectors have no pixels."""
        return Pairs.NONE

    def propagate(self, state: KernelState, place: LayerContext) -> KernelState:
        """Scaled by the weights, plus a constant for the biases and a term for its gradients."""
        return self.affine(state, self._fans(state.shape, place), place)

    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], place: LayerContext
    ) -> tuple[dict[str, Array], tuple[int, ...]]:
        """Weights (width, fan_in) and biases (width,)."""
        fans = self._fans(shape, place)
        return self.draw_weights(key, (self.width, fans.fan_in), fans, place), (self.width,)

    def forward(
        self, params: dict[str, Array], x: Float[Array, "n fan_in"], place: LayerContext
    ) -> Float[Array, "n width"]:
        """`m x w^T + m' b`."""
        fans = self._fans(x.shape[1:], place)
        require_weights(params["w"], (self.width, fans.fan_in), f"{fans.fan_in} features")
        return self.scaled(x @ params["w"].T, params.get("b"), fans, place)

    def _fans(self, shape: tuple[int, ...], place: LayerContext) -> Fans:
        if len(shape) != 1:
            raise NetworkError(
                f"`Dense({self.width})` got examples of shape {shape}; it takes a vector of "
                "features: put `Flatten()` or `GlobalAvgPool()` before it."
            )
        return Fans(shape[0], self.width, place.is_first, place.is_last)


def require_weights(w: Array, shape: tuple[int, ...], inputs: str) -> None:
    """Raises NetworkError when weights do not have this shape, that of a layer on such inputs."""
    if w.shape != shape:
        raise NetworkError(
            f"`params` holds weights of shape {w.shape}; a layer of width {shape[0]} on {inputs} "
            f"has weights of shape {shape}: give the inputs that `init` was told of."
        )


def _is_zero(value: Any) -> bool:
    return not isinstance(value, Tracer) and bool(np.all(np.asarray(value) == 0))

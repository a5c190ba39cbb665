"""Dense layers, and those that only pass on."""

import math
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from volform.errors import NetworkError
from volform.geometry import Fans
from volform.kernels.checking import require_positive
from volform.kernels.layer import Layer, Place, State, Weightless
from volform.kernels.moments import constant


class Dense(Layer):
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

    def __check_init__(self) -> None:
        if not isinstance(self.width, int) or self.width < 1:
            raise NetworkError(
                f"`width` of Dense is {self.width!r}; it should be a positive integer, the number "
                "of units (of outputs in the last layer)."
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

    def propagate(self, state: State, place: Place) -> State:
        """Scaled by the weights, plus a constant for the biases and a term for its gradients."""
        fans = self._fans(state.shape, place)
        weight = place.parametrization.weight(fans, self.w_std)
        spread = fans.fan_in * weight.weight_deviation**2
        moments, ntk = state.moments.times(spread), spread * state.ntk
        ntk += weight.multiplier**2 * fans.fan_in * state.moments.cross
        if self.b_std is not None:
            bias = place.parametrization.bias(fans, self.b_std)
            moments = moments.plus(constant(bias.weight_deviation**2, moments))
            ntk += bias.multiplier**2
        return State(moments, ntk, (self.width,), is_gaussian=True)

    def draw(
        self, key: PRNGKeyArray, shape: tuple[int, ...], place: Place
    ) -> tuple[dict[str, Array], tuple[int, ...]]:
        """Weights (width, fan_in) and biases (width,)."""
        fans = self._fans(shape, place)
        w_key, b_key = jax.random.split(key)
        deviation = place.parametrization.weight(fans, self.w_std).deviation
        params = {"w": deviation * jax.random.normal(w_key, (self.width, fans.fan_in))}
        if self.b_std is not None:
            deviation = place.parametrization.bias(fans, self.b_std).deviation
            params["b"] = deviation * jax.random.normal(b_key, (self.width,))
        return params, (self.width,)

    def forward(
        self, params: dict[str, Array], x: Float[Array, "n fan_in"], place: Place
    ) -> Float[Array, "n width"]:
        """`m x w^T + m' b`."""
        fans = self._fans(x.shape[1:], place)
        if params["w"].shape != (self.width, fans.fan_in):
            raise NetworkError(
                f"`params` holds weights of shape {params['w'].shape}; a layer of width "
                f"{self.width} on {fans.fan_in} features has weights of shape "
                f"({self.width}, {fans.fan_in}): give the inputs that `init` was told of."
            )
        z = place.parametrization.weight(fans, self.w_std).multiplier * (x @ params["w"].T)
        if self.b_std is None:
            return z
        return z + place.parametrization.bias(fans, self.b_std).multiplier * params["b"]

    def _fans(self, shape: tuple[int, ...], place: Place) -> Fans:
        if len(shape) != 1:
            raise NetworkError(
                f"`Dense({self.width})` got examples of shape {shape}; it takes a vector of "
                "features: put `Flatten()` before it."
            )
        return Fans(shape[0], self.width, place.is_first, place.is_last)


class Identity(Weightless):
    """Outputs are inputs: a skip connection in `summed`."""

    def propagate(self, state: State, place: Place) -> State:
        """The state itself."""
        return state

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: Place) -> Array:
        """The inputs."""
        return x


class Flatten(Weightless):
    """Examples of any shape as vectors; the first layer for images."""

    def propagate(self, state: State, place: Place) -> State:
        """The state, of vectors: moments are means over all features as they are."""
        return state._replace(shape=self.shape_of(state.shape))

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The number of all features."""
        return (math.prod(shape),)

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: Place) -> Array:
        """Each example as a vector."""
        return x.reshape(len(x), -1)


def _is_zero(value: Any) -> bool:
    return not isinstance(value, Tracer) and bool(np.all(np.asarray(value) == 0))

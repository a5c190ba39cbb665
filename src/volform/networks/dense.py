"""Layers with weights for each unit, and dense ones."""

import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from volform.checks import require_positive
from volform.errors import NetworkError
from volform.networks.layer import ParameterArray, Place, Wide
from volform.networks.parametrization import Fans


class WeightLayer(Wide):
    """A layer of `z = m w x + m' b`, multipliers and priors of the place.

    ParameterArray have one row for each unit, and biases one number; for each pixel anew where
    pixels do not share them.
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

    @abc.abstractmethod
    def fans(self, shape: tuple[int, ...], place: Place) -> Fans:
        """Its sizes, for examples of this shape.

        Raises:
            NetworkError: when it takes no such examples.
        """

    @abc.abstractmethod
    def pixels(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Pixels of its output in each direction, for examples of this shape."""

    @abc.abstractmethod
    def product(
        self, weight: Float[Array, "*unshared width fan_in"], x: Float[Array, "n ..."]
    ) -> Float[Array, "n ... width"]:
        """The units' values, without biases."""

    def unshared(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Pixels of its output with weights of their own; none where all share them."""
        return ()

    def parameters(
        self, shape: tuple[int, ...], place: Place
    ) -> tuple[dict[str, ParameterArray], tuple[int, ...]]:
        """ParameterArray "w", (width, fan_in), and biases "b", (width,); or for each pixel."""
        found = self.weights(self.fans(shape, place), place, self.unshared(shape))
        return found, (*self.pixels(shape), self.width)

    def weights(
        self, fans: Fans, place: Place, pixels: tuple[int, ...] = ()
    ) -> dict[str, ParameterArray]:
        """Its parameters, for these sizes and so many pixels with weights of their own."""
        weight = place.parametrization.weight(fans, self.w_std)
        by_pixel = bool(pixels)
        found = {"w": ParameterArray((*pixels, self.width, fans.fan_in), weight, by_pixel)}
        if self.b_std is not None:
            bias = place.parametrization.bias(fans, self.b_std)
            found["b"] = ParameterArray((*pixels, self.width), bias, by_pixel)
        return found

    def forward(
        self, params: dict[str, Array], x: Float[Array, "n ..."], place: Place
    ) -> Float[Array, "n ... width"]:
        """`m w x + m' b`."""
        fans = self.fans(x.shape[1:], place)
        if not isinstance(params, Mapping) or "w" not in params:
            name = f"{type(self).__name__}({self.width})"
            raise NetworkError(
                f"`params` of `{name}` is a {type(params).__name__}; it should be a dict with 'w' "
                "and, where there are biases, 'b', as `init` returns it."
            )
        wanted = (*self.unshared(x.shape[1:]), self.width, fans.fan_in)
        if params["w"].shape != wanted:
            raise NetworkError(
                f"`params` holds weights of shape {params['w'].shape}; a layer of width "
                f"{self.width} on {fans.fan_in} features has weights of shape "
                f"{wanted}: give the inputs that `init` was told of."
            )
        return self.affine(params, x, fans, place)

    def affine(
        self, params: dict[str, Array], x: Float[Array, "n ..."], fans: Fans, place: Place
    ) -> Float[Array, "n ... width"]:
        """`m w x + m' b`, for these sizes."""
        weight = place.parametrization.weight(fans, self.w_std).multiplier * params["w"]
        bias = None
        if "b" in params:
            bias = place.parametrization.bias(fans, self.b_std).multiplier * params["b"]
        z = self.product(weight, x)
        return z if bias is None else z + jnp.expand_dims(bias, tuple(range(z.ndim - bias.ndim)))


class Dense(WeightLayer):
    """Every unit sees every input, `z = m w x + m' b`, multipliers and priors of the place.

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

    def fans(self, shape: tuple[int, ...], place: Place) -> Fans:
        """As many inputs as features."""
        if len(shape) != 1:
            raise NetworkError(
                f"`Dense({self.width})` got examples of shape {shape}; it takes a vector of "
                "features: put `Flatten()` or `GlobalAvgPool()` before it, or write a single "
                "feature as `x[:, None]`."
            )
        return Fans(shape[0], self.width, place.is_first, place.is_last)

    def pixels(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """None."""
        return ()

    def product(
        self, weight: Float[Array, "width fan_in"], x: Float[Array, "n ... fan_in"]
    ) -> Float[Array, "n ... width"]:
        """`x W^T`."""
        return x @ weight.T


def _is_zero(value: Any) -> bool:
    return not isinstance(value, Tracer) and bool(np.all(np.asarray(value) == 0))

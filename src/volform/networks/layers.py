"""Layers of a network: what is linear in the weights, and what follows it."""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.primitives import apply_stack

from volform.errors import NetworkError


class Linear(eqx.Module):
    """A layer that is linear in its weights: a matrix with one row for each unit.

    Attributes:
        units: number of units (channels of a convolution).
    """

    units: eqx.AbstractVar[int]

    @abc.abstractmethod
    def fan_in(self, shape: tuple[int, ...]) -> int:
        """Number of weights of a unit, for inputs of this shape (without the batch)."""

    @abc.abstractmethod
    def features(self, x: Float[Array, "n ..."]) -> Float[Array, "n positions fan_in"]:
        """Factors of the rows of the weights, at each position of the output."""

    @abc.abstractmethod
    def __call__(self, weight: Float[Array, "units fan_in"], x: Float[Array, "n ..."]) -> Array:
        """The units' values, without biases; the last axis is the units'."""


class Dense(Linear):
    """Every unit sees every input: `x W^T`."""

    units: int

    def fan_in(self, shape: tuple[int, ...]) -> int:
        """The number of features."""
        return shape[-1]

    def features(self, x: Float[Array, "n fan_in"]) -> Float[Array, "n 1 fan_in"]:
        """The inputs themselves, at the only position."""
        return x[:, None]

    def __call__(
        self, weight: Float[Array, "units fan_in"], x: Float[Array, "n fan_in"]
    ) -> Float[Array, "n units"]:
        """`x W^T`."""
        return x @ weight.T


class Conv(Linear):
    """A convolution of images (n, height, width, channels) with stride 1.

    Attributes:
        units: number of channels of the output.
        window: height and width of the window.
        pad: whether zeros around the image keep its size.
    """

    units: int
    window: tuple[int, int] = (5, 5)
    pad: bool = False

    def fan_in(self, shape: tuple[int, ...]) -> int:
        """Channels times the size of the window."""
        return shape[-1] * math.prod(self.window)

    def features(self, x: Float[Array, "n h w c"]) -> Float[Array, "n positions fan_in"]:
        """The windows (height, width, channels), flattened."""
        layout = ("NHWC", "HWIO", "NHWC")
        found = jax.lax.conv_general_dilated_patches(
            x, self.window, (1, 1), self._padding, dimension_numbers=layout
        )
        by_channel = found.reshape(len(x), -1, x.shape[-1], math.prod(self.window))
        return jnp.moveaxis(by_channel, 2, 3).reshape(len(x), by_channel.shape[1], -1)

    def __call__(
        self, weight: Float[Array, "units fan_in"], x: Float[Array, "n h w c"]
    ) -> Float[Array, "n h2 w2 units"]:
        """The convolution; a row of `weight` is a window (height, width, channels), flattened."""
        kernel = weight.reshape(self.units, *self.window, x.shape[-1])
        layout = ("NHWC", "OHWI", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), self._padding, dimension_numbers=layout
        )

    @property
    def _padding(self) -> str:
        return "SAME" if self.pad else "VALID"


class Affine(eqx.Module):
    """A linear layer and its biases, as the effect that a network has on NumPyro's handlers."""

    linear: Linear

    def __call__(
        self,
        weight: Float[Array, "units fan_in"],
        bias: Float[Array, " units"] | None,
        x: Float[Array, "n ..."],
    ) -> Array:
        """The units' values; the last axis is the units'."""
        z = self.linear(weight, x)
        return z if bias is None else z + jnp.expand_dims(bias, tuple(range(z.ndim - 1)))


def performed(
    linear: Linear,
    weight: Float[Array, "units fan_in"],
    bias: Float[Array, " units"] | None,
    x: Float[Array, "n ..."],
) -> Array:
    """A layer's values, by a nameless message to NumPyro's handlers: `Taps` listens to it."""
    message: Any = {"type": "layer", "fn": Affine(linear), "args": (weight, bias, x)}
    return apply_stack({**message, "kwargs": {}, "value": None})["value"]


class Stage(eqx.Module):
    """A linear layer and what follows it.

    Attributes:
        linear: the layer with the parameters.
        after: maps act one after the other on its output, for example activation and pooling.
        copies: number of sets of parameters that a symmetry of its units makes of one; None where
            it is not known.
    """

    linear: Linear
    after: tuple[Callable[[Array], Array], ...] = ()
    copies: int | None = None


def average_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Averages over windows of 2 x 2; an odd last row or column is left out."""
    n, h, w, c = x.shape
    even = x[:, : h - h % 2, : w - w % 2]
    return even.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def flatten(x: Float[Array, "n h w c"]) -> Float[Array, "n m"]:
    """Images as vectors."""
    return x.reshape(len(x), -1)


def copies_of(activation: Callable[[Array], Array], units: int) -> int | None:
    """Number of parameters with the function and the prior of one: `units!`, or times `2^units`.

    Units may be exchanged; behind an odd activation (tanh) or an even one the sign of a unit may be
    turned too. The scalings of units that leave the function as it is, behind a positively
    homogeneous activation (relu), do not leave the prior so, and do not count. Where the activation
    is linear, equivalent parameters form a continuum: None.

    The activation is asked on a grid, as one that acts elementwise.
    """
    with jax.ensure_compile_time_eval():  # under `jit` too
        grid = jnp.linspace(0.1, 3.0, 16)
        value = activation(grid)
        mirrored = activation(-grid)
        is_odd = bool(jnp.allclose(mirrored, -value, atol=1e-6))
        is_even = bool(jnp.allclose(mirrored, value, atol=1e-6))
        is_homogeneous = bool(jnp.allclose(activation(2.0 * grid), 2.0 * value, atol=1e-6))
    if is_odd and is_homogeneous:
        return None
    return math.factorial(units) * (2**units if is_odd or is_even else 1)


def require_units(value: object, argument: str) -> None:
    """Raises NetworkError when a number of units is no positive integer."""
    if not isinstance(value, int) or value < 1:
        raise NetworkError(
            f"`{argument}` holds {value!r}; each number of units should be a positive integer, "
            "such as `widths=(50, 50)` for two hidden layers."
        )

"""Layers as functions of their parameters, which are drawn from a prior."""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import require_key
from volform.errors import MovedError, NetworkError
from volform.networks.inputs import require_inputs
from volform.networks.parametrization import (
    NTP,
    Parametrization,
    Scaling,
    require_parametrization,
)


class Place(NamedTuple):
    """Place of a layer in its network.

    Attributes:
        parametrization: how its weights are scaled.
        is_first: whether no layer before it has weights.
        is_last: whether no layer after it has weights.
    """

    parametrization: Parametrization
    is_first: bool
    is_last: bool


@dataclasses.dataclass(frozen=True)
class ParameterArray:
    """One array of parameters of a layer.

    Attributes:
        shape: shape of the coordinates; of weights a row for each unit.
        scaling: multiplier in the function, and standard deviation of the prior.
        is_by_pixel: whether each pixel has entries of its own, so that units may change places at
            one pixel and not at others.
    """

    shape: tuple[int, ...]
    scaling: Scaling
    is_by_pixel: bool = False


class Layer(eqx.Module):
    """A layer, or a network of layers: a function of parameters and inputs.

    Questions to it are functions: `volform.kernels.kernel(layer, x)` its kernels in the limit of
    infinite width, `regression(layer)` and `classification(layer)` its NumPyro model. A layer of
    your own says its parameters and its function; it has no kernel until one is registered.
    """

    @property
    @abc.abstractmethod
    def has_weights(self) -> bool:
        """Tell whether it has parameters."""

    @property
    @abc.abstractmethod
    def is_centered(self) -> bool:
        """Tell whether outputs have zero mean given anything outside: a dense layer comes last."""

    @property
    def takes_tokens(self) -> bool:
        """Tell whether its inputs are integers."""
        return False

    @abc.abstractmethod
    def parameters(self, shape: tuple[int, ...], place: Place) -> tuple[Any, tuple[int, ...]]:
        """Its arrays of parameters for examples of this shape, and the outputs' shape.

        Arrays are `ParameterArray` in tuples and dicts; `params` has the same structure.
        """

    @abc.abstractmethod
    def forward(self, params: Any, x: Float[Array, "n ..."], place: Place) -> Array:
        """Outputs for a batch of examples."""

    def require_examples(self, x: Any, argument: str) -> Array:
        """`x` as an array of examples that it takes: of real numbers, for most layers.

        Raises:
            DataError: when it holds others.
        """
        return require_inputs(x, argument)

    def init(
        self,
        key: PRNGKeyArray,
        shape: tuple[int, ...],
        *,
        parametrization: Parametrization | None = None,
    ) -> Any:
        """Parameters drawn from the prior.

        Args:
            key: a random key.
            shape: shape of a batch of inputs, (n, features); n is not used.
            parametrization: `NTP()` if left out.

        Returns:
            A tuple with one entry for each layer: of a dense layer a dict with "w" of shape
            (width, fan_in) and, unless `b_std` is None, "b" of shape (width,).

        >>> import jax
        >>> from volform import networks as nn
        >>> nn.Dense(3, b_std=1.0).init(jax.random.key(0), (1, 2))["w"].shape
        (3, 2)
        """
        require_key(key, "key", "init", NetworkError)
        return _drawn(key, self.parameters(tuple(shape[1:]), whole(parametrization))[0])

    def apply(
        self,
        params: Any,
        x: Float[Array, "n ..."],
        *,
        parametrization: Parametrization | None = None,
    ) -> Array:
        """The network's function.

        Args:
            params: as `init` returns them.
            x: examples, shape (n, features).
            parametrization: `NTP()` if left out; that of `init`.

        Returns:
            Outputs, shape (n, width of the last layer).

        Raises:
            DataError: when x is empty, not finite, of integers (of other numbers, if tokens are
                embedded) or of the wrong shape.
        """
        return self.forward(params, self.require_examples(x, "x"), whole(parametrization))

    def maps(
        self, params: Any, *, parametrization: Parametrization | None = None
    ) -> tuple[Callable[[Float[Array, "n ..."]], Array], ...]:
        """Functions of its layers at these parameters, whose composition is the network's.

        Args:
            params: as `init` returns them.
            parametrization: `NTP()` if left out; that of `init`.

        >>> import jax, jax.numpy as jnp
        >>> from volform import networks as nn
        >>> net, x = nn.serial(nn.Dense(3), nn.Relu(), nn.Dense(1)), jnp.ones((2, 4))
        >>> first, second, _ = net.maps(net.init(jax.random.key(0), x.shape))
        >>> second(first(x)).shape
        (2, 3)
        """
        return tuple(Step(*step) for step in self.steps(params, whole(parametrization)))

    def steps(self, params: Any, place: Place) -> list[tuple["Layer", Any, Place]]:
        """Layers one after the other, their parameters and places: itself, if it is but one."""
        return [(self, params, place)]

    @property
    def kernel(self) -> NoReturn:
        """An error that says where it is now."""
        raise MovedError(
            "`net.kernel(x)` is now `volform.kernels.kernel(net, x)`: use the new one in your code."
        )


class Composite(Layer):
    """A layer that is made of layers."""


class CenteredLayer(Layer):
    """A layer whose outputs are linear in weights of zero mean, given anything outside."""

    @property
    def has_weights(self) -> bool:
        """It has."""
        return True

    @property
    def is_centered(self) -> bool:
        """It is, as its last weights are."""
        return True


class Wide(CenteredLayer):
    """A layer with weights and a number of units of its own."""

    width: eqx.AbstractVar[int]


class Weightless(Layer):
    """A layer without parameters, whose outputs are not said to have zero mean."""

    @property
    def has_weights(self) -> bool:
        """It has none."""
        return False

    @property
    def is_centered(self) -> bool:
        """Outputs have a mean, or depend on other layers' units: end a branch in a dense layer."""
        return False

    def parameters(self, shape: tuple[int, ...], place: Place) -> tuple[tuple[()], tuple[int, ...]]:
        """None."""
        return (), self.shape_of(shape)

    @abc.abstractmethod
    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of its output for an example of this shape."""


class Pointwise(Weightless):
    """A layer that treats each pixel by itself, and keeps the shape."""

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The same."""
        return shape


class Flatten(Weightless):
    """Examples of any shape as vectors."""

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The number of all features."""
        return (math.prod(shape),)

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: Place) -> Array:
        """Each example as a vector."""
        return x.reshape(len(x), -1)


class Identity(Pointwise):
    """Outputs are inputs: a skip connection in `summed`."""

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: Place) -> Array:
        """The inputs."""
        return x


def whole(parametrization: Parametrization | None) -> Place:
    """The place of a network that is no part of another; `NTP()` if nothing is said."""
    chosen = NTP() if parametrization is None else parametrization
    require_parametrization(chosen, "parametrization")
    return Place(chosen, is_first=True, is_last=True)


def _drawn(key: PRNGKeyArray, parameters: Any) -> Any:
    match parameters:
        case ParameterArray(shape, scaling):
            return scaling.deviation * jax.random.normal(key, shape)
        case dict():
            # ParameterArray are the same with and without biases.
            keys = jax.random.split(key, max(2, len(parameters)))
            pairs = zip(keys, parameters.items(), strict=False)
            return {name: _drawn(own, part) for own, (name, part) in pairs}
        case _:
            keys = jax.random.split(key, len(parameters)) if parameters else ()
            return tuple(_drawn(own, part) for own, part in zip(keys, parameters, strict=True))


class Step(eqx.Module):
    """A layer at its parameters, as a function.

    Attributes:
        layer: the layer.
        params: its parameters.
        place: its place in the network.
    """

    layer: Layer
    params: Any
    place: Place

    def __call__(self, x: Float[Array, "n ..."]) -> Array:
        """The layer's outputs."""
        return self.layer.forward(self.params, x, self.place)

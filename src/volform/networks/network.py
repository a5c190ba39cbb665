"""A network as a function of its parameters by site, and as a NumPyro model."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import require_key
from volform.equivalence.copies import Copies, copies
from volform.errors import NetworkError
from volform.geometry.metric import Euclidean
from volform.networks.layer import Layer, ParameterArray, Place, whole
from volform.networks.parametrization import (
    NTP,
    Parametrization,
    Scaling,
    require_parametrization,
)


class Parameter(NamedTuple):
    """One array of parameters: a site of the NumPyro model.

    Attributes:
        name: name of the site, `layer0.w` or `layer0.b`.
        shape: shape of the coordinates; weights have one row for each unit.
        scaling: multiplier in the function, and standard deviation of the prior.
        is_by_pixel: whether each pixel has entries of its own.
    """

    name: str
    shape: tuple[int, ...]
    scaling: Scaling
    is_by_pixel: bool = False


class Network(eqx.Module):
    """A network of layers under a parametrization, as a function and as a NumPyro model.

    `network.apply(params, x)` is the function. `network(x)` inside a NumPyro model samples the
    parameters at sites `layer0.w`, `layer0.b`, ..., the layers with weights numbered in order, and
    returns the function's value. Each site has the prior that the parametrization says and, in
    `infer`, its flat metric `Euclidean()` and `equivalence.copies`, by which an evidence counts the
    equivalent modes that exchanges and changes of sign of units make of one. The number counts the
    copies of a mode whose units all differ and lie apart: it is too large for networks with more
    units than the data ask for. Two networks in one model are kept apart by
    `numpyro.handlers.scope`.

    Attributes:
        layers: what it computes.
        parametrization: multipliers, priors and metric of each layer.

    >>> import jax, jax.numpy as jnp
    >>> from volform import networks as nn
    >>> body = nn.serial(nn.Dense(16), nn.residual(nn.Erf(), nn.Dense(16)), nn.Dense(2))
    >>> net = nn.Network(body, nn.SP())
    >>> params = net.init(jax.random.key(0), inputs=3)
    >>> {name: value.shape for name, value in params.items()}
    {'layer0.w': (16, 3), 'layer1.w': (16, 16), 'layer2.w': (2, 16)}
    """

    layers: Layer
    parametrization: Parametrization = NTP()

    def __check_init__(self) -> None:
        require_parametrization(self.parametrization, "parametrization")
        if not isinstance(self.layers, Layer):
            raise NetworkError(
                f"`layers` is {self.layers!r}; it should be a layer, or layers put together such "
                "as `serial(Dense(64), Relu(), Dense(1))`."
            )

    def __call__(self, x: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
        """Samples the parameters as NumPyro sites; the outputs, shape (n, outputs).

        Args:
            x: inputs, shape (n, features) or (n, height, width, channels), or tokens, (n, tokens).

        Raises:
            DataError: when x has another rank, size or kind of numbers than the network takes.
        """
        x = self.layers.require_examples(x, "x")
        by_pixel = any(p.is_by_pixel for p in self.parameters(x.shape[1:]))
        count = _copies_of_all_pixels if by_pixel else copies

        def sampled(parameter: Parameter) -> Array:
            prior = dist.Normal(0.0, parameter.scaling.deviation)
            infer = {"metric": Euclidean(), "equivalent_modes": count}
            prior = prior.expand(parameter.shape).to_event(len(parameter.shape))
            return jnp.asarray(numpyro.sample(parameter.name, prior, infer=infer))

        return self._forward(x, sampled)

    def apply(
        self, params: Mapping[str, Array], x: Float[Array, "n ..."]
    ) -> Float[Array, "n outputs"]:
        """The network's function of its parameters.

        Args:
            params: coordinates by site, as from `init` or as `Posterior.values` gives them.
            x: inputs, shape (n, features) or (n, height, width, channels), or tokens, (n, tokens).

        Returns:
            The outputs, shape (n, outputs).

        Raises:
            DataError: when x has another rank, size or kind of numbers than the network takes.
            NetworkError: when parameters are missing, of another shape than x and the layers
                need, or not float32 or float64.
        """
        x = self.layers.require_examples(x, "x")
        return self._forward(x, lambda parameter: _looked_up(params, parameter))

    def maps(
        self, params: Mapping[str, Array], inputs: int | tuple[int, ...]
    ) -> tuple[Callable[[Float[Array, "n ..."]], Array], ...]:
        """Functions of its layers at these parameters, whose composition is the network's.

        Args:
            params: coordinates by site.
            inputs: the number of features, or the shape (height, width, channels) of an image.
        """
        shape = _shape_of(inputs)
        nested = self._mapped(lambda parameter: _looked_up(params, parameter), shape)
        return self.layers.maps(nested, parametrization=self.parametrization)

    def init(self, key: PRNGKeyArray, inputs: int | tuple[int, ...]) -> dict[str, Array]:
        """Parameters drawn from the prior.

        Args:
            key: random key. One key gives one function in every parametrization with the same law
                of weights (`SP`, `NTP` and `ImprovedSP`).
            inputs: the number of features, or the shape (height, width, channels) of an image.
        """
        require_key(key, "key", "init", NetworkError)
        needed = self.parameters(inputs)
        keys = jax.random.split(key, len(needed))
        draws = zip(keys, needed, strict=True)
        return {p.name: p.scaling.deviation * jax.random.normal(k, p.shape) for k, p in draws}

    def metric(
        self, parametrization: Parametrization, inputs: int | tuple[int, ...]
    ) -> dict[str, Euclidean]:
        """The flat metric of another parametrization in this one's coordinates, by site.

        `G = (multiplier / multiplier')^2 I` on each site, with multiplier' that of the other. So
        `vf.attach(model, network.metric(NTP(), 3))` is the model of the network with the geometry
        of its neural tangent coordinates.

        Args:
            parametrization: the other one.
            inputs: the number of features, or the shape (height, width, channels) of an image.

        >>> from volform import networks as nn
        >>> nn.MLP(widths=(4,)).metric(nn.NTP(), 2)["layer1.w"]
        Euclidean(scale=0.5)
        """
        own = self.parameters(inputs)
        require_parametrization(parametrization, "parametrization")
        other = eqx.tree_at(lambda net: net.parametrization, self, parametrization)
        pairs = zip(own, other.parameters(inputs), strict=True)
        return {p.name: Euclidean(q.scaling.multiplier / p.scaling.multiplier) for p, q in pairs}

    def parameters(self, inputs: int | tuple[int, ...]) -> tuple[Parameter, ...]:
        """The arrays of parameters in the order of the layers.

        Args:
            inputs: the number of features, or the shape (height, width, channels) of an image.
        """
        shape = _shape_of(inputs)
        found: list[Parameter] = []
        self._mapped(found.append, shape)
        return tuple(found)

    def _forward(self, x: Array, parameter: Callable[[Parameter], Array]) -> Array:
        return self.layers.forward(self._mapped(parameter, x.shape[1:]), x, self._place)

    @property
    def _place(self) -> Place:
        return whole(self.parametrization)

    def _mapped(self, f: Callable[[Parameter], Any], shape: tuple[int, ...]) -> Any:
        """The tree of parameters with f of each."""
        numbers = itertools.count()

        def mapped(part: Any, name: str) -> Any:
            match part:
                case ParameterArray(shape, scaling, is_by_pixel):
                    return f(Parameter(name, shape, scaling, is_by_pixel))
                case dict():
                    name = name or f"layer{next(numbers)}"
                    return {key: mapped(own, f"{name}.{key}") for key, own in part.items()}
                case _:
                    return tuple(mapped(own, "") for own in part)

        return mapped(self.layers.parameters(shape, self._place)[0], "")


def _copies_of_all_pixels(*given: Any) -> Copies:
    """Those by exchanges at all pixels at once; there are others, which the program hides."""
    return copies(*given)._replace(is_all=False)


def _shape_of(inputs: int | tuple[int, ...]) -> tuple[int, ...]:
    return (inputs,) if isinstance(inputs, int) else tuple(inputs)


def _looked_up(params: Mapping[str, Array], parameter: Parameter) -> Array:
    if parameter.name not in params:
        raise NetworkError(
            f"`params` lacks `{parameter.name}`; it has {sorted(params)}. Take the parameters from "
            "`network.init(key, inputs)` or from a posterior of this network."
        )
    value = jnp.asarray(params[parameter.name])
    require_real(value, f"params['{parameter.name}']")
    if value.shape != parameter.shape:
        raise NetworkError(
            f"`params['{parameter.name}']` has shape {value.shape}; for this `x` the layer has "
            f"shape {parameter.shape}, a row for each unit. Check the number of features of `x` "
            "and the network's widths."
        )
    return value


def require_real(value: Any, argument: str) -> None:
    """Raises NetworkError when an array of parameters is neither float32 nor float64."""
    if value.dtype not in (jnp.float32, jnp.float64):
        raise NetworkError(
            f"`{argument}` is of dtype {value.dtype}; parameters should be float32 or, for "
            "Hessians and evidences, float64. Convert them by `.astype(float)`."
        )

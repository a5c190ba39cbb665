"""A network as a function of its parameters and as a NumPyro model, from one list of layers."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import require_key, require_positive
from volform.errors import DataError, NetworkError
from volform.geometry.metric import Euclidean
from volform.networks.layers import Stage, performed
from volform.networks.parametrization import Fans, Parametrization, Scaling, require_parametrization


class Parameter(NamedTuple):
    """One array of parameters: a site of the NumPyro model.

    Attributes:
        name: name of the site, `layer0.w` or `layer0.b`.
        shape: shape of the coordinates; weights have one row for each unit.
        scaling: multiplier in the function, and standard deviation of the prior.
        copies: number of equivalent modes that the site declares; None for none.
    """

    name: str
    shape: tuple[int, ...]
    scaling: Scaling
    copies: int | None


class Network(eqx.Module):
    """A network of layers, as a function of its parameters and as a NumPyro model.

    `network.apply(params, x)` is the function. `network(x)` inside a NumPyro model samples the
    parameters at sites `layer0.w`, `layer0.b`, ... and returns the function's value. Each site has
    the prior that the parametrization says and, in `infer`, its flat metric `Euclidean()` and the
    number of equivalent modes. That number counts the copies of a mode whose units all differ and
    lie apart: it is too large for networks with more units than the data ask for. Two networks in
    one model are kept apart by `numpyro.handlers.scope`.

    Attributes:
        parametrization: multipliers, priors and metric of each layer.
        w_std: standard deviation of the weights, before the parametrization scales it.
        b_std: standard deviation of the biases; None for a network without biases.
    """

    parametrization: eqx.AbstractVar[Parametrization]
    w_std: eqx.AbstractVar[Any]
    b_std: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The layers, from the inputs on."""

    @abc.abstractmethod
    def require_inputs(self, shape: tuple[int, ...]) -> None:
        """Raises DataError when an input of this shape (without the batch) is none of it."""

    def __check_init__(self) -> None:
        require_parametrization(self.parametrization, "parametrization")
        require_positive(self.w_std, "w_std", "the standard deviation of weights times sqrt(n)")
        if self.b_std is not None:
            require_positive(self.b_std, "b_std", "or None for a network without biases")

    def __call__(self, x: Float[Array, "n ..."]) -> Float[Array, "n outputs"]:
        """Samples the parameters as NumPyro sites; the outputs, shape (n, outputs).

        Args:
            x: inputs, shape (n, features) or (n, height, width, channels).

        Raises:
            DataError: when x is not real or has another rank or size than the network takes.
        """

        def sampled(parameter: Parameter) -> Array:
            prior = dist.Normal(0.0, parameter.scaling.deviation)
            infer: dict[str, Any] = {"metric": Euclidean()}
            if parameter.copies is not None:
                infer["equivalent_modes"] = parameter.copies
            prior = prior.expand(parameter.shape).to_event(len(parameter.shape))
            return jnp.asarray(numpyro.sample(parameter.name, prior, infer=infer))

        return self._forward(x, sampled)

    def apply(
        self, params: Mapping[str, Array], x: Float[Array, "n ..."]
    ) -> Float[Array, "n outputs"]:
        """The network's function of its parameters.

        Args:
            params: coordinates by site, as from `init` or as `Posterior.values` gives them.
            x: inputs, shape (n, features) or (n, height, width, channels).

        Returns:
            The outputs, shape (n, outputs).

        Raises:
            DataError: when x is not real or has another rank or size than the network takes.
            NetworkError: when parameters are missing, of another shape than x and the layers
                need, or not float32 or float64.
        """
        return self._forward(x, lambda parameter: _looked_up(params, parameter))

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
        shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
        found: list[Parameter] = []

        def noted(parameter: Parameter) -> Array:
            found.append(parameter)
            return jnp.zeros(parameter.shape)

        jax.eval_shape(lambda x: self._forward(x, noted), jnp.zeros((1, *shape)))
        return tuple(found)

    def _forward(self, x: Any, parameter: Callable[[Parameter], Array]) -> Array:
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise DataError(
                f"`x` is of dtype {x.dtype}; a network takes real inputs. Convert it, for example "
                "by `x / 255.0` for the pixels of an image."
            )
        if x.ndim < 1:
            raise DataError("`x` is one number; it should hold inputs along its first axis.")
        self.require_inputs(x.shape[1:])
        stages = self.stages()
        for i, stage in enumerate(stages):
            units, fan_in = stage.linear.units, stage.linear.fan_in(x.shape[1:])
            fans = Fans(fan_in, units, i == 0, i == len(stages) - 1)
            scaling = self.parametrization.weight(fans, self.w_std)
            weight = Parameter(f"layer{i}.w", (units, fan_in), scaling, stage.copies)
            w, b = scaling.multiplier * parameter(weight), None
            if self.b_std is not None:
                scaling = self.parametrization.bias(fans, self.b_std)
                b = scaling.multiplier * parameter(
                    Parameter(f"layer{i}.b", (units,), scaling, None)
                )
            x = performed(stage.linear, w, b, x)
            for follow in stage.after:
                x = follow(x)
        return x


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

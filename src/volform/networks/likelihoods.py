"""Networks with a likelihood: NumPyro models `model(x, y=None)`."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from volform.errors import DataError, NetworkError
from volform.models.data_checks import require_in_support, require_whole_labels
from volform.networks.composition import Serial
from volform.networks.layer import Layer
from volform.networks.network import Network
from volform.networks.normalization import Softmax

Outputs = Float[Array, "n outputs"]
Model = Callable[..., Array]


def categorical(outputs: Outputs) -> dist.Distribution:
    """The likelihood of classes with the outputs for logits, one output for each class.

    Raises:
        NetworkError: when there is a single output.
    """
    if outputs.shape[-1] < 2:
        raise NetworkError(
            f"`network` of a classification has {outputs.shape[-1]} output; it should have one for "
            "each class, such as `MLP(outputs=2)` for two."
        )
    return dist.CategoricalLogits(outputs)


def supervised(
    network: Layer | Callable[[Any], Array], likelihood: Callable[[Array], dist.Distribution]
) -> Model:
    """A NumPyro model `model(x, y=None)` with `y ~ likelihood(network(x))`.

    Args:
        network: a `Network`, the result of `from_function`, or any function that samples its
            parameters and returns outputs. Layers such as `serial(Dense(64), Relu(), Dense(1))`
            are taken as a `Network` under `NTP()`.
        likelihood: from outputs, shape (n, outputs), to a NumPyro distribution. It may sample
            parameters of its own.

    Raises:
        NetworkError: when one of them is not callable.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> counts = lambda outputs: dist.Poisson(jnp.exp(outputs))
    >>> model = vf.networks.supervised(vf.networks.MLP(widths=(3,)), counts)
    >>> vf.condition(model, jnp.ones((4, 2)), jnp.array([[0], [2], [1], [0]])).dim
    9
    """
    network = Network(network) if isinstance(network, Layer) else network
    _require_callable(network, "network", "a network such as `MLP(widths=(50,))`")
    _require_callable(likelihood, "likelihood", "a function from outputs to a distribution")

    def model(x: Float[Array, "n ..."], y: Any = None) -> Array:
        fn = likelihood(network(x))
        if not isinstance(fn, dist.Distribution):
            raise NetworkError(
                f"`likelihood` returned {type(fn).__name__}; it should return a NumPyro "
                "distribution, for example `dist.Poisson(jnp.exp(outputs))`."
            )
        if y is not None:
            y = jnp.asarray(y)
            _require_observed(y, fn)
        return jnp.asarray(numpyro.sample("y", fn, obs=y))

    return model


def regression(network: Layer | Callable[[Any], Array], noise: Any = 1.0) -> Model:
    """A NumPyro model `model(x, y=None)` with `y ~ Normal(network(x), noise)`.

    Args:
        network: as in `supervised`.
        noise: standard deviation, or its prior: then the model has a site `noise`.

    Raises:
        NetworkError: when `network` is not callable, or `noise` is neither positive nor a
            distribution.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> model = vf.networks.regression(vf.networks.MLP(widths=(2,)), dist.HalfNormal(1.0))
    >>> vf.condition(model, jnp.ones((4, 1)), jnp.zeros((4, 1)))
    Posterior of model: 5 parameters (layer0.w[2, 1], layer1.w[1, 2], noise), observed y
    ...
    """
    is_number = isinstance(noise, float | int) or (hasattr(noise, "dtype") and jnp.ndim(noise) == 0)
    if not isinstance(noise, dist.Distribution) and not (is_number and 0.0 < noise < math.inf):
        raise NetworkError(
            f"`noise` is {noise!r}; it should be a positive standard deviation, or a prior of it "
            "such as `dist.HalfNormal(1.0)`."
        )

    def gaussian(outputs: Outputs) -> dist.Distribution:
        scale = numpyro.sample("noise", noise) if isinstance(noise, dist.Distribution) else noise
        return dist.Normal(outputs, scale)

    return supervised(network, gaussian)


def classification(network: Layer | Callable[[Any], Array]) -> Model:
    """A NumPyro model `model(x, y=None)` with `y ~ Categorical(logits=network(x))`.

    Args:
        network: as in `supervised`, with one output for each class.

    Raises:
        NetworkError: when `network` is not callable, or ends in `Softmax()`.
        DataError: when the model is run, for labels outside 0, ..., outputs - 1.

    >>> import jax.numpy as jnp, volform as vf
    >>> model = vf.networks.classification(vf.networks.MLP(widths=(2,), outputs=3))
    >>> vf.condition(model, jnp.ones((4, 1)), jnp.array([0, 2, 1, 0])).dim
    8
    """
    layers = network.layers if isinstance(network, Network) else network
    while isinstance(layers, Serial):
        layers = layers.layers[-1]
    if isinstance(layers, Softmax):
        raise NetworkError(
            "`network` ends in Softmax, while a classification takes logits, of which it is the "
            "softmax already; leave it out, or write "
            "`supervised(network, lambda p: dist.Categorical(probs=p))`."
        )
    return supervised(network, categorical)


def _require_observed(y: Array, fn: dist.Distribution) -> None:
    if y.shape != fn.shape():
        raise DataError(
            f"`y` has shape {y.shape}, but the likelihood of the outputs for this `x` has shape "
            f"{fn.shape()}; they should be the same. Write the response of a single output as "
            "`y[:, None]`, the labels of a classification as `y` of shape (n,)."
        )
    require_whole_labels("y", fn, y)
    require_in_support("y", fn, y)


def _require_callable(value: Any, argument: str, wanted: str) -> None:
    if not callable(value):
        raise NetworkError(f"`{argument}` is {value!r}, which cannot be called; give {wanted}.")

"""The evidence of a network of finite width, its last layer integrated out in closed form."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import key_of, require_positive
from volform.compilation import steady
from volform.errors import KernelError, NetworkError
from volform.inference.arviz_compat import smoothed
from volform.inference.evidence.importance import FEWEST_DRAWS, SmoothedWeights, log_mean, trust_of
from volform.kernels.checks import require_targets
from volform.kernels.gaussian_process import provenance_of_targets
from volform.linalg.generalized import capacitance_root
from volform.networks.composition import Serial
from volform.networks.dense import Dense
from volform.networks.network import Network
from volform.results import Cost, Evidence


def finite_evidence(
    network: Network,
    x: Float[Array, "n ..."],
    y: Float[Array, "n ..."],
    *,
    noise: float,
    key: PRNGKeyArray | None = None,
    draws: int = 500,
) -> Evidence:
    """The evidence of a network of finite width, `y ~ Normal(f(x), noise^2)`, by Monte Carlo.

    Given the hidden layers the outputs are linear in the last one, `f = F w` with `w ~ Normal(0,
    I)`, so that

        Z = E[Normal(y | 0, F F^T + noise^2 I)]

    over draws of the hidden layers from the prior, one term for each output. As the width grows
    `F F^T` tends to the NNGP kernel, every draw has the same likelihood, and Z tends to that of
    `evidence`. At small widths few draws carry the mean: the error grows, and `trust`, by Pareto's
    k-hat of the likelihoods, says so. Cost O(draws n min(n, width)^2).

    One key gives the same draws of functions in `SP` and `NTP`, which have the same evidence.

    Args:
        network: `vf.networks.MLP` or another that ends in a dense layer, in any parametrization.
        x: examples, shape (n, features).
        y: targets, shape (n,), or (n, k) for k outputs.
        noise: standard deviation of the observations.
        key: key of the draws; `jax.random.key(0)` by default.
        draws: number of draws of the hidden layers.

    Returns:
        An `Evidence`, with its standard error.

    Raises:
        DataError: when data are empty, not finite, of integers or of the wrong shape.
        KernelError: when `noise` is not positive, or `draws` is below 100.
        NetworkError: when the network does not end in a dense layer.

    >>> import jax.numpy as jnp
    >>> import volform as vf
    >>> from volform import kernels as k, networks as nn
    >>> x, y = jnp.eye(3), jnp.array([0.5, -0.2, 0.3])
    >>> wide = nn.MLP(widths=(512,), activation=nn.Erf())
    >>> limit = nn.serial(nn.Dense(1), nn.Erf(), nn.Dense(1))
    >>> finite = vf.architectures.finite_evidence(wide, x, y, noise=0.5)
    >>> exact = k.evidence(limit, x, y, noise=0.5)
    >>> bool(abs(finite.log_z - exact.log_z) < 0.01)
    True
    """
    layers = network.layers.layers if isinstance(network.layers, Serial) else (network.layers,)
    if not isinstance(layers[-1], Dense):
        raise NetworkError(
            f"`network` ends in {type(layers[-1]).__name__}, in whose weights its outputs need "
            "not be linear; end it in a dense layer, as `serial(..., Dense(1))`."
        )
    x = network.layers.require_examples(x, "x")
    provenance = provenance_of_targets(y)
    y = require_targets(y, len(x))
    require_positive(noise, "noise", "the standard deviation of observations", KernelError)
    if not isinstance(draws, int) or draws < FEWEST_DRAWS:
        raise KernelError(
            f"`draws` of finite_evidence is {draws!r}; it should be an integer, at least "
            f"{FEWEST_DRAWS}, so that the tail of the likelihoods can be judged."
        )
    columns = y[:, None] if y.ndim == 1 else y
    key = key_of(key, "finite_evidence", KernelError)
    spread, keys = jnp.asarray(noise), jax.random.split(key, draws)
    each = np.asarray(_log_likelihoods(network, x, columns, spread, keys))
    log_weights, k_hat = smoothed(each)
    log_z, error, effective = log_mean(log_weights, k_hat)
    drawn = SmoothedWeights(log_weights, k_hat, 0, 0, log_mean(each)[0] - log_mean(log_weights)[0])
    return Evidence(
        jnp.asarray(log_z, y.dtype),
        jnp.asarray(error, y.dtype),
        None,
        metric=None,
        dim=sum(math.prod(p.shape) for p in network.parameters(x.shape[1:])),
        method=f"last layer exact ({draws:,} draws of the others)",
        trust=trust_of(drawn, error, effective),
        diagnostics={"k_hat": k_hat, "effective_draws": effective},
        cost=Cost(densities=draws),
        provenance=provenance,
    )


@steady
def _log_likelihoods(
    network: Network,
    x: Float[Array, "n ..."],
    y: Float[Array, "n k"],
    noise: Any,
    keys: PRNGKeyArray,
) -> Float[Array, " draws"]:
    """log p(y | hidden layers) for hidden layers drawn with each of the keys."""
    parameters = network.parameters(x.shape[1:])
    last = parameters[-1].name.partition(".")[0] + "."
    deviations = {p.name: p.scaling.deviation for p in parameters}

    def one(key: PRNGKeyArray) -> Float[Array, ""]:
        drawn = network.init(key, x.shape[1:])
        outer = {name: jnp.zeros_like(w) for name, w in drawn.items() if name.startswith(last)}

        def output(outer: dict[str, Array], example: Array) -> Float[Array, ""]:
            return network.apply({**drawn, **outer}, example[None])[0, 0]

        # Linear in the last layer: the gradient is what the first output's unit sees of an example.
        slopes = jax.vmap(jax.grad(output), (None, 0))(outer, x)
        parts = [deviations[name] * s[:, 0].reshape(len(x), -1) for name, s in slopes.items()]
        return _log_density(jnp.concatenate(parts, 1), y, noise)

    return jax.lax.map(one, keys)


def _log_density(
    features: Float[Array, "n m"], y: Float[Array, "n k"], noise: Any
) -> Float[Array, ""]:
    """`log Normal(y | 0, F F^T + noise^2 I)`, summed over columns, by the smaller matrix."""
    n, m = features.shape
    scaled = features / noise
    factor = capacitance_root(scaled)
    white = y / noise
    if n <= m:
        square = jnp.sum(solve_triangular(factor, white, lower=True) ** 2)
    else:
        explained = solve_triangular(factor, scaled.T @ white, lower=True)
        square = jnp.sum(white**2) - jnp.sum(explained**2)
    log_det = jnp.sum(jnp.log(jnp.diagonal(factor))) + n * jnp.log(noise)
    return -square / 2 - y.shape[1] * (log_det + n / 2 * math.log(2 * math.pi))

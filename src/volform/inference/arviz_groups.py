"""Groups of an ArviZ object: what a posterior says at its draws, and its prior."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.errors import ModelError
from volform.inference.axis_names import observed_and_plates
from volform.inference.laplace.draws import predicted
from volform.inference.laplace.samples import Samples
from volform.models.posterior import Posterior
from volform.models.prior_draws import prior_draws

AGAIN = 5  # of a key, whose other streams are those of draws
BEFORE = 6


def groups_of(posterior: Posterior, samples: Samples) -> tuple[dict[str, Any], dict[str, Any]]:
    """The groups of an ArviZ object, and the dimensions of their variables."""
    # Other sites, and the data, are not those of the first batch of several.
    names = posterior.names if posterior.in_batches else posterior.known
    named = jax.vmap(lambda u: posterior.values(u, names))(samples.u)
    observed, dims = observed_and_plates(posterior, posterior.values(samples.u[0]), named)
    pointwise = _pointwise(posterior, samples.u, tuple(observed)) if observed else {}
    groups = {
        "posterior": {name: by_chain(samples, value) for name, value in named.items()},
        "log_likelihood": {name: by_chain(samples, value) for name, value in pointwise.items()},
        "observed_data": observed,
    }
    return {name: group for name, group in groups.items() if group}, dims


def by_chain(samples: Samples, value: Any) -> np.ndarray:
    """Numbers at each draw, with an axis of chains."""
    array = np.asarray(value)
    return array.reshape(samples.chains, -1, *array.shape[1:])


def _pointwise(
    posterior: Posterior, u: Float[np.ndarray, "n d"], names: tuple[str, ...]
) -> dict[str, Array]:
    """Log likelihood of each datum at each draw."""

    def of_draw(u: Float[Array, " d"]) -> dict[str, Array]:
        trace = posterior.program.run(posterior.values(u))
        return {name: trace[name]["fn"].log_prob(trace[name]["value"]) for name in names}

    return jax.jit(lambda u: jax.lax.map(of_draw, u))(u)


def data_again(
    posterior: Posterior, values: dict[str, Any], key: PRNGKeyArray
) -> dict[str, np.ndarray]:
    """The data drawn anew at each draw of the parameters, shape (n, ...)."""
    args, kwargs = posterior.program.arguments()
    found = predicted(posterior, values, jax.random.fold_in(key, AGAIN), args, kwargs)
    return {name: np.asarray(found[name]) for name in posterior.data_sites if np.size(found[name])}


def prior_groups(posterior: Posterior, key: PRNGKeyArray, draws: int) -> dict[str, Any]:
    """Draws from the prior, of latent and deterministic sites and of the data, in one chain.

    Raises:
        ModelError: an improper prior.
    """
    if improper := posterior.provenance.improper:
        raise ModelError(
            f"`prior` of to_arviz is improper at `{'`, `'.join(improper)}`, so that there are no "
            "draws of it; leave `prior` out."
        )
    key = jax.random.fold_in(key, BEFORE)
    u = prior_draws(posterior.bound_model, key, draws)
    named = jax.vmap(lambda u: posterior.values(u, posterior.known))(u)
    latent = {name: named[name] for name in posterior.names}
    data = data_again(posterior, latent, key)
    groups = {"prior": named, "prior_predictive": data}
    return {
        group: {name: np.asarray(value)[None] for name, value in of_group.items()}
        for group, of_group in groups.items()
        if of_group
    }

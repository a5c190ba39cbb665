"""Results as ArviZ objects."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import key_of
from volform.errors import ModelError
from volform.inference import arviz_compat
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.laplace.draws import Samples
from volform.models.posterior import Posterior


def to_arviz(
    approx: LaplaceApproximation, *, key: PRNGKeyArray | None = None, draws: int = 1000
) -> Any:
    """Draws from a Laplace approximation as an ArviZ object.

    Args:
        approx: from `laplace`.
        key: key of the draws; `jax.random.key(0)` by default.
        draws: number of draws, in one chain.

    Returns:
        An `InferenceData` on arviz 0.x, an xarray `DataTree` on arviz 1.x, with the groups
        posterior (deterministic sites included), log_likelihood and observed_data. The attributes
        of the posterior hold the evidence, the metric and the number of draws replaced because
        they fell outside the support.

    Raises:
        ConvergenceError: when hardly any draw lies inside the support.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> approx = vf.laplace(vf.condition(model, jnp.array([0.5, 1.5])))
    >>> draws = vf.to_arviz(approx, draws=200)["posterior"]
    >>> draws["mu"].shape
    (1, 200)
    """
    samples = approx.sample(key_of(key, "to_arviz", ModelError), draws)
    groups, dims = groups_of(approx.posterior, samples)
    return arviz_compat.built(groups, _attributes(approx, samples.outside), dims)


def groups_of(posterior: Posterior, samples: Samples) -> tuple[dict[str, Any], dict[str, Any]]:
    """The groups of an ArviZ object, and the dimensions of their variables."""
    named = jax.vmap(lambda u: posterior.values(u, posterior.known))(samples.u)
    trace = posterior.program.run(posterior.values(samples.u[0]))
    observed = {
        name: np.asarray(trace[name]["value"])
        for name in posterior.observed
        if np.size(trace[name]["value"])
    }
    groups = {
        "posterior": {name: np.asarray(value)[None] for name, value in named.items()},
        "log_likelihood": _pointwise(posterior, samples.u, tuple(observed)),
        "observed_data": observed,
    }
    dims = {
        name: _plates(trace[name], np.ndim(trace[name]["value"])) for name in groups["posterior"]
    }
    dims |= {name: _plates(trace[name], value.ndim) for name, value in observed.items()}
    dims = {name: plates for name, plates in dims.items() if plates}
    return {name: group for name, group in groups.items() if group}, dims


def _pointwise(
    posterior: Posterior, u: Float[Array, "n d"], names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Log likelihood of each datum at each draw, in one chain."""

    def of_draw(u: Float[Array, " d"]) -> dict[str, Array]:
        trace = posterior.program.run(posterior.values(u))
        return {name: trace[name]["fn"].log_prob(trace[name]["value"]) for name in names}

    found = jax.jit(lambda u: jax.lax.map(of_draw, u))(u)
    return {name: np.asarray(value)[None] for name, value in found.items()}


def _attributes(approx: LaplaceApproximation, outside: int) -> dict[str, Any]:
    attributes = {
        "inference_library": "volform",
        "approximation": "invariant Laplace",
        "metric": approx.posterior.metric_name,
        "draws_replaced_outside_support": outside,
    }
    try:
        evidence = approx.evidence
    except ModelError as error:  # an improper prior: the draws are what they are
        return attributes | {"note": str(error)}
    second = evidence.log_z_second_order
    attributes |= {
        "log_z": float(evidence.log_z),
        "trust": str(evidence.trust),
        "note": evidence.note,
    }
    if evidence.correction is not None and second is not None:
        attributes |= {
            "correction": float(evidence.correction),
            "log_z_second_order": float(second),
        }
    return attributes


def _plates(site: dict[str, Any], ndim: int) -> list[str] | None:
    """Names of the plates along the leading dimensions of a site's value."""
    frames = {frame.dim: frame.name for frame in site["cond_indep_stack"]}
    event = len(site["fn"].event_shape) if "fn" in site else 0
    batch = ndim - event
    names = [frames.get(axis - batch) for axis in range(batch)]
    if not names or None in names:
        return None
    return [str(name) for name in names]

"""Results as ArviZ objects."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.infer import MCMC

from volform.checks import key_of
from volform.equivalence.alignment import representatives
from volform.equivalence.group import Group
from volform.errors import ModelError
from volform.inference import arviz_compat
from volform.inference.axis_names import (
    constant_data,
    labelled,
    labels_of_model,
    observed_and_plates,
)
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.laplace.draws import predicted
from volform.inference.laplace.samples import Samples
from volform.models.posterior import Posterior
from volform.results import Evidence

AGAIN = 5  # of a key, whose other streams are those of draws


def to_arviz(
    target: LaplaceApproximation | Evidence | Samples | MCMC,
    *,
    key: PRNGKeyArray | None = None,
    draws: int = 1000,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    symmetry: Group | None = None,
    predictive: bool = False,
) -> Any:
    """Draws of a posterior as an ArviZ object.

    Data have the dimensions and labels of what was given to `condition`, an xarray `DataArray` or
    a pandas Series with its index; else plates as dimensions; else ArviZ's own, such as `y_dim_0`.
    Observed values that are computed from arguments are not known again. Latent sites have plates,
    with the name and labels of the data along them, and what `dims` says.

    Args:
        target: a Laplace approximation, which is drawn from; an evidence with draws, or those
            draws: chains as they are, weighted ones and nodes drawn again by their weights, since
            ArviZ knows no weights; or an `MCMC` of NumPyro, by ArviZ's own `from_numpyro`.
        key: key of the draws; `jax.random.key(0)` by default.
        draws: number of draws, in one chain; chains keep theirs.
        coords: labels along dimensions, plates among them: `{"school": names}`. They win over
            those of the data, as do `dims`.
        dims: names of the dimensions of a site's value, of all its axes or of those behind the
            plates: `{"slope": ["covariate"]}`.
        symmetry: of a network whose parameters are sites, from `equivalence.symmetry`: then each
            draw is the copy nearest to the mean of all (`equivalence.representatives`), so that
            means, r-hat and effective sizes of weights mean something. Deterministic sites stay.
        predictive: whether the data are drawn again at each draw, `posterior_predictive`.

    Returns:
        An `InferenceData` on arviz 0.x, an xarray `DataTree` on arviz 1.x, with the groups
        posterior (deterministic sites included), sample_stats (`lp`, the log joint density with
        respect to Lebesgue measure in u, and `log_q`, that of what the draws are from, where it is
        known), log_likelihood, observed_data and constant_data (the model's other arguments). The
        attributes of the posterior hold the evidence with its trust and diagnostics, the metric,
        and the number of draws outside of the support.

    Raises:
        ModelError: a target without draws, or of another type.
        UnknownSiteError: when `dims` names no site.
        DataError: when `dims` or `coords` do not fit, or the draws do not fit `symmetry`.
        ConvergenceError: when hardly any draw lies inside the support.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> posterior = vf.condition(model, jnp.array([0.5, 1.5]))
    >>> vf.to_arviz(vf.laplace(posterior), draws=200)["posterior"]["mu"].shape
    (1, 200)
    >>> data = vf.to_arviz(vf.evidence(posterior, by=vf.Importance()), draws=500)
    >>> list(data["sample_stats"].data_vars)
    ['lp', 'log_q']
    """
    given_coords, given_dims = dict(coords or {}), dict(dims or {})
    if isinstance(target, MCMC):
        formula = labels_of_model(getattr(target.sampler, "model", None))
        if formula is not None:  # ArviZ does not see plates
            given_dims = formula.dims | given_dims
            given_coords = formula.coords | given_coords
        data = arviz_compat.of_chains(target, given_dims, given_coords)
        chains = data["posterior"]
        for name, value in _aligned(target.get_samples(group_by_chain=True), symmetry).items():
            if name in chains:
                chains[name] = (chains[name].dims, value)
        return data
    key = key_of(key, "to_arviz", ModelError)
    samples, attributes = _drawn(target, key, draws)
    if samples.posterior is None:
        raise ModelError(
            "`target` of to_arviz was pickled, without its model, which the groups are computed "
            "by; export before, or take `draws.values`."
        )
    groups, plates = groups_of(samples.posterior, samples)
    groups["posterior"] |= _aligned(groups["posterior"], symmetry, samples.posterior)
    stats = {} if samples.posterior.in_batches else {"lp": samples.log_p}
    if samples.log_q is not None:
        stats["log_q"] = samples.log_q
    groups["sample_stats"] = {name: _by_chain(samples, value) for name, value in stats.items()}
    if predictive:
        groups["posterior_predictive"] = _drawn_again(samples, key)
    if constant := constant_data(samples.posterior, groups.get("observed_data", {})):
        groups["constant_data"] = constant
    named, own = labelled(samples.posterior, groups, plates, given_dims, given_coords)
    return arviz_compat.built(groups, attributes, named, own | given_coords)


def _drawn_again(samples: Samples, key: PRNGKeyArray) -> dict[str, np.ndarray]:
    """Draws of the data at each draw of the parameters."""
    posterior, (args, kwargs) = samples.posterior, samples.posterior.program.arguments()
    found = predicted(posterior, samples.values, jax.random.fold_in(key, AGAIN), args, kwargs)
    return {n: _by_chain(samples, found[n]) for n in posterior.data_sites if np.size(found[n])}


def _aligned(
    draws: Mapping[str, Any], symmetry: Group | None, posterior: Posterior | None = None
) -> dict[str, np.ndarray]:
    """One representative of each draw of the sites of a network; nothing without a symmetry."""
    if symmetry is None:
        return {}
    names = symmetry.names
    deviations = None if posterior is None else _deviations(posterior, names)
    own = {name: np.asarray(draws[name]) for name in names if name in draws}
    return dict(representatives(symmetry, own, deviations))


def _deviations(posterior: Posterior, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Standard deviations of the priors; None where one has none."""
    trace = posterior.program.run(posterior.values(jnp.zeros(posterior.dim)))
    with contextlib.suppress(NotImplementedError, KeyError, AttributeError):
        found = {name: np.sqrt(np.asarray(trace[name]["fn"].variance)) for name in names}
        if all(np.all(np.isfinite(x) & (x > 0.0)) for x in found.values()):
            return found
    return None


def _drawn(target: Any, key: PRNGKeyArray, draws: int) -> tuple[Samples, dict[str, Any]]:
    """Draws that count alike, and the attributes of the posterior."""
    attributes: dict[str, Any] = {"inference_library": "volform"}
    if isinstance(target, LaplaceApproximation):
        samples = target.sample(key, draws)
        attributes |= {"approximation": "invariant Laplace", "metric": target.posterior.metric_name}
        with_evidence = _evidence_or_note(target)
    elif isinstance(target, Evidence):
        samples = target.draws
        if samples is None:
            raise ModelError(
                f"`target` of to_arviz is an evidence by {target.method}, which has no draws; give "
                "the Laplace approximation of `vf.laplace`, or an evidence by another estimator, "
                "such as `by=vf.Importance()`."
            )
        with_evidence = _of_evidence(target) | {"metric": target.metric_name}
    elif isinstance(target, Samples):
        samples, with_evidence = target, {}
    else:
        raise ModelError(
            "`target` of to_arviz should be a result of `vf.laplace` or `vf.evidence`, draws of "
            f"one, or a NumPyro `MCMC`; got {type(target).__name__}."
        )
    attributes["draws_replaced_outside_support"] = samples.outside
    if samples.log_weights is not None:
        attributes["effective_draws"] = samples.effective
        if samples.k_hat is not None:
            attributes["k_hat"] = samples.k_hat
        samples = samples.resampled(key, draws)
    return samples, attributes | with_evidence


def groups_of(posterior: Posterior, samples: Samples) -> tuple[dict[str, Any], dict[str, Any]]:
    """The groups of an ArviZ object, and the dimensions of their variables."""
    # Other sites, and the data, are not those of the first batch of several.
    names = posterior.names if posterior.in_batches else posterior.known
    named = jax.vmap(lambda u: posterior.values(u, names))(samples.u)
    observed, dims = observed_and_plates(posterior, posterior.values(samples.u[0]), named)
    pointwise = _pointwise(posterior, samples.u, tuple(observed)) if observed else {}
    groups = {
        "posterior": {name: _by_chain(samples, value) for name, value in named.items()},
        "log_likelihood": {name: _by_chain(samples, value) for name, value in pointwise.items()},
        "observed_data": observed,
    }
    return {name: group for name, group in groups.items() if group}, dims


def _by_chain(samples: Samples, value: Any) -> np.ndarray:
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


def _evidence_or_note(approx: LaplaceApproximation) -> dict[str, Any]:
    try:
        return _of_evidence(approx.evidence)
    except ModelError as error:  # an improper prior: the draws are what they are
        return {"note": str(error)}


def _of_evidence(evidence: Evidence) -> dict[str, Any]:
    second = evidence.log_z_second_order
    attributes = {
        **evidence.diagnostics,
        "method": evidence.method,
        "log_z": float(evidence.log_z),
        "log_z_error": float(evidence.error),
        "trust": str(evidence.trust),
        "note": evidence.note,
    }
    if evidence.correction is not None and second is not None:
        attributes |= {
            "correction": float(evidence.correction),
            "log_z_second_order": float(second),
        }
    return attributes

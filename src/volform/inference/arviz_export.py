"""Results as ArviZ objects."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro.infer import MCMC

from volform.checks import key_of
from volform.equivalence.alignment import representatives
from volform.equivalence.group import Group
from volform.errors import ModelError
from volform.inference import arviz_compat
from volform.inference.arviz_groups import by_chain, data_again, groups_of, prior_groups
from volform.inference.axis_names import constant_data, labelled, labels_of_model
from volform.inference.given_draws import given_draws
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.laplace.samples import Samples
from volform.models.posterior import Posterior
from volform.results import Evidence


@runtime_checkable
class Ranking(Protocol):
    """A comparison, as far as its draws need it: `Comparison` stands above this file."""

    @property
    def rows(self) -> Sequence[Any]:
        """Models with their evidence."""
        ...

    def predictive(self, key: PRNGKeyArray, *args: Any, draws: int, **kwargs: Any) -> Any:
        """Draws of the data."""
        ...


def to_arviz(
    target: LaplaceApproximation | Evidence | Samples | MCMC | Mapping[str, Any] | Ranking,
    *,
    key: PRNGKeyArray | None = None,
    draws: int = 1000,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    symmetry: Group | None = None,
    predictive: bool = False,
    prior: bool = False,
    posterior: Posterior | None = None,
) -> Any:
    """Draws of a posterior as an ArviZ object.

    Data have the dimensions and labels of what was given to `condition`, an xarray `DataArray` or
    a pandas Series with its index; else plates as dimensions; else ArviZ's own, such as `y_dim_0`.
    Observed values that are computed from arguments are not known again. Latent sites have plates,
    with the name and labels of the data along them, and what `dims` says.

    Args:
        target: a Laplace approximation, which is drawn from; an evidence with draws, or those
            draws: chains as they are, weighted ones and nodes drawn again by their weights, since
            ArviZ knows no weights. An `MCMC` of NumPyro, or a dictionary of draws by site, with
            `posterior`; an `MCMC` alone by ArviZ's own `from_numpyro`, which knows no data but the
            observed. A comparison, whose models become a dictionary for `arviz.compare`.
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
        prior: whether to add as many draws from the prior, `prior`, and data at these,
            `prior_predictive`.
        posterior: from `condition`, what an `MCMC` or a dictionary of draws is of, or draws that
            were pickled: has the names and labels of the data, which a sampler of NumPyro lost.

    Returns:
        An `InferenceData` on arviz 0.x, an xarray `DataTree` on arviz 1.x, with the groups
        posterior (deterministic sites included), sample_stats (`lp`, the log joint density with
        respect to Lebesgue measure in u, and `log_q`, that of what the draws are from, where it is
        known; of an `MCMC` its own, such as `diverging`), log_likelihood, observed_data and
        constant_data (the model's other arguments). The attributes of the posterior hold the
        evidence with its trust and diagnostics, the metric, and the number of draws outside of the
        support; those of sample_stats `k_hat`.

    Raises:
        ModelError: a target without draws, or of another type; a comparison some model of which has
            none; groups of an `MCMC` that need its `posterior`; an improper `prior`.
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
    key = key_of(key, "to_arviz", ModelError)
    labels = dict(coords or {}), dict(dims or {})
    if isinstance(target, Ranking):
        each = {row.name: _of_row(row) for row in target.rows}
        options = {"key": key, "draws": draws, "coords": coords, "dims": dims}
        options |= {"symmetry": symmetry, "predictive": predictive, "prior": prior}
        return {name: to_arviz(own, **options) for name, own in each.items()}
    if isinstance(target, MCMC) and posterior is None:
        posterior = getattr(target.sampler, "posterior", None)
        if posterior is None:
            return _of_chains(target, labels, symmetry, needs_model=predictive or prior)
    samples, attributes = _drawn(target, key, draws, posterior)
    posterior = samples.posterior
    groups, plates = groups_of(posterior, samples)
    groups["posterior"] |= _aligned(groups["posterior"], symmetry, posterior)
    stats = {} if posterior.in_batches else {"lp": samples.log_p}
    if samples.log_q is not None:
        stats["log_q"] = samples.log_q
    groups["sample_stats"] = {name: by_chain(samples, value) for name, value in stats.items()}
    if isinstance(target, MCMC):
        groups["sample_stats"] = arviz_compat.stats_of_chains(target) | groups["sample_stats"]
    if predictive:
        again = data_again(posterior, samples.values, key)
        groups["posterior_predictive"] = {n: by_chain(samples, x) for n, x in again.items()}
    if prior:
        groups |= prior_groups(posterior, key, draws)
    if constant := constant_data(posterior, groups.get("observed_data", {})):
        groups["constant_data"] = constant
    given_coords, given_dims = labels
    named, own = labelled(posterior, groups, plates, given_dims, given_coords)
    of_stats = {"k_hat": attributes["k_hat"]} if "k_hat" in attributes else {}
    of_groups = {"posterior": attributes, "sample_stats": of_stats}
    return arviz_compat.built(groups, of_groups, named, own | given_coords)


def _of_chains(
    mcmc: MCMC, labels: tuple[dict[str, Any], ...], symmetry: Group | None, needs_model: bool
) -> Any:
    """Chains as ArviZ takes them, with the names of a formula."""
    if needs_model:
        raise ModelError(
            "`predictive` and `prior` of to_arviz need the model of the `MCMC` with its data: give "
            "`posterior=vf.condition(model, ...)`."
        )
    coords, dims = labels
    formula = labels_of_model(getattr(mcmc.sampler, "model", None))
    if formula is not None:  # ArviZ does not see plates where it is given dimensions
        dims, coords = formula.dims | dims, formula.coords | coords
    data = arviz_compat.of_chains(mcmc, dims, coords)
    chains = data["posterior"]
    for name, value in _aligned(mcmc.get_samples(group_by_chain=True), symmetry).items():
        if name in chains:
            chains[name] = (chains[name].dims, value)
    return data


def _of_row(row: Any) -> Any:
    """Evidence with draws, or the approximation, of a compared model."""
    source = row.approx if row.evidence.draws is None else row.evidence
    if source is None:
        raise ModelError(
            f"The model {row.name!r} of this comparison has an evidence by {row.evidence.method} "
            "without draws, or one that was read from a file; to_arviz needs `vf.compare` of "
            "posteriors."
        )
    return source


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


def _drawn(
    target: Any, key: PRNGKeyArray, draws: int, posterior: Posterior | None
) -> tuple[Samples, dict[str, Any]]:
    """Draws that count alike, and the attributes of the posterior."""
    attributes: dict[str, Any] = {"inference_library": "volform"}
    if isinstance(target, LaplaceApproximation):
        samples = target.sample(key, draws)
        attributes |= {"approximation": "invariant Laplace", "metric": target.posterior.metric_name}
        attributes |= _evidence_or_note(target)
    else:
        samples, own = given_draws(target, posterior, "to_arviz")
        if samples.posterior is not own:
            samples = dataclasses.replace(samples, posterior=own)
        if isinstance(target, Evidence):
            attributes |= _of_evidence(target) | {"metric": target.metric_name}
        if isinstance(target, MCMC):
            attributes["inference_library"] = "numpyro"
    attributes["draws_replaced_outside_support"] = samples.outside
    if samples.log_weights is not None:
        attributes["effective_draws"] = samples.effective
        if samples.k_hat is not None:
            attributes["k_hat"] = samples.k_hat
        samples = samples.resampled(key, draws)
    return samples, attributes


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

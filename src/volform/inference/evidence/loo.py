"""Leave-one-out predictive density beside the evidence, by ArviZ."""

import dataclasses
import warnings

import jax

from volform.errors import VolformError
from volform.inference import arviz_compat
from volform.inference.arviz_export import groups_of
from volform.inference.evidence.estimator import Problem


@dataclasses.dataclass(frozen=True)
class Loo:
    """Expected log pointwise predictive density by leave-one-out.

    Attributes:
        elpd: the density, summed over data.
        error: its standard error.
        good: whether every Pareto k-hat was below ArviZ's threshold.
    """

    elpd: float
    error: float
    good: bool


def loo_of(problem: Problem, draws: int = 1000) -> Loo | None:
    """LOO on draws of the Laplace approximation; None where there is no mode or no single datum.

    References:
        Vehtari, Gelman & Gabry (2017), practical Bayesian model evaluation.
    """
    if len(problem.provenance.data) != 1:
        return None
    try:
        samples = problem.approx.sample(jax.random.fold_in(problem.key, 3), draws)
    except VolformError:
        return None
    groups, dims = groups_of(problem.posterior, samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of high k-hat: `good` says so
        return Loo(*arviz_compat.psis_loo(arviz_compat.built(groups, {}, dims)))

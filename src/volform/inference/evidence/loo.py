"""Leave-one-out predictive density beside the evidence, by ArviZ."""

import dataclasses
import warnings

import numpy as np
import scipy.special
from jaxtyping import Float

from volform.generators import generator
from volform.inference import arviz_compat
from volform.inference.arviz_groups import groups_of
from volform.inference.evidence.estimator import Problem
from volform.inference.laplace.gaussian_chart import sampling_chart
from volform.inference.laplace.samples import Samples


@dataclasses.dataclass(frozen=True)
class Loo:
    """Expected log pointwise predictive density by leave-one-out.

    Attributes:
        elpd: the density, summed over data.
        error: its standard error.
        good: whether every Pareto k-hat was below ArviZ's threshold.
        data: number of data that are left out, each by itself.
        pointwise: the summands of `elpd`, shape (data,); None of a file of before.
    """

    elpd: float
    error: float
    good: bool
    data: int
    pointwise: Float[np.ndarray, " data"] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )


def loo_of(
    problem: Problem,
    w: Float[np.ndarray, "n d"],
    log_weights: Float[np.ndarray, " n"],
    draws: int = 1000,
) -> Loo | str:
    """LOO on weighted draws around the modes, resampled; a reason where there is none.

    Draws of the Laplace approximation without weights were off by thousands where the posterior is
    skewed.

    Args:
        problem: the posterior's problem.
        w: draws in the chart that its metric is flat in, shape (n, d).
        log_weights: their log weights, unnormalized, shape (n,).
        draws: number of them that are drawn again, by their weights.

    References:
        Vehtari, Gelman & Gabry (2017), practical Bayesian model evaluation; Magnusson, Andersen,
        Jonasson & Vehtari (2019), Bayesian leave-one-out cross-validation for large data.
    """
    sites = len(problem.provenance.data)
    if sites != 1:
        return f"{sites} observed sites, not one"
    shares = scipy.special.softmax(log_weights)
    chosen = generator(problem.key, 3).choice(len(shares), size=draws, p=shares)
    posterior = problem.posterior
    resampled = Samples(posterior, sampling_chart(posterior), w[chosen])
    groups, dims = groups_of(posterior, resampled)
    ((name, pointwise),) = groups["log_likelihood"].items()
    count = pointwise[0, 0].size
    if count < 2:
        return f"`{name}` is one datum, as an event of several numbers is"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of high k-hat: `good` says so
        data = arviz_compat.built(groups, {}, dims)
        elpd, error, good, pointwise = arviz_compat.psis_loo(data)
        return Loo(elpd, error, good, count, pointwise)

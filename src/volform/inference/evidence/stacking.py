"""Stacking: weights of models that predict best together."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from scipy.optimize import LinearConstraint, minimize

from volform.inference.evidence.loo import Loo
from volform.results import Evidence

SMALLEST = 1e-9  # weight: at zero the log density of a datum that one model alone expects is -inf
PRECISION = 1e-15  # of the mean log density; the gradient is then right to some 1e-7


def weights_by_stacking(
    found: Mapping[str, Evidence], scores: Mapping[str, Loo | str]
) -> dict[str, float]:
    """Weights by stacking of two models or more; empty unless all have LOO of the same data.

    Args:
        found: evidence of each model.
        scores: LOO of each model, or why there is none.
    """
    terms = [s.pointwise for name in found if isinstance(s := scores.get(name), Loo)]
    terms = [term for term in terms if term is not None and np.all(np.isfinite(term))]
    data = {evidence.provenance.data for evidence in found.values()}
    is_known = all(e.provenance.is_of_known_data for e in found.values())
    if len(terms) < max(len(found), 2) or len(data) > 1 or not is_known:
        return {}
    if len({len(term) for term in terms}) > 1:
        return {}
    return dict(zip(found, map(float, stacking_weights(np.array(terms).T)), strict=True))


def stacking_weights(log_densities: Float[np.ndarray, "n models"]) -> Float[np.ndarray, " models"]:
    """Weights on the simplex whose mixture of predictive densities is greatest at the data.

    `argmax_w sum_i log sum_k w_k exp(l_ik)`, a concave problem, by sequential quadratic programming
    from equal weights. Weights of models that predict alike are not determined; theirs are equal.

    Args:
        log_densities: of each datum under each model, given the other data, shape (n, models).

    References:
        Yao, Vehtari, Simpson & Gelman (2018), using stacking to average Bayesian predictive
        distributions, Bayesian Analysis 13, 917.
    """
    count = log_densities.shape[1]
    densities = np.exp(log_densities - log_densities.max(axis=1, keepdims=True))
    found = minimize(
        lambda w: -np.mean(np.log(densities @ w)),
        np.full(count, 1.0 / count),
        jac=lambda w: -np.mean(densities / (densities @ w)[:, None], axis=0),
        method="SLSQP",
        bounds=[(SMALLEST, 1.0)] * count,
        constraints=LinearConstraint(np.ones(count), 1.0, 1.0),
        options={"ftol": PRECISION, "maxiter": 1000},
    )
    return found.x / found.x.sum()

"""The Savage-Dickey density ratio: the Bayes factor of a point hypothesis."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro import handlers

from volform.checks import key_of
from volform.errors import DataError, ModelError, UnknownSiteError
from volform.inference.arviz_compat import smoothed
from volform.inference.evidence.importance import K_HAT_LIMIT
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.laplace.gaussian_chart import (
    LEBESGUE,
    FlatChart,
    UnconstrainedChart,
    densities_at,
)
from volform.inference.laplace.marginals import marginals_of
from volform.inference.laplace.samples import Samples
from volform.models.posterior import Posterior
from volform.results import Evidence

PRIOR_DRAWS_OF_PARENTS = 10_000
NO_WEIGHT = 1e-140  # below which the square of one over the weight is no number
FEWEST_PER_PARAMETER = 10  # effective draws of a half, below which no regression is fitted


@dataclasses.dataclass(frozen=True)
class DensityRatio:
    """The Bayes factor of a point hypothesis, built by `savage_dickey`.

    Attributes:
        log_bayes_factor: log of `Z(hypothesis) / Z(model)`: above zero for the hypothesis.
        error: its standard error, NaN by Laplace's method.
        log_posterior: log density of the values under the posterior.
        log_prior: log density of the values under the prior.
        k_hat: Pareto's shape of the tail of the terms that the posterior's is a mean of; None
            where there are none.
        method: the estimator in words.
    """

    log_bayes_factor: float
    error: float
    log_posterior: float
    log_prior: float
    k_hat: float | None
    method: str

    def __repr__(self) -> str:
        error = "" if math.isnan(self.error) else f" ± {self.error:.2g}"
        text = (
            f"log Bayes factor {self.log_bayes_factor:.3f}{error} for the hypothesis, "
            f"by {self.method}"
        )
        if self.k_hat is not None and self.k_hat > K_HAT_LIMIT:
            text += f"\nnot to be trusted: k-hat {self.k_hat:.2f} of the posterior's density there"
        return text


def savage_dickey(
    target: Evidence | Samples | LaplaceApproximation,
    values: Mapping[str, Any],
    *,
    key: PRNGKeyArray | None = None,
) -> DensityRatio:
    """The Bayes factor of a hypothesis that some sites have given values, from one fit.

    `Z(hypothesis) / Z(model) = p(values | data) / p(values)`, if under the hypothesis the other
    sites have the prior that they have in the model *given* the values. Both densities are with
    respect to the same measure, so that the ratio is the same in every parametrization of these
    sites; but which prior "given the values" is, depends on what the other sites are.

    The density under the posterior is a mean over its draws, `E[w(t | rest) p(t0, rest) / p(t,
    rest)]`, with w a Gaussian regression of the sites on the others in u, fitted to the other half
    of the draws: no bandwidth, and an error (Chen 1994). Of a Laplace approximation it is that of
    its Gaussian marginal. The density under the prior is the sites' own, averaged over 10,000 draws
    of those that it depends on.

    Args:
        target: an evidence with draws, draws, or a Laplace approximation.
        values: value of each site under the hypothesis, inside its support.
        key: key of the draws from the prior; `jax.random.key(0)` by default.

    Returns:
        A `DensityRatio`: `.log_bayes_factor`, `.error`, `.k_hat`.

    Raises:
        ModelError: a target without draws, an improper prior, a site whose support depends on
            others, or a Laplace approximation without a marginal in closed form.
        UnknownSiteError: for a site that there is not.
        DataError: values of another shape, or not inside the support.

    Cost: two densities for each draw.

    References:
        Dickey (1971), The weighted likelihood ratio, linear hypotheses on normal location
        parameters; Verdinelli & Wasserman (1995); Chen (1994), importance-weighted marginal
        density estimation, JASA 89, 818.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     tau = numpyro.sample("tau", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu + tau, 1.0), obs=y)
    >>> approx = vf.laplace(vf.condition(model, jnp.array([2.0])))
    >>> found = vf.inference.savage_dickey(approx, {"tau": 0.0})
    >>> round(found.log_bayes_factor, 4)  # of N(2; 0, 2) and N(2; 0, 3)
    -0.1306
    """
    samples = target.draws if isinstance(target, Evidence) else target
    posterior = getattr(samples, "posterior", None)
    if not isinstance(samples, Samples | LaplaceApproximation) or posterior is None:
        kind = f"of the type {type(target).__name__}"
        if isinstance(target, Evidence):
            kind = f"an evidence by {target.method}"
        raise ModelError(
            f"`target` of savage_dickey is {kind}, without draws or without its model; give an "
            "evidence by `vf.Importance()`, or the result of `vf.laplace`."
        )
    posterior.provenance.require_proper(allow_improper=False)
    points = _points(posterior, values)
    log_prior, prior_error = _log_prior(posterior, values, key_of(key, "savage_dickey", ModelError))
    if isinstance(samples, LaplaceApproximation):
        log_posterior = _of_gaussian(samples, points)
        ratio = log_posterior - log_prior
        return DensityRatio(ratio, math.nan, log_posterior, log_prior, None, "Laplace")
    log_density, error, k_hat = _of_draws(samples, points)
    log_posterior = log_density - sum(log_det for _, log_det in points.values())
    method = target.method if isinstance(target, Evidence) else "draws"
    return DensityRatio(
        log_posterior - log_prior,
        math.hypot(error, prior_error),
        log_posterior,
        log_prior,
        k_hat,
        method,
    )


_Points = dict[str, tuple[Float[np.ndarray, " k"], float]]  # u, and log |det dv/du| there


def _points(posterior: Posterior, values: Any) -> _Points:
    """The sites' parts of u at the values.

    Raises:
        UnknownSiteError: for a site that there is not.
        DataError: values of another shape, or not inside the support.
        ModelError: no values, or a site whose support depends on others.
    """
    if not isinstance(values, Mapping) or not values:
        raise ModelError(
            "`values` of savage_dickey should be a dict of a value for each site of the "
            f"hypothesis, such as {{'effect': 0.0}}; got {values!r}."
        )
    found: _Points = {}
    for name, value in values.items():
        if name not in posterior.names:
            raise UnknownSiteError(
                f"`values` of savage_dickey has {name!r}, which is no latent site; those are "
                f"{list(posterior.names)}."
            )
        site = posterior.layout.site(name)
        if site.moving:
            raise ModelError(
                f"The support of `{name}` depends on other sites, so that savage_dickey has no one "
                "point to compare at; compare the two models by `vf.compare`."
            )
        try:
            array = np.asarray(value, jnp.result_type(float))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"`values` of savage_dickey has {value!r} for `{name}`; it should be a number, or "
                f"an array of the shape {site.shape}."
            ) from error
        if array.shape != site.shape:
            raise DataError(
                f"`values` of savage_dickey has the shape {array.shape} for `{name}`, which has "
                f"{site.shape}."
            )
        u, log_det, back = (np.asarray(part) for part in _charted(site, jnp.asarray(array)))
        if not np.isfinite(u).all() or not np.allclose(back, array, rtol=1e-6, atol=1e-12):
            raise DataError(
                f"`values` of savage_dickey has {value!r} for `{name}`, which is not inside of its "
                "support. At an edge, such as a variance of zero, take a value near it, or compare "
                "the two models by `vf.compare`."
            )
        found[name] = u, float(log_det)
    return found


def _charted(site: Any, value: Array) -> tuple[Array, Array, Array]:
    u = site.chart.inv(value)
    back = site.chart(u)
    return jnp.ravel(u), jnp.sum(site.chart.log_abs_det_jacobian(u, back)), back


def _log_prior(
    posterior: Posterior, values: Mapping[str, Any], key: PRNGKeyArray
) -> tuple[float, float]:
    """Log density of values under the prior, and its standard error over draws of the others."""
    program, names = posterior.program, list(values)
    given = {name: jnp.asarray(value, jnp.result_type(float)) for name, value in values.items()}

    def at(key: PRNGKeyArray) -> Float[Array, ""]:
        fixed = handlers.substitute(handlers.seed(program.model, key), data=given)
        trace = program.trace(fixed)
        return jnp.asarray(
            sum(jnp.sum(trace[name]["fn"].log_prob(trace[name]["value"])) for name in names)
        )

    terms = np.asarray(jax.jit(jax.vmap(at))(jax.random.split(key, PRIOR_DRAWS_OF_PARENTS)), float)
    if not np.isfinite(np.max(terms)):
        raise DataError(f"The prior has no density at `values` of savage_dickey, {dict(values)}.")
    log_mean = float(scipy.special.logsumexp(terms) - math.log(len(terms)))
    return log_mean, float(np.std(np.exp(terms - log_mean)) / math.sqrt(len(terms)))


def _of_gaussian(approx: LaplaceApproximation, points: _Points) -> float:
    """Log density of the Gaussian's marginal with respect to the values."""
    tangent, layout = approx.gaussian, approx.posterior.layout
    entries = np.concatenate([np.arange(layout.dim)[layout.site(n).segment] for n in points])
    known = None if tangent.orbit is not None else marginals_of(tangent)
    is_simple = isinstance(tangent.chart, FlatChart | UnconstrainedChart)
    if known is None or not is_simple or not known.is_exact[entries].all():
        raise ModelError(
            f"The Laplace approximation has no marginal of {list(points)} in closed form; give "
            "`vf.evidence(approx, by=vf.Importance())` to savage_dickey."
        )
    if np.isfinite([known.lower[entries], known.upper[entries]]).any():
        raise ModelError(
            f"An edge of the support cuts off the Laplace approximation of {list(points)}; give "
            "`vf.evidence(approx, by=vf.Importance())` to savage_dickey."
        )
    in_values = tangent.chart.in_values if isinstance(tangent.chart, FlatChart) else ()
    w, log_det = [], 0.0
    for name, (u, own) in points.items():
        site = layout.site(name)
        if name in in_values:
            w.append(np.ravel(np.asarray(site.chart(jnp.reshape(u, site.coordinates)))))
        else:
            w.append(u)
            log_det += own
    root = known.root[:, entries]
    covariance: Any = root.T @ root
    gaussian = scipy.stats.multivariate_normal(known.center[entries], covariance)
    return float(gaussian.logpdf(np.concatenate(w))) - log_det


def _of_draws(samples: Samples, points: _Points) -> tuple[float, float, float | None]:
    """Log density under the posterior with respect to u, its standard error, and k-hat."""
    posterior, layout = samples.posterior, samples.posterior.layout
    entries = np.concatenate([np.arange(layout.dim)[layout.site(n).segment] for n in points])
    at = np.concatenate([u for u, _ in points.values()]).astype(float)
    kept = samples.weights > NO_WEIGHT
    u = np.asarray(samples.u, float)[kept]
    weights = samples.weights[kept]
    moved = u.copy()
    moved[:, entries] = at
    log_moved = densities_at(posterior, LEBESGUE, moved)[0]
    log_w = _crossed(u, weights, entries, samples.cells is None)
    terms = np.full(len(kept), -np.inf)
    terms[kept] = log_w + np.asarray(log_moved, float) - np.asarray(samples.log_p, float)[kept]
    terms = np.where(np.isnan(terms), -np.inf, terms)
    # Where the weight is small the term is large: what counts is their product.
    products = terms[kept] + np.log(weights)
    shift = np.max(products)
    if not np.isfinite(shift):
        return -math.inf, math.nan, None
    mean, error = samples.expectation(np.exp(terms - shift)[:, None])
    k_hat = None
    if samples.cells is None and kept.sum() >= FEWEST_PER_PARAMETER:
        k_hat = smoothed(products)[1]
    relative = 0.0 if samples.cells is not None else float(error[0] / mean[0])
    return float(shift + math.log(mean[0])), relative, k_hat


def _crossed(
    u: Float[np.ndarray, "n d"],
    weights: Float[np.ndarray, " n"],
    entries: np.ndarray,
    is_drawn: bool,
) -> Float[np.ndarray, " n"]:
    """Log w of each draw, by the regression that is fitted to the other half of the draws."""
    if not is_drawn:  # nodes, which are no fewer where they were fitted to
        return _regressed(u, weights, entries, u)
    half = len(u) // 2
    first, second = slice(None, half), slice(half, None)
    return np.concatenate(
        [
            _regressed(u[second], weights[second], entries, u[first]),
            _regressed(u[first], weights[first], entries, u[second]),
        ]
    )


def _regressed(
    fitted: Float[np.ndarray, "n d"],
    weights: Float[np.ndarray, " n"],
    entries: np.ndarray,
    u: Float[np.ndarray, "m d"],
) -> Float[np.ndarray, " m"]:
    """Log density of entries of u given the others, by the Gaussian of weighted points."""
    weights = weights / weights.sum()
    mean = weights @ fitted
    centered = fitted - mean
    covariance = (weights[:, None] * centered).T @ centered
    others = np.setdiff1d(np.arange(u.shape[1]), entries)
    if FEWEST_PER_PARAMETER * len(others) > 1.0 / np.sum(weights**2):
        others = others[:0]
    own, cross = covariance[np.ix_(entries, entries)], covariance[np.ix_(others, entries)]
    slopes = cross
    if len(others):
        slopes = np.linalg.lstsq(covariance[np.ix_(others, others)], cross, rcond=None)[0]
    rest: Any = own - cross.T @ slopes
    gaps = u[:, entries] - mean[entries] - (u[:, others] - mean[others]) @ slopes
    return np.atleast_1d(scipy.stats.multivariate_normal(cov=rest).logpdf(gaps))

"""Credible regions that are the same in every parametrization: level sets of q^G."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC
from scipy.stats import chi2

from volform.compilation import Remembering, compiled, remembered
from volform.errors import MetricError, ModelError, UnknownSiteError
from volform.geometry.metric import Metric
from volform.geometry.questions import name_of
from volform.inference.given_draws import given_draws, points_of
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.laplace.draws import draws_of_sites
from volform.inference.laplace.samples import FEWEST_FOR_TIMES, Samples
from volform.inference.laplace.weighing import weighted_quantiles
from volform.inference.summary import require_probability
from volform.linalg.structured import exact_logdet
from volform.models.posterior import Posterior
from volform.results import Evidence

FEWEST_BEYOND = 5  # effective draws on either side of the threshold
PLATEAU, MOST_LEVEL = 1e-9, 0.02  # relative width of log q^G, and the share of draws in it
DENSITIES_AT_ONCE = 1000  # densities evaluated together; one program serves any number of values
# Gauss's rule of three points on (0, 1), between neighboring draws.
_NODES, _SHARES = np.polynomial.legendre.leggauss(3)
_NODES, _SHARES = 0.5 + 0.5 * _NODES, 0.5 * _SHARES


class CredibleRegion(Remembering):
    """The smallest region of a given probability, in the volume of the metric.

    `{theta : log q^G(theta) >= threshold}`, with q^G the joint density against dV_G. Of all regions
    of this probability it has the least volume V_G, and it is the same set of parameters in every
    parametrization, as the highest-density region of a Lebesgue density is not.

    Attributes:
        posterior: the posterior, with its metric.
        probability: that the region should have.
        threshold: log q^G at its boundary.
        error: standard error of the probability, from the number of draws that decided the
            threshold; NaN for a Laplace approximation, which says nothing of it.
        log_volume: `log V_G` of the region, without unit; None where it needs an evidence and
            none was given.
        source: the draws, or the Laplace approximation.
    """

    posterior: Posterior
    probability: float
    threshold: float
    error: float
    log_volume: float | None
    source: Samples | LaplaceApproximation

    def contains(self, values: Mapping[str, Any]) -> np.ndarray:
        """True for values in the region; False outside of the support.

        Args:
            values: value of each latent site, or draws of it, with the same axes first.

        Raises:
            UnknownSiteError: when a latent site is missing.
            DataError: when a value has the wrong shape.
        """
        flat, lead = draws_of_sites(self.posterior.layout, values)
        u, inside = points_of(self.posterior, flat)
        return (inside & (_log_density(self.posterior, u) >= self.threshold)).reshape(lead)

    def interval(
        self, name: str, measure: Metric | None = None
    ) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
        """Ends of an interval of the region's probability for each element of one site.

        Without a `measure`, between the quantiles that leave out as much on either side, which
        every monotone change of the parameter carries along. The *shortest* interval has no meaning
        without a unit of length: that of `measure`, `integral of sqrt(g(x)) dx`. With `Euclidean()`
        it is ArviZ's `hdi`, with `pullback(Euclidean(), jnp.log)` that of the logarithm.

        Args:
            name: a latent site of real values.
            measure: a metric of one number.

        Raises:
            UnknownSiteError: when there is no such site.
            MetricError: when `measure` is no metric of one number.
        """
        if name not in self.posterior.names:
            raise UnknownSiteError(
                f"`name` of an interval should be one of {list(self.posterior.names)}; got "
                f"{name!r}."
            )
        site = self.posterior.layout.site(name)
        x, weights = self.draws(name)
        columns = x.reshape(len(x), -1).T
        if measure is None:
            half = 0.5 * self.probability
            found = [weighted_quantiles(x, weights, (0.5 - half, 0.5 + half)) for x in columns]
        else:
            found = [_shortest(x, weights, self.probability, measure, name) for x in columns]
        lower, upper = np.reshape(np.transpose(found), (2, *site.shape))
        return lower, upper

    def draws(self, name: str) -> tuple[Float[np.ndarray, "n ..."], Float[np.ndarray, " n"]]:
        """Draws of one site that intervals are computed from, and their weights, all positive.

        Angles are taken around their mean direction.
        """
        return self._samples.marginal(name)

    @remembered
    def _samples(self) -> Samples:
        if isinstance(self.source, Samples):
            return self.source
        return self.source.sample(jax.random.key(0), 10 * DENSITIES_AT_ONCE)

    def __repr__(self) -> str:
        of = "Laplace approximation" if np.isnan(self.error) else "draws"
        error = "" if np.isnan(self.error) else f" ± {self.error:.2g}"
        volume = "" if self.log_volume is None else f", log volume {self.log_volume:.3f}"
        return (
            f"Credible region of probability {self.probability:g}{error} by {of}: "
            f"log q^G >= {self.threshold:.3f}{volume}\nmetric {self.posterior.metric_name}"
        )


def credible_region(
    target: LaplaceApproximation | Evidence | Samples | MCMC | Mapping[str, Any],
    probability: float = 0.9,
    *,
    posterior: Posterior | None = None,
) -> CredibleRegion:
    """The smallest region of a probability a, in the volume of the metric: `{q^G >= c}`.

    From draws, log c is the (1 - a)-quantile of log q^G at them. By Laplace's method it is
    `log q^G(theta*) - r^2 / 2` with r^2 the a-quantile of chi^2 with d degrees of freedom. With an
    evidence the volume is `Z E[1 / q^G; region]`, a mean of bounded terms; Laplace's is that of
    the ellipsoid, `pi^(d/2) r^d / Gamma(d/2 + 1) / sqrt(det G^-1 H)`.

    Args:
        target: an evidence with draws or a Laplace approximation; draws of one; or, with
            `posterior`, an `MCMC` of NumPyro or a dictionary of draws of every latent site.
        probability: a, between 0 and 1.
        posterior: whose density and metric are taken, where the target has none.

    Returns:
        A `CredibleRegion`: `.threshold`, `.contains(values)`, `.log_volume`, `.interval(site)`.

    Raises:
        ModelError: when `probability` is not between 0 and 1, the target has no draws or no
            posterior.
        UnknownSiteError: when a latent site is missing among the draws.
        DataError: when draws have the wrong shape.

    Cost: log q^G at every draw.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> approx = vf.laplace(vf.condition(model, jnp.array([0.5, 1.5])))
    >>> region = vf.credible_region(approx, 0.9)  # |mu - 2/3| <= 1.645 / sqrt(3)
    >>> region.contains({"mu": [-0.2, 0.6, 1.7]}).tolist()
    [True, True, False]
    >>> round(math.exp(region.log_volume), 3)  # 2 * 1.645 / sqrt(3)
    1.899
    """
    require_probability(probability, "credible_region")
    probability = float(probability)
    if isinstance(target, LaplaceApproximation):
        return _of_laplace(target, probability)
    log_z = float(target.log_z) if isinstance(target, Evidence) else None
    samples, posterior = given_draws(target, posterior, "credible_region")
    log_q = _log_density(posterior, samples.u)
    kept = samples.weights > 0.0
    (threshold,) = weighted_quantiles(log_q[kept], samples.weights[kept], (1.0 - probability,))
    inside = log_q >= threshold
    _require_a_boundary(log_q, samples.weights, float(threshold), probability)
    log_volume = None
    if log_z is not None:
        terms = np.log(samples.weights[inside & kept]) - log_q[inside & kept]
        log_volume = log_z + float(np.logaddexp.reduce(terms))
    return CredibleRegion(
        posterior, probability, float(threshold), _error(samples, inside), log_volume, samples
    )


def _of_laplace(approx: LaplaceApproximation, probability: float) -> CredibleRegion:
    posterior, at = approx.posterior, approx.at
    orbit = approx.mode.orbit
    k = 0 if orbit is None else orbit.dimension
    d = posterior.dim - k
    square = float(chi2.ppf(probability, d)) if d else 0.0
    half_log_det = 0.5 * float(exact_logdet(approx.precision)) - float(posterior.log_volume(at.u))
    # Along an orbit its k directions, of curvature 2 pi / Vol^(2/k), are not across it: together
    # they have (2 pi)^(k/2) / Vol in the root of det, and the region has Vol of them.
    half_log_det -= 0.5 * k * math.log(2.0 * math.pi)
    ball = 0.5 * d * math.log(math.pi * square) if d else 0.0
    ball -= math.lgamma(0.5 * d + 1.0)
    threshold = float(posterior.log_density(at.u)) - 0.5 * square
    return CredibleRegion(posterior, probability, threshold, math.nan, ball - half_log_det, approx)


def _require_a_boundary(
    log_q: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    threshold: float,
    probability: float,
) -> None:
    """Check that the threshold divides the draws: that q^G is no plateau there, and n is enough.

    Raises:
        ModelError: when it does not.
    """
    beyond = min(probability, 1.0 - probability) / float(np.sum(weights**2))
    if beyond < FEWEST_BEYOND:
        raise ModelError(
            f"`target` of credible_region has {1.0 / np.sum(weights**2):.0f} effective draws, of "
            f"which {beyond:.2g} lie on one side of a region of probability {probability:g}: give "
            f"more draws, for {FEWEST_BEYOND} at least."
        )
    level = float(weights @ (np.abs(log_q - threshold) <= PLATEAU * (1.0 + abs(threshold))))
    if level > MOST_LEVEL:
        raise ModelError(
            f"q^G is the same, {threshold:.6g}, at {level:.0%} of the draws: no region "
            f"`q^G >= c` has the probability {probability:g}, and those that have it are many. "
            "Take `interval` of a region of another posterior, or quantiles."
        )


def _error(samples: Samples, inside: np.ndarray) -> float:
    """Standard error of the probability, by the draws that count for it."""
    if samples.cells is not None:
        return 0.0
    share = float(samples.weights @ inside)
    count = samples.effective
    by_chain = inside.reshape(samples.chains, -1)
    if samples.log_weights is None and by_chain.shape[1] >= FEWEST_FOR_TIMES:
        count = min(count, float(effective_sample_size(by_chain.astype(float))))
    return math.sqrt(share * (1.0 - share) / count)


def _shortest(
    x: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    probability: float,
    measure: Metric,
    name: str,
) -> tuple[float, float]:
    """The interval between two draws that holds the probability and is shortest in the measure."""
    order = np.argsort(x)
    x, weights = x[order], weights[order]
    gaps = np.diff(x)
    density = _line_density(measure, x[:-1, None] + gaps[:, None] * _NODES, name)
    length = np.concatenate([[0.0], np.cumsum(gaps * (density @ _SHARES))])
    # Half of the weights of both ends: of n draws alike, floor(n a) gaps, as in ArviZ.
    below = np.cumsum(weights) - weights
    last = np.searchsorted(below, below + probability * (1.0 - 1e-12), side="left")
    first = np.flatnonzero(last < len(x))
    if not first.size:  # more than the outermost draws hold
        return float(x[0]), float(x[-1])
    best = first[np.argmin(length[last[first]] - length[first])]
    return float(x[best]), float(x[last[best]])


def _line_density(measure: Metric, x: Float[np.ndarray, "n k"], name: str) -> np.ndarray:
    """`sqrt(g(x))` at each number."""
    if not isinstance(measure, Metric):
        raise MetricError(f"`measure` should be a metric such as `Euclidean()`; got {measure!r}.")

    def density(x: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.exp(0.5 * exact_logdet(measure(x)))

    try:
        found = np.asarray(jax.jit(jax.vmap(jax.vmap(density)))(x))
    except (TypeError, ValueError) as error:
        raise MetricError(
            f"`measure` of the interval of `{name}`, {name_of(measure)}, is no metric of one "
            f"number: {error}"
        ) from error
    if not (found > 0.0).all():
        raise MetricError(
            f"`measure` of the interval of `{name}`, {name_of(measure)}, is not positive or not "
            f"finite at {x[~(found > 0.0)][0]:.6g}, between two draws."
        )
    return found


def _log_density(posterior: Posterior, u: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Log q^G at points; minus infinity where it is not a number."""
    size, found = min(len(u), DENSITIES_AT_ONCE), []
    for start in range(0, len(u), size):
        now = np.asarray(u[start : start + size], jnp.result_type(float))
        padded = np.concatenate([now, np.repeat(now[:1], size - len(now), axis=0)])
        found.append(np.asarray(_log_densities(posterior, padded))[: len(now)])
    log_q = np.concatenate(found)
    return np.where(np.isnan(log_q), -np.inf, log_q)


@compiled
def _log_densities(posterior: Posterior, u: Float[Array, "n d"]) -> Float[Array, " n"]:
    return jax.vmap(posterior.log_density)(u)

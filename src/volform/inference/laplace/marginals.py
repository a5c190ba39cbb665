"""The marginals of a Laplace approximation in the values of its sites."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Array, Bool, Float
from numpyro.distributions.transforms import ExpTransform

from volform.compilation import QUICK, Compiled
from volform.geometry.questions import is_elementwise
from volform.inference.axis_names import names_of_elements
from volform.inference.laplace.draws import TangentGaussian
from volform.inference.laplace.gaussian_chart import FlatChart
from volform.inference.laplace.samples import Samples
from volform.inference.laplace.weighing import notes_on_angles
from volform.inference.summary import Summary, require_probability
from volform.limits import EXPLAINED_UP_TO
from volform.linalg.generalized import cholesky_or_nan, solve_lower
from volform.models.layout import Site

# Probability outside the support up to which a Gaussian is taken for whole: at five standard
# deviations it moves a mean by 1e-6 of one.
OUTSIDE = 1e-6
UNCORRELATED = 1e-9
# The trapezoidal rule for a standard normal number: at 38 its density is the smallest of float64,
# and for a sigmoid of s z the error is exp(-2 pi^2 / (s STEP)), 1e-14 of s = 10.
REACH, STEP = 38.0, 1.0 / 16.0
DRAWN = 10_000
CURVE, ON_CURVE = 5.0, 401  # reach of a curve in standard deviations, and its points
NUMBERS = 10_000_000  # of all draws together, which bounds the memory in many dimensions


class Marginals(NamedTuple):
    """The Gaussian marginals in the coordinates w of the draws.

    Attributes:
        center: means, shape (d,).
        sd: standard deviations.
        lower: lower ends of the support.
        upper: upper ends.
        is_exact: entries whose marginal is this Gaussian on its support, whatever is cut off of
            the others.
        root: of the covariance, `root^T root`, shape (d, d).
        is_box: whether the support is that of these ends.
    """

    center: Float[np.ndarray, " d"]
    sd: Float[np.ndarray, " d"]
    lower: Float[np.ndarray, " d"]
    upper: Float[np.ndarray, " d"]
    is_exact: Bool[np.ndarray, " d"]
    root: Float[np.ndarray, "d d"]
    is_box: bool


def summary_of(
    tangent: TangentGaussian, samples: Callable[[int], Samples], probability: float, **words: Any
) -> Summary:
    """Mode, mean, standard deviation and interval of every element, in values.

    A value that is Gaussian has them in closed form, as the exponential of one has, and one that is
    cut off at an edge of its support. Any other function of one number is integrated by the
    trapezoidal rule, which converges exponentially; its quantiles are images of the Gaussian's.
    Draws are taken where a chart mixes several elements (a simplex, a Cholesky factor), where what
    is cut off of one element changes another that is correlated with it, and above 2,000
    parameters.

    Args:
        tangent: the Gaussian.
        samples: a number of draws of it.
        probability: of the intervals.
        words: title and notes of the summary.

    Raises:
        ModelError: when `probability` is not between 0 and 1.
        ConvergenceError: when draws are needed, and hardly any lies in the support.
    """
    require_probability(probability, "summary")
    if tangent.orbit is not None:
        notes = [*words.pop("notes", ()), f"by {DRAWN:,} draws, turned along the orbit"]
        return samples(DRAWN).summary(probability, notes=notes, **words)
    layout = tangent.posterior.layout
    modes = {name: np.asarray(v, float) for name, v in layout.constrain(tangent.u).items()}
    known = None if layout.dim > EXPLAINED_UP_TO else marginals_of(tangent)
    in_values = _in_values(tangent)
    exact, others = {}, []
    for site in layout.sites:
        if known is None or not known.is_exact[site.segment].all():
            others.append(site.name)
        else:
            own = [part[site.segment].reshape(site.coordinates) for part in known[:4]]
            exact[site.name] = _of_site(
                site, own, site.name in in_values, modes[site.name], probability
            )
    notes = list(words.pop("notes", ()))
    found = None
    if others:
        count = max(min(DRAWN, NUMBERS // layout.dim), DRAWN // 10)
        own = _drawn(tangent, known, count) if known is not None and known.is_box else None
        found = (own or samples(count)).summary(probability)
        notes += [f"{', '.join(others)}: by {count:,} draws", *found.notes]
    columns: dict[str, dict[str, Any]] = {
        column: {
            name: exact[name][column] if name in exact else getattr(found, column)[name]
            for name in layout.names
        }
        for column in ("mean", "sd", "lower", "upper", "error")
    }
    circular = [site.name for site in layout.sites if site.circular]
    notes += notes_on_angles([name for name in circular if name in exact], columns)
    return Summary(
        **columns,
        mode=modes,
        probability=float(probability),
        notes=tuple(notes),
        names=names_of_elements(tangent.posterior),
        **words,
    )


def marginals_of(tangent: TangentGaussian) -> Marginals:
    """The marginals; cost that of a Cholesky factor of all parameters."""
    layout, in_values = tangent.posterior.layout, _in_values(tangent)
    center, push = tangent.chart.pushed(tangent.posterior, tangent.u)
    factor = cholesky_or_nan(np.asarray(tangent.precision.as_matrix(), float))
    root = solve_lower(factor, push.T)  # the covariance in w is root^T root
    sd = np.linalg.norm(root, axis=0)
    lower, upper = np.full(len(sd), -np.inf), np.full(len(sd), np.inf)
    is_alone, is_cut = np.ones(len(sd), bool), np.zeros(len(sd), bool)
    bounded = []
    for site in layout.sites:
        if not is_elementwise(site.chart) or site.moving:
            is_alone[site.segment] = False
            is_cut[site.segment] = site.name in in_values  # by an edge of no simple shape
        elif site.name in in_values and not site.is_line:
            bounded.append(site)
    is_box = not is_cut.any()
    for site, ends in zip(bounded, _ends(bounded) if bounded else (), strict=True):
        lower[site.segment], upper[site.segment] = np.sort(np.reshape(ends, (2, -1)), axis=0)
    with np.errstate(invalid="ignore"):
        tails = scipy.special.ndtr((lower - center) / sd) + scipy.special.ndtr(
            (center - upper) / sd
        )
        if tails.sum() > OUTSIDE:
            is_cut |= tails > OUTSIDE / len(sd)
        else:
            lower[:], upper[:] = -np.inf, np.inf
        unit = root / sd
        correlation = np.abs(unit[:, is_cut].T @ unit)
    correlation[np.arange(is_cut.sum()), np.flatnonzero(is_cut)] = 0.0
    depends = (correlation > UNCORRELATED).any(0)
    return Marginals(center, sd, lower, upper, is_alone & ~depends, root, is_box)


def marginal_densities(
    tangent: TangentGaussian,
) -> dict[str, tuple[Float[np.ndarray, "n ..."], Float[np.ndarray, "n ..."]]]:
    """Curves of the density of each element of the sites, with respect to its value.

    Over five standard deviations on either side in the coordinates of the draws, as far as the
    support goes.

    Args:
        tangent: the Gaussian.

    Returns:
        Values and densities at them by site, of those where there is a closed form.
    """
    layout = tangent.posterior.layout
    if tangent.orbit is not None or layout.dim > EXPLAINED_UP_TO:
        return {}
    known, in_values = marginals_of(tangent), _in_values(tangent)
    z, found = np.linspace(-CURVE, CURVE, ON_CURVE), {}
    for site in layout.sites:
        if site.circular or not known.is_exact[site.segment].all():
            continue
        m, s, low, high = (part[site.segment].reshape(site.coordinates) for part in known[:4])
        w = np.clip(m + s * z.reshape(-1, *[1] * m.ndim), low, high)
        inside = scipy.special.ndtr((high - m) / s) - scipy.special.ndtr((low - m) / s)
        density = scipy.stats.norm.pdf(w, m, s) / inside
        x, slope = (w, 1.0) if site.name in in_values or site.is_line else _sloped_at(site, w)
        found[site.name] = x, density / np.abs(slope)
    return found


def _sloped_at(site: Site, u: Float[np.ndarray, "n ..."]) -> tuple[np.ndarray, np.ndarray]:
    """Values of a site at points u, and their slopes, each element's by its own."""
    x, slope = _sloped(site, u.astype(jnp.result_type(float)))
    return np.asarray(x, float), np.asarray(slope, float)


@lambda fn: Compiled(fn, QUICK)
def _sloped(site: Site, u: Float[Array, "n ..."]) -> Any:
    return jax.vmap(lambda u: jax.jvp(site.chart, (u,), (jnp.ones_like(u),)))(u)


def _in_values(tangent: TangentGaussian) -> tuple[str, ...]:
    return tangent.chart.in_values if isinstance(tangent.chart, FlatChart) else ()


@lambda fn: Compiled(fn, QUICK)
def _ends(sites: list[Site]) -> Any:
    """Ends of the supports of sites whose charts act on each element alone."""
    return [
        tuple(site.chart(jnp.full(site.coordinates, x)) for x in (-jnp.inf, jnp.inf))
        for site in sites
    ]


def _drawn(tangent: TangentGaussian, known: Marginals, count: int) -> Samples | None:
    """Draws on the support, by no program of the precision's; None where hardly any lies there."""
    random, kept, tried = np.random.default_rng(0), [], 0
    while (found := sum(map(len, kept))) < count:
        if tried > 1000 * (found + 1):
            return None
        w = known.center + random.standard_normal((count, len(known.center))) @ known.root
        kept.append(w[((known.lower < w) & (w < known.upper)).all(1)])
        tried += count
    return Samples(tangent.posterior, tangent.chart, np.concatenate(kept)[:count])


def _of_site(
    site: Site, own: list[Any], in_values: bool, mode: Any, probability: float
) -> dict[str, np.ndarray]:
    """Columns of the summary of one site, of its centers, deviations, lower and upper ends."""
    m, s, low, high = own
    tail = 0.5 * (1.0 - probability)
    reach = -scipy.special.ndtri(tail)
    chart = getattr(site.chart, "base_transform", site.chart)
    if in_values and np.isfinite([low, high]).any():
        law = scipy.stats.truncnorm((low - m) / s, (high - m) / s, loc=m, scale=s)
        columns = law.mean(), law.std(), law.ppf(tail), law.ppf(1.0 - tail)
    elif in_values or site.is_line:
        columns = m, s, m - reach * s, m + reach * s
    elif isinstance(chart, ExpTransform):
        mean = np.exp(m + 0.5 * s**2)
        columns = mean, mean * np.sqrt(np.expm1(s**2)), np.exp(m - reach * s), np.exp(m + reach * s)
    else:
        columns = _integrated(site, m, s, reach)
    if site.circular:  # by whole turns to the value that the mode is shown as
        turns = mode - (m if in_values else _mapped(site, m[None])[0])
        mean, sd, lower, upper = columns
        columns = mean + turns, sd, lower + turns, upper + turns
    names = "mean", "sd", "lower", "upper"
    found = {name: np.asarray(part, float) for name, part in zip(names, columns, strict=True)}
    return found | {"error": np.full(m.shape, math.nan)}


def _integrated(site: Site, m: Any, s: Any, reach: float) -> tuple[np.ndarray, ...]:
    """Mean, standard deviation and quantiles of a monotonic function of a Gaussian number."""
    z = np.arange(-REACH, REACH + 0.5 * STEP, STEP)
    weights = np.exp(-0.5 * z**2)
    weights /= weights.sum()
    points = np.concatenate([z, [-reach, reach]])
    values = _mapped(site, m + s * points.reshape(-1, *[1] * m.ndim))
    mean = np.tensordot(weights, values[: len(z)], 1)
    sd = np.sqrt(np.tensordot(weights, (values[: len(z)] - mean) ** 2, 1))
    lower, upper = np.sort(values[len(z) :], axis=0)
    return mean, sd, lower, upper


def _mapped(site: Site, u: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n ..."]:
    """Values of a site at points u, angles as they are in its chart."""
    return np.asarray(_charted(site, u.astype(jnp.result_type(float))), float)


@lambda fn: Compiled(fn, QUICK)
def _charted(site: Site, u: Float[Array, "n ..."]) -> Any:
    return jax.vmap(site.chart)(u)

"""The one way in to the evidence of a model, and the cheapest estimator that can be trusted."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence

from jaxtyping import PRNGKeyArray

from volform.errors import ModelError, VolformError
from volform.geometry.dependence import has_open_loop
from volform.inference.evidence.bridge import Bridge
from volform.inference.evidence.estimator import (
    Estimator,
    Laplace,
    Problem,
    estimator_of,
    problem_of,
)
from volform.inference.evidence.importance import GOOD_K_HAT, K_HAT_LIMIT, Importance
from volform.inference.evidence.quadrature import Quadrature
from volform.inference.evidence.tempered import Tempered
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.laplace.equivalent_modes import without_copies
from volform.inference.laplace.log_evidence import errors_of
from volform.inference.modes.mode import MAP
from volform.limits import AUTOMATIC_QUADRATURE_UP_TO, TEMPERED_UP_TO
from volform.models.posterior import Posterior
from volform.progress import waiting
from volform.results import Cost, Evidence, Level, Trust, scalar

_ORDER = (Level.GOOD, Level.FAIR, Level.UNCHECKED, Level.POOR)
# Chains with an R-hat above this are in different places, not only slow: mass lies away from the
# mode that Laplace's method looked at.
APART_R_HAT = 1.5
QUADRATURE_NODES = 1_000_000  # a second or two; what they do not settle, draws do sooner
MOST_DRAWS = 16_000  # of a bridge
# Evaluations of tempering before a bridge of smaller steps, some five seconds. Eight schools takes
# 511,000; NumPyro's UCB admissions 22 million, a minute, and that bridge 12 s.
FIRST_EVALUATIONS = 1_000_000
# Of |c|, below which the second order is near enough to speak against an estimate by draws, and the
# gap in nats at which it does, beyond 3 errors: twice what 98 % of 194 exact fits stayed below.
WITNESS_UP_TO = 0.1


class Automatic(Estimator):
    """Laplace, quadrature, importance and bridge sampling, until one of them can be trusted.

    The first estimate whose trust is "good" and whose error is below `tolerance` is taken, unless
    the second-order Laplace evidence speaks against it: more than `3 errors + .02 + |c|/2` away,
    for |c| < 0.1 and one mode. Quadrature that converged is not asked, and two estimates that agree
    with each other outvote Laplace's. A good bridge above the tolerance is run with more draws.
    Where none is to be trusted, the most trusted of them is taken, with the smallest error, widened
    where the next contradicts it.

    Attributes:
        tolerance: error in nats that is small enough.
        evaluations: evaluations of the density and its gradient after which nothing costlier is
            begun; no bound by default.
        seconds: seconds after which nothing costlier is begun; no bound by default.

    An interrupt (Ctrl-C) during a costlier method gives what the earlier ones found.

    >>> from volform.inference import Automatic
    >>> Automatic()
    Automatic()
    >>> Automatic(evaluations=50_000)  # no NUTS where importance sampling has taken them
    Automatic(evaluations=50000)
    """

    tolerance: float = 0.05
    evaluations: int | None = None
    seconds: float | None = None

    def __check_init__(self) -> None:
        for name in ("tolerance", "evaluations", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ModelError(f"`{name}` of Automatic is {value!r}; it should be positive.")

    def estimate(self, problem: Problem) -> Evidence:
        """The first estimate to be trusted, with what came before in the note."""
        tried: list[Evidence] = []
        failures: list[VolformError] = []
        begun, ended = time.monotonic(), ""
        ladder = [*_ladder(problem.posterior)]
        while ladder:
            estimator = ladder.pop(0)
            if tried and self._is_spent(_cost(tried, problem), time.monotonic() - begun):
                ended = "stopped at the budget"
                break
            try:
                with waiting(type(estimator).__name__, show=True):
                    tried.append(estimator.estimate(problem))
            except VolformError as error:
                failures.append(error)
                continue
            except KeyboardInterrupt:
                if not tried:
                    raise
                ended = f"interrupted during {type(estimator).__name__}"
                break
            tried = _judged(tried, problem)
            if self._suffices(tried[-1]):
                break
            ladder = [*self._longer(estimator, tried[-1]), *ladder]
        if not tried:
            raise failures[-1]
        best = _concluded(tried, self._suffices(tried[-1]))
        cost = _cost(tried, problem)
        note = "; ".join(text for text in (best.note, ended, f"cost {cost}") if text)
        return dataclasses.replace(best, cost=cost, note=note)

    def _suffices(self, found: Evidence) -> bool:
        return found.trust.level is Level.GOOD and float(found.error) < self.tolerance

    def _longer(self, estimator: Estimator, found: Evidence) -> list[Estimator]:
        """The estimator with the draws that a good estimate lacks, if they are not too many."""
        if found.trust.level is not Level.GOOD or not isinstance(estimator, Bridge):
            return []
        draws = math.ceil(1.25 * estimator.draws * (float(found.error) / self.tolerance) ** 2)
        return [dataclasses.replace(estimator, draws=draws)] if draws <= MOST_DRAWS else []

    def _is_spent(self, cost: Cost, seconds: float) -> bool:
        return (
            self.evaluations is not None and cost.densities + cost.gradients >= self.evaluations
        ) or (self.seconds is not None and seconds >= self.seconds)


def evidence(
    target: Posterior | MAP | LaplaceApproximation,
    *,
    by: Estimator | None = None,
    key: PRNGKeyArray | None = None,
    allow_improper: bool = False,
    equivalent_modes: int | None = None,
) -> Evidence:
    """The evidence of a model, `Z = integral of p(data, theta) d theta`, by an estimator.

    Every estimator gives one type of result, with its error, its cost, and a verdict on how far
    it can be trusted.

    Args:
        target: a `Posterior`, or a `MAP` or Laplace approximation of it that is at hand already.
        by: `Laplace()`, `Importance()`, `Bridge()` or `Quadrature()`; by default `Automatic()`,
            the cheapest of them that can be trusted, or Laplace with the curvature and structure
            of the `target` where it has its own.
        key: key of the search and of the draws; `jax.random.key(0)` by default.
        allow_improper: whether to give the formal integral under an improper or unnormalized
            prior, labelled so.
        equivalent_modes: number of modes that are copies of each other by a symmetry of the
            model: k! for k exchangeable mixture components, h! 2^h for h tanh units. By default
            what the model declares, `numpyro.sample(..., infer={"equivalent_modes": n})`. Laplace
            multiplies by it, which is valid while the modes do not overlap; the other estimators
            integrate over what they reach, and say how many of the modes were found.

    Returns:
        An `Evidence`, with the posterior's `draws` and their `summary()` where the estimator makes
        any.

    Raises:
        ModelError: an improper prior, or a `target` or `by` of another type.
        ConvergenceError: when the estimator needs a strict mode and there is none.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> posterior = vf.condition(model, jnp.array([0.5, 1.5]))
    >>> found = vf.evidence(posterior)
    >>> round(float(found.log_z), 6), found.method, found.trust.level.value
    (-2.970517, 'quadrature', 'good')
    """
    if by is None and isinstance(target, LaplaceApproximation) and target.title:
        return target.evidence
    estimator = estimator_of(by, Automatic())
    with waiting(f"evidence by {type(estimator).__name__}", show=True):
        return estimator.estimate(problem_of(target, key, allow_improper, equivalent_modes))


def _ladder(posterior: Posterior) -> Iterator[Estimator]:
    yield Laplace()
    if posterior.dim <= AUTOMATIC_QUADRATURE_UP_TO and not _has_solver(posterior):
        yield Quadrature(nodes=QUADRATURE_NODES)
    yield Importance()
    yield Bridge()
    if posterior.dim <= TEMPERED_UP_TO:
        yield Tempered(evaluations=FIRST_EVALUATIONS)
    # Of eight schools, whose neck .9 leaves by .06 (nine runs, one sign), .98 is within an error.
    yield Bridge(draws=MOST_DRAWS, chains=8, target_accept=0.98)
    if posterior.dim <= TEMPERED_UP_TO:
        yield Tempered()


def _has_solver(posterior: Posterior) -> bool:
    """Tell whether an adaptive solver runs in the model, which extreme nodes may keep for ever."""
    return has_open_loop(lambda u: posterior.log_density_lebesgue(u), posterior.layout.point)


def _cost(tried: Sequence[Evidence], problem: Problem) -> Cost:
    return sum((found.cost - problem.searched for found in tried), problem.searched)


def _judged(tried: list[Evidence], problem: Problem) -> list[Evidence]:
    """The estimates, each with the trust that the others leave it."""
    laplace, *others = tried
    if not _is_laplace(laplace):
        return tried
    heard = [_weighed(found, laplace, others, problem) for found in others]
    reason = next((text for text in map(_alarm, others) if text), None)
    if reason and laplace.trust.level is not Level.POOR:
        laplace = dataclasses.replace(laplace, trust=Trust(Level.POOR, reason))
    return [laplace, *heard]


def _is_laplace(found: Evidence) -> bool:
    return found.method == "Laplace"


def _alarm(found: Evidence) -> str | None:
    """Reason why a costlier estimate, though it failed itself, speaks against Laplace's."""
    k_hat, r_hat = (found.diagnostics.get(name, 0.0) for name in ("k_hat", "r_hat"))
    if k_hat > K_HAT_LIMIT:
        return f"mass lies away from the modes: k-hat {k_hat:.2f} of draws around them"
    if r_hat > APART_R_HAT:
        return f"mass lies away from the modes: R-hat {r_hat:.1f} of chains from them"
    return None


def _weighed(
    found: Evidence, laplace: Evidence, others: Sequence[Evidence], problem: Problem
) -> Evidence:
    """The estimate, with less trust where Laplace speaks against it, and no other for it."""
    if found.method == "quadrature" and found.trust.level is Level.GOOD:
        return found
    if not _contradicts(laplace, found, problem):
        return found
    if any(_agree(found, other) for other in others if other is not found):
        return found
    reason = f"Laplace's second order, {_value(laplace):.3f}, disagrees"
    if reason in found.trust.reason:
        return found
    return dataclasses.replace(found, trust=found.trust.but((reason,)))


def _contradicts(laplace: Evidence, found: Evidence, problem: Problem) -> bool:
    if laplace.trust.level is not Level.FAIR or laplace.correction is None:
        return False
    c = abs(float(laplace.correction))
    if c >= WITNESS_UP_TO or len(without_copies(problem.modes)) > 1:
        return False
    gap = abs(float(found.log_z) - _value(laplace))
    return gap > 3.0 * float(found.error) + 0.02 + 0.5 * c


def _agree(one: Evidence, other: Evidence) -> bool:
    if Level.POOR in {one.trust.level, other.trust.level}:
        return False
    joint = math.hypot(float(one.error), float(other.error))
    return abs(float(one.log_z) - float(other.log_z)) < 2.0 * joint


def _concluded(tried: list[Evidence], suffices: bool) -> Evidence:
    costliest_first = tried[::-1]
    ranked = sorted(costliest_first, key=_rank)
    best = tried[-1] if suffices else ranked[0]
    error = _error(best)
    checked = [e for e in ranked if e.trust.level in {Level.GOOD, Level.FAIR} and e is not best]
    if not suffices and checked:
        gap = abs(_value(checked[0]) - _value(best))
        if gap > 3.0 * math.hypot(error, _error(checked[0])):
            error, disagrees = gap, f"{_named(checked[0])} disagrees"
            best = dataclasses.replace(best, trust=best.trust.but((disagrees,)))
    before = [f"{_named(e)} {_value(e):.3f} ({e.trust.level.value})" for e in tried]
    earlier = "; ".join(text for e, text in zip(tried, before, strict=True) if e is not best)
    note = "; ".join(text for text in (best.note, f"also {earlier}" if earlier else "") if text)
    return dataclasses.replace(
        best,
        log_z=scalar(_value(best)),
        error=scalar(error),
        correction=None if _is_second(best) else best.correction,  # log Z holds it already
        note=note,
    )


def _rank(found: Evidence) -> tuple[bool, int, bool, float]:
    """No number, level, draws that are off by more than their error tells, error.

    Divergences bias chains, and weights without a variance their mean: of separated data under
    Cauchy priors five estimates by k-hat .6 were low by two of their errors. Of estimates that
    failed the costlier one comes first: errors say nothing then.
    """
    level = _ORDER.index(found.trust.level)
    error = _error(found) if level < len(_ORDER) - 1 else 0.0
    of = found.diagnostics.get
    biased = of("divergent", 0.0) > 0 or of("k_hat", 0.0) >= GOOD_K_HAT
    unknown = math.isnan(_value(found))
    return unknown, level, biased, math.inf if math.isnan(error) else error


def _named(found: Evidence) -> str:
    summed = " of all modes" if "weight of mode 1" in found.diagnostics else ""
    return f"{found.method}{summed}{', second order,' if _is_second(found) else ''}"


def _is_second(found: Evidence) -> bool:
    return found.correction is not None and found.trust.level is Level.FAIR


def _value(found: Evidence) -> float:
    """The second-order evidence where there is one, and it is no worse than the first."""
    second = found.log_z_second_order
    return float(second) if second is not None and _is_second(found) else float(found.log_z)


def _error(found: Evidence) -> float:
    if found.correction is not None and _is_second(found):
        return errors_of(float(found.correction), found.diagnostics["gap"])[1]
    return float(found.error)

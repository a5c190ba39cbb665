"""The cheapest estimator of an evidence that can be trusted."""

import dataclasses
import math
from collections.abc import Iterator

import jax.numpy as jnp

from volform.errors import VolformError
from volform.inference.evidence.bridge import Bridge
from volform.inference.evidence.estimator import Estimator, Laplace, Problem
from volform.inference.evidence.importance import Importance
from volform.inference.evidence.quadrature import Quadrature
from volform.limits import AUTOMATIC_QUADRATURE_UP_TO
from volform.results import Evidence, Level

_ORDER = (Level.GOOD, Level.FAIR, Level.UNCHECKED, Level.POOR)


class Automatic(Estimator):
    """Laplace, then importance sampling, quadrature and bridge sampling until one can be trusted.

    The first estimate whose trust is "good" and whose error is below `tolerance` is taken, unless
    it contradicts the second-order Laplace evidence where |c| < 0.3: draws may agree with each
    other and all miss a narrow region. Where there is none, the most trusted of them is taken,
    the costlier of two, and its error is widened to its distance from the others that passed a
    check.

    Attributes:
        tolerance: error in nats that is small enough.

    >>> from volform.inference import Automatic
    >>> Automatic()
    Automatic()
    """

    tolerance: float = 0.05

    def estimate(self, problem: Problem) -> Evidence:
        """The first estimate to be trusted, with what came before in the note."""
        tried: list[Evidence] = []
        failures: list[VolformError] = []
        for estimator in _ladder(problem.posterior.dim):
            try:
                found = estimator.estimate(problem)
            except VolformError as error:
                failures.append(error)
                continue
            tried.append(_cross_checked(found, tried[0] if tried else found))
            if self._suffices(tried[-1]):
                break
        if not tried:
            raise failures[-1]
        best = _concluded(tried, self._suffices(tried[-1]))
        own = [found.cost - problem.searched for found in tried]
        return dataclasses.replace(best, cost=sum(own, problem.searched))

    def _suffices(self, found: Evidence) -> bool:
        return found.trust.level is Level.GOOD and float(found.error) < self.tolerance


def _cross_checked(found: Evidence, laplace: Evidence) -> Evidence:
    """The estimate, with less trust where Laplace's second order contradicts it."""
    if found is laplace or laplace.trust.level is not Level.FAIR or laplace.correction is None:
        return found
    gap = abs(float(found.log_z) - _best_value(laplace))
    # The terms that the second order leaves out are of the size of c^2.
    if gap <= 3.0 * float(found.error) + float(laplace.correction) ** 2:
        return found
    reason = f"Laplace's second order, {_best_value(laplace):.3f}, disagrees"
    return dataclasses.replace(found, trust=found.trust.but((reason,)))


def _ladder(dim: int) -> Iterator[Estimator]:
    yield Laplace()
    yield Importance()
    if dim <= AUTOMATIC_QUADRATURE_UP_TO:
        yield Quadrature()
    yield Bridge()
    yield Bridge(draws=16_000, chains=8)


def _concluded(tried: list[Evidence], suffices: bool) -> Evidence:
    best = tried[-1] if suffices else min(reversed(tried), key=_rank)
    error = float(best.error)
    if not suffices:
        checked = [_best_value(e) for e in tried if e.trust.level in {Level.GOOD, Level.FAIR}]
        gaps = [abs(value - float(best.log_z)) for value in checked]
        error = max([error, *[gap for gap in gaps if math.isfinite(gap)]])
    before = [f"{_named(e)} {_best_value(e):.3f} ({e.trust.level.value})" for e in tried]
    earlier = "; ".join(text for e, text in zip(tried, before, strict=True) if e is not best)
    note = "; ".join(text for text in (best.note, f"also {earlier}" if earlier else "") if text)
    second = _best_value(best) != float(best.log_z)
    return dataclasses.replace(
        best,
        log_z=jnp.asarray(_best_value(best)),
        error=jnp.asarray(error),
        correction=None if second else best.correction,  # log Z holds it already
        note=note,
    )


def _named(found: Evidence) -> str:
    second = found.correction is not None and _best_value(found) != float(found.log_z)
    return f"{found.method}, second order," if second else found.method


def _rank(found: Evidence) -> int:
    return _ORDER.index(found.trust.level)


def _best_value(found: Evidence) -> float:
    """The second-order evidence where there is one, and it is no worse than the first."""
    second = found.log_z_second_order
    if second is None or found.trust.level is not Level.FAIR:
        return float(found.log_z)
    return float(second)

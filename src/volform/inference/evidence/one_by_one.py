"""Models estimated one by one."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jaxtyping import PRNGKeyArray

from volform.errors import VolformError
from volform.inference.evidence.estimator import Estimator, Problem, problem_of
from volform.inference.evidence.importance import K_HAT_LIMIT, Importance
from volform.inference.evidence.loo import Loo, loo_of
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.modes.mode import ExpansionPoint
from volform.models.posterior import Posterior
from volform.progress import Phase
from volform.results import Evidence


class Estimated(NamedTuple):
    """A model's evidence, what predictions are drawn from without its draws, and its LOO.

    Attributes:
        evidence: the evidence.
        approx: the Laplace approximation at the best mode, where the evidence has no draws.
        score: LOO, or the reason why there is none; None where it was not asked for.
    """

    evidence: Evidence
    approx: LaplaceApproximation | None = None
    score: Loo | str | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """The work on one model: a target, an estimator, its key, and whether LOO is asked for.

    A Laplace approximation has the evidence that it has already, where that is to be `kept`.
    """

    target: Any
    estimator: Estimator
    key: PRNGKeyArray
    loo: bool
    kept: bool = False

    def run(self) -> Estimated:
        """The evidence of the model.

        Raises:
            VolformError: whatever the estimator raises.
        """
        if isinstance(self.target, Evidence):
            self.target.provenance.require_proper(allow_improper=False)
            return Estimated(self.target)
        problem = problem_of(self.target, self.key)
        if self.kept and isinstance(self.target, LaplaceApproximation):
            found, approx = self.target.evidence, self.target
        else:
            found = self.estimator.estimate(problem)
            approx = problem.approx if found.draws is None and problem.modes_so_far else None
        return Estimated(found, approx, self._score(problem, approx) if self.loo else None)

    def _score(self, problem: Problem, approx: LaplaceApproximation | None) -> Loo | str:
        if approx is not None and approx.title:
            return f"another curvature than the Hessian, {approx.title}"
        try:
            drawn = Importance().weighted(problem)
        except VolformError:
            return "no mode to draw around"
        if not drawn.k_hat <= K_HAT_LIMIT:
            return f"k-hat {drawn.k_hat:.2f} of draws around the modes"
        return loo_of(problem, drawn.w, drawn.log_weights)


def in_turn(tasks: Mapping[str, Task], phase: Phase) -> Iterator[tuple[str, Estimated]]:
    """Every model's evidence, in this process and order.

    Raises:
        VolformError: whatever the estimator raises, with the name of the model.
    """
    for number, (name, task) in enumerate(tasks.items(), start=1):
        phase(name, number, len(tasks))
        try:
            yield name, task.run()
        except VolformError as error:
            raise error_of_model(name, error) from error


def with_own_model(found: Estimated, target: Any) -> Estimated:
    """The result with the model of this process, which draws leave behind when they travel."""
    fit = target.mode if isinstance(target, LaplaceApproximation) else target
    posterior = fit.posterior if isinstance(fit, ExpansionPoint) else fit
    draws = found.evidence.draws
    if draws is None or not isinstance(posterior, Posterior):
        return found
    draws = dataclasses.replace(draws, posterior=posterior)
    return found._replace(evidence=dataclasses.replace(found.evidence, draws=draws))


def error_of_model(name: str, error: Exception) -> Exception:
    """The error with the name of the model: in its text, or beside it where it is not ours."""
    text = f"The model {name!r} of `models` cannot be compared"
    if isinstance(error, VolformError):
        return type(error)(f"{text}: {error}")
    error.add_note(f"{text}.")
    return error

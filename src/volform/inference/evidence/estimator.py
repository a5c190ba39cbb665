"""One way in to the evidence of a model, whatever the estimator."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from volform.errors import ModelError
from volform.inference.attached_metrics import metric_of_model
from volform.inference.laplace.approximation import LaplaceApproximation, laplace
from volform.inference.laplace.log_evidence import are_copies, laplace_evidence, without_copies
from volform.inference.modes.expansion import SecondOrder
from volform.inference.modes.mode import MAP, ExpansionPoint
from volform.inference.modes.search import find_map
from volform.models.fingerprint import provenance_of
from volform.models.posterior import Posterior
from volform.results import Cost, Evidence, Provenance, Regime, Trust

STARTS_FOR_MODES = 8  # of a search whose modes are to be summed


@dataclasses.dataclass(frozen=True)
class Problem:
    """A posterior whose evidence is asked for, and what its estimators share.

    Attributes:
        posterior: the posterior.
        provenance: what its evidence means.
        key: key of the search and of the estimators.
        given: the MAP that the user has found already.
    """

    posterior: Posterior
    provenance: Provenance
    key: PRNGKeyArray
    given: MAP | None = None

    @cached_property
    def fit(self) -> MAP:
        """The MAP, found when it is first asked for."""
        if self.given is not None:
            return self.given
        return find_map(
            self.posterior, key=jax.random.fold_in(self.key, 0), starts=STARTS_FOR_MODES
        )

    @cached_property
    def approx(self) -> LaplaceApproximation:
        """The Laplace approximation; a ConvergenceError where the search found no strict mode."""
        return laplace(self.fit)

    @cached_property
    def modes(self) -> list[SecondOrder]:
        """Expansions at the distinct strict modes, copies by a symmetry included, the best first.

        Raises:
            ConvergenceError: when the search found none.
        """
        _ = self.approx  # which refuses a point that is no strict mode
        return [mode.at for mode in self.fit.modes] or [self.fit.at]

    @cached_property
    def reservations(self) -> tuple[str, ...]:
        """Reasons why modes may be missing, though draws around those that were found look well.

        No draw tells of a mode that it never reaches: what the search could not see, no check of
        weights or of chains will.
        """
        reasons = []
        if self.provenance.improper:
            sites = ", ".join(self.provenance.improper)
            reasons.append(
                f"far modes may be missing: {sites} has no proper prior whose draws the search "
                "could start from"
            )
        expected = self.provenance.equivalent_modes or 1
        found = sum(are_copies(mode, self.modes[0]) for mode in self.modes) if expected > 1 else 1
        if found < expected:
            reasons.append(
                f"{found:,} of {expected:,} equivalent modes were found; log Z may lack up to "
                f"{math.log(expected / found):.3f}"
            )
        return tuple(reasons)

    @property
    def searched(self) -> Cost:
        """Evaluations of the search for the mode, if an estimator has asked for it."""
        return self.fit.cost if "fit" in vars(self) else Cost()

    def estimated(
        self,
        log_z: float,
        error: float,
        *,
        method: str,
        trust: Trust,
        diagnostics: dict[str, float],
        cost: Cost,
        notes: Sequence[str] = (),
        regimes: tuple[Regime, ...] = (),
    ) -> Evidence:
        """An estimate as an `Evidence` of this posterior; cost and regime of the search added."""
        searched = (self.fit.regime,) if "fit" in vars(self) else ()
        return Evidence(
            jnp.asarray(log_z),
            jnp.asarray(error),
            None,
            metric_of_model(self.posterior),
            self.posterior.dim,
            method,
            trust,
            diagnostics,
            self.searched + cost,
            "; ".join((*notes, *self.provenance.notes())),
            self.provenance,
            regimes=(*searched, *regimes),
        )


class Estimator(eqx.Module):
    """A way to estimate an evidence, as a value: `vf.evidence(posterior, by=estimator)`."""

    @abc.abstractmethod
    def estimate(self, problem: Problem) -> Evidence:
        """The evidence of the problem."""


class Laplace(Estimator):
    """Laplace's method at every distinct mode that the search found, summed.

    Attributes:
        second_order: whether the correction c is computed, up to 60 parameters.

    >>> import volform as vf
    >>> vf.Laplace()
    Laplace()
    """

    second_order: bool = True

    def estimate(self, problem: Problem) -> Evidence:
        """The sum of the modes' Laplace evidences; copies that are multiplied for count once."""
        modes = problem.modes
        return laplace_evidence(
            problem.fit,
            without_copies(modes) if problem.provenance.equivalent_modes else modes,
            problem.provenance,
            second_order=self.second_order,
            notes=(),
        )


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
        by: `Laplace()`, `Importance()`, `Bridge()` or `Quadrature()`; Laplace by default, with
            the curvature and structure of the `target` where it has its own.
        key: key of the search and of the draws; `jax.random.key(0)` by default.
        allow_improper: whether to give the formal integral under an improper or unnormalized
            prior, labelled so.
        equivalent_modes: number of modes that are copies of each other by a symmetry of the
            model: k! for k exchangeable mixture components, h! 2^h for h tanh units. By default
            what the model declares, `numpyro.sample(..., infer={"equivalent_modes": n})`. Laplace
            multiplies by it, which is valid while the modes do not overlap; the other estimators
            integrate over what they reach, and say how many of the modes were found.

    Returns:
        An `Evidence`.

    Raises:
        ModelError: an improper prior, or a `target` or `by` of another type.
        ConvergenceError: when the estimator needs a strict mode and there is none.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> posterior = vf.condition(model, jnp.array([0.5, 1.5]))
    >>> found = vf.evidence(posterior, by=vf.Quadrature())
    >>> round(float(found.log_z), 6), found.trust.level.value
    (-2.970517, 'good')
    """
    if by is None and isinstance(target, LaplaceApproximation) and target.title:
        return target.evidence
    estimator = estimator_of(by, Laplace())
    return estimator.estimate(problem_of(target, key, allow_improper, equivalent_modes))


def estimator_of(by: object, default: Estimator) -> Estimator:
    """`by`, or `default` for None.

    Raises:
        ModelError: when it is no estimator.
    """
    if by is None:
        return default
    if not isinstance(by, Estimator):
        raise ModelError(
            f"`by` should be an estimator such as `vf.Laplace()` or `vf.Importance()`; got {by!r}."
        )
    return by


def problem_of(
    target: object,
    key: PRNGKeyArray | None = None,
    allow_improper: bool = False,
    equivalent_modes: int | None = None,
) -> Problem:
    """The problem of a target, its priors checked.

    Raises:
        ModelError: an improper prior, or no target.
    """
    fit = target.mode if isinstance(target, LaplaceApproximation) else target
    posterior = fit.posterior if isinstance(fit, ExpansionPoint) else fit
    if not isinstance(posterior, Posterior):
        raise ModelError(
            f"`target` should be a Posterior from `vf.condition`, or a result of `vf.find_map` or "
            f"`vf.laplace`; got {type(target).__name__}."
        )
    provenance = provenance_of(posterior)
    provenance.require_proper(allow_improper)
    if equivalent_modes is not None:
        provenance = provenance.with_equivalent_modes(equivalent_modes)
    key = jax.random.key(0) if key is None else key
    return Problem(posterior, provenance, key, fit if isinstance(fit, MAP) else None)

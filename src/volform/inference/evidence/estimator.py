"""Estimators of an evidence, and the problem that they share."""

import abc
import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import ONE_BY_ONE, key_of, require_untraced
from volform.errors import ModelError, VolformError
from volform.inference.attached_metrics import metric_of_model
from volform.inference.laplace.approximation import LaplaceApproximation, laplace
from volform.inference.laplace.equivalent_modes import are_copies, count_copies, without_copies
from volform.inference.laplace.log_evidence import laplace_evidence
from volform.inference.laplace.samples import Samples
from volform.inference.modes.expansion import OnOrbit, SecondOrder
from volform.inference.modes.images import MOST_IMAGES, with_images
from volform.inference.modes.mode import MAP, SEEN_ONCE, ExpansionPoint, Mode, seen_once
from volform.inference.modes.search import find_map
from volform.limits import BFGS_UP_TO
from volform.models.bound_model import BoundModel
from volform.models.posterior import Posterior
from volform.models.symmetries import (
    SAME,
    Symmetry,
    count_images,
    find_symmetries,
    is_fixed_point,
)
from volform.results import Cost, Evidence, Level, Provenance, Regime, Trust, scalar


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

    @property
    def fit(self) -> MAP:
        """The MAP, searched when it is first asked for, and once also where the search fails."""
        if isinstance(self._search, VolformError):
            raise self._search
        return self._search

    @cached_property
    def _search(self) -> MAP | VolformError:
        if self.given is not None:
            return self.given
        try:
            return find_map(self.posterior, key=jax.random.fold_in(self.key, 0))
        except VolformError as error:
            return error

    @cached_property
    def approx(self) -> LaplaceApproximation:
        """The Laplace approximation; a ConvergenceError where the search found no strict mode."""
        return laplace(self.fit)

    @cached_property
    def weighted(self) -> dict[Any, Any]:
        """Weighted draws around the modes, by the settings that they were drawn by."""
        return {}

    @cached_property
    def modes(self) -> list[SecondOrder]:
        """Expansions at the distinct strict modes, copies by a symmetry included, the best first.

        Copies that the search did not find are taken from those that it did, and searched from.

        Raises:
            ConvergenceError: when the search found none.
        """
        found = self._found
        return with_images(self.fit, self.symmetries, found) if self.symmetries else found

    @property
    def known_modes(self) -> list[SecondOrder]:
        """The `modes`, none where there are none or the metric has no volume there."""
        try:
            return self.modes
        except VolformError:
            return []

    @property
    def modes_so_far(self) -> list[SecondOrder]:
        """The `known_modes` of a search that was made already; it makes none."""
        return [] if self._searched is None else self.known_modes

    @property
    def _found(self) -> list[SecondOrder]:
        _ = self.approx  # which refuses a point that is no strict mode
        return [mode.at for mode in self.fit.modes] or [self.fit.at]

    @cached_property
    def symmetries(self) -> tuple[Symmetry, ...]:
        """Symmetries of the density, looked for where the modes show any: copies, or zeros."""
        found, model = self._found, self.posterior.bound_model
        if any(isinstance(at, OnOrbit) for at in found):  # which holds the exchanges and signs
            return ()
        if len(without_copies(found)) == len(found) and not _has_zeros(model, found[0].u):
            return ()
        return find_symmetries(model, jax.random.fold_in(self.key, 5))

    @cached_property
    def seen_once(self) -> float:
        """Share of the evidence of the modes that one start alone found; copies are one mode."""
        merged: list[Mode] = []
        for mode in self.fit.modes:
            alike = [
                i for i, m in enumerate(merged) if self.symmetries and are_copies(m.at, mode.at)
            ]
            if alike:
                merged[alike[0]] = Mode(merged[alike[0]].at, merged[alike[0]].starts + mode.starts)
            else:
                merged.append(mode)
        return seen_once(merged)

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
        if self._is_searched_too_little:
            reasons.append(
                f"modes that one start alone found hold {self.seen_once:.0%} of the evidence: "
                "others may be missing"
            )
        if self.fixed_by:
            reasons.append(self.fixed_by)
        if self.posterior.dim > BFGS_UP_TO:
            reasons.append(f"above {BFGS_UP_TO:,} parameters other modes are not looked for")
        expected, found = self.copies, self._copies_found
        if found < expected:
            reasons.append(
                f"{found:,} of {expected:,} equivalent modes were found; log Z may lack up to "
                f"{math.log(expected / found):.3f}"
            )
        return tuple(reasons)

    @property
    def lack(self) -> float:
        """Nats that log Z may lack by modes that are missing, as far as the search can tell.

        By Good and Turing's estimate the share of what was not seen is that of what was seen once.
        """
        unseen = -math.log1p(-min(self.seen_once, 0.99)) if self._is_searched_too_little else 0.0
        return max(unseen, math.log(max(self.copies / self._copies_found, 1.0)))

    @property
    def _is_searched_too_little(self) -> bool:
        return bool(self.fit.modes) and self.seen_once > SEEN_ONCE

    @cached_property
    def _copies_found(self) -> int:
        if self.copies <= 1:
            return 1
        return sum(are_copies(mode, self.modes[0]) for mode in self.modes)

    @property
    def condition(self) -> str:
        """The condition that draws around the modes rest on, in words."""
        count, starts = len(self.modes), self.fit.starts
        modes = "the mode" if count == 1 else f"the {count} modes"
        where = f"that {starts} starts found" if self.fit.modes else "that was given"
        return f"if {modes} {where} {'is' if count == 1 else 'are'} all"

    @cached_property
    def copies(self) -> int:
        """Number of copies of the best mode: by the symmetries, or as the model declares it."""
        if self.symmetries:
            return count_images(self.posterior.bound_model, self.symmetries, self.modes[0].u)
        return count_copies(self.posterior, self.modes[0].u, self.provenance.equivalent_modes or 1)

    @cached_property
    def fixed_by(self) -> str:
        """The symmetry that leaves the best mode where it is, in words; empty where none does."""
        model, u = self.posterior.bound_model, self.modes[0].u
        fixed = [s for s in self.symmetries if is_fixed_point(model, s, u)]
        if not fixed:
            return ""
        return f"the mode is the fixed point of a symmetry ({fixed[0]}): it predicts nothing"

    @property
    def searched(self) -> Cost:
        """Evaluations of the search for the mode, if an estimator has asked for it."""
        return Cost() if self._searched is None else self._searched.cost

    @property
    def _searched(self) -> MAP | None:
        found = vars(self).get("_search")
        return found if isinstance(found, MAP) else None

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
        draws: Samples | None = None,
    ) -> Evidence:
        """An estimate as an `Evidence` of this posterior; cost and regime of the search added."""
        searched = () if self._searched is None else (self._searched.regime,)
        return Evidence(
            scalar(log_z),
            scalar(error),
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
            draws=draws,
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
        modes, provenance = problem.modes, problem.provenance
        notes: tuple[str, ...] = ()
        if problem.symmetries:
            notes = (f"symmetries found: {', '.join(map(str, problem.symmetries))}",)
            enumerated = problem.copies <= MOST_IMAGES
            provenance = provenance._replace(
                equivalent_modes=None if enumerated else problem.copies
            )
        found = laplace_evidence(
            problem.fit,
            without_copies(modes) if provenance.equivalent_modes else modes,
            provenance,
            second_order=self.second_order,
            notes=notes,
        )
        if problem.fixed_by:
            found = dataclasses.replace(found, trust=Trust(Level.POOR, problem.fixed_by))
        return found


def _has_zeros(model: BoundModel, u: Float[Array, " d"]) -> bool:
    """Tell whether several sites on the line are zero at u, as at a fixed point of their signs."""
    values = model.values(u)
    zeros = [
        site.name
        for site in model.layout.sites
        if site.is_line and np.max(np.abs(np.asarray(values[site.name])), initial=0.0) < SAME
    ]
    return len(zeros) > 1


def estimator_of(by: object, default: Estimator) -> Estimator:
    """`by`, or `default` for None.

    Raises:
        ModelError: when it is no estimator.
    """
    if by is None:
        return default
    if not isinstance(by, Estimator):
        raise ModelError(
            f"`by` should be an estimator such as `vf.Laplace()` or `vf.Importance()`; got {by!r}"
            + (f": call it, `vf.{by.__name__}()`." if isinstance(by, type) else ".")
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
    require_untraced(posterior, "target", "evidence", ONE_BY_ONE, ModelError)
    provenance = posterior.provenance
    provenance.require_proper(allow_improper)
    if equivalent_modes is not None:
        provenance = provenance.with_equivalent_modes(equivalent_modes)
    key = key_of(key, "evidence", ModelError)
    return Problem(posterior, provenance, key, fit if isinstance(fit, MAP) else None)

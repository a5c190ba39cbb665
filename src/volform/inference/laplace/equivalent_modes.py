"""Equivalent modes: how many an evidence counts, and whether they overlap."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from volform.compilation import compiled
from volform.inference.modes.expansion import FirstOrder, SecondOrder, lies_within
from volform.inference.modes.mode import ExpansionPoint
from volform.models.bound_model import BoundModel
from volform.models.model_with_batches import first_of
from volform.models.posterior import Posterior
from volform.results import Level, Provenance, Trust

# Gaussians so many standard deviations apart share a seventh of their mass.
OVERLAP_WITHIN = 3.0


class Total(NamedTuple):
    """Sum of the evidences of modes, each as often as there are copies of it.

    Attributes:
        log_copies: log of the number of copies of the first mode; None where none are counted.
        others: what the other modes, and their copies, add to log Z.
        weights: shares of the modes with their copies.
        note: what was counted, in words.
        trust: the verdict where copies overlap.
    """

    log_copies: float | None
    others: float
    weights: Float[np.ndarray, " m"]
    note: str
    trust: Trust | None = None

    @property
    def added(self) -> float:
        """Log of what copies and other modes multiply the first mode's evidence by."""
        return (self.log_copies or 0.0) + self.others


def count_copies(posterior: Posterior, u: Float[Array, " d"], declared: int) -> int:
    """Number of distinct copies of a mode, of so many by the symmetries.

    Those of a network are fewer where elements of the group leave the mode in place: `h! 2^h`
    over `m! 2^k` for m of h units that are alike up to sign, and k that are idle.
    """
    if posterior.counted is None or declared != posterior.provenance.equivalent_modes:
        return declared
    return declared // posterior.counted.fixing(posterior.values(u, posterior.counted.names))


def total(
    fit: ExpansionPoint,
    modes: Sequence[FirstOrder],
    each: ArrayLike,
    provenance: Provenance,
) -> Total:
    """The sum of modes with their copies, by the log evidences of each.

    An evidence is a mean of likelihoods. Where the copies of a mode come to more than the
    likelihood there, they overlap, as of a network with more units than the data ask for. Then
    one mode of each is all that is counted.
    """
    posterior, declared = fit.posterior, provenance.equivalent_modes
    few = "copies" if (declared or 1) == 1 else "further copies"
    uncounted = f"{few} by symmetries of a network are not counted" if provenance.uncounted else ""
    every = np.asarray(each)
    alone, first = _log_sum(every), float(every[0])
    if not declared or declared == 1:
        return Total(None, alone - first, np.exp(every - alone), uncounted)
    counts = [count_copies(posterior, at.u, declared) for at in modes]
    copied = every + [math.log(count) for count in counts]
    log_z = _log_sum(copied)
    added = math.log(counts[0])
    many = f"{_in_digits(counts[0])} equivalent modes"
    if provenance.data and not provenance.factors and not provenance.improper:
        model = posterior.bound_model
        prior = _log_prior(dataclasses.replace(model, program=first_of(model.program)), fit.at.u)
        most = float(fit.at.log_volume - fit.at.value - prior)
        if log_z > most:
            above = f"with them log Z would be {log_z:.3f}, above the log likelihood"
            note = f"{many} are not counted: {above} at the mode, {most:.3f}"
            trust = Trust(Level.POOR, "equivalent modes overlap, and may add to log Z")
            return Total(None, alone - first, np.exp(every - alone), note, trust)
    fixed = f", of {_in_digits(declared)} by the symmetries" if counts[0] < declared else ""
    notes = [f"times {many} (+{added:.3f}){fixed}: valid while they do not overlap", uncounted]
    overlap = _overlaps(posterior, modes[0])
    reason = "units are nearly alike, or idle: equivalent modes overlap, and count mass twice"
    return Total(
        added,
        log_z - first - added,
        np.exp(copied - log_z),
        "; ".join(filter(None, notes)),
        Trust(Level.POOR, reason) if overlap else None,
    )


def _overlaps(posterior: Posterior, at: FirstOrder) -> bool:
    """Tell whether copies of a mode are so near that Gaussians there share mass."""
    found = posterior.counted
    # Along an orbit there is no Gaussian, and with many parameters no Hessian to tell by.
    if found is None or not isinstance(at, SecondOrder):
        return False
    if not set(found.names) <= set(posterior.names):  # rewritten by `handlers.reparam`
        return False
    values = posterior.values(at.u)
    copies = found.nearest({name: values[name] for name in found.names})
    near = (posterior.unconstrain({**values, **copy}) for copy in copies)
    return any(lies_within(at, u, OVERLAP_WITHIN) for u in near)


def without_copies(modes: Sequence[SecondOrder]) -> list[SecondOrder]:
    """One of each set of modes that are copies of each other."""
    kept: list[SecondOrder] = []
    for mode in modes:
        if not any(are_copies(mode, other) for other in kept):
            kept.append(mode)
    return kept


def are_copies(one: SecondOrder, other: SecondOrder) -> bool:
    """Tell whether two modes have equal q^G and equal spectra of E."""
    # Copies agree to rounding; spectra only to the distance of each from its mode.
    same_height = np.isclose(one.value, other.value, rtol=1e-8, atol=1e-8)
    return bool(same_height and np.allclose(one.eigenvalues, other.eigenvalues, rtol=1e-4))


@compiled
def _log_prior(model: BoundModel, u: Float[Array, " d"]) -> Float[Array, ""]:
    return model.log_prior_and_likelihood(u)[0]


def _log_sum(each: ArrayLike) -> float:
    with np.errstate(invalid="ignore"):  # NaN of a point that is no mode
        return float(np.logaddexp.reduce(each))


def _in_digits(count: int) -> str:
    return f"{count:,}" if count < 10**9 else f"10^{math.log10(count):.1f}"

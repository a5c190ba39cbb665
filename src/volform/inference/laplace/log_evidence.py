"""Evidence by Laplace's method: first and second order, at one mode or summed over several."""

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.compilation import STEADY, Compiled
from volform.geometry.jacobians import lacks_forward_mode
from volform.inference.attached_metrics import metric_of_model
from volform.inference.laplace.correction import correction
from volform.inference.laplace.equivalent_modes import OVERLAP_WITHIN, Total, total, without_copies
from volform.inference.laplace.slices import gap_of_expansion
from volform.inference.laplace.stencil import correction_by_differences
from volform.inference.modes.expansion import (
    FirstOrder,
    OnOrbit,
    SecondOrder,
    lies_within,
    volume_error,
)
from volform.inference.modes.mode import MAP, ExpansionPoint
from volform.inference.modes.verdicts import Flat, NotConverged, Orbit, Saddle
from volform.limits import DIFFERENCES_UP_TO, SECOND_ORDER_UP_TO
from volform.models.posterior import Posterior
from volform.progress import waiting
from volform.results import Cost, Evidence, Level, Provenance, Regime, Trust, scalar

# Of the evidence: modes of a smaller share are left out of c, and may overlap with others.
NEGLIGIBLE = 1e-4
# Of |c|, where the terms behind it are of the size of c^2, a tenth of a nat; and of the gap.
LARGE = 0.3
LEAST_ERROR = 0.01  # in nats, of any Laplace evidence: c may be zero by accident


def laplace_evidence(
    fit: MAP,
    modes: Sequence[SecondOrder],
    provenance: Provenance,
    *,
    second_order: bool,
    notes: Sequence[str],
) -> Evidence:
    """Laplace evidence of the modes, summed, times the number of equivalent modes.

    The corrections of several modes are averaged with the modes' weights, so that
    `log_z + log(1 + c)` is the sum of their second-order evidences.
    """
    posterior = fit.posterior
    has_none = isinstance(fit.verdict, Saddle | Flat)
    each = np.array([np.nan if has_none else log_evidence(at) for at in modes])
    sums = total(fit, modes, each, provenance)
    orbit = fit.orbit
    is_strict = not any(isinstance(at, OnOrbit) for at in modes)
    corrected = _mean_correction(fit, modes, sums.weights) if second_order and is_strict else None
    c, gap, spent = corrected or (None, 0.0, Cost())
    every = [*notes, sums.note]
    if len(modes) > 1:
        shares = ", ".join(f"{weight:.3f}" for weight in sums.weights)
        every.append(f"sum over {len(modes)} modes, weights {shares}")
    if second_order and c is None and fit.converged:
        why = _why_not(posterior.dim) if is_strict else "along an orbit there is none"
        every.append(f"no second-order correction: {why}")
    noise = volume_error(posterior, fit.at.u)
    if noise is not None:
        every.append(f"log volume by Monte Carlo, standard error {float(noise):.2g}")
    diagnostics = {} if c is None else {"c": c, "gap": gap}
    weights = {f"weight of mode {m + 1}": float(w) for m, w in enumerate(sums.weights)}
    diagnostics |= {name: weight for name, weight in weights.items() if weight < 1.0}
    number = functools.partial(scalar, dtype=fit.at.value.dtype)
    half = np.nan if has_none else -0.5 * float(modes[0].log_det)
    terms = _terms(modes[0], half)
    terms = terms if orbit is None else _terms_along(orbit, terms)
    terms |= {"other modes": number(sums.others)} if len(modes) > 1 else {}
    terms |= _counted(sums, number)
    terms |= {} if c is None else {"log(1 + c)": number(_log1p(c))}
    return Evidence(
        number(each[0] + sums.added),
        number(np.nan if c is None else errors_of(c, gap)[0]),
        None if c is None else number(c),
        metric_of_model(posterior),
        posterior.dim,
        "Laplace",
        sums.trust or _trust(fit, c, gap, modes, sums.weights, is_noisy=noise is not None),
        diagnostics,
        fit.cost + spent,
        "; ".join(note for note in (*every, *provenance.notes()) if note),
        provenance,
        terms,
        (fit.regime,),
    )


def curved_evidence(
    fit: ExpansionPoint,
    log_det: Float[Array, ""],
    provenance: Provenance,
    title: str,
    notes: Sequence[str],
    regimes: tuple[Regime, ...],
) -> Evidence:
    """First-order Laplace evidence with another curvature than the Hessian, which it names.

    `log_det` is that of the precision matrix in u.
    """
    one = first_order(fit.at, log_det)
    number = functools.partial(scalar, dtype=one.dtype)
    sums = total(fit, [fit.at], [float(one)], provenance)
    trust = Trust(Level.UNCHECKED, f"with {title} there is no second order to gauge it by")
    if isinstance(fit.verdict, NotConverged):
        trust = Trust(Level.POOR, "the point is not stationary")
    return Evidence(
        number(float(one) + sums.added),
        number(jnp.nan),
        None,
        metric_of_model(fit.posterior),
        fit.posterior.dim,
        f"Laplace with {title}",
        sums.trust or trust,
        {},
        fit.cost + Cost(0, fit.posterior.dim),
        "; ".join(note for note in (*notes, sums.note, *provenance.notes()) if note),
        provenance,
        _terms(fit.at, fit.at.log_volume - 0.5 * log_det) | _counted(sums, number),
        regimes,
    )


def log_evidence(at: SecondOrder) -> float:
    """First-order log evidence from an expansion of -log q^G; NaN where it is no minimum."""
    return 0.5 * at.u.size * math.log(2.0 * math.pi) - float(at.value) - 0.5 * float(at.log_det)


def first_order(at: FirstOrder, log_det: Float[Array, ""]) -> Float[Array, ""]:
    """First-order log evidence from the log determinant of the precision matrix in u."""
    return at.log_volume - at.value + 0.5 * (at.u.size * math.log(2.0 * math.pi) - log_det)


def note_on_others(place: ExpansionPoint, provenance: Provenance) -> str:
    """Note on the modes that an evidence of the best alone does not count."""
    modes = [mode.at for mode in place.modes] if isinstance(place, MAP) else []
    # Copies are counted by the number that is declared.
    others = len(without_copies(modes) if provenance.equivalent_modes else modes) - 1
    found = "1 other mode is" if others == 1 else f"{others} other modes are"
    return f"{found} not counted; `vf.evidence` sums them" if others > 0 else ""


def _mean_correction(
    fit: MAP, modes: Sequence[SecondOrder], weights: Float[np.ndarray, " m"]
) -> tuple[float, float, Cost] | None:
    """The modes' corrections and gaps, averaged by their weights, and what it took."""
    posterior = fit.posterior
    if posterior.dim > SECOND_ORDER_UP_TO or not fit.converged:
        return None
    with waiting("evidence", show=True) as phase:
        phase(f"second-order correction in {posterior.dim} dimensions")
        try:
            terms = [
                (weight, *_correction(posterior, at))
                for weight, at in zip(weights, modes, strict=True)
                if not weight < NEGLIGIBLE
            ]
        except (TypeError, NotImplementedError) as error:
            if not lacks_forward_mode(error):
                raise
            return None
    c, gap = (float(sum(term[0] * term[i] for term in terms)) for i in (1, 2))
    return c, gap, sum((spent for *_, spent in terms), Cost())


def _why_not(dim: int) -> str:
    if dim > SECOND_ORDER_UP_TO:
        return f"{dim} parameters, it is computed up to {SECOND_ORDER_UP_TO}"
    return "the likelihood has a derivative of its own, and no third and fourth"


def errors_of(c: float, gap: float) -> tuple[float, float]:
    """Errors of log Z to first and to second order, in nats, by c and the gap of the expansion.

    Of 194 fits of 11 conjugate and one-parameter families, n = 1 to 30, `|log Z_2 - log Z|` was
    below `.01 + |c|/4` in 98 %, below c^2 in 53 %: where the terms of c cancel it is small by
    accident. `|log Z_1 - log Z| / |log(1 + c)|` was below 1.3 in 95 %.
    """
    second = max(LEAST_ERROR + 0.25 * abs(c), gap)
    first = 1.3 * abs(math.log1p(c)) if c > -1.0 else math.inf
    return max(first, second), second


def _correction(posterior: Posterior, at: SecondOrder) -> tuple[float, float, Cost]:
    """The coefficient c at a mode, the gap of the expansion, and what it took."""
    d, spent, near = posterior.dim, Cost(), None
    if at.u.dtype != jnp.float64:  # of whose fourth differences rounding leaves nothing
        return float(exact_correction(posterior, at.u, at.whitener)), 0.0, Cost(0, d**2)
    c = math.nan
    if d <= DIFFERENCES_UP_TO:
        found = correction_by_differences(posterior, at)
        spent, near = Cost(0, found.hessians * (d + 1)), found.losses
        c = found.c if found.is_accurate else c
    if math.isnan(c):
        c = float(exact_correction(posterior, at.u, at.whitener))
        spent += Cost(0, d**2)
    gap = gap_of_expansion(posterior, at, c, near)
    return c, gap.nats, spent + gap.cost


exact_correction = Compiled(correction, STEADY)


def _log1p(c: float) -> float:
    return math.log1p(c) if c > -1.0 else math.nan


def _trust(
    fit: MAP,
    c: Any,
    gap: float,
    modes: Sequence[SecondOrder],
    weights: Float[np.ndarray, " m"],
    is_noisy: bool,
) -> Trust:
    if not fit.converged:
        return Trust(Level.POOR, "the search ended at no strict mode")
    if _overlap([mode for mode, w in zip(modes, weights, strict=True) if w > NEGLIGIBLE]):
        return Trust(Level.POOR, "modes overlap, so that their sum counts some mass twice")
    if c is None:
        return Trust(Level.UNCHECKED, "no second-order correction was computed")
    if not float(c) > -1.0:
        breaks = f"the expansion breaks down, 1 + c = {1.0 + float(c):.2f} <= 0"
        return Trust(Level.POOR, f"{breaks}: do not use log Z")
    if abs(float(c)) > LARGE:
        return Trust(Level.POOR, "|c| is large: log Z may be off by that much and more")
    if is_noisy:
        return Trust(Level.UNCHECKED, "c holds the noise of a Monte Carlo metric's derivatives")
    if gap > LARGE:
        reason = "a kink, an edge, another mode or a heavy tail is within reach of the mode"
        return Trust(Level.POOR, f"{reason}: the expansion is off by {gap:.2g} nats there")
    return Trust(Level.FAIR, "|c| is small; other modes and heavy tails are not seen from one mode")


def _terms(at: FirstOrder, half: float | Float[Array, ""]) -> OrderedDict[str, Float[Array, ""]]:
    """The summands of the evidence at one mode; `half` is -1/2 log det(G^-1 H)."""
    volume = 0.5 * at.u.size * math.log(2.0 * math.pi)
    names = "log q^G at the mode", "d/2 log 2 pi", "-1/2 log det(G^-1 H)"
    values = -float(at.value), volume, float(half)
    return OrderedDict(
        (name, scalar(value, at.value.dtype)) for name, value in zip(names, values, strict=True)
    )


def _terms_along(
    orbit: Orbit, terms: OrderedDict[str, Float[Array, ""]]
) -> OrderedDict[str, Float[Array, ""]]:
    """The summands with the directions of the orbit taken off, and its volume."""
    # Each of the k directions has the curvature 2 pi / Vol^(2/k).
    height, gauss, half = (float(value) for value in terms.values())
    part = 0.5 * orbit.dimension * math.log(2.0 * math.pi)
    values = height, gauss - part, half + part - orbit.log_volume, orbit.log_volume
    names = (
        "log q^G at the mode",
        "(d-k)/2 log 2 pi",
        "-1/2 log det'(G^-1 H)",
        "log volume of the orbit",
    )
    dtype = next(iter(terms.values())).dtype
    return OrderedDict((n, scalar(v, dtype)) for n, v in zip(names, values, strict=True))


def _counted(sums: Total, number: Callable[[float], Array]) -> dict[str, Float[Array, ""]]:
    return {} if sums.log_copies is None else {"equivalent modes": number(sums.log_copies)}


def _overlap(modes: Sequence[SecondOrder]) -> bool:
    """Tell whether some mode lies within three standard deviations of another."""
    return any(lies_within(b, a.u, OVERLAP_WITHIN) for a in modes for b in modes if a is not b)

"""Evidence by Laplace's method: first and second order, at one mode or summed over several."""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.inference.correction import correction
from volform.inference.diagnosis import Flat, Saddle, Unfinished
from volform.inference.evidence import Cost, Evidence, Level, Trust
from volform.inference.local import Expansion, Point, volume_error
from volform.inference.mode import MAP, Place
from volform.inference.progress import waiting
from volform.models import Posterior
from volform.models.facts import Facts

SECOND_ORDER_LIMIT = 60  # parameters; the contraction costs O(d^3) evaluations of the model


def laplace_evidence(
    fit: MAP, modes: Sequence[Expansion], facts: Facts, *, second_order: bool, notes: Sequence[str]
) -> Evidence:
    """Laplace evidence of the modes, summed, times the number of equivalent modes.

    The corrections of several modes are averaged with the modes' weights, so that
    `log_z + log(1 + c)` is the sum of their second-order evidences.
    """
    posterior = fit.posterior
    has_none = isinstance(fit.verdict, Saddle | Flat)
    each = jnp.stack([_nan_if(has_none, log_evidence(at)) for at in modes])
    c = _mean_correction(fit, modes, each) if second_order else None
    log_z, copies, overlap = _with_copies(fit, facts, jax.nn.logsumexp(each))
    every = [*notes, copies]
    weights = np.asarray(jax.nn.softmax(each))
    if len(modes) > 1:
        shares = ", ".join(f"{weight:.3f}" for weight in weights)
        every.append(f"sum over {len(modes)} modes, weights {shares}")
    if second_order and posterior.dim > SECOND_ORDER_LIMIT:
        every.append(
            f"no second-order correction: {posterior.dim} parameters, it is computed up to "
            f"{SECOND_ORDER_LIMIT}"
        )
    noise = volume_error(posterior, fit.at.u)
    if noise is not None:
        every.append(f"log volume by Monte Carlo, standard error {float(noise):.2g}")
    diagnostics = {} if c is None else {"c": float(c)}
    diagnostics |= {f"weight of mode {m + 1}": float(w) for m, w in enumerate(weights) if w < 1.0}
    return Evidence(
        log_z,
        jnp.asarray(jnp.nan if c is None else jnp.abs(jnp.log1p(c))),
        c,
        posterior.metric_name,
        posterior.dim,
        "Laplace",
        overlap or _trust(fit, c, modes, is_noisy=noise is not None),
        diagnostics,
        fit.cost + Cost(0, 0 if c is None else len(modes) * posterior.dim**2),
        "; ".join(note for note in (*every, *facts.notes()) if note),
        facts,
    )


def curved_evidence(
    fit: Place, log_det: Float[Array, ""], facts: Facts, title: str, notes: Sequence[str]
) -> Evidence:
    """First-order Laplace evidence with another curvature than the Hessian, which it names.

    `log_det` is that of the precision matrix in u.
    """
    log_z, copies, overlap = _with_copies(fit, facts, first_order(fit.at, log_det))
    trust = Trust(Level.UNCHECKED, f"with {title} there is no second order to gauge it by")
    if isinstance(fit.verdict, Unfinished):
        trust = Trust(Level.POOR, "the point is not stationary")
    return Evidence(
        log_z,
        jnp.asarray(jnp.nan),
        None,
        fit.posterior.metric_name,
        fit.posterior.dim,
        f"Laplace with {title}",
        overlap or trust,
        {},
        fit.cost + Cost(0, fit.posterior.dim),
        "; ".join(note for note in (*notes, copies, *facts.notes()) if note),
        facts,
    )


def log_evidence(at: Expansion) -> Float[Array, ""]:
    """First-order log evidence from an expansion of -log q^G; NaN where it is no minimum."""
    return first_order(at, at.log_det + 2.0 * at.log_volume)


def first_order(at: Point, log_det: Float[Array, ""]) -> Float[Array, ""]:
    """First-order log evidence from the log determinant of the precision matrix in u."""
    return at.log_volume - at.value + 0.5 * (at.u.size * jnp.log(2.0 * jnp.pi) - log_det)


def without_copies(modes: Sequence[Expansion]) -> list[Expansion]:
    """One of each set of modes that are copies of each other."""
    kept: list[Expansion] = []
    for mode in modes:
        if not any(are_copies(mode, other) for other in kept):
            kept.append(mode)
    return kept


def are_copies(one: Expansion, other: Expansion) -> bool:
    """Whether two modes have equal q^G and equal spectra of E."""
    same_height = np.isclose(one.value, other.value, rtol=1e-8, atol=1e-8)
    return bool(same_height and np.allclose(one.eigenvalues, other.eigenvalues, rtol=1e-4))


def _mean_correction(fit: MAP, modes: Sequence[Expansion], each: Float[Array, " m"]) -> Any:
    posterior = fit.posterior
    if posterior.dim > SECOND_ORDER_LIMIT or not fit.converged:
        return None
    with waiting("evidence", show=True) as phase:
        phase(f"second-order correction in {posterior.dim} dimensions")
        return jax.nn.softmax(each) @ jnp.stack([_correction(posterior, at) for at in modes])


def _correction(posterior: Posterior, at: Expansion) -> Float[Array, ""]:
    # Fourth derivatives are long programs that run once: below 30 parameters compiling them
    # quickly matters more than running them quickly.
    run = _correction_small if posterior.dim <= 30 else _correction_large
    return run(posterior, at.u, at.whitener)


_correction_large = eqx.filter_jit(correction)
_quick: Any = {"compiler_options": {"xla_backend_optimization_level": 0}}
_correction_small = eqx.filter_jit(correction, **_quick)


def _trust(fit: MAP, c: Any, modes: Sequence[Expansion], is_noisy: bool) -> Trust:
    if not fit.converged:
        return Trust(Level.POOR, "the search ended at no strict mode")
    if _overlap(modes):
        return Trust(Level.POOR, "modes overlap, so that their sum counts some mass twice")
    if c is None:
        return Trust(Level.UNCHECKED, "no second-order correction was computed")
    if not float(c) > -1.0:
        breaks = f"the expansion breaks down, 1 + c = {1.0 + float(c):.2f} <= 0"
        return Trust(Level.POOR, f"{breaks}: do not use log Z")
    if abs(float(c)) > 0.3:
        return Trust(Level.POOR, "|c| is large: log Z may be off by that much and more")
    if is_noisy:
        return Trust(Level.UNCHECKED, "c holds the noise of a Monte Carlo metric's derivatives")
    return Trust(Level.FAIR, "|c| is small; other modes and heavy tails are not seen from one mode")


def _with_copies(fit: Place, facts: Facts, one: Any) -> tuple[Any, str, Trust | None]:
    """Log evidence with equivalent modes counted, a note, and the verdict if they overlap.

    An evidence is a mean of likelihoods. Where the copies of a mode come to more than the
    likelihood there, they overlap, as of a network with more units than the data ask for: units
    are alike, or idle, and the copies fewer than h! 2^h. Then one mode is all that is counted.
    """
    if not facts.equivalent_modes:
        return one, "", None
    many = f"{_in_digits(facts.equivalent_modes)} equivalent modes"
    total = one + math.log(facts.equivalent_modes)
    if facts.data and not facts.factors and not facts.improper:
        densities = fit.posterior.program.site_densities(fit.values)
        most = float(sum(jnp.sum(densities[name]) for name in fit.posterior.observed))
        if float(total) > most:
            above = f"with them log Z would be {float(total):.3f}, above the log likelihood"
            note = f"{many} are not counted: {above} at the mode, {most:.3f}"
            return one, note, Trust(Level.POOR, "equivalent modes overlap, and may add to log Z")
    note = (
        f"times {many} (+{math.log(facts.equivalent_modes):.3f}): valid while they do not overlap"
    )
    return total, note, None


def _in_digits(count: int) -> str:
    return f"{count:,}" if count < 10**9 else f"10^{math.log10(count):.1f}"


def _overlap(modes: Sequence[Expansion]) -> bool:
    """Whether some mode lies within three standard deviations of another."""
    gaps = [(a.u - b.u, b.hessian) for a in modes for b in modes if a is not b]
    return any(float(gap @ hessian @ gap) < 9.0 for gap, hessian in gaps)


def _nan_if(condition: bool, value: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.full_like(value, jnp.nan) if condition else value

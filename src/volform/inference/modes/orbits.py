"""Modes along an orbit: where q^G is constant since rotations leave the density unchanged.

There the Hessian is singular in k directions, and no Gaussian has the volume of the orbit. With
it, Laplace's method is

    log Z = log q^G(theta*) + (d - k)/2 log 2 pi - 1/2 log det'(G^-1 H) + log Vol_G(orbit),

det' the product of the other eigenvalues. The orbit of a compact group under which G is invariant
has `Vol_G = Vol(group) / Vol(stabilizer) sqrt(pdet M)`, M the Gram matrix in G of the velocities
of the group's generators, which is the same at all of its points. Everything that takes a mode
takes this one too: its flat directions are given the curvature `2 pi / Vol^(2/k)`, with which the
Gaussian has the volume of the orbit, so that the plain formula gives the same number.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.inference.modes.expansion import SecondOrder, objective
from volform.inference.modes.turning import complement_of, pseudo_volume, tangents_of
from volform.inference.modes.verdicts import Minimum, Orbit, curvature_verdict
from volform.models.posterior import Posterior
from volform.models.rotations import Rotations
from volform.models.symmetries import find_rotations

# Of the lowest eigenvalue of the Hessian scaled to unit diagonal: below it a flat direction is
# looked at. Searches end within 1e-8 of a mode, where flat directions have 1e-10 to 1e-13.
FLAT_BELOW = 1e-6
SAME_ORBIT = 1e-4  # relative distance, of two ends of searches turned together
TURNED = 1e-8  # relative, by which log q^G and the orbit's volume may differ where it is turned


def modes_along_orbits(
    posterior: Posterior, ends: Sequence[Any], tolerance: float
) -> tuple[list[tuple[SecondOrder, int]], Orbit | None]:
    """One mode for each orbit that the ends lie on, with its starts, the highest q^G first.

    Args:
        posterior: the posterior.
        ends: of the searches.
        tolerance: gradient norm below which an end is stationary.
    """
    finite = [end for end in ends if np.isfinite(end.at.value)]
    ordered = sorted(finite, key=lambda end: float(end.at.value))
    if not ordered or not _may_be_flat(ordered[0].at):
        return [], None
    rotations = find_rotations(posterior.bound_model, jax.random.key(0))
    shared = [name for group in rotations for name, _ in group.parts]
    if not rotations or len(set(shared)) < len(shared):
        return [], None
    modes: list[tuple[SecondOrder, int]] = []
    first: Orbit | None = None
    for end in ordered:
        if float(end.at.gradient_norm) > max(tolerance, 1e-5) or not _may_be_flat(end.at):
            continue
        known = next(
            (
                i
                for i, m in enumerate(modes)
                if _are_on_one_orbit(posterior, rotations, m[0].u, end.at.u)
            ),
            None,
        )
        if known is not None:
            modes[known] = (modes[known][0], modes[known][1] + end.starts)
            continue
        found = _along(posterior, rotations, end.at)
        if found is not None:
            modes.append((found[0], end.starts))
            first = found[1] if first is None else first
    return modes, first


def _may_be_flat(at: SecondOrder) -> bool:
    hessian = np.asarray(at.hessian, float)
    scale = np.sqrt(np.abs(np.diagonal(hessian)))
    scaled = hessian / np.outer(scale, scale) if (scale > 0.0).all() else hessian
    return bool(np.isfinite(scaled).all() and np.linalg.eigvalsh(scaled)[0] < FLAT_BELOW)


def _along(
    posterior: Posterior, rotations: tuple[Rotations, ...], at: SecondOrder
) -> tuple[SecondOrder, Orbit] | None:
    """The expansion with its flat directions curved, if they are those of the orbit."""
    values = posterior.values(at.u)
    tangents = tangents_of(posterior, rotations, at.u)
    gram = np.asarray(at.gram, float)
    log_pdet, basis = pseudo_volume(tangents, gram)
    k = len(basis)
    ranks = [(group.size, group.rank(values)) for group in rotations]
    if k == 0 or k != sum(_dimension(r) - _dimension(r - s) for r, s in ranks):
        return None
    log_volume = 0.5 * log_pdet + sum(group.log_quotient(values) for group in rotations)
    # `basis` is orthonormal in G: the flat part of H, and what takes its place.
    forms = basis @ gram
    hessian = np.asarray(at.hessian, float)
    complement = complement_of(basis, gram)
    curved = complement @ hessian @ complement.T
    curved += 2.0 * math.pi * math.exp(-2.0 * log_volume / k) * forms.T @ forms
    leftover = basis @ hessian @ basis.T
    size = np.abs(np.linalg.eigvalsh(_whitened(hessian, gram))).max()
    found = dataclasses.replace(at, hessian=jnp.asarray(curved, at.u.dtype))
    is_flat = np.abs(leftover).max() < FLAT_BELOW * size
    if not is_flat or not isinstance(curvature_verdict(posterior, found), Minimum):
        return None
    if not _is_invariant(posterior, rotations, at, log_pdet):
        return None
    return found, Orbit(k, log_volume, rotations)


def _dimension(n: int) -> int:
    return n * (n - 1) // 2


def _whitened(hessian: Any, gram: Any) -> Any:
    lower = np.linalg.cholesky(gram)
    half = np.linalg.solve(lower, hessian)
    return np.linalg.solve(lower, half.T)


def _is_invariant(
    posterior: Posterior, rotations: tuple[Rotations, ...], at: SecondOrder, log_pdet: float
) -> bool:
    """Tell whether log q^G and the volume's density are the same where the mode is turned."""
    random, values = np.random.default_rng(1), posterior.values(at.u)
    for group in rotations:
        turn = np.linalg.qr(random.normal(size=(group.size, group.size)))[0]
        values = group.turned(values, jnp.asarray(turn, at.u.dtype))
    u = posterior.unconstrain(values)
    value, gram = _objective_and_gram(posterior, u)
    there = pseudo_volume(tangents_of(posterior, rotations, u), np.asarray(gram, float))[0]
    same = abs(float(value) - float(at.value)) < TURNED * (1.0 + abs(float(at.value)))
    return same and abs(there - log_pdet) < TURNED * (1.0 + abs(log_pdet))


@eqx.filter_jit
def _objective_and_gram(posterior: Posterior, u: Float[Array, " d"]) -> tuple[Array, Array]:
    return objective(u, posterior), posterior.metric(u).as_matrix()


def _are_on_one_orbit(
    posterior: Posterior, rotations: tuple[Rotations, ...], u: Any, v: Any
) -> bool:
    """Tell whether some rotation takes one point to the other (orthogonal Procrustes)."""
    one, other = posterior.values(u), posterior.values(v)
    for group in rotations:
        a, b = group.stacked(one), group.stacked(other)
        left, _, right = np.linalg.svd(a.T @ b)
        one = group.turned(one, jnp.asarray((left @ right).T, u.dtype))
    return all(
        np.allclose(
            one[name], value, rtol=SAME_ORBIT, atol=SAME_ORBIT * float(np.max(np.abs(value)))
        )
        for name, value in other.items()
    )

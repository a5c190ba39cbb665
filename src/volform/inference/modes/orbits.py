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

import jax
import jax.numpy as jnp
import numpy as np

from volform.inference.modes.expansion import OnOrbit, SecondOrder, expand_first
from volform.inference.modes.turning import complement_of, pseudo_volume, tangents_of
from volform.inference.modes.verdicts import Flat, Orbit, gram_at, involved_sites
from volform.linalg.generalized import generalized_eigh, unit_diagonal
from volform.models.posterior import Posterior
from volform.models.rotations import Rotations
from volform.models.symmetries import find_rotations

# Of the lowest eigenvalue of the Hessian scaled to unit diagonal: below it a flat direction is
# looked at. Searches end within 1e-8 of a mode, where flat directions have 1e-10 to 1e-13.
FLAT_BELOW = 1e-6
# Of the same, in a continuum. Copies of a mode of a network whose fourth derivatives hold it have
# one height too, and 1.6e-7.
CONTINUUM_BELOW = 1e-8
SAME_ORBIT = 1e-4  # relative distance, of two ends of searches turned together
GAP = 1e3  # of the eigenvalues across an orbit over what is left of those along it
LEFT_OVER = 1e-13  # of those, relative to the largest
CONTINUUM = 3  # nearly flat modes of one height, from which on they are points of a continuum
NEGLIGIBLE_BELOW = 20.0  # nats below the highest q^G, where a continuum is left out of the evidence
TURNED = 1e-8  # relative, by which log q^G and the orbit's volume may differ where it is turned

Found = tuple[Any, int]  # an expansion, and how many starts ended there


def merged_along_orbits(
    posterior: Posterior, modes: Sequence[Found], ends: Sequence[Any], tolerance: float
) -> tuple[list[Found], Flat | None]:
    """The modes, with one for each orbit in place of those that searches found on it.

    Nearly flat ends that no rotations explain are narrow modes where there are few of one height,
    and a continuum where there are many: of another symmetry, of which no Gaussian has the volume.

    Args:
        posterior: the posterior.
        modes: expansions at the distinct strict modes, with their starts.
        ends: of all searches.
        tolerance: gradient norm below which an end is stationary.

    Returns:
        The modes, the highest q^G first; and, in place of all, the verdict on a continuum that may
        hold some of the evidence.
    """
    level = [end for end in ends if _is_level(end.at, tolerance) and _may_be_flat(end.at)]
    if not level:
        return list(modes), None
    rotations = find_rotations(posterior.bound_model, jax.random.key(0))
    shared = [name for group in rotations for name, _ in group.parts]
    if len(set(shared)) < len(shared):
        rotations = ()
    orbits: list[Found] = []
    for end in sorted(level, key=lambda end: float(end.at.value)):
        known = _on_known(posterior, orbits, end.at.u)
        if known is not None:
            orbits[known] = (orbits[known][0], orbits[known][1] + end.starts)
        elif rotations and (found := _along(posterior, rotations, end.at)) is not None:
            orbits.append((found, end.starts))
    left = [(at, n) for at, n in modes if _on_known(posterior, orbits, at.u) is None]
    narrow = [at for at, _ in left if _may_be_flat(at, CONTINUUM_BELOW)]
    many = [at for at in narrow if sum(_are_level(at, other) for other in narrow) >= CONTINUUM]
    every = sorted([*orbits, *left], key=lambda found: float(found[0].value))
    if not every:
        return [], None
    highest = float(every[0][0].value)
    if any(float(at.value) - highest < NEGLIGIBLE_BELOW for at in many):
        return [], _flat(posterior, many[0])
    return [found for found in every if not any(found[0] is at for at in many)], None


def _is_level(at: SecondOrder, tolerance: float) -> bool:
    return bool(np.isfinite(at.value)) and float(at.gradient_norm) < max(tolerance, 1e-5)


def _are_level(one: SecondOrder, other: SecondOrder) -> bool:
    return abs(float(one.value) - float(other.value)) < TURNED * (1.0 + abs(float(one.value)))


def _on_known(posterior: Posterior, orbits: Sequence[Found], u: Any) -> int | None:
    """Number of the orbit that a point lies on."""
    on = (_are_on_one_orbit(posterior, at.orbit.rotations, at.u, u) for at, _ in orbits)
    return next((number for number, is_on in enumerate(on) if is_on), None)


def _flat(posterior: Posterior, at: SecondOrder) -> Flat:
    scaled = unit_diagonal(np.asarray(at.hessian, float))
    values, vectors = np.linalg.eigh(scaled)
    level = values < FLAT_BELOW
    return Flat(int(level.sum()), involved_sites(posterior, vectors[:, level]))


def _may_be_flat(at: SecondOrder, below: float = FLAT_BELOW) -> bool:
    scaled = unit_diagonal(np.asarray(at.hessian, float))
    return bool(np.isfinite(scaled).all() and np.linalg.eigvalsh(scaled)[0] < below)


def _along(
    posterior: Posterior, rotations: tuple[Rotations, ...], at: SecondOrder
) -> OnOrbit | None:
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
    spectrum = np.asarray(
        generalized_eigh(jnp.asarray(complement @ hessian @ complement.T), jnp.asarray(gram))[0]
    )
    size = np.abs(spectrum).max()
    noise = max(np.abs(leftover).max(), LEFT_OVER * size)
    own = {field.name: getattr(at, field.name) for field in dataclasses.fields(at)}
    own["hessian"] = jnp.asarray(curved, at.u.dtype)
    found = OnOrbit(**own, orbit=Orbit(k, log_volume, rotations))
    across = spectrum[np.argsort(np.abs(spectrum))[k:]]
    is_flat = np.abs(leftover).max() < FLAT_BELOW * size
    if not is_flat or np.any(across < GAP * noise):  # flat in directions that are not the orbit's
        return None
    return found if _is_invariant(posterior, rotations, at, log_pdet) else None


def _dimension(n: int) -> int:
    return n * (n - 1) // 2


def _is_invariant(
    posterior: Posterior, rotations: tuple[Rotations, ...], at: SecondOrder, log_pdet: float
) -> bool:
    """Tell whether log q^G and the volume's density are the same where the mode is turned."""
    random, values = np.random.default_rng(1), posterior.values(at.u)
    for group in rotations:
        turn = np.linalg.qr(random.normal(size=(group.size, group.size)))[0]
        values = group.turned(values, jnp.asarray(turn, at.u.dtype))
    u = posterior.unconstrain(values)
    gram = np.asarray(gram_at(posterior, u), float)
    there = pseudo_volume(tangents_of(posterior, rotations, u), gram)[0]
    value = float(expand_first(posterior, u).value)
    same = abs(value - float(at.value)) < TURNED * (1.0 + abs(float(at.value)))
    return same and abs(there - log_pdet) < TURNED * (1.0 + abs(log_pdet))


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

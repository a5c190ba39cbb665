"""Orbits of rotations: velocities, volumes, and draws turned at random."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from volform.compilation import steady
from volform.models.posterior import Posterior
from volform.models.rotations import Rotations


def tangents_of(
    posterior: Posterior, rotations: tuple[Rotations, ...], u: Float[Array, " d"]
) -> Float[np.ndarray, "k d"]:
    """Velocities in u of the generators of all groups."""
    model = posterior.bound_model
    return np.concatenate([np.asarray(_velocities(group, model, u)) for group in rotations])


@steady
def _velocities(group: Rotations, model: Any, u: Float[Array, " d"]) -> Float[Array, "k d"]:
    return group.tangents(model, u)


def pseudo_volume(
    tangents: Float[np.ndarray, "m d"], gram: Float[np.ndarray, "d d"]
) -> tuple[float, Float[np.ndarray, "k d"]]:
    """Log pseudo-determinant of their Gram matrix, and an orthonormal basis of their span."""
    inner = tangents @ gram @ tangents.T
    values, vectors = np.linalg.eigh(inner)
    kept = values > 1e-10 * max(values[-1], 1e-300)
    basis = (vectors[:, kept] / np.sqrt(values[kept])).T @ tangents
    return float(np.sum(np.log(values[kept]))), basis


def complement_of(
    basis: Float[np.ndarray, "k d"], gram: Float[np.ndarray, "d d"]
) -> Float[np.ndarray, "d d"]:
    """C with `v @ C` the part of a tangent vector v that is orthogonal to the basis."""
    return np.eye(len(gram)) - gram @ basis.T @ basis


def turned_draws(
    posterior: Posterior,
    groups: tuple[Rotations, ...],
    center: Any,
    gram: Any,
    u: Any,
    random: np.random.Generator,
) -> Float[np.ndarray, "n d"]:
    """Draws around one point of an orbit, each turned by a random rotation of its own.

    Args:
        posterior: the posterior.
        groups: the groups of rotations.
        center: the point of it that the draws are around; along the orbit they are not moved.
        gram: the metric there, shape (d, d).
        u: the draws.
        random: generator of the rotations, which have Haar's measure.
    """
    gram = np.asarray(gram, float)
    basis = pseudo_volume(tangents_of(posterior, groups, center), gram)[1]
    across = np.asarray(center) + (u - np.asarray(center)) @ complement_of(basis, gram)
    turns = []
    for group in groups:
        q, r = np.linalg.qr(random.normal(size=(len(u), group.size, group.size)))
        turns.append(q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :])
    return np.asarray(_turned(posterior, groups, across.astype(u.dtype), turns))


@steady
def _turned(
    posterior: Posterior, groups: tuple[Rotations, ...], u: Float[Array, "n d"], turns: list[Any]
) -> Float[Array, "n d"]:
    def at(u: Float[Array, " d"], *turns: Array) -> Float[Array, " d"]:
        values = posterior.values(u)
        for group, turn in zip(groups, turns, strict=True):
            values = group.turned(values, turn.astype(u.dtype))
        return posterior.layout.unconstrain(values)

    return jax.vmap(at)(u, *turns)

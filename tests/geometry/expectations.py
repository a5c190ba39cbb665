"""Covariances of scores, by quadrature and by summation, from NumPyro's own log densities.

Nothing here is shared with the package: densities are NumPyro's, scores are their derivatives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def identity(u: Any) -> Any:
    return u


def line(center: float, width: float, count: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Double-exponential nodes and weights for both half-lines that meet at `center`.

    Kinks and jumps at the center do no harm, nor do algebraic tails.
    """
    t = np.linspace(-4.4, 4.4, count)
    distance = np.exp(np.pi / 2 * np.sinh(t))
    weight = (t[1] - t[0]) * np.pi / 2 * np.cosh(t) * distance
    nodes = np.concatenate([center - width * distance, center + width * distance])
    return nodes, width * np.concatenate([weight, weight])


def score_covariances(
    log_density: Callable[..., Any],
    points: np.ndarray,
    nodes: list[tuple[np.ndarray, np.ndarray]],
    value_of: Callable[[Any], Any] = identity,
    in_value: bool = True,
) -> list[np.ndarray]:
    """E[s s^T] with s = d log p(x | z) / d(row, z), for x = value_of(u) and u on the real line.

    Args:
        log_density: log p(x | z) with respect to dx, called as log_density(x, *z).
        points: values of z, shape (p, k).
        nodes: for each of them, nodes u and weights du.
        value_of: the increasing map u -> x.
        in_value: whether the first row is x with the density p(x); else it is u with that of u.
    """

    def log_density_of_u(u: Any, z: Any) -> Any:
        return log_density(value_of(u), *z) + jnp.log(jax.grad(value_of)(u))

    def row_density(row: Any, z: Any) -> Any:
        return log_density(row, *z) if in_value else log_density_of_u(row, z)

    def at(z: Any, u: Any) -> tuple[Any, Any]:
        row = value_of(u) if in_value else u
        first, rest = jax.grad(row_density, argnums=(0, 1))(row, z)
        return log_density_of_u(u, z), jnp.append(first, rest)

    every = jax.jit(jax.vmap(jax.vmap(at, (None, 0))))
    log_p, scores = every(points, np.stack([u for u, _ in nodes]))
    weights = [du for _, du in nodes]
    return [
        moments(*terms) for terms in zip(np.array(log_p), np.array(scores), weights, strict=True)
    ]


def moments(log_p: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The second moments of scores (n, 1 + k), row first, after checking what must hold."""
    held = np.isfinite(log_p) & np.isfinite(scores).all(-1)
    p, s = np.exp(log_p[held]) * weights[held], scores[held]
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-9)
    p = p / p.sum()
    # The mean of a parameter's score is zero; what is left of it is rounding, and large where the
    # score is the small difference of large terms.
    s[:, 1:] -= p @ s[:, 1:]
    return s.T @ (p[:, None] * s)


def summed_covariances(
    log_density: Callable[..., Any], points: np.ndarray, support: np.ndarray
) -> list[np.ndarray]:
    """E[s s^T] with s = d log p(k | z) / dz, by summation over a support (n, *event)."""

    def at(z: Any, k: Any) -> tuple[Any, Any]:
        return jax.value_and_grad(lambda z: log_density(k, *z))(z)

    log_p, scores = jax.jit(jax.vmap(jax.vmap(at, (None, 0)), (0, None)))(points, support)
    scores = np.pad(np.array(scores), ((0, 0), (0, 0), (1, 0)))  # no row for the value
    ones = np.ones(len(support))
    return [moments(p, s, ones)[1:, 1:] for p, s in zip(np.array(log_p), scores, strict=True)]


def negative_binomial_dispersion(concentration: float, mean: float) -> float:
    """E[(d log p / d concentration)^2] at fixed mean, by summation without digammas."""
    c, m = np.longdouble(concentration), np.longdouble(mean)
    tail = m + 20.0 * np.sqrt(m + m**2 / c) - 45.0 / np.log1p(-c / (m + c))
    k = np.arange(int(tail) + 20).astype(np.longdouble)
    rising = np.concatenate([[0.0], np.cumsum(np.log1p((c - 1) / (k[:-1] + 1)))])
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / (c + k[:-1]))])
    log_p = rising + c * np.log1p(-m / (c + m)) + k * np.log1p(-c / (c + m))
    score = harmonic + np.log1p(-m / (c + m)) + (m - k) / (c + m)
    p = np.exp(log_p)
    np.testing.assert_allclose(float(p.sum()), 1.0, rtol=1e-12)
    return float(p @ score**2)

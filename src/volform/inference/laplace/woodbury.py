"""Precision matrices by the rows of the Jacobian, where data are few and parameters many."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from volform.compilation import steady
from volform.inference.laplace.gauss_newton import DataPriorSplit
from volform.linalg.operator import fits
from volform.linalg.precision import LowRankUpdate


def woodbury_precision(split: DataPriorSplit, rest: Float[Array, " d"]) -> LowRankUpdate | None:
    """`P = R + J^T L J` with R = diag(rest), by the m rows of J that are not zero.

    With `C = L^(1/2) J R^(-1/2)` and `C C^T = U diag(lambda) U^T` the directions are
    `V = R^(-1/2) C^T U diag(lambda)^(-1/2)`, and `log det P = log det R + sum log(1 + lambda)`:
    exact, at a cost of O(m^2 d) and not O(d^3).

    None where rows are more than a quarter of the parameters, or too many for the memory, or where
    R or L are not positive.
    """
    moving = np.asarray(_moving(split))
    rows, d = int(moving.sum()), split.u.size
    if not (is_few(rows, d) and fits(rows, d, split.u.dtype) and bool(jnp.all(rest > 0))):
        return None
    directions, values, lowest = _directions(split, rest, jnp.asarray(np.flatnonzero(moving)))
    if not bool(lowest >= 0):
        return None
    return LowRankUpdate(lx.DiagonalLinearOperator(rest), directions, values)


def is_few(rows: int, parameters: int) -> bool:
    """Tell whether a matrix of the rows of J is worth its detour."""
    return 4 * rows <= parameters


@steady
def _moving(split: DataPriorSplit) -> Bool[Array, " outputs"]:
    """Outputs that depend on u: those that move along a random direction."""
    tangent = jax.random.normal(jax.random.key(0), split.u.shape, split.u.dtype)
    _, along = jax.jvp(lambda u: ravel_pytree(split.parameters(u))[0], (split.u,), (tangent,))
    return along != 0


@steady
def _directions(
    split: DataPriorSplit, rest: Float[Array, " d"], moving: Array
) -> tuple[Float[Array, "m d"], Float[Array, " m"], Float[Array, ""]]:
    """V and lambda, and the lowest eigenvalue of L in units of the largest, to rounding."""
    z, push = jax.linearize(lambda u: ravel_pytree(split.parameters(u))[0], split.u)
    _, unravel = ravel_pytree(split.parameters(split.u))
    pull, weigh = jax.linear_transpose(push, split.u), split.output_product(unravel(z))

    def curved(output: Array) -> Array:
        return ravel_pytree(weigh(unravel(jnp.zeros_like(z).at[output].set(1))))[0][moving]

    curvature = jax.lax.map(curved, moving, batch_size=64)
    curvatures, axes = jnp.linalg.eigh((curvature + curvature.T) / 2)
    largest = jnp.maximum(jnp.max(jnp.abs(curvatures)), jnp.finfo(z.dtype).tiny)
    lowest = curvatures[0] / largest + 10 * len(curvatures) * jnp.finfo(z.dtype).eps

    def row(weights: Array) -> Array:
        return pull(jnp.zeros_like(z).at[moving].set(weights))[0] * jax.lax.rsqrt(rest)

    roots = jnp.sqrt(jnp.maximum(curvatures, 0))
    rows = jax.lax.map(row, (axes * roots[None]).T, batch_size=64)
    values, vectors = jnp.linalg.eigh(rows @ rows.T)
    values = jnp.maximum(values, 0)
    shrunk = jnp.where(values > 0, jax.lax.rsqrt(jnp.where(values > 0, values, 1)), 0)
    return (shrunk[:, None] * (vectors.T @ rows)) * jax.lax.rsqrt(rest)[None], values, lowest

"""Smooth functions of symmetric matrices, differentiable to any order at repeated eigenvalues."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.linalg.structured import positive_inverse

_SMALL = 2.0**-4  # |x| up to which the series below has all digits of float64
_SERIES = (1.0 / 3.0, -1.0 / 45.0, 2.0 / 945.0, -1.0 / 4725.0, 2.0 / 93555.0)  # of x coth x - 1
# Doublings of the argument, each of which keeps eigenvalues of any ratio apart: 192 reach from 1/16
# to 10^56. Where points are mapped over, all of them run.
_DOUBLINGS = 192
_MARGIN = 10  # binary orders to the largest number of the dtype, for sums and squares


def soft_absolute(matrix: Float[Array, "n n"], alpha: Any) -> Float[Array, "n n"]:
    """The matrix function `f(H) = H coth(alpha H)`, a smooth absolute value.

    Of an eigenvalue it makes `lambda coth(alpha lambda)`, which is even and analytic, 1 / alpha at
    zero, and tends to |lambda| where alpha |lambda| is large. So f(H) is a smooth, positive
    definite function of a symmetric H, at repeated eigenvalues and at the eigenvalue zero too. The
    derivative of `eigh` is not: it divides by gaps between eigenvalues. Here the eigenbasis of H at
    the point is held fixed, and f of the matrix in this basis, where it is diagonal, comes from
    its series near zero and

        F(2 X) = F(X) + X F(X)^-1 X    for F(X) = X coth X,

    which is matrix products and inverses of positive definite matrices only. Derivatives of any
    order go through these.

    Args:
        matrix: symmetric H, shape (n, n).
        alpha: positive number; 1 / alpha is the least eigenvalue of the result, and the size below
            which eigenvalues of H are rounded off.

    Returns:
        f(H), shape (n, n), symmetric to the last bit; NaN where H is, and where alpha times the
        largest eigenvalue is above 10^56 (10^34 in float32).

    Cost: O(n^3 log(alpha |H|)).

    References:
        Betancourt (2013), A general metric for Riemannian manifold Hamiltonian Monte Carlo.

    >>> import jax.numpy as jnp
    >>> from volform.linalg import soft_absolute
    >>> soft_absolute(jnp.diag(jnp.array([-3.0, 0.0])), alpha=2.0).round(3).tolist()
    [[3.0, 0.0], [0.0, 0.5]]
    """
    dtype = matrix.dtype
    if not matrix.size:
        return matrix
    steps = min(_DOUBLINGS, np.finfo(dtype).maxexp - _MARGIN)
    fixed = jax.lax.stop_gradient(matrix)
    values, vectors = jnp.linalg.eigh(0.5 * (fixed + fixed.T))
    # Zero but for its derivatives: without rounding, what is diagonal stays so.
    moved = vectors.T @ (matrix - fixed) @ vectors
    size = jnp.max(jnp.abs(values))
    alpha = jnp.asarray(alpha, dtype)
    is_within = jax.lax.stop_gradient(alpha) * size < _SMALL * 2.0**steps
    needed = _doublings(jax.lax.stop_gradient(alpha) * size, steps)
    x = alpha * (jnp.diag(values) + 0.5 * (moved + moved.T))
    result = vectors @ (_x_coth_x(x, needed, steps) / alpha) @ vectors.T
    return jnp.where(is_within, 0.5 * (result + result.T), jnp.nan)


def _doublings(size: Float[Array, ""], most: int) -> Any:
    """Count how often `size` is halved until the series holds."""
    _, exponent = jnp.frexp(size / _SMALL)
    return jnp.clip(exponent, 0, most)


def _x_coth_x(x: Float[Array, "n n"], needed: Any, most: int) -> Float[Array, "n n"]:
    x = x * jnp.ldexp(jnp.ones((), x.dtype), -needed)

    def double(state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, f = state
        return 2.0 * x, f + _sandwich(x, f)

    def step(state: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        return jax.lax.cond(index < needed, double, lambda state: state, state), None

    (_, f), _ = jax.lax.scan(step, (x, _series(x)), jnp.arange(most, dtype=needed.dtype))
    return f


def _series(x: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """`X coth X` for a small X, by Horner's rule."""
    square, eye = x @ x, jnp.eye(x.shape[-1], dtype=x.dtype)
    total = _SERIES[-1] * square
    for coefficient in reversed(_SERIES[:-1]):
        total = square @ (coefficient * eye + total)
    return eye + total


def _sandwich(x: Float[Array, "n n"], f: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """`X F^-1 X` for a symmetric X and a positive definite F."""
    return x @ positive_inverse(f) @ x

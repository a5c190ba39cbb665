"""Dense decompositions that rooms above share: of a symmetric pencil (H, G), and of I + A A^T."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.core import Tracer
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float


def whitened_form(
    form: Float[Array, "n n"], down: Callable[[Float[Array, " n"]], Array]
) -> Float[Array, "n n"]:
    """`L^-1 H L^-T` of a symmetric form H, symmetric to the last bit.

    It has the determinant, the trace and the eigenvalues of `G^-1 H` with `G = L L^T`.

    Args:
        form: H, shape (n, n).
        down: the map `w -> L^-1 w` on flat vectors, as of `whitening_maps`.
    """
    rows = jax.vmap(down)
    half = rows(rows(form).T)
    return 0.5 * (half + half.T)


def generalized_eigh(
    form: Float[Array, "n n"], base: Float[Array, "n n"]
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Solve `H w = lambda G w` for a symmetric H and a positive-definite G.

    With `G = L L^T` and `L^-1 H L^-T = V diag(lambda) V^T` the vectors are `W = L^-T V`, so that
    `W^T G W = I` and `W^T H W = diag(lambda)`.

    Args:
        form: H, shape (n, n).
        base: G, shape (n, n).

    Returns:
        lambda in ascending order, shape (n,), and W with the vectors as columns, shape (n, n); not
        finite where G is not positive definite. Costs O(n^3).

    References:
        Golub & Van Loan (2013), Matrix Computations, section 8.7.

    >>> import jax.numpy as jnp
    >>> values, vectors = generalized_eigh(jnp.diag(jnp.array([4.0, 9.0])), 4.0 * jnp.eye(2))
    >>> values.tolist()
    [1.0, 2.25]
    """
    if isinstance(form, Tracer) or isinstance(base, Tracer):
        return _traced(form, base)
    lower = cholesky_or_nan(np.asarray(base))
    if not np.isfinite(lower).all():
        return jax.device_put((np.full(len(lower), np.nan, lower.dtype), lower))
    half = solve_lower(lower, np.asarray(form))
    relative = solve_lower(lower, half.T)
    eigenvalues, vectors = _host_eigenbasis(0.5 * (relative + relative.T))
    return jax.device_put((eigenvalues, solve_lower(lower, vectors, transposed=True)))


def cholesky_or_nan(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The lower Cholesky factor, and NaN where there is none."""
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return np.full_like(matrix, np.nan)


def solve_lower(
    lower: Float[np.ndarray, "n n"], right: Float[np.ndarray, "n ..."], *, transposed: bool = False
) -> Float[np.ndarray, "n ..."]:
    """`L^-1 B`, or `L^-T B`, of a lower triangular L, on the host; NaN where L has it."""
    way = {"lower": True, "trans": "T" if transposed else "N", "check_finite": False}
    return np.asarray(scipy.linalg.solve_triangular(lower, right, **way), lower.dtype)


def _host_eigenbasis(
    relative: Float[np.ndarray, "n n"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n n"]]:
    """As `_eigenbasis`, of arrays that are no traced ones, which are compiled by nobody."""
    if not np.isfinite(relative).all():
        return np.full(len(relative), np.nan, relative.dtype), np.full_like(relative, np.nan)
    values, vectors = np.linalg.eigh(relative)
    lower = cholesky_or_nan(relative)
    if values[0] > np.finfo(values.dtype).eps ** 0.25 * values[-1] or not np.isfinite(lower).all():
        return values, vectors
    vectors, values, _ = np.linalg.svd(lower)
    return values[::-1] ** 2, vectors[:, ::-1]


def _traced(form: Float[Array, "n n"], base: Float[Array, "n n"]) -> tuple[Array, Array]:
    lower = jnp.linalg.cholesky(base)
    relative = whitened_form(form, lambda w: solve_triangular(lower, w, lower=True))
    eigenvalues, vectors = _eigenbasis(relative)
    return eigenvalues, solve_triangular(lower.T, vectors, lower=False)


def _eigenbasis(relative: Float[Array, "n n"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Eigenvalues in ascending order and orthonormal eigenvectors of a symmetric matrix.

    Of a positive definite one with a wide spectrum from the singular values of its Cholesky
    factor, whose spread is the square root of the matrix's: parameters in units far apart keep
    their digits.
    """
    values, vectors = jnp.linalg.eigh(relative)
    narrow = values[0] > jnp.finfo(values.dtype).eps ** 0.25 * values[-1]
    lower = jnp.linalg.cholesky(relative)

    def by_factor() -> tuple[Array, Array]:
        vectors, values, _ = jnp.linalg.svd(lower)
        return values[::-1] ** 2, vectors[:, ::-1]

    # The factor costs several times as much as eigh, and gains no digit of a narrow spectrum.
    is_better = ~narrow & jnp.all(jnp.isfinite(lower))
    return jax.lax.cond(is_better, by_factor, lambda: (values, vectors))


def capacitance_root(rows: Float[Array, "r n"]) -> Float[Array, "m m"]:
    """Cholesky factor of `I + A A^T`, or of `I + A^T A` where that is the smaller matrix.

    By the determinant lemma both have one determinant, that of a positive-definite P divided out of
    `P + B^T B` for `A = B P^(-1/2)`: log det is `2 sum log diag` of the factor.

    Args:
        rows: A, shape (r, n).

    Returns:
        A lower triangular matrix of shape (m, m), m the smaller of r and n.
    """
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    return jnp.linalg.cholesky(gram + jnp.eye(len(gram), dtype=gram.dtype))


def is_above(matrix: Any, bound: float) -> bool:
    """Tell whether every eigenvalue of a symmetric matrix is above `bound`, by Cholesky."""
    diagonal = np.diagonal(matrix)
    if np.count_nonzero(matrix) == np.count_nonzero(diagonal):
        return bool(np.all(diagonal > bound))
    try:
        np.linalg.cholesky(matrix - bound * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        return False
    return True


def unit_diagonal(matrix: Any) -> np.ndarray:
    """The matrix in units in which its diagonal is one, so that thresholds have no units."""
    scale = np.sqrt(np.abs(np.diag(matrix)))
    scale[scale == 0] = 1.0
    return matrix / np.outer(scale, scale)


def singular_below(matrix: Any, dtype: Any) -> float:
    """Eigenvalue of a matrix of unit diagonal below which rounding may have made it."""
    # Cholesky's backward error is about n roundings (Higham 2002, theorem 10.3), and a safe factor.
    return 10 * len(matrix) * float(jnp.finfo(dtype).eps)

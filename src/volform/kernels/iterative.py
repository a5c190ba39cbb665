"""Gaussian processes of many examples: solutions and determinants by products with vectors."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from volform.checks import require_positive
from volform.compilation import steady
from volform.errors import ConvergenceError, KernelError
from volform.kernels.gram_matrix import GramMatrix, nngp_operator
from volform.kernels.kernel import kernel
from volform.kernels.propagation.state import dtype_of_kernels
from volform.kernels.propagation.tiles import gathered, spread_of
from volform.linalg.functionals import logdet
from volform.linalg.methods import Krylov
from volform.linalg.operator import Operator, is_known, register_operator
from volform.networks.layer import Layer

_RANK = 128  # columns of the kernel that the preconditioner is made of
_KEPT_GIB = 2.0  # largest Gram matrix that is kept rather than computed for each product
_STEPS = 1000  # of conjugate gradients


class Whitened(Operator):
    """`P^-1/2 (K + v I) P^-1/2` with `P = U diag(s) U^T + v I` near `K + v I`.

    Its eigenvalues lie close to 1, so that conjugate gradients and Lanczos' method take few steps,
    and few probes are needed for the logarithm of its determinant.

    Attributes:
        gram: K.
        variance: v.
        basis: U, shape (n, r), orthonormal columns.
        spectrum: s, shape (r,).
    """

    gram: lx.AbstractLinearOperator
    variance: Float[Array, ""]
    basis: Float[Array, "n r"]
    spectrum: Float[Array, " r"]

    def whiten(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        """`P^-1/2 v`."""
        outside = 1 / jnp.sqrt(self.variance)
        inside = 1 / jnp.sqrt(self.variance + self.spectrum) - outside
        return outside * vector + self.basis @ (inside * (vector @ self.basis))

    def log_det_p(self) -> Float[Array, ""]:
        """`log det P`."""
        return len(self.basis) * jnp.log(self.variance) + jnp.sum(
            jnp.log1p(self.spectrum / self.variance)
        )

    def mv(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        """The product."""
        along = self.whiten(vector)
        return self.whiten(self.gram.mv(along) + self.variance * along)

    def linearize(self) -> "Whitened":
        """Itself: what can be kept is kept."""
        return self

    def transpose(self) -> "Whitened":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """A number for each example."""
        return jax.ShapeDtypeStruct((len(self.basis),), self.basis.dtype)


register_operator(Whitened, symmetric=True, semidefinite=True)


def whitened(net: Layer, x: Float[Array, "n ..."], noise: Any, jitter: Any) -> Whitened:
    """The covariance of observations, with the preconditioner of a partial Cholesky factor.

    Raises:
        KernelError: where neither `noise` nor `jitter` is positive.
    """
    if noise is not None:
        require_positive(noise, "noise", "the standard deviation of observations", KernelError)
    elif is_known(jitter) and not jitter > 0:
        raise KernelError(
            f"`noise` is None with `jitter={jitter}`; by `Krylov` a covariance needs a positive "
            "`noise`, without which duplicates make it singular and nothing bounds its condition."
        )
    dtype = dtype_of_kernels(x)
    is_kept = len(x) ** 2 * dtype.itemsize <= _KEPT_GIB * 2**30
    gram = nngp_operator(net, x, is_kept=is_kept)
    variance = jnp.asarray(jitter + (0.0 if noise is None else noise**2), dtype)
    basis, spectrum = _low_rank(gram)
    return Whitened(gram.linearize(), variance, basis, spectrum)


@steady
def _low_rank(gram: GramMatrix) -> tuple[Float[Array, "n r"], Float[Array, " r"]]:
    """Eigenvectors and eigenvalues of `L L^T`, L a partial Cholesky factor of the matrix."""
    x = gathered(gram.x, gram.spread)

    def variance(example: Array) -> Array:
        return gram.block(example[None], example[None], True)[0, 0]

    def column(index: Array) -> Float[Array, " n"]:
        return gram.block(x, jax.lax.dynamic_slice_in_dim(x, index, 1), False)[:, 0]

    factor = partial_cholesky(column, jax.lax.map(variance, x), min(_RANK, len(x)))
    # The eigenvectors of the small L^T L: where it is singular, columns of zero and no eigenvalue.
    values, vectors = jnp.linalg.eigh(factor.T @ factor)
    is_seen = values > len(values) * jnp.finfo(values.dtype).eps * values[-1]
    scale = jnp.where(is_seen, 1 / jnp.sqrt(jnp.where(is_seen, values, 1)), 0)
    return (factor @ vectors) * scale[None], jnp.where(is_seen, values, 0)


def partial_cholesky(
    column: Callable[[Array], Float[Array, " n"]], diagonal: Float[Array, " n"], rank: int
) -> Float[Array, "n rank"]:
    """L with `L L^T` near K: Cholesky with the largest pivot first, stopped after `rank` columns.

    Args:
        column: the i-th column of K.
        diagonal: that of K.
        rank: number of columns of L; those behind the rank of K are zero.

    References:
        Harbrecht, Peters & Schneider (2012), On the low-rank approximation by the pivoted Cholesky
        decomposition.
    """
    floor = 10 * jnp.finfo(diagonal.dtype).eps * jnp.max(diagonal)

    def step(number: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, left = state
        pivot = jnp.argmax(left)
        is_left = left[pivot] > floor
        new = (column(pivot) - factor @ factor[pivot]) / jnp.sqrt(
            jnp.where(is_left, left[pivot], 1)
        )
        new = jnp.where(is_left, new, 0)
        left = jnp.maximum(left - new**2, 0).at[pivot].set(0)
        return factor.at[:, number].set(new), left

    empty = jnp.zeros((len(diagonal), rank), diagonal.dtype)
    return jax.lax.fori_loop(0, rank, step, (empty, diagonal))[0]


def solved(matrix: Whitened, right: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """`(K + v I)^-1 right`, by conjugate gradients.

    Raises:
        ConvergenceError: where (outside `jit`) the residual stays large.
    """
    solution, residual, tolerance = _solved(matrix, right)
    if is_known(residual) and not float(residual) <= 10 * tolerance:
        raise ConvergenceError(
            f"`by=Krylov(...)`: conjugate gradients stopped after {_STEPS} steps with a relative "
            f"residual of {float(residual):.2g}, for {tolerance:.1g} wanted. Give a larger "
            "`noise`, compute in float64, or leave out examples that nearly coincide."
        )
    return solution


@steady
def _solved(matrix: Whitened, right: Array) -> tuple[Array, Array, float]:
    tolerance = float(np.sqrt(jnp.finfo(right.dtype).eps)) / 100
    # Of unit vectors as a whole: an entry near zero would be asked for digits that it cannot have,
    # and the method diverges where it goes on behind rounding.
    solver = lx.CG(rtol=0.0, atol=tolerance, norm=jnp.linalg.norm, max_steps=_STEPS)

    def one(column: Array) -> tuple[Array, Array]:
        start = matrix.whiten(column)
        size = jnp.linalg.norm(start)
        unit = start / jnp.where(size > 0, size, 1)
        found = lx.linear_solve(matrix, unit, solver, throw=False).value
        residual = jnp.linalg.norm(matrix.mv(found) - unit)
        return matrix.whiten(size * found), residual

    solution, residual = jax.vmap(one, 1, (1, 0))(right)
    return solution, jnp.max(residual), tolerance


def iterative_log_evidence(
    net: Layer,
    x: Float[Array, "n ..."],
    y: Float[Array, "n ..."],
    noise: Any,
    jitter: Any,
    by: Krylov,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`log Normal(y | 0, K + (noise^2 + jitter) I)`, with the standard error of the determinant."""
    matrix = whitened(net, x, noise, jitter)
    outputs = gathered(y.reshape(len(y), -1), spread_of(x))
    power = jnp.sum(outputs * solved(matrix, outputs))
    rest = logdet(matrix, by=by)
    size = rest.value + matrix.log_det_p() + len(y) * math.log(2 * math.pi)
    count = outputs.shape[1]
    return -(power + count * size) / 2, count / 2 * rest.error


def iterative_posterior(
    net: Layer,
    x: Float[Array, "n ..."],
    y: Float[Array, "n ..."],
    new: Float[Array, "m ..."],
    noise: Any,
    jitter: Any,
) -> tuple[Float[Array, "m ..."], Float[Array, "m m"]]:
    """Mean and covariance at new inputs, with a solution for each of them."""
    spread = spread_of(x)
    cross = gathered(kernel(net, x, new).nngp, spread)
    outputs = gathered(y.reshape(len(y), -1), spread)
    solution = solved(whitened(net, x, noise, jitter), jnp.concatenate([outputs, cross], 1))
    weights, reach = solution[:, : outputs.shape[1]], solution[:, outputs.shape[1] :]
    mean = (cross.T @ weights).reshape(-1, *y.shape[1:])
    covariance = kernel(net, new).nngp - cross.T @ reach
    return mean, (covariance + covariance.T) / 2

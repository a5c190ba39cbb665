"""Precision matrices with a structure of their own: Kronecker factors, and low rank on a base."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from volform.geometry.structure import logdet, whiten
from volform.operators.base import Operator, check_dense, register
from volform.operators.curvature import frame


class KroneckerSum(Operator):
    """`C x D + A x B` on flat vectors, x the Kronecker product: `X -> C X D + A X B` on matrices.

    C and D are positive definite, A and B symmetric. Determinant, root and solve cost
    O(m^3 + n^3) and not O(m^3 n^3), by what makes (A, C) and (B, D) diagonal at once.

    Attributes:
        left: A, shape (m, m).
        right: B, shape (n, n).
        base_left: C, shape (m, m).
        base_right: D, shape (n, n).
    """

    left: Float[Array, "m m"]
    right: Float[Array, "n n"]
    base_left: Float[Array, "m m"]
    base_right: Float[Array, "n n"]

    def mv(self, vector: Float[Array, " mn"]) -> Float[Array, " mn"]:
        """The product with a matrix X, its rows one after the other."""
        x = vector.reshape(len(self.left), len(self.right))
        return (self.base_left @ x @ self.base_right + self.left @ x @ self.right).ravel()

    def cheaper(self) -> lx.AbstractLinearOperator:
        """Itself: nothing is left to compute beforehand."""
        return self

    def as_matrix(self) -> Float[Array, "mn mn"]:
        """The sum of the two Kronecker products."""
        check_dense(self.in_size(), self.in_size(), self.left.dtype)
        return jnp.kron(self.base_left, self.base_right) + jnp.kron(self.left, self.right)

    def transpose(self) -> "KroneckerSum":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """A flat vector."""
        return jax.ShapeDtypeStruct((len(self.left) * len(self.right),), self.left.dtype)


class LowRank(Operator):
    """`R + R V diag(lambda) V^T R` on flat vectors: a base R, and k directions V beside it.

    Attributes:
        base: R, positive definite.
        vectors: V as rows, shape (k, n), orthonormal in R: `V^T R V = I`.
        values: lambda, shape (k,), above -1.
    """

    base: lx.AbstractLinearOperator
    vectors: Float[Array, "k n"]
    values: Float[Array, " k"]

    def mv(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        """The product."""
        along = self.values * (self.vectors @ self.base.mv(vector))
        return self.base.mv(vector + self.vectors.T @ along)

    def cheaper(self) -> lx.AbstractLinearOperator:
        """Itself: nothing is left to compute beforehand."""
        return self

    def transpose(self) -> "LowRank":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> Any:
        """A flat vector."""
        return self.base.in_structure()


register(KroneckerSum, symmetric=True, semidefinite=True)
register(LowRank, symmetric=True, semidefinite=True)


@eqx.filter_jit
def _relative(
    form: Float[Array, "m m"], base: Float[Array, "m m"]
) -> tuple[Float[Array, " m"], Float[Array, "m m"], Float[Array, ""]]:
    """Eigenvalues a and W with `W base W^T = I`, `W form W^T = diag(a)`; log det of the base."""
    lower = jnp.linalg.cholesky(base)
    half = solve_triangular(lower, form, lower=True)
    relative = solve_triangular(lower, half.T, lower=True)
    values, vectors = jnp.linalg.eigh(0.5 * (relative + relative.T))
    down = solve_triangular(lower, vectors, lower=True, trans=1).T
    return values, down, 2.0 * jnp.sum(jnp.log(jnp.diagonal(lower)))


@logdet.register
def _(operator: KroneckerSum) -> Float[Array, ""]:
    a, _, left = _relative(operator.left, operator.base_left)
    b, _, right = _relative(operator.right, operator.base_right)
    return b.size * left + a.size * right + jnp.sum(jnp.log1p(a[:, None] * b))


@whiten.register
def _(operator: KroneckerSum, covector: Float[Array, " mn"]) -> Float[Array, " mn"]:
    a, left, _ = _relative(operator.left, operator.base_left)
    b, right, _ = _relative(operator.right, operator.base_right)
    whitened = left @ covector.reshape(a.size, b.size) @ right.T
    return (whitened / jnp.sqrt(1.0 + a[:, None] * b)).ravel()


@logdet.register
def _(operator: LowRank) -> Float[Array, ""]:
    return logdet(operator.base) + jnp.sum(jnp.log1p(operator.values))


@whiten.register
def _(operator: LowRank, covector: Float[Array, " n"]) -> Float[Array, " n"]:
    down, _ = frame(operator.base)
    directions = jax.vmap(down)(jax.vmap(operator.base.mv)(operator.vectors))
    whitened = down(covector)
    shrunk = jax.lax.rsqrt(1.0 + operator.values) - 1.0
    return whitened + directions.T @ (shrunk * (directions @ whitened))

"""Precision matrices with a structure of their own: Kronecker factors, and low rank on a base."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from volform.linalg.generalized import generalized_eigh
from volform.linalg.operator import Operator, register_operator, require_dense
from volform.linalg.structured import dense_logdet, exact_logdet, whiten
from volform.linalg.under_metric import whitening_maps


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

    def linearize(self) -> lx.AbstractLinearOperator:
        """Itself: nothing is left to compute beforehand."""
        return self

    def as_matrix(self) -> Float[Array, "mn mn"]:
        """The sum of the two Kronecker products."""
        require_dense(self.in_size(), self.in_size(), self.left.dtype)
        return jnp.kron(self.base_left, self.base_right) + jnp.kron(self.left, self.right)

    def transpose(self) -> "KroneckerSum":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """A flat vector."""
        return jax.ShapeDtypeStruct((len(self.left) * len(self.right),), self.left.dtype)


class LowRankUpdate(Operator):
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

    def linearize(self) -> lx.AbstractLinearOperator:
        """Itself: nothing is left to compute beforehand."""
        return self

    def transpose(self) -> "LowRankUpdate":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> Any:
        """A flat vector."""
        return self.base.in_structure()


register_operator(KroneckerSum, symmetric=True, semidefinite=True)
register_operator(LowRankUpdate, symmetric=True, semidefinite=True)


@exact_logdet.register
def _(operator: KroneckerSum) -> Float[Array, ""]:
    a, _ = generalized_eigh(operator.left, operator.base_left)
    b, _ = generalized_eigh(operator.right, operator.base_right)
    left, right = (dense_logdet(base) for base in (operator.base_left, operator.base_right))
    return b.size * left + a.size * right + jnp.sum(jnp.log1p(a[:, None] * b[None]))


@whiten.register
def _(operator: KroneckerSum, covector: Float[Array, " mn"]) -> Float[Array, " mn"]:
    a, left = generalized_eigh(operator.left, operator.base_left)
    b, right = generalized_eigh(operator.right, operator.base_right)
    whitened = left.T @ covector.reshape(a.size, b.size) @ right
    return (whitened / jnp.sqrt(1.0 + a[:, None] * b[None])).ravel()


@exact_logdet.register
def _(operator: LowRankUpdate) -> Float[Array, ""]:
    return exact_logdet(operator.base) + jnp.sum(jnp.log1p(operator.values))


@whiten.register
def _(operator: LowRankUpdate, covector: Float[Array, " n"]) -> Float[Array, " n"]:
    down, _ = whitening_maps(operator.base)
    directions = jax.vmap(down)(jax.vmap(operator.base.mv)(operator.vectors))
    whitened = down(covector)
    shrunk = jax.lax.rsqrt(1.0 + operator.values) - 1.0
    return whitened + directions.T @ (shrunk * (directions @ whitened))

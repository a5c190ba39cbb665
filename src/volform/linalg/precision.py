"""Precision matrices with a structure of their own: Kronecker factors, and low rank on a base."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from volform.compilation import Remembering, remembered
from volform.linalg.generalized import generalized_eigh
from volform.linalg.operator import Operator, register_operator, require_dense
from volform.linalg.structured import dense_logdet, exact_logdet, whiten
from volform.linalg.under_metric import whitening_maps


class KroneckerSum(Operator, Remembering):
    """`C x D + A x B` on flat vectors, x the Kronecker product: `X -> C X D + A X B` on matrices.

    C and D are positive definite, A and B symmetric. Determinant, root and solve cost
    O(m^3 + n^3) and not O(m^3 n^3), by what makes (A, C) and (B, D) diagonal at once. A diagonal
    pair is given by its diagonals, and costs O(m).

    Attributes:
        left: A, shape (m, m) or (m,).
        right: B, shape (n, n) or (n,).
        base_left: C, like A.
        base_right: D, like B.
    """

    left: Float[Array, "..."]
    right: Float[Array, "..."]
    base_left: Float[Array, "..."]
    base_right: Float[Array, "..."]

    def mv(self, vector: Float[Array, " mn"]) -> Float[Array, " mn"]:
        """The product with a matrix X, its rows one after the other."""
        x = vector.reshape(len(self.left), len(self.right))
        base = _between(self.base_left, x, self.base_right)
        return (base + _between(self.left, x, self.right)).ravel()

    def linearize(self) -> lx.AbstractLinearOperator:
        """Itself: nothing is left to compute beforehand."""
        return self

    def as_matrix(self) -> Float[Array, "mn mn"]:
        """The sum of the two Kronecker products."""
        require_dense(self.in_size(), self.in_size(), self.left.dtype)
        base = jnp.kron(_matrix(self.base_left), _matrix(self.base_right))
        return base + jnp.kron(_matrix(self.left), _matrix(self.right))

    def transpose(self) -> "KroneckerSum":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """A flat vector."""
        return jax.ShapeDtypeStruct((len(self.left) * len(self.right),), self.left.dtype)

    @remembered
    def pencils(self) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Eigenvalues and vectors of (A, C) and of (B, D), by which all else is cheap."""
        return _pencil(self.left, self.base_left), _pencil(self.right, self.base_right)

    def rotated(self) -> "RotatedDiagonal":
        """The same by the eigenvectors of A and B, where C and D are multiples of the identity."""
        (a, left), (b, right) = (
            (part, jnp.ones_like(part)) if part.ndim == 1 else jnp.linalg.eigh(part)
            for part in (self.left, self.right)
        )
        base = self.base_left.ravel()[0] * self.base_right.ravel()[0]
        return RotatedDiagonal(left, right, base + a[:, None] * b[None])


class RotatedDiagonal(Operator):
    """`(U x V) diag(E) (U x V)^T` on flat vectors, U and V orthogonal: `X -> U (E * U^T X V) V^T`.

    Attributes:
        left: U, shape (m, m), or ones of shape (m,) for the identity.
        right: V, shape (n, n), or ones of shape (n,).
        values: E, shape (m, n).
    """

    left: Float[Array, "..."]
    right: Float[Array, "..."]
    values: Float[Array, "m n"]

    def mv(self, vector: Float[Array, " mn"]) -> Float[Array, " mn"]:
        """The product with a matrix X, its rows one after the other."""
        inner = self.values * _between(self.left.T, vector.reshape(self.values.shape), self.right)
        return _between(self.left, inner, self.right.T).ravel()

    def linearize(self) -> lx.AbstractLinearOperator:
        """Itself: nothing is left to compute beforehand."""
        return self

    def transpose(self) -> "RotatedDiagonal":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """A flat vector."""
        return jax.ShapeDtypeStruct((self.values.size,), self.values.dtype)


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
register_operator(RotatedDiagonal, symmetric=True, semidefinite=True)
register_operator(LowRankUpdate, symmetric=True, semidefinite=True)


@exact_logdet.register
def _(operator: KroneckerSum) -> Float[Array, ""]:
    (a, _), (b, _) = operator.pencils
    left, right = (_log_det(base) for base in (operator.base_left, operator.base_right))
    return b.size * left + a.size * right + jnp.sum(jnp.log1p(a[:, None] * b[None]))


@whiten.register
def _(operator: KroneckerSum, covector: Float[Array, " mn"]) -> Float[Array, " mn"]:
    (a, left), (b, right) = operator.pencils
    whitened = _between(left.T, covector.reshape(a.size, b.size), right)
    return (whitened / jnp.sqrt(1.0 + a[:, None] * b[None])).ravel()


def _pencil(form: Float[Array, "..."], base: Float[Array, "..."]) -> tuple[Array, Array]:
    """Eigenvalues and vectors of a pair of matrices; of diagonals the vectors are one, too."""
    if form.ndim == 1:
        return form / base, jnp.sqrt(1.0 / base)
    return generalized_eigh(form, base)


def _log_det(base: Float[Array, "..."]) -> Float[Array, ""]:
    return jnp.sum(jnp.log(base)) if base.ndim == 1 else dense_logdet(base)


def _between(
    left: Float[Array, "..."], x: Float[Array, "m n"], right: Float[Array, "..."]
) -> Float[Array, "m n"]:
    """`A x B` of matrices or diagonals."""
    x = left[:, None] * x if left.ndim == 1 else left @ x
    return x * right[None] if right.ndim == 1 else x @ right


def _matrix(factor: Float[Array, "..."]) -> Float[Array, "n n"]:
    return jnp.diag(factor) if factor.ndim == 1 else factor


@exact_logdet.register
def _(operator: RotatedDiagonal) -> Float[Array, ""]:
    return jnp.sum(jnp.log(operator.values))


@whiten.register
def _(operator: RotatedDiagonal, covector: Float[Array, " mn"]) -> Float[Array, " mn"]:
    x = covector.reshape(operator.values.shape)
    return (_between(operator.left.T, x, operator.right) / jnp.sqrt(operator.values)).ravel()


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

"""Operators that are sums of squares of known rows."""

import abc

from jaxtyping import Array, Float

from volform.linalg.operator import Operator


class SquaredRows(Operator):
    """`A^T A` for a matrix A whose rows can be computed: positive semi-definite to rounding.

    With a positive diagonal P added, its log-determinant goes through the smaller of two matrices,
    by `det(P + A^T A) = det(P) det(I + A P^-1 A^T)`.
    """

    @abc.abstractmethod
    def rows(self) -> Float[Array, "r n"]:
        """A, in `ravel_pytree` order of the parameters."""

    @abc.abstractmethod
    def row_count(self) -> int:
        """Number of rows of A, without computing them."""

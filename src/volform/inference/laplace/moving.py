"""Precision matrices `c D + w R` of data and priors, as functions of the weights c and w."""

import abc
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, Int

from volform.compilation import steady
from volform.errors import StructureError
from volform.inference.laplace.jacobian_rows import (
    JacobianUpdate,
    group_grams,
    jacobian_update,
)
from volform.linalg.precision import KroneckerSum, LowRankUpdate, RotatedDiagonal
from volform.linalg.structured import DenseOperator, FlatBlocks, dense_logdet, positive_inverse


class LogDeterminant(eqx.Module):
    """`log det(c D + w R) - log det R` of some coordinates, R diagonal and w one of each group."""

    @abc.abstractmethod
    def at(self, weights: Float[Array, " groups"], c: Float[Array, ""]) -> Float[Array, ""]:
        """Its value; minus it is concave in the logs of the weights and c.

        The determinant is a polynomial in them without negative coefficients, where D is positive
        semi-definite, and the log of a sum of exponentials is convex.
        """

    def derivatives(self, logs: Float[Array, " k"]) -> tuple[Array, Array]:
        """Gradient and Hessian in the logs of all weights and, the last, of c."""
        along = jax.grad(lambda logs: self.at(jnp.exp(logs[:-1]), jnp.exp(logs[-1])))
        return along(logs), jax.jacfwd(along)(logs)


class Eigenvalues(LogDeterminant):
    """Of coordinates that the groups do not couple, by the eigenvalues of `R^-1 D`.

    Attributes:
        values: the eigenvalues.
        groups: the group of each.
    """

    values: Float[Array, " m"]
    groups: Int[Array, " m"]

    def at(self, weights: Float[Array, " groups"], c: Float[Array, ""]) -> Float[Array, ""]:
        """A sum over eigenvalues."""
        return jnp.sum(jnp.log(c * self.values + weights[self.groups]))


class Coupled(LogDeterminant):
    """Of coordinates of several groups, by `R^-1/2 D R^-1/2`: O(n^3) for each value.

    Attributes:
        matrix: the matrix.
        groups: the group of each coordinate.
    """

    matrix: Float[Array, "n n"]
    groups: Int[Array, " n"]

    def at(self, weights: Float[Array, " groups"], c: Float[Array, ""]) -> Float[Array, ""]:
        """By Cholesky."""
        return dense_logdet(c * self.matrix + jnp.diag(weights[self.groups]))

    def derivatives(self, logs: Float[Array, " k"]) -> tuple[Array, Array]:
        """By one inverse A: `w_g tr A_gg` and `-w_g w_h |A_gh|^2` beside it.

        Those of c follow, since n logs are added where all weights and c are multiplied by one.
        """
        weights, c = jnp.exp(logs[:-1]), jnp.exp(logs[-1])
        inverse = positive_inverse(c * self.matrix + jnp.diag(weights[self.groups]))
        each = jax.nn.one_hot(self.groups, weights.size, dtype=logs.dtype) * weights[None]
        slope = jnp.diagonal(inverse) @ each
        curved = jnp.diag(slope) - each.T @ inverse**2 @ each
        across = -curved.sum(1)
        rows = jnp.concatenate([curved, across[:, None]], 1)
        last = jnp.append(across, -across.sum())
        return jnp.append(slope, self.groups.size - slope.sum()), jnp.vstack([rows, last])


class Directions(LogDeterminant):
    """Of k directions across groups beside the diagonal R: O(k^3) for each value.

    Attributes:
        grams: for each group the part of it in the Gram matrix of the directions under R^-1.
        counts: numbers of coordinates of each group.
    """

    grams: Float[Array, "groups k k"]
    counts: Float[Array, " groups"]

    def at(self, weights: Float[Array, " groups"], c: Float[Array, ""]) -> Float[Array, ""]:
        """`sum_g count_g log w_g + log det(1 + c sum_g gram_g / w_g)`."""
        inner = jnp.einsum("g,gij->ij", c / weights, self.grams)
        inner += jnp.eye(len(inner), dtype=inner.dtype)
        return jnp.sum(self.counts * jnp.log(weights)) + dense_logdet(inner)


def log_determinants(
    precision: lx.AbstractLinearOperator, rest: Float[Array, " d"], groups: np.ndarray, count: int
) -> list[LogDeterminant]:
    """Those of the blocks of a precision matrix `D + R`, R diagonal.

    Args:
        precision: as a structure gives it.
        rest: the diagonal of R.
        groups: numbers of the groups of the coordinates, from 0 on.
        count: of the groups; some may have no coordinates.

    Raises:
        StructureError: for an operator of another structure.
    """
    return _log_determinants(precision, rest, groups.astype(np.int32).tobytes(), count)


@steady
def _log_determinants(
    precision: lx.AbstractLinearOperator, rest: Float[Array, " d"], numbers: bytes, count: int
) -> list[LogDeterminant]:
    groups = np.frombuffer(numbers, np.int32)
    found = list[LogDeterminant]()
    for block, segment in _segments(precision):
        own = groups[segment]
        if isinstance(block, JacobianUpdate):
            found.append(_of_rows(block, jnp.asarray(own), count))
        elif not isinstance(block, LowRankUpdate | lx.DiagonalLinearOperator) and np.ptp(own):
            relative = _relative(block, rest[segment])
            found.append(Coupled(relative, jnp.asarray(own)))
        elif isinstance(block, LowRankUpdate):
            found.append(_of_directions(block, rest[segment], jnp.asarray(own), count))
        else:
            values = _eigenvalues(block, rest[segment])
            order = own if isinstance(block, lx.DiagonalLinearOperator) else own[:1]
            each = jnp.asarray(np.broadcast_to(order, values.shape))
            found.append(Eigenvalues(values, each))
    return _merged(found)


def _merged(found: Sequence[LogDeterminant]) -> list[LogDeterminant]:
    """The eigenvalues of all blocks in one array."""
    own = [part for part in found if isinstance(part, Eigenvalues)]
    others = [part for part in found if not isinstance(part, Eigenvalues)]
    if not own:
        return others
    values = jnp.concatenate([part.values for part in own])
    return [Eigenvalues(values, jnp.concatenate([part.groups for part in own])), *others]


@steady
def moved(
    precision: lx.AbstractLinearOperator,
    rest: Float[Array, " d"],
    weights: Float[Array, " d"],
    c: Float[Array, ""],
) -> Any:
    """`c D + w R` for a precision matrix `D + R`, in its structure.

    Args:
        precision: as a structure gives it.
        rest: the diagonal of R.
        weights: w for each coordinate; the same within each block of factors.
        c: the weight of D.

    Raises:
        StructureError: for an operator of another structure.
    """
    if isinstance(precision, FlatBlocks):
        return FlatBlocks(
            tuple(
                _moved(block, rest[part], weights[part], c) for block, part in _segments(precision)
            )
        )
    return _moved(precision, rest, weights, c)


def _segments(precision: lx.AbstractLinearOperator) -> list[tuple[Any, slice]]:
    blocks = precision.blocks if isinstance(precision, FlatBlocks) else (precision,)
    ends = np.cumsum([block.in_size() for block in blocks])
    return [
        (block, slice(int(end) - block.in_size(), int(end)))
        for block, end in zip(blocks, ends, strict=True)
    ]


@singledispatch
def _moved(block: Any, rest: Array, weights: Array, c: Array) -> Any:
    raise StructureError(
        f"`tune` takes apart what the data and what the priors say of the precision matrix, and "
        f"knows no way to do so for {type(block).__name__}; use a structure of the package, such "
        "as `Kronecker()`."
    )


@_moved.register
def _(block: DenseOperator, rest: Array, weights: Array, c: Array) -> Any:
    return DenseOperator(c * block.matrix + jnp.diag((weights - c) * rest), rest)


@_moved.register
def _(block: lx.DiagonalLinearOperator, rest: Array, weights: Array, c: Array) -> Any:
    return lx.DiagonalLinearOperator(c * block.diagonal + (weights - c) * rest)


@_moved.register
def _(block: KroneckerSum, rest: Array, weights: Array, c: Array) -> Any:
    base = weights[0] * block.base_left
    return KroneckerSum(c * block.left, block.right, base, block.base_right)


@_moved.register
def _(block: RotatedDiagonal, rest: Array, weights: Array, c: Array) -> Any:
    values = c * block.values + (weights[0] - c) * rest[0]
    return RotatedDiagonal(block.left, block.right, values)


@_moved.register
def _(block: LowRankUpdate, rest: Array, weights: Array, c: Array) -> Any:
    new = weights * rest
    columns = jnp.sqrt(c * block.values)[:, None] * (block.vectors * rest[None])
    values, axes = jnp.linalg.eigh((columns / new[None]) @ columns.T)
    is_there = values > 0.0
    shrunk = jnp.where(is_there, jax.lax.rsqrt(jnp.where(is_there, values, 1.0)), 0.0)
    vectors = shrunk[:, None] * (axes.T @ columns) / new[None]
    return LowRankUpdate(lx.DiagonalLinearOperator(new), vectors, jnp.maximum(values, 0.0))


@_moved.register
def _(block: JacobianUpdate, rest: Array, weights: Array, c: Array) -> Any:
    return jacobian_update(weights * rest, block.rows, block.mix, c * block.weight)


@singledispatch
def _eigenvalues(block: Any, rest: Float[Array, " m"]) -> Float[Array, " m"]:
    """Eigenvalues of `R^-1 D`."""
    return jnp.linalg.eigvalsh(_relative(block, rest))


@_eigenvalues.register
def _(block: lx.DiagonalLinearOperator, rest: Float[Array, " m"]) -> Float[Array, " m"]:
    return block.diagonal / rest - 1.0


@_eigenvalues.register
def _(block: RotatedDiagonal, rest: Float[Array, " m"]) -> Float[Array, " m"]:
    return block.values.ravel() / rest[0] - 1.0


@_eigenvalues.register
def _(block: KroneckerSum, rest: Float[Array, " m"]) -> Float[Array, " m"]:
    # Both bases are multiples of the identity, whose product is R.
    left, right = (
        part if part.ndim == 1 else jnp.linalg.eigvalsh(part) for part in (block.left, block.right)
    )
    return (left[:, None] * right[None]).ravel() / rest[0]


def _relative(block: Any, rest: Float[Array, " m"]) -> Float[Array, "m m"]:
    """`R^-1/2 D R^-1/2`."""
    if not isinstance(block, DenseOperator):
        _moved(block, rest, rest, jnp.ones(()))  # which says what it does not know
    root = jax.lax.rsqrt(rest)
    inner = root[:, None] * block.as_matrix() * root[None]
    return inner - jnp.eye(rest.size, dtype=rest.dtype)


def _of_directions(
    block: LowRankUpdate, rest: Array, groups: Int[Array, " m"], count: int
) -> LogDeterminant:
    rows = jnp.sqrt(block.values)[:, None] * block.vectors
    each = [
        jnp.einsum("ki,i,li->kl", rows, jnp.where(groups == g, rest, 0.0), rows)
        for g in range(count)
    ]
    counts = jnp.bincount(groups, length=count).astype(rest.dtype)
    return Directions(jnp.stack(each), counts)


def _of_rows(block: JacobianUpdate, groups: Int[Array, " m"], count: int) -> LogDeterminant:
    members = jax.nn.one_hot(groups, count, dtype=block.rest.dtype).T
    return Directions(group_grams(block, members), members.sum(1))

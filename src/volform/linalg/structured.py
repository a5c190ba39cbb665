"""Linear operators that a metric is made of, and the questions asked of them.

The structure (identity, diagonal, block-diagonal, dense) is in the type, so that the
log-determinant of a diagonal metric over n parameters costs O(n) and never O(n^3).
"""

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PyTree

Point = Any  # a pytree of floating-point arrays: coordinates of a point of the manifold


def structure_of(point: Point) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of `point`, as lineax wants them."""
    return jax.tree.map(_structure_of_leaf, point)


def _structure_of_leaf(leaf: Any) -> jax.ShapeDtypeStruct:
    # What `jax.eval_shape` would say, in a hundredth of its time: each operator asks several times.
    kind = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)


def size_of(point: Point) -> int:
    """Number of real coordinates in the pytree `point`."""
    return sum(leaf.size for leaf in jax.tree.leaves(structure_of(point)))


class DenseOperator(lx.AbstractLinearOperator):
    """A symmetric (n, n) matrix acting on a pytree of n coordinates in `ravel_pytree` order."""

    matrix: Float[Array, "n n"]
    structure: Any = eqx.field(static=True)

    def __init__(self, matrix: Float[Array, "n n"], like: Point):
        self.matrix = matrix
        self.structure = _Static(structure_of(like))

    def mv(self, vector: PyTree) -> PyTree:
        """Matrix-vector product."""
        flat, unravel = ravel_pytree(vector)
        return unravel(self.matrix @ flat)

    def as_matrix(self) -> Float[Array, "n n"]:
        """The matrix itself."""
        return self.matrix

    def transpose(self) -> "DenseOperator":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> PyTree:
        """Structure of the tangent vectors it takes."""
        return self.structure.value

    def out_structure(self) -> PyTree:
        """Structure of the covectors it gives."""
        return self.structure.value


class BlockDiagonal(lx.AbstractLinearOperator):
    """Symmetric blocks, one for each top-level entry of a dict or tuple point."""

    blocks: dict[str, lx.AbstractLinearOperator] | tuple[lx.AbstractLinearOperator, ...]

    def mv(self, vector: PyTree) -> PyTree:
        """Each block applied to its own entry."""
        return _per_block(lambda block, part: block.mv(part), self.blocks, vector)

    def as_matrix(self) -> Float[Array, "n n"]:
        """The matrix, with its zeros, in `ravel_pytree` order."""
        blocks = [b.as_matrix() for b in self.parts()]
        return jax.scipy.linalg.block_diag(*blocks)

    def transpose(self) -> "BlockDiagonal":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> PyTree:
        """Structure of the tangent vectors it takes."""
        return _per_block(lambda block: block.in_structure(), self.blocks)

    def out_structure(self) -> PyTree:
        """Structure of the covectors it gives."""
        return self.in_structure()

    def parts(self) -> list[lx.AbstractLinearOperator]:
        """The blocks in the order in which `ravel_pytree` lays out their entries."""
        if isinstance(self.blocks, dict):
            return [self.blocks[name] for name in sorted(self.blocks)]
        return list(self.blocks)


class FlatBlocks(lx.AbstractLinearOperator):
    """Symmetric blocks on consecutive segments of a flat vector, each block of its own shape."""

    blocks: tuple[lx.AbstractLinearOperator, ...]

    def mv(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        """Each block applied to its own segment."""
        images = [block.mv(part) for block, part in self.split(vector)]
        return jnp.concatenate([image.ravel() for image in images])

    def as_matrix(self) -> Float[Array, "n n"]:
        """The matrix, with its zeros."""
        return jax.scipy.linalg.block_diag(*(block.as_matrix() for block in self.blocks))

    def transpose(self) -> "FlatBlocks":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """A flat vector."""
        parts = [block.in_structure() for block in self.blocks]
        dtype = jnp.result_type(*(part.dtype for part in parts))
        return jax.ShapeDtypeStruct((sum(part.size for part in parts),), dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """A flat vector."""
        return self.in_structure()

    def split(self, vector: Float[Array, " n"]) -> list[tuple[Any, Array]]:
        """The blocks, each with its part of a flat vector."""
        shapes = [block.in_structure().shape for block in self.blocks]
        bounds = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        parts = jnp.split(vector, bounds)
        pairs = zip(self.blocks, parts, shapes, strict=True)
        return [(block, part.reshape(shape)) for block, part, shape in pairs]


class _Static:
    """Makes a pytree of shapes hashable, so that it can be static under `jit`."""

    def __init__(self, value: PyTree):
        self.value = value

    @property
    def _key(self) -> tuple[Any, ...]:
        leaves, treedef = jax.tree.flatten(self.value)
        return treedef, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self._key == other._key


def _per_block(fn: Callable, blocks: Any, *rest: Any) -> Any:
    if isinstance(blocks, dict):
        return {name: fn(block, *(r[name] for r in rest)) for name, block in blocks.items()}
    return tuple(fn(block, *(r[i] for r in rest)) for i, block in enumerate(blocks))


_OPERATORS = (DenseOperator, BlockDiagonal, FlatBlocks)

for _question in (lx.is_symmetric, lx.is_positive_semidefinite):
    for _operator in _OPERATORS:
        _question.register(_operator)(lambda _: True)
for _question in (
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_negative_semidefinite,
):
    for _operator in _OPERATORS:
        _question.register(_operator)(lambda _: False)
for _identity in (lx.linearise, lx.materialise, lx.conj):
    for _operator in _OPERATORS:
        _identity.register(_operator)(lambda operator: operator)


@lx.diagonal.register
def _(operator: DenseOperator) -> Array:
    return jnp.diagonal(operator.matrix)


@lx.diagonal.register
def _(operator: BlockDiagonal) -> Array:
    return jnp.concatenate([lx.diagonal(block) for block in operator.parts()])


@lx.diagonal.register
def _(operator: FlatBlocks) -> Array:
    return jnp.concatenate([lx.diagonal(block) for block in operator.blocks])


def identity(like: Point) -> lx.IdentityLinearOperator:
    """The identity on tangent vectors at `like`."""
    return lx.IdentityLinearOperator(structure_of(like))


def scaled(factor: Float[Array, ""], operator: lx.AbstractLinearOperator) -> Any:
    """`factor * operator` with its structure kept."""
    match operator:
        case lx.IdentityLinearOperator():
            like = operator.in_structure()
            return lx.DiagonalLinearOperator(
                jax.tree.map(lambda s: jnp.full(s.shape, factor, s.dtype), like)
            )
        case lx.DiagonalLinearOperator():
            return lx.DiagonalLinearOperator(jax.tree.map(lambda d: factor * d, operator.diagonal))
        case BlockDiagonal():
            return BlockDiagonal(_per_block(lambda b: scaled(factor, b), operator.blocks))
        case _:
            return DenseOperator(factor * operator.as_matrix(), operator.in_structure())


def added(left: lx.AbstractLinearOperator, right: lx.AbstractLinearOperator) -> Any:
    """`left + right` in the least general structure that holds both."""
    if _is_diagonal(left) and _is_diagonal(right):
        return lx.DiagonalLinearOperator(
            jax.tree.map(jnp.add, _diagonal_tree(left), _diagonal_tree(right))
        )
    if isinstance(left, BlockDiagonal) and isinstance(right, BlockDiagonal):
        return BlockDiagonal(_per_block(added, left.blocks, right.blocks))
    if isinstance(left, BlockDiagonal) and _is_diagonal(right):
        return added(left, _in_blocks(right))
    if isinstance(right, BlockDiagonal) and _is_diagonal(left):
        return added(_in_blocks(left), right)
    return DenseOperator(left.as_matrix() + right.as_matrix(), left.in_structure())


def _in_blocks(operator: lx.AbstractLinearOperator) -> BlockDiagonal:
    return BlockDiagonal(_per_block(lx.DiagonalLinearOperator, _diagonal_tree(operator)))


def _is_diagonal(operator: lx.AbstractLinearOperator) -> bool:
    if isinstance(operator, BlockDiagonal):
        return all(_is_diagonal(block) for block in operator.parts())
    return isinstance(operator, lx.IdentityLinearOperator | lx.DiagonalLinearOperator)


def _diagonal_tree(operator: Any) -> PyTree:
    match operator:
        case lx.DiagonalLinearOperator():
            return operator.diagonal
        case BlockDiagonal():
            return _per_block(_diagonal_tree, operator.blocks)
        case _:
            return jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), operator.in_structure())


def flat_blocks(blocks: list[Any]) -> Any:
    """Blocks on consecutive segments of a flat vector, in the simplest structure for them."""
    if all(isinstance(block, lx.IdentityLinearOperator) for block in blocks):
        return identity(jnp.zeros(sum(b.in_size() for b in blocks), _dtype_of(blocks)))
    if all(_is_diagonal(block) for block in blocks):
        diagonals = [ravel_pytree(_diagonal_tree(block))[0] for block in blocks]
        return lx.DiagonalLinearOperator(jnp.concatenate(diagonals))
    return FlatBlocks(tuple(blocks))


def _dtype_of(blocks: list[Any]) -> Any:
    return jnp.result_type(*(block.in_structure().dtype for block in blocks))


@singledispatch
def exact_logdet(operator: lx.AbstractLinearOperator) -> Float[Array, ""]:
    """log det of a positive-definite operator, NaN where it is not positive definite.

    Dense operators go through Cholesky (O(n^3)); identity, diagonal and block-diagonal ones
    cost what their structure costs. Differentiable to any order, also at the repeated eigenvalues
    of Euclidean metrics, where the derivative of `eigh` is NaN.

    >>> import jax.numpy as jnp, lineax as lx
    >>> float(exact_logdet(lx.DiagonalLinearOperator(jnp.array([0.5, 0.5]))))
    -1.386...
    """
    return dense_logdet(operator.as_matrix())


@exact_logdet.register
def _(operator: lx.IdentityLinearOperator) -> Float[Array, ""]:
    leaves = jax.tree.leaves(operator.in_structure())
    return jnp.zeros((), jnp.result_type(*(leaf.dtype for leaf in leaves)))


@exact_logdet.register
def _(operator: lx.DiagonalLinearOperator) -> Float[Array, ""]:
    return jnp.asarray(sum(jnp.sum(jnp.log(leaf)) for leaf in jax.tree.leaves(operator.diagonal)))


@exact_logdet.register
def _(operator: BlockDiagonal) -> Float[Array, ""]:
    return jnp.asarray(sum(exact_logdet(block) for block in operator.parts()))


@exact_logdet.register
def _(operator: FlatBlocks) -> Float[Array, ""]:
    return jnp.asarray(sum(exact_logdet(block) for block in operator.blocks))


# Differentiating Cholesky four times over makes programs that take seconds to compile. With the
# inverse as its own derivative rule, every higher derivative is a few matrix products.
@jax.custom_jvp
def dense_logdet(matrix: Float[Array, "n n"]) -> Float[Array, ""]:
    """Log det of a positive-definite matrix by Cholesky, NaN where it is not positive definite."""
    chol = jnp.linalg.cholesky(matrix)
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(chol)))


@dense_logdet.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    (matrix,), (dmatrix,) = primals, tangents
    return dense_logdet(matrix), jnp.sum(positive_inverse(matrix) * dmatrix)


@jax.custom_jvp
def positive_inverse(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The inverse of a positive-definite matrix by Cholesky, which is its own derivative's rule."""
    eye = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    half = solve_triangular(jnp.linalg.cholesky(matrix), eye, lower=True)
    return half.T @ half


@positive_inverse.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    (matrix,), (dmatrix,) = primals, tangents
    inverse = positive_inverse(matrix)
    return inverse, -inverse @ dmatrix @ inverse


@singledispatch
def whiten(operator: lx.AbstractLinearOperator, covector: PyTree) -> Float[Array, " n"]:
    """`L^-1 w` with `G = L L^T`, so that its square is the cometric `w^T G^-1 w`."""
    flat, _ = ravel_pytree(covector)
    return solve_triangular(jnp.linalg.cholesky(operator.as_matrix()), flat, lower=True)


@whiten.register
def _(operator: lx.IdentityLinearOperator, covector: PyTree) -> Float[Array, " n"]:
    return ravel_pytree(covector)[0]


@whiten.register
def _(operator: lx.DiagonalLinearOperator, covector: PyTree) -> Float[Array, " n"]:
    return ravel_pytree(covector)[0] / jnp.sqrt(ravel_pytree(operator.diagonal)[0])


@whiten.register
def _(operator: BlockDiagonal, covector: PyTree) -> Float[Array, " n"]:
    entries: Any = operator.blocks
    keys = sorted(entries) if isinstance(entries, dict) else range(len(entries))
    return jnp.concatenate([whiten(entries[key], covector[key]) for key in keys])


@whiten.register
def _(operator: FlatBlocks, covector: PyTree) -> Float[Array, " n"]:
    return jnp.concatenate([whiten(block, part) for block, part in operator.split(covector)])

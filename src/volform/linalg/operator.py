"""Operators in general: structure, batches of vectors, dense forms, arithmetic."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree
from numpy.typing import DTypeLike

from volform.checks import require_whole
from volform.errors import OperatorError, SizeError
from volform.limits import DENSE_GIB

_TOGETHER = 64  # vectors that go through an operator at once where a matrix is formed


class Operator(lx.AbstractLinearOperator):
    """A lineax operator on the pytree of parameters that also adds numbers and takes batches.

    `A + 0.1` is `A + 0.1 I`, and so is `A / 150 + 0.1`: sums and multiples are lineax's own, held
    as a `Combination`. A symmetric operator is a bilinear form on tangent vectors: its products are
    covectors laid out like the parameters.
    """

    def __add__(self, other: Any) -> "Combination":
        if not isinstance(other, lx.AbstractLinearOperator):
            identity = lx.IdentityLinearOperator(self.in_structure())
            other = lx.MulLinearOperator(identity, _number(other, "added to"))
        return Combination(lx.AddLinearOperator(self, other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Combination":
        return self + (-other)

    def __rsub__(self, other: Any) -> "Combination":
        return -self + other

    def __mul__(self, other: Any) -> "Combination":
        return Combination(lx.MulLinearOperator(self, _number(other, "multiplied with")))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "Combination":
        return Combination(lx.DivLinearOperator(self, _number(other, "the divisor of")))

    def __neg__(self) -> "Combination":
        return Combination(lx.NegLinearOperator(self))

    @abc.abstractmethod
    def linearize(self) -> lx.AbstractLinearOperator:
        """The same operator with everything computed that does not depend on the vector."""

    def mm(self, vectors: PyTree, *, batch: int | None = None) -> PyTree:
        """The operator applied to each of the vectors along the leading axis.

        Args:
            vectors: a pytree like the parameters, with one more leading axis on each leaf.
            batch: vectors that are worked on at once; all of them by default.
        """
        if batch is not None:
            require_whole(batch, "batch", "mm")
        return mapped(self.mv, vectors, batch)

    def as_matrix(self) -> Float[Array, "n n"]:
        """The matrix in `ravel_pytree` order, by n products; refused beyond 8 GiB."""
        require_dense(self.in_size(), self.in_size(), dtype_of(self))
        return _columns(self)

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Structure of what it gives, which is that of what it takes."""
        return self.in_structure()


class Combination(Operator):
    """Sums and multiples of operators; made by arithmetic.

    lineax's own sum would hold them too, but take no further number.
    """

    expression: lx.AbstractLinearOperator

    def mv(self, vector: PyTree) -> PyTree:
        """Product of the sum, by lineax from those of the terms."""
        return self.expression.mv(vector)

    def linearize(self) -> lx.AbstractLinearOperator:
        """Each term linearized once."""
        return lx.linearise(self.expression)

    def transpose(self) -> "Combination":
        """That of each term."""
        return Combination(self.expression.transpose())

    def as_matrix(self) -> Float[Array, "n n"]:
        """The matrix in `ravel_pytree` order, from those of the terms."""
        return self.expression.as_matrix()

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Structure of the parameters."""
        return self.expression.in_structure()


def _number(value: Any, role: str) -> Array:
    is_numeric = isinstance(value, jax.Array | np.ndarray | np.generic | int | float)
    number = jnp.asarray(value) if is_numeric else None
    if number is None or number.shape != ():
        raise OperatorError(
            f"`{value!r}` was to be {role} an operator; it should be a number, or a lineax "
            "operator in a sum: a diagonal is `lineax.DiagonalLinearOperator(tree)`."
        )
    return number


@eqx.filter_jit
def _columns(operator: Operator) -> Float[Array, "n n"]:
    flat_mv, zero = flattened(operator.linearize())

    def column(index: Array) -> Float[Array, " n"]:
        return flat_mv(zero.at[index].set(1.0))

    return mapped(column, jnp.arange(zero.size), _TOGETHER).T


@eqx.filter_jit
def entries_of(operator: Operator) -> Float[Array, " n"]:
    """The diagonal, by n products of which only one entry each is kept."""
    flat_mv, zero = flattened(operator.linearize())

    def entry(index: Array) -> Float[Array, ""]:
        return flat_mv(zero.at[index].set(1.0))[index]

    return mapped(entry, jnp.arange(zero.size), _TOGETHER)


def mapped(fn: Callable[[Any], Any], over: PyTree, batch: int | None) -> Any:
    """`fn` of each entry along the leading axis, `batch` at a time.

    All at once where they fit: on CPUs, XLA runs convolutions several times slower in a loop.
    """
    if batch is None or batch >= jax.tree.leaves(over)[0].shape[0]:
        return jax.vmap(fn)(over)
    return jax.lax.map(fn, over, batch_size=batch)


def flattened(operator: lx.AbstractLinearOperator) -> tuple[Any, Float[Array, " n"]]:
    """The product as a function of flat vectors, and the zero vector."""
    zero, unravel = ravel_pytree(zeros(operator.in_structure()))

    def flat_mv(vector: Float[Array, " n"]) -> Float[Array, " n"]:
        return ravel_pytree(operator.mv(unravel(vector)))[0]

    return flat_mv, zero


def linearized(operator: Operator, tags: object = ()) -> lx.AbstractLinearOperator:
    """`operator` linearized in its vector, so that what is fixed is computed once."""
    _, push = jax.linearize(operator.mv, zeros(operator.in_structure()))
    return lx.FunctionLinearOperator(push, operator.in_structure(), tags)


def zeros(structure: PyTree[jax.ShapeDtypeStruct]) -> PyTree[Array]:
    """The zero vector of a structure."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), structure)


def dtype_of(operator: lx.AbstractLinearOperator) -> Any:
    """The dtype of flat vectors."""
    return jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(operator.in_structure())))


def is_known(*values: Any) -> bool:
    """Tell whether no value is traced, so that Python may look at it."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def require_params(params: PyTree, function: str) -> None:
    """Refuse parameters that curvature cannot be computed in."""
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise OperatorError(
            f"`params` of {function} is {params!r} and holds no array; it should be a pytree of "
            "the arrays to differentiate in."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if dtype not in (jnp.float32, jnp.float64):
            name = jax.tree_util.keystr(path)
            raise OperatorError(
                f"`params{name}` of {function} has dtype {dtype}; curvature needs float32 or "
                f"float64: cast with `jnp.asarray(params{name}, float)`, or leave it out of "
                "`params` if it is no parameter."
            )


def require_dense(rows: int, columns: int, dtype: DTypeLike) -> None:
    """Refuse to form a (rows, columns) matrix of more than 8 GiB."""
    if not fits(rows, columns, dtype):
        needed = _short(gib_of(rows, columns, dtype))
        raise SizeError(
            f"A matrix of the `operator`, of shape ({rows}, {columns}), would take "
            f"{needed} GiB, more than the {_short(DENSE_GIB)} GiB allowed; use "
            "`by=Krylov(key)`, which needs products with vectors only."
        )


def fits(rows: int, columns: int, dtype: DTypeLike) -> bool:
    """Tell whether a (rows, columns) matrix takes no more than 8 GiB."""
    return gib_of(rows, columns, dtype) <= DENSE_GIB


def gib_of(rows: int, columns: int, dtype: DTypeLike) -> float:
    """Memory of a (rows, columns) matrix, in GiB."""
    return rows * columns * jnp.dtype(dtype).itemsize / 2**30


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def register_operator(
    operator: type[Operator], *, symmetric: bool, semidefinite: bool = False
) -> None:
    """Tell lineax about a class of operators, as its own rules are told."""
    lx.is_symmetric.register(operator)(lambda _: symmetric)
    lx.is_positive_semidefinite.register(operator)(lambda _: semidefinite)
    for question in _NEVER:
        question.register(operator)(lambda _: False)
    _register_forms(operator)
    lx.diagonal.register(operator)(entries_of)


_NEVER = (
    lx.is_negative_semidefinite,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
)


def _register_forms(operator: type[Operator]) -> None:
    lx.linearise.register(operator)(lambda operator: operator.linearize())
    lx.materialise.register(operator)(lambda operator: lx.materialise(operator.linearize()))
    lx.conj.register(operator)(lambda operator: operator)


for _question in (lx.is_symmetric, lx.is_positive_semidefinite, *_NEVER):
    _question.register(Combination)(lambda of, question=_question: question(of.expression))
lx.diagonal.register(Combination)(lambda of: lx.diagonal(of.expression))
_register_forms(Combination)

"""The Hessian of a loss as an operator, of one function or summed over examples."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from volform.checks import require_whole
from volform.errors import OperatorError
from volform.linalg.operator import (
    Operator,
    dtype_of,
    linearized,
    register_operator,
    require_params,
)
from volform.linalg.structured import structure_of
from volform.operators.per_example import as_examples, count_of, structure_of_one, sum_over


class Hessian(Operator):
    """The matrix of second derivatives of a loss, as products; made by `hessian`."""

    loss: Callable[[Any], Float[Array, ""]]
    params: PyTree

    def mv(self, vector: PyTree) -> PyTree:
        """`H v`: the derivative of the gradient along v, forward over reverse."""
        return _hessian_vector(self.loss, self.params, vector)

    def linearize(self) -> lx.AbstractLinearOperator:
        """Linearized once: the gradient is not evaluated again for each vector."""
        return linearized(self, lx.symmetric_tag)

    def transpose(self) -> "Hessian":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Structure of the parameters."""
        return structure_of(self.params)


@eqx.filter_jit
def _hessian_vector(loss: Callable, params: PyTree, vector: PyTree) -> PyTree:
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


class SummedHessian(Operator):
    """The sum of the Hessians of a loss over examples, as products; made by `hessian`."""

    loss: Callable[[Any, Any], Float[Array, ""]]
    params: PyTree
    data: PyTree
    chunk: int | None = eqx.field(static=True, default=None)

    def mv(self, vector: PyTree) -> PyTree:
        """`sum_n H_n v`, a chunk of examples at a time."""
        return _summed_hessian_vector(self, vector)

    def linearize(self) -> lx.AbstractLinearOperator:
        """Linearized once, unless in chunks: that would hold what chunks are there to save."""
        if self.chunk is not None and self.chunk < count_of(self.data):
            return self
        return linearized(self, lx.symmetric_tag)

    def transpose(self) -> "SummedHessian":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Structure of the parameters."""
        return structure_of(self.params)


@eqx.filter_jit
def _summed_hessian_vector(operator: SummedHessian, vector: PyTree) -> PyTree:
    def part(examples: Any, weights: Float[Array, " b"]) -> PyTree:
        def total(params: PyTree) -> Float[Array, ""]:
            return weights @ jax.vmap(operator.loss, (None, 0))(params, examples)

        return jax.jvp(jax.grad(total), (operator.params,), (vector,))[1]

    return sum_over(part, operator.data, dtype_of(operator), operator.chunk)


def hessian(
    loss: Callable[..., Float[Array, ""]],
    params: PyTree,
    data: PyTree = None,
    *,
    chunk: int | None = None,
) -> Hessian | SummedHessian:
    """The Hessian of `loss` at `params`, `H_ij = d_i d_j loss`, as a lineax operator.

    A tensor at a critical point only; elsewhere see `volform.geometry.covariant_hessian`. Products
    are compiled once for each `loss`, so pass the same function again rather than a new lambda;
    arrays that it needs are best bound by `jax.tree_util.Partial(loss, ...)`.

    With `data` it is the sum over the examples, `H_ij = sum_n d_i d_j loss(params, data_n)`, a
    chunk of them at a time. What belongs to no example, as a prior does, is added as an operator.

    Args:
        loss: twice differentiable, from a pytree like `params` to a scalar: `loss(params)`, or
            with data `loss(params, example)` for *one* example. volform does the batching.
        params: a pytree of float32 or float64 arrays; n coordinates in all.
        data: a pytree of arrays with one example along each leading axis, such as (x, y).
        chunk: examples worked on at once, which bounds the memory; all of them by default.

    Returns:
        A symmetric operator on pytrees like `params`; with data a sum, not their mean. A product
        costs about four evaluations of the loss, and as much memory as its gradient.

    Raises:
        OperatorError: for parameters of another dtype, a loss that is no scalar, `chunk` < 1, and a
            `chunk` without data.
        DataError: for data that are empty or of unequal length.

    References:
        Pearlmutter (1994), Fast exact multiplication by the Hessian.

    >>> import jax.numpy as jnp, volform as vf
    >>> H = vf.operators.hessian(lambda p: p["a"] ** 2 * p["b"], {"a": jnp.array(3.0), "b": 1.0})
    >>> H.as_matrix().tolist()
    [[2.0, 6.0], [6.0, 0.0]]
    >>> data = jnp.array([1.0, 2.0, 3.0])
    >>> vf.operators.hessian(lambda p, x: x * p**2, jnp.array(1.0), data, chunk=2).as_matrix()
    Array([[12.]], dtype=...)
    """
    require_params(params, "hessian")
    params = jax.tree.map(jnp.asarray, params)
    if data is None:
        if chunk is not None:
            raise OperatorError(
                f"`chunk` of hessian is {chunk!r} but there is no `data` to go through in chunks; "
                "give the examples as in `hessian(loss, params, (x, y), chunk=100)`."
            )
        _require_scalar(loss, params)
        return Hessian(loss, params)
    if chunk is not None:
        require_whole(chunk, "chunk", "hessian")
    data = as_examples(data, "hessian")
    _require_scalar(loss, params, structure_of_one(data))
    return SummedHessian(loss, params, data, chunk)


def _require_scalar(loss: Callable, *args: Any) -> None:
    value = jax.eval_shape(loss, *args)
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape != ():
        shape = getattr(value, "shape", type(value).__name__)
        raise OperatorError(
            f"`loss` of hessian returned {shape}; it should return a scalar: sum or average what "
            "it computes for each example."
        )


register_operator(Hessian, symmetric=True)
register_operator(SummedHessian, symmetric=True)

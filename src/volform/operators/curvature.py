"""The Hessian of a loss as an operator, and any symmetric form relative to a metric, E = G^-1 H."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.errors import MetricError, OperatorError, SingularMetricError
from volform.geometry import logdet, whiten
from volform.geometry.structure import (
    BlockDiagonal,
    Dense,
    Point,
    Segments,
    size_of,
    structure_of,
)
from volform.operators.base import (
    Operator,
    check_dense,
    check_params,
    check_positive,
    dtype_of,
    entries_of,
    hoisted,
    is_known,
    register,
    zeros,
)
from volform.operators.examples import as_examples, count_of, structure_of_one, sum_over


class Hessian(Operator):
    """The matrix of second derivatives of a loss, as products; made by `hessian`."""

    loss: Callable[[Any], Float[Array, ""]]
    params: PyTree

    def mv(self, vector: PyTree) -> PyTree:
        """`H v`: the derivative of the gradient along v, forward over reverse."""
        return _hessian_vector(self.loss, self.params, vector)

    def cheaper(self) -> lx.AbstractLinearOperator:
        """Linearized once: the gradient is not evaluated again for each vector."""
        return hoisted(self, lx.symmetric_tag)

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

    def cheaper(self) -> lx.AbstractLinearOperator:
        """Linearized once, unless in chunks: that would hold what chunks are there to save."""
        if self.chunk is not None and self.chunk < count_of(self.data):
            return self
        return hoisted(self, lx.symmetric_tag)

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
    check_params(params, "hessian")
    params = jax.tree.map(jnp.asarray, params)
    if data is None:
        if chunk is not None:
            raise OperatorError(
                f"`chunk` of hessian is {chunk!r} but there is no `data` to go through in chunks; "
                "give the examples as in `hessian(loss, params, (x, y), chunk=100)`."
            )
        _check_scalar(loss, params)
        return Hessian(loss, params)
    if chunk is not None:
        check_positive(chunk, "chunk", "hessian")
    data = as_examples(data, "hessian")
    _check_scalar(loss, params, structure_of_one(data))
    return SummedHessian(loss, params, data, chunk)


def _check_scalar(loss: Callable, *args: Any) -> None:
    value = jax.eval_shape(loss, *args)
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape != ():
        shape = getattr(value, "shape", type(value).__name__)
        raise OperatorError(
            f"`loss` of hessian returned {shape}; it should return a scalar: sum or average what "
            "it computes for each example."
        )


class UnderMetric(Operator):
    """The operator `E = G^-1 H` of a symmetric form H under a metric G; made by `under_metric`."""

    form: lx.AbstractLinearOperator
    gram: lx.AbstractLinearOperator

    def mv(self, vector: PyTree) -> PyTree:
        """`G^-1 H v`, a tangent vector."""
        return _raised(self.gram, self.form.mv(vector))

    def cheaper(self) -> lx.AbstractLinearOperator:
        """With H linearized and G factorized once."""
        return hoisted(UnderMetric(lx.linearise(self.form), self.gram))

    def transpose(self) -> lx.AbstractLinearOperator:
        """`H G^-1`, which takes covectors."""
        like = self.in_structure()
        raised = lx.FunctionLinearOperator(
            jax.tree_util.Partial(_raised, self.gram), like, lx.symmetric_tag
        )
        return self.form @ raised

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Structure of the parameters."""
        return self.form.in_structure()


@eqx.filter_jit
def _raised(gram: lx.AbstractLinearOperator, covector: PyTree) -> PyTree:
    down, up = frame(gram)
    flat, unravel = ravel_pytree(covector)
    return unravel(up(down(flat)))


def frame(gram: lx.AbstractLinearOperator) -> tuple[Callable, Callable]:
    """The maps `w -> L^-1 w` and `x -> L^-T x` with `G = L L^T`, on flat vectors.

    G is factorized once, when this is called.
    """
    zero, unravel = ravel_pytree(zeros(gram.in_structure()))
    _, down = jax.linearize(lambda covector: whiten(gram, unravel(covector)), zero)
    transposed = jax.linear_transpose(down, zero)
    return down, lambda x: transposed(x)[0]


def under_metric(
    operator: lx.AbstractLinearOperator,
    metric: Callable[[Point], lx.AbstractLinearOperator],
    params: PyTree,
) -> UnderMetric:
    """`E = G^-1 H`, whose trace, determinant and eigenvalues do not depend on the coordinates.

    E is not symmetric but self-adjoint in G: its eigenvalues are those of `L^-1 H L^-T` with
    `G = L L^T`. The functionals of this room work on that form. Adding a number,
    `E + damping = G^-1 (H + damping G)`, is a damping that is invariant too.

    Args:
        operator: a symmetric operator H on pytrees like `params`.
        metric: a metric of `volform.geometry`, `metric_of(opt_state)`, or any function from
            `params` to a positive-definite operator.
        params: where the metric is taken.

    Returns:
        An operator on pytrees like `params`. Identity, diagonal and block-diagonal metrics cost
        what their structure costs; any other becomes a matrix.

    Raises:
        MetricError: where the metric is none, or has another structure than `operator`.
        SingularMetricError: where it is not positive definite.
        SizeError: where it has no structure and its matrix would take more than 8 GiB: a metric
            given by products only has no root to work with.

    References:
        Kristiadi, Dangel & Hennig (2023), Eqs. (2), (9)-(11), with G^-1 for the printed G.

    >>> import jax.numpy as jnp, volform as vf
    >>> H = vf.operators.hessian(lambda x: jnp.sum(x**2), jnp.ones(2))
    >>> E = vf.operators.under_metric(H, vf.Euclidean(0.5), jnp.ones(2))
    >>> E.as_matrix().tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    _check_form(operator, "under_metric")
    params = jax.tree.map(jnp.asarray, params)
    gram = metric(params) if callable(metric) else None
    if not isinstance(gram, lx.AbstractLinearOperator):
        raise MetricError(
            f"`metric` of under_metric is {metric!r}; it should be a metric such as "
            "`vf.Euclidean()`, or a function from `params` to a lineax operator."
        )
    if gram.in_structure() != operator.in_structure():
        raise MetricError(
            f"`metric` of under_metric acts on {gram.in_structure()} and `operator` on "
            f"{operator.in_structure()}; both should be taken at the same `params`."
        )
    if not isinstance(gram, _STRUCTURED):
        check_dense(size_of(params), size_of(params), dtype_of(gram))
        gram = Dense(gram.as_matrix(), params)
    volume = logdet(gram)
    if is_known(volume) and not jnp.isfinite(volume):
        raise SingularMetricError(
            f"`metric` of under_metric is not positive definite at `params` (log det G is "
            f"{float(volume)}); add a multiple of `vf.Euclidean()`."
        )
    return UnderMetric(operator, gram)


_STRUCTURED = (lx.IdentityLinearOperator, lx.DiagonalLinearOperator, BlockDiagonal, Segments, Dense)


def _check_form(operator: Any, function: str) -> None:
    if not isinstance(operator, lx.AbstractLinearOperator) or not lx.is_symmetric(operator):
        raise OperatorError(
            f"`operator` of {function} is {type(operator).__name__}, which is no symmetric lineax "
            "operator; tag it with `lineax.symmetric_tag` if it is one."
        )


register(Hessian, symmetric=True)
register(SummedHessian, symmetric=True)
register(UnderMetric, symmetric=False)


@lx.diagonal.register
def _(operator: UnderMetric) -> Float[Array, " n"]:
    entries = diagonal_of(operator.gram)
    if entries is None:
        return entries_of(operator)
    return lx.diagonal(operator.form) / entries


def diagonal_of(gram: lx.AbstractLinearOperator) -> Float[Array, " n"] | None:
    """The diagonal of a diagonal operator, None for any other."""
    match gram:
        case lx.IdentityLinearOperator():
            return jnp.ones(gram.in_size(), dtype_of(gram))
        case lx.DiagonalLinearOperator():
            return ravel_pytree(gram.diagonal)[0]
        case BlockDiagonal() | Segments():
            parts = gram.parts() if isinstance(gram, BlockDiagonal) else gram.blocks
            found = [entries for entries in map(diagonal_of, parts) if entries is not None]
            return jnp.concatenate(found) if len(found) == len(parts) else None
        case _:
            return None

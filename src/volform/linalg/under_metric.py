"""Symmetric forms relative to a metric: the operator E = G^-1 H, and the root of a metric."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.errors import MetricError, OperatorError, SingularMetricError
from volform.linalg.operator import (
    Operator,
    dtype_of,
    entries_of,
    is_known,
    linearized,
    register_operator,
    require_dense,
    zeros,
)
from volform.linalg.structured import (
    BlockDiagonal,
    DenseOperator,
    FlatBlocks,
    Point,
    exact_logdet,
    size_of,
    whiten,
)


class UnderMetric(Operator):
    """The operator `E = G^-1 H` of a symmetric form H under a metric G; made by `under_metric`."""

    form: lx.AbstractLinearOperator
    gram: lx.AbstractLinearOperator

    def mv(self, vector: PyTree) -> PyTree:
        """`G^-1 H v`, a tangent vector."""
        return _raised(self.gram, self.form.mv(vector))

    def linearize(self) -> lx.AbstractLinearOperator:
        """With H linearized and G factorized once."""
        return linearized(UnderMetric(lx.linearise(self.form), self.gram))

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
    down, up = whitening_maps(gram)
    flat, unravel = ravel_pytree(covector)
    return unravel(up(down(flat)))


def whitening_maps(gram: lx.AbstractLinearOperator) -> tuple[Callable, Callable]:
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
        metric: a metric of `volform.geometry`, `optimizer_metric(opt_state)`, or any function from
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
    >>> E = vf.linalg.under_metric(H, vf.Euclidean(0.5), jnp.ones(2))
    >>> E.as_matrix().tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    _require_symmetric(operator, "under_metric")
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
        require_dense(size_of(params), size_of(params), dtype_of(gram))
        gram = DenseOperator(gram.as_matrix(), params)
    volume = exact_logdet(gram)
    if is_known(volume) and not jnp.isfinite(volume):
        raise SingularMetricError(
            f"`metric` of under_metric is not positive definite at `params` (log det G is "
            f"{float(volume)}); add a multiple of `vf.Euclidean()`."
        )
    return UnderMetric(operator, gram)


_STRUCTURED = (
    lx.IdentityLinearOperator,
    lx.DiagonalLinearOperator,
    BlockDiagonal,
    FlatBlocks,
    DenseOperator,
)


def _require_symmetric(operator: Any, function: str) -> None:
    if not isinstance(operator, lx.AbstractLinearOperator) or not lx.is_symmetric(operator):
        raise OperatorError(
            f"`operator` of {function} is {type(operator).__name__}, which is no symmetric lineax "
            "operator; tag it with `lineax.symmetric_tag` if it is one."
        )


register_operator(UnderMetric, symmetric=False)


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
        case BlockDiagonal() | FlatBlocks():
            parts = gram.parts() if isinstance(gram, BlockDiagonal) else gram.blocks
            found = [entries for entries in map(diagonal_of, parts) if entries is not None]
            return jnp.concatenate(found) if len(found) == len(parts) else None
        case _:
            return None

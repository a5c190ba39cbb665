"""Arguments that the optimizers share: checks of them, and parameters that optax masks."""

import copy
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from volform.compilation import is_traced
from volform.errors import (
    MetricError,
    OptimizerError,
    SingularMetricError,
    SizeError,
    VolformError,
)
from volform.geometry import name_of
from volform.limits import EXACT_UP_TO
from volform.linalg import (
    BlockDiagonal,
    FlatBlocks,
    KroneckerSum,
    Point,
    exact_logdet,
    fits,
    is_above,
    singular_below,
    structure_of,
    unit_diagonal,
)

MetricFunction = Callable[[Point], lx.AbstractLinearOperator]
Loss = Callable[[Any], Float[Array, ""]]


def as_params(tree: PyTree, argument: str, function: str) -> PyTree:
    """A pytree as floating-point arrays of a dtype that is not weak; without what optax masks.

    Raises:
        OptimizerError: for a leaf that is no array of floating-point numbers in single or double
            precision, and for a pytree without leaves.
    """
    tree = unmasked(tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        try:
            dtype: Any = jnp.result_type(leaf)
        except (TypeError, ValueError):
            dtype = type(leaf)
        if dtype not in (jnp.float32, jnp.float64):
            half = dtype in (jnp.float16, jnp.bfloat16)
            raise OptimizerError(
                f"`{argument}{jax.tree_util.keystr(path)}` of {function} has dtype "
                f"{getattr(dtype, '__name__', dtype)}; give floating-point numbers in single or "
                "double precision, "
                + (
                    "by `.astype(jnp.float32)`: half precision is too coarse for a solve."
                    if half
                    else "and leave others out by `optax.masked`."
                )
            )
    if not jax.tree.leaves(tree):
        raise OptimizerError(
            f"`{argument}` of {function} is {tree!r}, without a number; give at least one array."
        )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


def unmasked(tree: PyTree) -> PyTree:
    """A pytree without the entries of dicts that `optax.masked` or `multi_transform` took out.

    Dicts keep their type, since JAX has another order of the leaves for each.
    """
    if not isinstance(tree, dict) or jax.tree_util.all_leaves([tree]):
        return tree
    kept = copy.copy(tree)
    kept.clear()
    for name, value in tree.items():
        if jax.tree.leaves(value) or not is_masked(value):
            kept[name] = unmasked(value)
    return kept


def is_masked(tree: PyTree) -> bool:
    """Tell whether optax took out a part of a pytree."""
    leaves = jax.tree.leaves(tree, is_leaf=_is_mask)
    return any(map(_is_mask, leaves))


def _is_mask(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def update_from(found: PyTree, updates: PyTree, params: PyTree) -> PyTree:
    """Leaves of `found` laid out like `updates`; all NaN where one of the three is not finite.

    That is the one rule of what `jit` hides from checks.
    """
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(updates), strict=True)
    leaves = [jnp.asarray(leaf, jnp.result_type(like)) for leaf, like in pairs]
    if is_traced(leaves):
        numbers = [*leaves, *jax.tree.leaves((updates, params))]
        finite = jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in numbers]))
        leaves = [jnp.where(finite, leaf, jnp.nan) for leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(updates), leaves)


def pair(updates: PyTree, params: PyTree, function: str) -> tuple[PyTree, PyTree]:
    """Gradient and parameters as arrays that are laid out alike.

    Raises:
        OptimizerError: without parameters, for another layout, and for a gradient or parameters
            that are not finite, where that can be seen.
    """
    if params is None:
        raise OptimizerError(
            f"`params` of {function} is missing; a metric is taken at a point, so call "
            "`tx.update(updates, state, params)`."
        )
    updates = as_params(updates, "updates", function)
    params = as_params(params, "params", function)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (updates, params)]
    if jax.tree.structure(updates) != jax.tree.structure(params) or shapes[0] != shapes[1]:
        raise OptimizerError(
            f"`updates` of {function} have the layout {shapes[0]} and `params` {shapes[1]}; they "
            "should be alike, as a gradient by `jax.grad` is."
        )
    require_finite_leaves(params, "params", function, "start from finite numbers")
    require_finite_leaves(updates, "updates", function)
    return updates, params


def is_finite(tree: PyTree) -> bool:
    """Tell whether all numbers are finite; none may be traced."""
    return all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in jax.tree.leaves(tree))


_TOO_FAR = (
    "the loss or its gradient is not finite at `params`. Take smaller steps, or leave such steps "
    "out by `optax.apply_if_finite`"
)


def require_finite_leaves(
    tree: PyTree, argument: str, function: str, remedy: str = _TOO_FAR
) -> None:
    """Check that all numbers are finite, unless they are traced.

    Raises:
        OptimizerError: names the leaves that are not.
    """
    if is_traced(tree) or is_finite(tree):
        return
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    wrong = [path for path, leaf in leaves if not is_finite(leaf)]
    names = ", ".join(f"`{argument}{jax.tree_util.keystr(path)}`" for path in wrong)
    raise OptimizerError(
        f"{names} of {function} should be finite, and holds NaN or infinity: {remedy} "
        "(`jnp.isfinite` finds the entries)."
    )


class GivenLoss(eqx.Module):
    """The loss that an update was given; its value is checked where it is traced."""

    value_fn: Any
    function: str = eqx.field(static=True)
    masked: bool = eqx.field(static=True, default=False)

    def __call__(self, params: PyTree) -> Float[Array, ""]:
        """The loss.

        Raises:
            OptimizerError: where it is no number, or needs parameters that optax masks.
        """
        try:
            value = self.value_fn(params)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if not self.masked:
                raise
            raise OptimizerError(
                f"`value_fn` of {self.function} failed ({error!r}) on the part of the parameters "
                "that `optax.masked` or `multi_transform` leaves; give a loss of that part, with "
                "the others put in: `value_fn=lambda part: loss({**params, **part})`."
            ) from error
        if not isinstance(value, jax.Array | float | np.ndarray | np.floating) or np.ndim(value):
            shapes = jax.tree.map(jnp.shape, value)
            raise OptimizerError(
                f"The loss `{name_of(self.value_fn)}` of {self.function} returned shapes {shapes}; "
                "it should return one floating-point number, without auxiliary values."
            )
        return jnp.asarray(value)


def require_value_fn(value_fn: Any, params: PyTree, function: str) -> GivenLoss:
    """The loss that an update of `params` was given.

    Raises:
        OptimizerError: when there is none.
    """
    if isinstance(value_fn, GivenLoss):
        return value_fn
    if not callable(value_fn):
        raise OptimizerError(
            f"`value_fn` of {function} is {value_fn!r}; it needs the loss itself, and not only its "
            "gradient: call `tx.update(grads, state, params, value_fn=loss)`, where `loss(params)` "
            "is a number."
        )
    return GivenLoss(value_fn, function, is_masked(params))


def require_metric_function(metric: Any, argument: str, function: str) -> None:
    """Check that an argument is a metric, or a function from parameters to an operator.

    Raises:
        MetricError: for anything else, with the way to write a number as a metric.
    """
    if isinstance(metric, lx.AbstractLinearOperator) or not callable(metric):
        number = np.isscalar(metric) and not isinstance(metric, str | bool)
        helps = f"write `{metric} * vf.Euclidean()`" if number else "such as `vf.Euclidean()`"
        raise MetricError(
            f"`{argument}` of {function} is {metric!r}; it should be a metric, or a function from "
            f"`params` to a lineax operator: {helps}."
        )


def operator_at(
    metric: MetricFunction, params: Point, argument: str, function: str
) -> lx.AbstractLinearOperator:
    """G at a point.

    Raises:
        MetricError: when it is no operator, or one on other vectors than those at the point.
    """
    require_metric_function(metric, argument, function)
    try:
        operator = metric(params)
    except VolformError:
        raise
    except (TypeError, ValueError) as error:
        raise MetricError(
            f"`{argument}` of {function}, {name_of(metric)}, cannot be taken at `params`: {error}. "
            "A metric of volform gets the entries of a dict by their names, those of a tuple one "
            "after the other, and anything else as it is."
        ) from error
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise MetricError(
            f"`{argument}` of {function} returned {type(operator).__name__} at `params`; it should "
            "return a lineax operator, as a `vf.Metric` does."
        )
    kinds = [
        jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), structure, is_leaf=_is_shape)
        for structure in (operator.in_structure(), structure_of(params))
    ]
    if kinds[0] != kinds[1]:
        sizes = [jax.tree.map(lambda kind: kind[0], each, is_leaf=_is_kind) for each in kinds]
        if sizes[0] == sizes[1]:
            raise MetricError(
                f"`{argument}` of {function} acts on vectors of dtypes {kinds[0]}, and `params` "
                f"have {kinds[1]}; cast the numbers of the metric by `.astype(params.dtype)`."
            )
        raise MetricError(
            f"`{argument}` of {function} acts on vectors of the layout {kinds[0]}, and `params` "
            f"have {kinds[1]}; give a metric on all of them, or on some by `optax.masked`."
        )
    return operator


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _is_kind(node: Any) -> bool:
    return isinstance(node, tuple) and len(node) == 2 and isinstance(node[1], str)


def require_definite_at(
    metric: MetricFunction, params: Point, argument: str, function: str, *, strictly: bool = True
) -> None:
    """Check that a metric is positive definite at a point, where its matrix can be looked at.

    Args:
        metric: a metric.
        params: the point.
        argument: name of the metric.
        function: the function that it was given to.
        strictly: refuses a singular one too.

    Raises:
        SingularMetricError: when it is not.
    """
    if is_traced(params):
        return
    operator = operator_at(metric, params, argument, function)
    if isinstance(operator, lx.IdentityLinearOperator | lx.DiagonalLinearOperator) and np.isfinite(
        exact_logdet(operator)
    ):
        return
    if operator.in_size() > EXACT_UP_TO:
        return
    matrix = np.asarray(operator.as_matrix())
    lowest, rounding = np.nan, 0.0
    if np.isfinite(matrix).all():
        rounding = singular_below(matrix, matrix.dtype)
        matrix = unit_diagonal(matrix)
        if is_above(matrix, rounding if strictly else -rounding):
            return
        lowest = np.linalg.eigvalsh(matrix)[0]
    kind = "indefinite" if lowest < -rounding else "singular or not finite"
    raise SingularMetricError(
        f"`{argument}` of {function}, {name_of(metric)}, is {kind} at `params` (smallest "
        f"eigenvalue {lowest:.2g}, scaled to a diagonal of one), so that no step is downhill by "
        "it; add a multiple of `vf.Euclidean()`, for a `metric` by `damping=`."
    )


def require_matrix_fits(size: int, dtype: Any, function: str, remedy: str) -> None:
    """Check that a matrix over the parameters fits into memory.

    Raises:
        SizeError: when it does not.
    """
    if not fits(size, size, dtype):
        raise SizeError(
            f"The matrix of {function} for the {size:,} parameters in `params` would not fit "
            f"into memory; {remedy}."
        )


_STRUCTURED = (
    lx.IdentityLinearOperator,
    lx.DiagonalLinearOperator,
    BlockDiagonal,
    FlatBlocks,
    KroneckerSum,
)


def is_structured(operator: lx.AbstractLinearOperator) -> bool:
    """Tell whether an operator is solved exactly without its matrix."""
    return isinstance(operator, _STRUCTURED)


def rate_of(learning_rate: Any, function: str) -> Any:
    """A learning rate: a number or a schedule.

    Raises:
        OptimizerError: for a number that is not finite, and anything else.
    """
    if callable(learning_rate) or is_traced(learning_rate):
        return learning_rate
    try:
        usable = not np.ndim(learning_rate) and np.isfinite(np.asarray(learning_rate, float))
    except (TypeError, ValueError):
        usable = False
    if not usable or isinstance(learning_rate, str):
        raise OptimizerError(
            f"`learning_rate` of {function} is {learning_rate!r}; it should be a finite number or "
            "a schedule of optax."
        )
    return learning_rate

"""Arguments that the optimizers share: checks of them, and parameters that optax masks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from volform.compilation import is_traced
from volform.errors import MetricError, OptimizerError, SingularMetricError
from volform.geometry import name_of
from volform.limits import EXACT_UP_TO
from volform.linalg import Point, exact_logdet, structure_of

MetricFunction = Callable[[Point], lx.AbstractLinearOperator]
Loss = Callable[[Any], Float[Array, ""]]


def as_params(tree: PyTree, argument: str, function: str) -> PyTree:
    """A pytree as floating-point arrays of a dtype that is not weak; without what optax masks.

    Raises:
        OptimizerError: for a leaf that is no array of floating-point numbers.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise OptimizerError(
                f"`{argument}{jax.tree_util.keystr(path)}` of {function} has dtype "
                f"{jnp.result_type(leaf)}; give floating-point numbers, and leave others out by "
                "`optax.masked`."
            )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), unmasked(tree))


def unmasked(tree: PyTree) -> PyTree:
    """A pytree without the entries of dicts that `optax.masked` or `multi_transform` took out."""
    if not isinstance(tree, dict):
        return tree
    entries = {name: unmasked(value) for name, value in tree.items()}
    return {name: value for name, value in entries.items() if jax.tree.leaves(value)}


def laid_out_like(tree: PyTree, found: PyTree) -> PyTree:
    """Leaves of `found` in the layout of `tree`, masked entries and all."""
    return jax.tree.unflatten(jax.tree.structure(tree), jax.tree.leaves(found))


def pair(updates: PyTree, params: PyTree, function: str) -> tuple[PyTree, PyTree]:
    """Gradient and parameters as arrays that are laid out alike.

    Raises:
        OptimizerError: without parameters, for another layout, and for a gradient that is not
            finite where that can be seen.
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
    require_finite_leaves(updates, "updates", function)
    return updates, params


def is_finite(tree: PyTree) -> bool:
    """Tell whether all numbers are finite; none may be traced."""
    return all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in jax.tree.leaves(tree))


def require_finite_leaves(tree: PyTree, argument: str, function: str) -> None:
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
        f"{names} of {function} should be finite, and holds NaN or infinity: the loss or its "
        "gradient is not finite at `params`. Take smaller steps, or leave such steps out by "
        "`optax.apply_if_finite`."
    )


def require_value_fn(value_fn: Any, function: str) -> Any:
    """The loss that an update was given.

    Raises:
        OptimizerError: when there is none.
    """
    if not callable(value_fn):
        raise OptimizerError(
            f"`value_fn` of {function} is {value_fn!r}; it needs the loss itself, and not only its "
            "gradient: call `tx.update(grads, state, params, value_fn=loss)`, where `loss(params)` "
            "is a number."
        )
    return value_fn


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
    try:
        operator = metric(params)
    except TypeError as error:
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
        raise MetricError(
            f"`{argument}` of {function} acts on vectors of the layout {kinds[0]}, and `params` "
            f"have {kinds[1]}; give a metric on all of them, or on some by `optax.masked`."
        )
    return operator


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


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
    if strictly and np.isfinite(exact_logdet(operator)):
        return
    if operator.in_size() > EXACT_UP_TO:
        return
    matrix = np.asarray(operator.as_matrix())
    values = np.linalg.eigvalsh(matrix) if np.isfinite(matrix).all() else np.array([np.nan])
    rounding = len(matrix) * np.finfo(matrix.dtype).eps * np.abs(values).max()
    if values[0] > rounding or (not strictly and values[0] >= -rounding):
        return
    kind = "indefinite" if values[0] < -rounding else "singular or not finite"
    raise SingularMetricError(
        f"`{argument}` of {function}, {name_of(metric)}, is {kind} at `params` (smallest "
        f"eigenvalue {values[0]:.2g}), so that no step is downhill by it; add a multiple of "
        "`vf.Euclidean()`, for a `metric` by `damping=`."
    )


def rate_of(learning_rate: Any, function: str) -> Any:
    """A learning rate: a number or a schedule.

    Raises:
        OptimizerError: for a number that is not finite, and anything else.
    """
    if callable(learning_rate) or is_traced(learning_rate):
        return learning_rate
    if np.ndim(learning_rate) or not np.isfinite(np.asarray(learning_rate, float)):
        raise OptimizerError(
            f"`learning_rate` of {function} is {learning_rate!r}; it should be a finite number or "
            "a schedule of optax."
        )
    return learning_rate

"""Checks of metrics on the values that they were attached to."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from volform.errors import MetricError, VolformError
from volform.geometry.metric import Metric
from volform.geometry.questions import is_symmetric, name_of
from volform.limits import METRIC_EVALUATED_UP_TO
from volform.linalg.structured import size_of


@singledispatch
def require_valid_metric(
    metric: Metric, sites: str, values: Callable[[Array], Any], u: Float[Array, " d"]
) -> None:
    """Check that the metric gives a symmetric operator of the right size on the values at u.

    Shapes are checked without evaluating anything, symmetry only where it does not hold by
    construction. Whether it is positive definite is a matter of the point, for `find_map`.

    Raises:
        MetricError: names the sites, what came and what should have come.
    """
    point = jax.eval_shape(values, u)
    operator = _attempt(lambda: eqx.filter_eval_shape(metric, point), metric, sites, point)
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise MetricError(
            f"The metric `{name_of(metric)}` on `{sites}` returned {type(operator).__name__}; it "
            "should return a lineax operator. A function that returns a matrix is a metric when "
            "wrapped, `vf.geometry.MatrixField(function)`."
        )
    n = size_of(point)
    if (operator.out_size(), operator.in_size()) != (n, n):
        raise MetricError(
            f"The metric `{name_of(metric)}` on `{sites}` returned an operator of shape "
            f"({operator.out_size()}, {operator.in_size()}); the value has {n} coordinates, so it "
            f"should be ({n}, {n})."
        )
    if not is_symmetric(metric) and n <= METRIC_EVALUATED_UP_TO:
        _require_symmetric(metric, sites, metric(values(u)).as_matrix())


def require_valid_gram(metric: Metric, gram: Callable[[Array], Any], u: Float[Array, " d"]) -> None:
    """Check that a metric reads a symmetric matrix of the right shape off its model.

    Nothing is evaluated of a metric that is symmetric by construction.

    Args:
        metric: a metric that is read off a model.
        gram: its matrix, as a function of u.
        u: a point to look at.

    Raises:
        MetricError: what came and what should have come.
    """
    if is_symmetric(metric):
        return
    found = _attempt(lambda: eqx.filter_eval_shape(gram, u), metric, "the whole model", u)
    shape, n = getattr(found, "shape", None), u.size
    if shape != (n, n):
        what = type(found).__name__ if shape is None else f"an array of shape {shape}"
        raise MetricError(
            f"`gram` of the metric `{name_of(metric)}` returned {what}; the model has {n} "
            f"unconstrained coordinates, so it should return an array of shape ({n}, {n})."
        )
    if not any(jnp.issubdtype(found.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise MetricError(
            f"`gram` of the metric `{name_of(metric)}` returned an array of dtype {found.dtype}; a "
            "metric is a matrix of real numbers."
        )
    if n <= METRIC_EVALUATED_UP_TO:
        _require_symmetric(metric, "the whole model", eqx.filter_jit(gram)(u))


def _require_symmetric(metric: Metric, sites: str, matrix: Any) -> None:
    if isinstance(matrix, Tracer):  # under jit, where nothing is known yet
        return
    matrix = np.asarray(matrix)
    gap = np.abs(matrix - matrix.T)
    if np.nanmax(gap, initial=0.0) > 1e-5 * np.nanmax(np.abs(matrix), initial=0.0):
        i, j = np.unravel_index(int(np.nanargmax(gap)), gap.shape)
        raise MetricError(
            f"The metric `{name_of(metric)}` on `{sites}` is not symmetric: entry ({i}, {j}) is "
            f"{matrix[i, j]:.4g}, entry ({j}, {i}) is {matrix[j, i]:.4g}. A metric is a symmetric "
            "bilinear form; return (m + m.T) / 2 if you mean its symmetric part."
        )


def _attempt(evaluate: Callable[[], Any], metric: Metric, sites: str, point: Any) -> Any:
    try:
        return evaluate()
    except VolformError as error:
        raise MetricError(f"The metric on `{sites}` cannot be used there. {error}") from error
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        shapes = jax.tree.map(jnp.shape, point)
        raise MetricError(
            f"The metric `{name_of(metric)}` on `{sites}` could not be evaluated at a value of "
            f"shape {shapes}: {type(error).__name__}: {error}"
        ) from error

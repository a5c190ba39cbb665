"""Whether what was attached is a metric on the values that it was attached to."""

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
from volform.geometry import DiagonalField, Euclidean, Fisher, Metric, Product, Pullback
from volform.geometry.structure import size_of

_EVALUATED = 512  # coordinates up to which a matrix is looked at, not only its shape


def check_metric(
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
            f"The metric `{metric!r}` on `{sites}` returned {type(operator).__name__}; it should "
            "return a lineax operator. A function that returns a matrix is a metric when wrapped, "
            "`vf.geometry.MatrixField(function)`."
        )
    n = size_of(point)
    if (operator.out_size(), operator.in_size()) != (n, n):
        raise MetricError(
            f"The metric `{metric!r}` on `{sites}` returned an operator of shape "
            f"({operator.out_size()}, {operator.in_size()}); the value has {n} coordinates, so it "
            f"should be ({n}, {n})."
        )
    if is_symmetric_by_construction(metric) or n > _EVALUATED:
        return
    matrix = metric(values(u)).as_matrix()
    if isinstance(matrix, Tracer):  # under jit, where nothing is known yet
        return
    matrix = np.asarray(matrix)
    gap = np.abs(matrix - matrix.T)
    if np.nanmax(gap, initial=0.0) > 1e-5 * np.nanmax(np.abs(matrix), initial=0.0):
        i, j = np.unravel_index(int(np.nanargmax(gap)), gap.shape)
        raise MetricError(
            f"The metric `{metric!r}` on `{sites}` is not symmetric: entry ({i}, {j}) is "
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
            f"The metric `{metric!r}` on `{sites}` could not be evaluated at a value of shape "
            f"{shapes}: {type(error).__name__}: {error}"
        ) from error


@singledispatch
def is_symmetric_by_construction(metric: Metric) -> bool:
    """Whether no value need be looked at: metrics of volform other than `MatrixField`."""
    return isinstance(metric, Euclidean | Fisher | DiagonalField)


@is_symmetric_by_construction.register
def _(metric: Pullback) -> bool:
    return is_symmetric_by_construction(metric.metric)


@is_symmetric_by_construction.register
def _(metric: Product) -> bool:
    return all(is_symmetric_by_construction(m) for m in metric.metrics.values())

"""The metric that a network with a posterior pulls back, on average."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array

from volform.errors import DataError
from volform.geometry.metric import Metric, pullback
from volform.linalg.structured import DenseOperator, Point
from volform.models import require_metric


class MeanMetric(Metric):
    """The mean of a metric pulled back by draws of a function; built by `mean_metric`.

    Attributes:
        metric: of the outputs.
        f: `f(parameters, x)`.
        draws: of the parameters, along the first axes of a pytree.
    """

    metric: Metric
    f: Callable[[Any, Any], Array] = eqx.field(static=True)
    draws: Any

    def __call__(self, point: Point) -> lx.AbstractLinearOperator:
        """`1/S sum_s J_s^T G(f_s(point)) J_s`."""

        def one(params: Any) -> Array:
            return pullback(self.metric, lambda x: self.f(params, x))(point).as_matrix()

        return DenseOperator(jnp.mean(jax.lax.map(one, self.draws, batch_size=32), 0), point)

    def __repr__(self) -> str:
        return f"mean of {self.metric!r} pulled back"


def mean_metric(metric: Metric, f: Callable[[Any, Any], Array], draws: Any) -> MeanMetric:
    """Expected metric `E[J^T G(f(x)) J]` over draws of the parameters of f.

    A metric like any other, for geodesics, volumes and pictures: where draws disagree, in regions
    without data, it is large although each draw may be flat.

    Args:
        metric: of the outputs of f.
        f: `f(parameters, x)`, of a single x.
        draws: parameters, a pytree whose arrays have the draws along their first axis, as
            `approx.sample(key).values`.

    Raises:
        DataError: when draws are of unequal number, or none.
        MetricError: when `metric` is none.

    References:
        Tosi et al. (2014), Metrics for probabilistic geometries, section 3.

    >>> import jax.numpy as jnp, volform as vf
    >>> slopes = jnp.array([1.0, 3.0])
    >>> metric = vf.layers.mean_metric(vf.Euclidean(), lambda a, x: a * x, slopes)
    >>> metric(jnp.ones(1)).as_matrix().tolist()
    [[5.0]]
    """
    require_metric(metric, "`metric` of mean_metric")
    counts = {len(leaf) if getattr(leaf, "ndim", 0) else 0 for leaf in jax.tree.leaves(draws)}
    if len(counts) != 1 or not min(counts):
        raise DataError(
            f"`draws` has arrays of {sorted(counts)} draws along their first axes; it should have "
            "one number of them, as `approx.sample(key).values` has."
        )
    return MeanMetric(metric, f, jax.tree.map(jnp.asarray, draws))

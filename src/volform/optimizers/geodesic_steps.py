"""Steps of an optimizer along geodesics in place of straight lines in the coordinates."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from volform.compilation import is_traced
from volform.errors import MetricError, OptimizerError
from volform.geometry import Coordinates, Metric, exp, is_flat_in
from volform.optimizers.update_checks import (
    as_params,
    operator_at,
    pair,
    require_finite_leaves,
    update_from,
)


def along_geodesics(
    tx: optax.GradientTransformation, metric: Metric
) -> optax.GradientTransformationExtraArgs:
    """Take the steps of an optimizer by the exponential map: `theta <- exp_theta(v)`.

    An optimizer whose update v is a vector (natural gradient, Newton's with a connection) draws a
    straight line of it in the coordinates at hand, and another one in others: invariant to the
    first order only. The geodesic is the same curve in all coordinates, and so are the iterates,
    for every learning rate.

    Args:
        tx: an optimizer, whose updates are steps and no gradients: with its learning rate.
        metric: the metric of the geodesics. Where it is known to be flat in the parameters, as
            `Euclidean()`, the steps are straight. Each step integrates a differential equation of
            one metric and one gradient a stage, about a hundred of them (`volform.geometry.exp`).

    Returns:
        An optimizer of optax with updates `exp_theta(v) - theta`.

    Raises:
        SingularMetricError: where the geodesic leaves the support of the metric; NaN under `jit`.
        OptimizerError: for updates that are not finite or laid out otherwise.
        MetricError: for a metric that is none, or on other vectors.

    References:
        Absil, Mahony & Sepulchre (2008), Optimization Algorithms on Matrix Manifolds, chapter 4.

    >>> import jax.numpy as jnp, optax, volform as vf
    >>> positive = vf.pullback(vf.Euclidean(), jnp.log)  # flat in log x
    >>> tx = vf.optimizers.along_geodesics(vf.optimizers.natural_gradient(positive, 1.0), positive)
    >>> x = jnp.array(3.0)
    >>> updates, _ = tx.update(2.0 / x, tx.init(x), x)  # of the loss 2 log x
    >>> round(float(optax.apply_updates(x, updates)), 6)  # log x - 2, which stays positive
    0.406006
    """
    if not isinstance(tx, optax.GradientTransformation):
        raise OptimizerError(
            f"`tx` of along_geodesics is {tx!r}; it should be an optimizer of optax, such as "
            "`vf.optimizers.natural_gradient(metric, 0.1)`."
        )
    if not isinstance(metric, Metric):
        raise MetricError(
            f"`metric` of along_geodesics is {metric!r}; geodesics need a metric that can be "
            "differentiated, such as `vf.Fisher(family)`."
        )
    inner = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> Any:
        at = as_params(params, "params", "along_geodesics")
        operator_at(metric, at, "metric", "along_geodesics")
        return inner.init(params)

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> Any:
        steps, state = inner.update(updates, state, params, **extra)
        v, at = pair(steps, params, "along_geodesics")
        if is_flat_in(metric, Coordinates.VALUE):
            return steps, state
        moved = jax.tree.map(jnp.subtract, exp(metric, at, v).end, at)
        if not is_traced(moved):
            require_finite_leaves(moved, "updates", "along_geodesics")
        return update_from(moved, updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)

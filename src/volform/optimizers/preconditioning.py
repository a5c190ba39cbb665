"""Gradients preconditioned by a metric, with damping that is a metric too."""

from collections.abc import Callable
from typing import Any

import lineax as lx
import optax
from jaxtyping import PyTree

from volform.compilation import is_traced
from volform.errors import OptimizerError
from volform.linalg import Point, dtype_of
from volform.optimizers.damping import AdaptiveDamping, Damping, gained, rate_under, solve_damped
from volform.optimizers.update_checks import (
    MetricFunction,
    as_params,
    is_finite,
    is_structured,
    operator_at,
    pair,
    require_definite_at,
    require_finite_leaves,
    require_matrix_fits,
    require_metric_function,
    require_value_fn,
    update_from,
)

Form = Callable[[Point, Any], lx.AbstractLinearOperator]


def precondition(
    metric: MetricFunction,
    *,
    damping: Damping = None,
    solve: lx.AbstractLinearSolver | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Precondition a gradient by a metric: `G(params)^-1 updates`, or `(G + D)^-1 updates`.

    The differential of a loss is a covector and no direction: a metric makes it one. As a
    transformation of optax it goes into `optax.chain` with schedules, clipping and masks; one
    entry of dicts that are masked is not shown to the metric. `natural_gradient` is its chain with
    a learning rate.

    Args:
        metric: a metric, or a function from the parameters to a symmetric lineax operator such as
            `vf.operators.ggn` or `fisher` gives. With `metric=` in the call of `tx.update` that one
            is used in its place, as for the curvature of a batch.
        damping: a metric D to add, as `0.1 * vf.Euclidean()`; a number is none, since the same
            number is another damping in other coordinates. `AdaptiveDamping(D)` finds the strength
            by the loss, which `tx.update` is then given as `value_fn=`.
        solve: solver of lineax, such as `lineax.CG(rtol=1e-3, atol=1e-8, max_steps=30)`, which
            needs products only; it compares entry by entry, and with an `atol` of zero an entry of
            zero ends it. By default exactly, at the cost of the structure: O(n) for diagonals, by
            Cholesky for a matrix, O(n^3).

    Returns:
        A transformation whose `update` needs `params`.

    Raises:
        MetricError: for a metric that is none, or on vectors unlike the parameters.
        SingularMetricError: where metric and damping are not positive definite at the start (`init`
            looks, outside of `jit`) or later; with `solve`, where the step found is not downhill.
        OptimizerError: for gradients or parameters that are not finite or laid out otherwise, half
            precision, and adaptive damping without `value_fn`. Inside of `jit` an update that is
            not finite is NaN in all entries, and the state stays.
        SizeError: where a matrix would not fit, and no `solve` that needs none is given.

    References:
        Amari (1998), Natural gradient works efficiently in learning; Martens (2020), New insights
        and perspectives on the natural gradient method, section 8 on damping.

    >>> import jax.numpy as jnp, optax, volform as vf
    >>> metric = vf.geometry.DiagonalField(lambda x: jnp.array([1.0, 100.0]))
    >>> tx = optax.chain(vf.optimizers.precondition(metric), optax.scale_by_learning_rate(0.5))
    >>> x = jnp.array([3.0, 4.0])
    >>> updates, _ = tx.update(jnp.array([1.0, 100.0]) * x, tx.init(x), x)  # of x1^2 + 100 x2^2
    >>> optax.apply_updates(x, updates).tolist()
    [1.5, 2.0]
    """
    return _preconditioned(metric, damping, solve, "precondition")


def _preconditioned(
    metric: MetricFunction,
    damping: Damping,
    solve: lx.AbstractLinearSolver | None,
    function: str,
) -> optax.GradientTransformationExtraArgs:
    require_metric_function(metric, "metric", function)
    return transformation(
        lambda params, extra: operator_at(extra.get("metric", metric), params, "metric", function),
        damping,
        solve,
        function,
        metric=metric,
    )


def natural_gradient(
    metric: MetricFunction,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    damping: Damping = None,
    solve: lx.AbstractLinearSolver | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend along the natural gradient, `-learning_rate G^-1 dL`: steepest in the metric.

    Invariant to the first order in the learning rate if the metric is carried along; with
    `along_geodesics` for every learning rate.

    Args:
        metric: as for `precondition`.
        learning_rate: a number or a schedule of optax; 1 with `AdaptiveDamping`.
        damping: as for `precondition`.
        solve: as for `precondition`.

    Returns:
        An optimizer of optax.

    Raises:
        VolformError: as for `precondition`.

    References:
        Amari (1998), Natural gradient works efficiently in learning.

    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, optax, volform as vf
    >>> loss = lambda p: (jnp.log(p[1]) - 1.0) ** 2
    >>> tx = vf.optimizers.natural_gradient(vf.Fisher(dist.Normal), 0.5)
    >>> p = (jnp.array(0.0), jnp.array(2.0))
    >>> updates, _ = tx.update(jax.grad(loss)(p), tx.init(p), p)
    >>> round(float(optax.apply_updates(p, updates)[1]), 6)
    2.306853
    """
    rate = rate_under(damping, learning_rate, "natural_gradient")
    return chained(
        _preconditioned(metric, damping, solve, "natural_gradient"),
        optax.scale_by_learning_rate(rate),
    )


def chained(*parts: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`optax.chain`, as the type that it returns."""
    chain = optax.chain(*parts)
    return optax.GradientTransformationExtraArgs(chain.init, chain.update)


def transformation(
    form: Form,
    damping: Damping,
    solve: lx.AbstractLinearSolver | None,
    function: str,
    *,
    metric: MetricFunction | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`updates` solved with a form, damped; in the name of a public function.

    Args:
        form: from parameters and the further arguments of `tx.update` to an operator.
        damping: a metric, `AdaptiveDamping` or None.
        solve: solver of lineax, or None.
        function: name for errors.
        metric: what the form is at the start, for checks; None where it may be indefinite.
    """
    if damping is not None and not isinstance(damping, AdaptiveDamping):
        require_metric_function(damping, "damping", function)
    if solve is not None and not isinstance(solve, lx.AbstractLinearSolver):
        raise OptimizerError(
            f"`solve` of {function} is {solve!r}; it should be a solver of lineax, such as "
            "`lineax.CG(rtol=1e-3, atol=1e-8)`, or None for the exact one."
        )
    adaptive = damping if isinstance(damping, AdaptiveDamping) else None
    fixed: Any = damping if adaptive is None else adaptive.metric
    definite = metric is not None

    def init(params: PyTree) -> Any:
        params = as_params(params, "params", function)
        if fixed is not None:
            require_definite_at(fixed, params, "damping", function, strictly=False)
        if metric is not None:
            _require_fitting(operator_at(metric, params, "metric", function), solve, function)
            if fixed is None and solve is None:
                require_definite_at(metric, params, "metric", function)
        if adaptive is None:
            return optax.EmptyState()
        return adaptive.state_at(params)

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> Any:
        w, at = pair(updates, params, function)
        if extra.get("value_fn") is not None:
            extra["value_fn"] = require_value_fn(extra["value_fn"], params, function)
        operator = form(at, extra)
        _require_fitting(operator, solve, function)
        base: Any = None if fixed is None else operator_at(fixed, at, "damping", function)
        if adaptive is None:
            found = solve_damped(operator, base, solve, w, definite)
        else:
            loss = require_value_fn(extra.get("value_fn"), params, function)
            found, state = gained(operator, base, solve, w, at, loss, state)
        if not is_traced(found) and not is_finite(found):
            used = extra.get("metric", metric) if definite else None
            for each, argument in ((fixed, "damping"), (used, "metric")):
                if each is not None:
                    strictly = fixed is None
                    require_definite_at(each, at, argument, function, strictly=strictly)
            _explain(operator, extra.get("value_fn"), at, found, definite, function)
        return update_from(found, updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _explain(
    operator: lx.AbstractLinearOperator,
    loss: Any,
    params: PyTree,
    found: PyTree,
    definite: bool,
    function: str,
) -> None:
    """Raise the error for a solution that is not finite, of a gradient that is."""
    remedy = (
        "no step was found that is downhill by `metric` and `damping`, which seem singular or "
        "indefinite at `params`: add more damping, or give another `solve`"
    )
    if loss is not None and not is_finite(loss(params)):
        remedy = "the loss is not finite at `params`: go on from where it is"
    elif not definite and is_finite(operator.mv(params)):
        remedy = "the Hessian is singular at `params`: add `damping=`, a multiple of a metric"
    elif not definite:
        remedy = "the Hessian is not finite at `params`: go on from where it is"
    require_finite_leaves(found, "the solution for updates", function, remedy)


def _require_fitting(
    operator: lx.AbstractLinearOperator, solve: lx.AbstractLinearSolver | None, function: str
) -> None:
    """Check that the matrix fits where an operator without structure is solved exactly."""
    if solve is None and not is_structured(operator):
        require_matrix_fits(
            operator.in_size(),
            dtype_of(operator),
            function,
            "give a solver that takes products only, as "
            "`solve=lineax.CG(rtol=1e-3, atol=1e-8, max_steps=30)`",
        )

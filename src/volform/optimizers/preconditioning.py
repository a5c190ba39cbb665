"""Gradients preconditioned by a metric, with damping that is a metric too."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.checks import require_positive
from volform.compilation import is_traced
from volform.errors import OptimizerError, SizeError
from volform.linalg import (
    BlockDiagonal,
    FlatBlocks,
    KroneckerSum,
    Point,
    added,
    dtype_of,
    fits,
    scaled,
    whiten,
)
from volform.optimizers.update_checks import (
    Loss,
    MetricFunction,
    as_params,
    is_finite,
    laid_out_like,
    operator_at,
    pair,
    rate_of,
    require_definite_at,
    require_finite_leaves,
    require_metric_function,
    require_value_fn,
)

# Nielsen's rule: the strength falls to a third at most, and grows faster with each refusal.
_LEAST_FACTOR, _FIRST_GROWTH, _MOST_STRENGTH = 1.0 / 3.0, 2.0, 1e16
# A predicted decrease of fewer units of rounding of the loss says nothing about the model.
_ROUNDINGS = 8.0
_UNIT = 2.0**20

Form = Callable[[Point, Any], lx.AbstractLinearOperator]


class AdaptiveDamping(eqx.Module):
    """Damping `strength * G_0` whose strength follows the gain ratio (Levenberg, Marquardt).

    The gain ratio is the decrease of the loss over the one that the quadratic model predicts. A
    step that increases the loss is not taken (the update is zero) and the strength grows; after
    one that does what was predicted it falls. Loss and ratio are functions, so that the strengths
    are the same in all coordinates. The step is the whole one, of learning rate 1.

    Args:
        metric: G_0, which is carried along like any metric.
        start: strength of the first step.

    References:
        Nielsen (1999), Damping parameter in Marquardt's method; Madsen, Nielsen & Tingleff (2004),
        Methods for non-linear least squares problems, section 3.2.

    >>> import volform as vf
    >>> AdaptiveDamping(vf.Euclidean(), start=0.1)
    AdaptiveDamping(Euclidean(), start=0.1)
    """

    metric: MetricFunction
    start: Any = 1.0

    def __check_init__(self) -> None:
        """Check both."""
        require_metric_function(self.metric, "metric", "AdaptiveDamping")
        require_positive(self.start, "start", "the first strength of the damping", OptimizerError)

    def __repr__(self) -> str:
        return f"AdaptiveDamping({self.metric}, start={self.start})"


Damping = MetricFunction | AdaptiveDamping | None


class AdaptiveDampingState(NamedTuple):
    """State of an optimizer with `AdaptiveDamping`.

    Attributes:
        strength: of the next step.
        growth: factor of the strength if that is refused.
        gain_ratio: of the last step; NaN before the first.
    """

    strength: Float[Array, ""]
    growth: Float[Array, ""]
    gain_ratio: Float[Array, ""]


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
            looks, outside of `jit`) or later.
        OptimizerError: for gradients that are not finite or laid out otherwise, and for adaptive
            damping without `value_fn`. Inside of `jit` an update of such gradients is NaN.
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
    require_metric_function(metric, "metric", "precondition")
    return transformation(
        lambda params, extra: operator_at(
            extra.get("metric", metric), params, "metric", "precondition"
        ),
        damping,
        solve,
        "precondition",
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
    rate = rate_of(learning_rate, "natural_gradient")
    return chained(
        precondition(metric, damping=damping, solve=solve), optax.scale_by_learning_rate(rate)
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
        dtype = ravel_pytree(params)[0].dtype
        numbers = (adaptive.start, _FIRST_GROWTH, jnp.nan)
        return AdaptiveDampingState(*(jnp.asarray(number, dtype) for number in numbers))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> Any:
        w, at = pair(updates, params, function)
        operator = form(at, extra)
        _require_fitting(operator, solve, function)
        if fixed is None:
            found, state = solve_damped(operator, None, solve, w, definite), state
        elif adaptive is None:
            base = operator_at(fixed, at, "damping", function)
            found = solve_damped(operator, base, solve, w, definite)
        else:
            loss = require_value_fn(extra.get("value_fn"), function)
            base = operator_at(fixed, at, "damping", function)
            found, state = _gained(operator, base, solve, w, at, loss, state)
        if not is_traced(found) and not is_finite(found):
            for each, argument in ((fixed, "damping"), (metric, "metric")):
                if each is not None:
                    strictly = fixed is None
                    require_definite_at(each, at, argument, function, strictly=strictly)
            require_finite_leaves(found, "the solution for updates", function)
        return laid_out_like(updates, found), state

    return optax.GradientTransformationExtraArgs(init, update)


_STRUCTURED = (
    lx.IdentityLinearOperator,
    lx.DiagonalLinearOperator,
    BlockDiagonal,
    FlatBlocks,
    KroneckerSum,
)


def _require_fitting(
    operator: lx.AbstractLinearOperator, solve: lx.AbstractLinearSolver | None, function: str
) -> None:
    """Check that the matrix fits where an operator without structure is solved exactly.

    Raises:
        SizeError: when it does not.
    """
    size = operator.in_size()
    if solve is not None or isinstance(operator, _STRUCTURED):
        return
    if not fits(size, size, dtype_of(operator)):
        raise SizeError(
            f"The matrix of {function} for {size:,} parameters would not fit into memory; give a "
            "solver that takes products only, as "
            "`solve=lineax.CG(rtol=1e-3, atol=1e-8, max_steps=30)`."
        )


@eqx.filter_jit
def solve_damped(
    form: lx.AbstractLinearOperator,
    damping: lx.AbstractLinearOperator | None,
    solve: lx.AbstractLinearSolver | None,
    covector: PyTree,
    definite: bool,
) -> PyTree:
    """`(form + damping)^-1 covector`; by Cholesky only where the sum is positive definite."""
    if solve is not None:
        return _by_products(form, damping, solve, covector, definite)
    total = form if damping is None else added(form, damping)
    if definite:
        # The differential of half the cometric |L^-1 w|^2, which knows the structure.
        return jax.grad(lambda w: 0.5 * jnp.sum(whiten(total, w) ** 2))(covector)
    flat, unravel = ravel_pytree(covector)
    return unravel(jnp.linalg.solve(total.as_matrix(), flat))


def _by_products(
    form: lx.AbstractLinearOperator,
    damping: lx.AbstractLinearOperator | None,
    solve: lx.AbstractLinearSolver,
    covector: PyTree,
    definite: bool,
) -> PyTree:
    total = lx.linearise(form)
    if damping is not None:
        total = lx.AddLinearOperator(total, damping)
    tag = lx.positive_semidefinite_tag if definite else lx.symmetric_tag
    # lineax's CG takes `p^T A p <= 100 n eps p^T p` for singular and gives NaN: in single precision
    # that is any curvature below 1 for 85,000 parameters. Both sides in other units are not.
    unit = jnp.asarray(_UNIT, ravel_pytree(covector)[0].dtype)
    total = lx.TaggedLinearOperator(lx.MulLinearOperator(total, unit), tag)
    right = jax.tree.map(lambda w: unit * w, covector)
    # What a solver has after its last step is a direction too, as in Hessian-free optimization.
    return lx.linear_solve(total, right, solve, throw=False).value


@eqx.filter_jit
def _gained(
    form: lx.AbstractLinearOperator,
    damping: lx.AbstractLinearOperator,
    solve: lx.AbstractLinearSolver | None,
    covector: PyTree,
    params: PyTree,
    loss: Loss,
    state: AdaptiveDampingState,
) -> tuple[PyTree, AdaptiveDampingState]:
    """The damped step if it decreases the loss, else zero; and the next strength."""
    strength = state.strength
    base = scaled(strength, damping)
    step = jax.tree.map(jnp.negative, solve_damped(form, base, solve, covector, definite=True))
    ratio, blind = gain_ratio(form, covector, step, params, loss)
    accept = ratio > 0.0
    factor = jnp.maximum(_LEAST_FACTOR, 1.0 - (2.0 * ratio - 1.0) ** 3)
    grown = jnp.minimum(strength * state.growth, _MOST_STRENGTH)
    after = AdaptiveDampingState(
        jnp.where(accept, strength * factor, grown),
        jnp.where(accept, _FIRST_GROWTH, 2.0 * state.growth),
        ratio,
    )
    kept = jax.tree.map(lambda new, old: jnp.where(blind, old, new), after, state)
    taken = accept | blind
    return jax.tree.map(lambda s: jnp.where(taken, -s, jnp.zeros_like(s)), step), kept


def gain_ratio(
    form: lx.AbstractLinearOperator, covector: PyTree, step: PyTree, params: PyTree, loss: Loss
) -> tuple[Float[Array, ""], Array]:
    """Decrease of the loss by a step over that of its quadratic model; -inf where it is none.

    Also tells whether the model's decrease is rounding of the loss.
    """
    g, d = (ravel_pytree(tree)[0] for tree in (covector, step))
    predicted = -(g @ d + 0.5 * d @ ravel_pytree(form.mv(step))[0])
    before, after = loss(params), loss(jax.tree.map(jnp.add, params, step))
    usable = (predicted > 0.0) & jnp.isfinite(after)
    ratio = (before - after) / jnp.where(usable, predicted, 1.0)
    rounding = _ROUNDINGS * jnp.finfo(d.dtype).eps * jnp.abs(before)
    return jnp.where(usable, ratio, -jnp.inf), usable & (predicted <= rounding)

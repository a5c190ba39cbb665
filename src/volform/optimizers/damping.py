"""Damping by a metric, adaptive or not: solves with a damped form, and the gain ratio of a step."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.checks import require_positive
from volform.compilation import is_traced
from volform.errors import OptimizerError
from volform.linalg import added, scaled, whiten
from volform.optimizers.update_checks import (
    Loss,
    MetricFunction,
    is_structured,
    rate_of,
    require_metric_function,
)

# Nielsen's rule: the strength falls to a third at most, and grows faster with each refusal.
_LEAST_FACTOR, _FIRST_GROWTH = 1.0 / 3.0, 2.0
_LEAST_STRENGTH, _MOST_STRENGTH = 1e-16, 1e16
# A predicted decrease of fewer units of rounding of the loss says nothing about the model.
_ROUNDINGS = 8.0
_UNIT = 2.0**20


class AdaptiveDamping(eqx.Module):
    """Damping `strength * G_0` whose strength follows the gain ratio (Levenberg, Marquardt).

    The gain ratio is the decrease of the loss over the one that the quadratic model predicts. A
    step that increases the loss is not taken (the update is zero) and the strength grows; after
    one that does what was predicted it falls. Loss and ratio are functions, so that the strengths
    are the same in all coordinates. The step is the whole one: another learning rate than 1 is
    refused. A batch without a gradient, or of which the loss is not finite, leaves the strength.

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

    def state_at(self, params: PyTree) -> "AdaptiveDampingState":
        """The first state, in the dtype of the parameters."""
        dtype = ravel_pytree(params)[0].dtype
        numbers = (self.start, _FIRST_GROWTH, jnp.nan)
        return AdaptiveDampingState(*(jnp.asarray(number, dtype) for number in numbers))


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


def rate_under(damping: Damping, learning_rate: Any, function: str) -> Any:
    """A learning rate: a number or a schedule; 1 with adaptive damping.

    Raises:
        OptimizerError: for anything else.
    """
    rate = rate_of(learning_rate, function)
    whole = is_traced(rate) or (not callable(rate) and rate == 1)
    if isinstance(damping, AdaptiveDamping) and not whole:
        raise OptimizerError(
            f"`learning_rate` of {function} is {rate!r} with AdaptiveDamping, whose gain ratio is "
            "that of the whole step; leave it at 1, and take shorter steps by a larger `start`."
        )
    return rate


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
        found = jax.grad(lambda w: 0.5 * jnp.sum(whiten(total, w) ** 2))(covector)
        return found if is_structured(total) else _regular(total, covector, found)
    flat, unravel = ravel_pytree(covector)
    return unravel(jnp.linalg.solve(total.as_matrix(), flat))


def _regular(total: lx.AbstractLinearOperator, covector: PyTree, found: PyTree) -> PyTree:
    """The solution `v = A^-1 w`; NaN where rounding alone tells A from a singular matrix.

    `w^T v` is no more than `sum_i w_i^2 / A_ii` over the lowest eigenvalue of A in units in which
    its diagonal is one. Beyond that bound with n roundings, the eigenvalue is rounding.
    """
    w, v = (ravel_pytree(tree)[0] for tree in (covector, found))
    bound = jnp.sum(w**2 / jnp.diagonal(total.as_matrix()))
    singular = w.size * jnp.finfo(w.dtype).eps * (w @ v) > bound
    return jax.tree.map(lambda leaf: jnp.where(singular, jnp.nan, leaf), found)


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
    try:
        found = lx.linear_solve(total, right, solve, throw=False).value
    except (ValueError, TypeError, NotImplementedError) as error:
        raise OptimizerError(
            f"`solve`, {solve}, cannot solve with products ({error}); give "
            + (
                "`lineax.CG(rtol=1e-3, atol=1e-8)`."
                if definite
                else "`lineax.GMRES(rtol=1e-3, atol=1e-8)`, which takes an indefinite Hessian, or "
                "`AdaptiveDamping` with `lineax.CG`."
            )
        ) from error
    if not definite:
        return found
    # Under a positive-definite form the solution is downhill.
    slope = sum(map(jnp.vdot, *map(jax.tree.leaves, (found, covector))))
    still = jnp.all(ravel_pytree(covector)[0] == 0.0)
    return jax.tree.map(lambda v: jnp.where((slope > 0.0) | still, v, jnp.nan), found)


@eqx.filter_jit
def gained(
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
    next_strength = jnp.where(accept, strength * factor, strength * state.growth)
    after = AdaptiveDampingState(
        jnp.clip(next_strength, _LEAST_STRENGTH, _MOST_STRENGTH),
        jnp.where(accept, _FIRST_GROWTH, 2.0 * state.growth),
        ratio,
    )
    unknown = jnp.isnan(ratio)
    kept = jax.tree.map(lambda new, old: jnp.where(blind | unknown, old, new), after, state)
    otherwise = jnp.where(unknown, jnp.nan, jnp.zeros_like(ratio))
    return jax.tree.map(lambda s: jnp.where(accept | blind, -s, otherwise), step), kept


def gain_ratio(
    form: lx.AbstractLinearOperator, covector: PyTree, step: PyTree, params: PyTree, loss: Loss
) -> tuple[Float[Array, ""], Array]:
    """Decrease of the loss by a step over that of its quadratic model; -inf where it is none.

    NaN where the loss or its gradient is not finite to begin with: nothing is known of the model
    then. Also tells whether the model's decrease is none, or rounding of the loss.
    """
    g, d = (ravel_pytree(tree)[0] for tree in (covector, step))
    predicted = -(g @ d + 0.5 * d @ ravel_pytree(form.mv(step))[0])
    before, after = loss(params), loss(jax.tree.map(jnp.add, params, step))
    finite = jnp.isfinite(after) & jnp.isfinite(predicted)
    usable = (predicted > 0.0) & finite
    # The loss may be computed in another precision than the parameters have.
    ratio = jnp.asarray(before - after, d.dtype) / jnp.where(usable, predicted, 1.0)
    ratio = jnp.where(usable, ratio, -jnp.inf)
    known = jnp.isfinite(before) & jnp.isfinite(g).all()
    rounding = _ROUNDINGS * jnp.finfo(d.dtype).eps * jnp.abs(jnp.asarray(before, d.dtype))
    blind = known & finite & (predicted >= 0.0) & (predicted <= rounding)
    return jnp.where(known, ratio, jnp.nan), blind

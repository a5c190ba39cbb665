"""Minimizing -log q^G by products with its Hessian, where the matrix would cost too much."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from volform.compilation import steady
from volform.inference.modes.expansion import objective
from volform.inference.modes.trust_region import TrialStep, initial_step
from volform.linalg.under_metric import whitening_maps
from volform.models.posterior import Posterior

# Products with the Hessian in a step, a bound for ill-conditioned ones: conjugate gradients reduce
# the error by exp(-2 k / sqrt(condition)), so that 500 resolve a condition of 10^5 to a tenth.
PRODUCTS = 500
# A step leaves min(0.05, sqrt(|gradient|)) of the gradient: superlinear (Dembo, Eisenstat &
# Steihaug 1982), and from the start below the tenth at which a step counts as stalled.
FORCING = 0.05


class NewtonCGState(eqx.Module):
    """State of the method, the best point so far.

    Attributes:
        u: the point.
        value: l = -log q^G there.
        gradient: its slope in coordinates orthonormal at u, which is that of the step too.
        trial: the step to try next.
        gradients: gradients and products with the Hessian so far.
    """

    u: Float[Array, " d"]
    value: Float[Array, ""]
    gradient: Float[Array, " d"]
    trial: TrialStep
    gradients: Int[Array, ""]


@steady
def newton_cg(
    posterior: Posterior, start: Float[Array, " d"], tolerance: float, max_steps: int
) -> NewtonCGState:
    """Newton's method by conjugate gradients in a trust region (Steihaug 1983).

    Distances are measured by the metric at u, which is the preconditioner too, so that the units
    of the coordinates do not matter.
    """
    loss = jax.value_and_grad(lambda u: objective(u, posterior))
    rounding = 100 * float(jnp.finfo(start.dtype).eps)

    def unfinished(state: NewtonCGState) -> Bool[Array, ""]:
        size = jnp.linalg.norm(state.gradient)
        return state.trial.should_continue(state.value, size, tolerance, max_steps)

    def step(state: NewtonCGState) -> NewtonCGState:
        attempt = state.trial
        trial = state.u + whitening_maps(posterior.metric(state.u))[1](attempt.move)
        value, slope = loss(trial)
        slope = whitening_maps(posterior.metric(trial))[0](slope)
        slopes = jnp.linalg.norm(state.gradient), jnp.linalg.norm(slope)
        length = jnp.linalg.norm(attempt.move)
        accept, radius, stalled = attempt.assess((state.value, value), slopes, length, rounding)
        # The distance of a typical draw from the mode where the metric is the posterior's own.
        radius = jnp.where(attempt.steps == 0, jnp.sqrt(1.0 * start.size), radius)
        u, value, slope = jax.tree.map(
            lambda new, old: jnp.where(accept, new, old),
            (trial, value, slope),
            (state.u, state.value, state.gradient),
        )
        product = _product(posterior, u)
        move, predicted, decrement, products = _step(product, slope, radius, tolerance)
        following = TrialStep(move, predicted, decrement, radius, attempt.steps + 1, stalled)
        return NewtonCGState(u, value, slope, following, state.gradients + 1 + products)

    zero, nowhere = jnp.zeros_like(start), jnp.full((), jnp.inf, start.dtype)
    initial = NewtonCGState(start, nowhere, zero, initial_step(start), jnp.array(0))
    return jax.lax.while_loop(unfinished, step, initial)


@steady
def newton_cg_from(
    posterior: Posterior, starts: Float[Array, "n d"], tolerance: float, max_steps: int
) -> NewtonCGState:
    """`newton_cg` from one start after the other."""
    return jax.lax.map(lambda start: newton_cg(posterior, start, tolerance, max_steps), starts)


def _product(posterior: Posterior, u: Float[Array, " d"]) -> Callable[[Array], Array]:
    """Products with the Hessian of l at u, in coordinates orthonormal there."""
    down, up = whitening_maps(posterior.metric(u))
    _, push = jax.linearize(jax.grad(lambda u: objective(u, posterior)), u)
    return lambda v: down(push(up(v)))


def _step(
    product: Callable[[Array], Array],
    gradient: Float[Array, " d"],
    radius: Float[Array, ""],
    tolerance: float,
) -> tuple[Float[Array, " d"], Float[Array, ""], Float[Array, ""], Int[Array, ""]]:
    """The step, its predicted decrease, its decrement if it is Newton's, the number of products."""
    size = jnp.linalg.norm(gradient)
    # Closer than a tenth of the gradient, by which a step that is not stalled decreases it.
    close = jnp.maximum(jnp.minimum(FORCING, jnp.sqrt(size)) * size, 1e-3 * tolerance)

    def unfinished(state: Any) -> Bool[Array, ""]:
        _, _, residual, _, is_outside, count = state
        is_close = jnp.linalg.norm(residual) <= close
        return (count == 0) | ~(is_close | is_outside | (count >= PRODUCTS))

    def step(state: Any) -> Any:
        move, image, residual, direction, _, count = state
        along = product(direction)
        curvature, square = direction @ along, residual @ residual
        rate = square / jnp.where(curvature > 0, curvature, 1)
        is_outside = (curvature <= 0) | (jnp.linalg.norm(move + rate * direction) >= radius)
        rate = jnp.where(is_outside, _to_boundary(move, direction, radius), rate)
        move, image = move + rate * direction, image + rate * along
        residual = residual + rate * along
        direction = (residual @ residual) / square * direction - residual
        return move, image, residual, direction, is_outside, count + 1

    zero = jnp.zeros_like(gradient)
    initial = zero, zero, gradient, -gradient, jnp.array(False), jnp.array(0)
    move, image, _, _, is_outside, count = jax.lax.while_loop(unfinished, step, initial)
    decrement = jnp.sqrt(jnp.maximum(-(gradient @ move), 0.0))
    predicted = -(gradient @ move + 0.5 * move @ image)
    return move, predicted, jnp.where(is_outside, jnp.inf, decrement), count


def _to_boundary(
    move: Float[Array, " d"], direction: Float[Array, " d"], radius: Float[Array, ""]
) -> Float[Array, ""]:
    """The t > 0 with `|move + t direction| = radius`."""
    a, b = direction @ direction, move @ direction
    c = jnp.maximum(radius**2 - move @ move, 0)
    return c / (b + jnp.sqrt(b**2 + a * c))

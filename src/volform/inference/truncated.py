"""Minimizing -log q^G by products with its Hessian, where the matrix would cost too much."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from volform.inference.local import objective
from volform.inference.trust import Attempt, first_attempt
from volform.models import Posterior
from volform.operators.curvature import frame

PRODUCTS = 500  # with the Hessian, in a step


class Position(eqx.Module):
    """State of the method, the best point so far.

    Attributes:
        u: the point.
        value: l = -log q^G there.
        gradient: its slope in coordinates orthonormal at u, which is that of the step too.
        attempt: the step to try next.
        gradients: gradients and products with the Hessian so far.
    """

    u: Float[Array, " d"]
    value: Float[Array, ""]
    gradient: Float[Array, " d"]
    attempt: Attempt
    gradients: Int[Array, ""]


@eqx.filter_jit
def settle(
    posterior: Posterior, start: Float[Array, " d"], tolerance: float, max_steps: int
) -> Position:
    """Newton's method by conjugate gradients in a trust region (Steihaug 1983).

    Distances are measured by the metric at u, which is the preconditioner too, so that the units
    of the coordinates do not matter.
    """
    loss = jax.value_and_grad(lambda u: objective(u, posterior))
    rounding = 100 * float(jnp.finfo(start.dtype).eps)

    def unfinished(state: Position) -> Bool[Array, ""]:
        size = jnp.linalg.norm(state.gradient)
        return state.attempt.goes_on(state.value, size, tolerance, max_steps)

    def step(state: Position) -> Position:
        attempt = state.attempt
        trial = state.u + frame(posterior.metric(state.u))[1](attempt.move)
        value, slope = loss(trial)
        slope = frame(posterior.metric(trial))[0](slope)
        slopes = jnp.linalg.norm(state.gradient), jnp.linalg.norm(slope)
        length = jnp.linalg.norm(attempt.move)
        accept, radius, stalled = attempt.outcome((state.value, value), slopes, length, rounding)
        radius = jnp.where(attempt.steps == 0, jnp.sqrt(1.0 * start.size), radius)
        u, value, slope = jax.tree.map(
            lambda new, old: jnp.where(accept, new, old),
            (trial, value, slope),
            (state.u, state.value, state.gradient),
        )
        product = _product(posterior, u)
        move, promise, decrement, products = _step(product, slope, radius, tolerance)
        following = Attempt(move, promise, decrement, radius, attempt.steps + 1, stalled)
        return Position(u, value, slope, following, state.gradients + 1 + products)

    zero, nowhere = jnp.zeros_like(start), jnp.full((), jnp.inf, start.dtype)
    initial = Position(start, nowhere, zero, first_attempt(start), jnp.array(0))
    return jax.lax.while_loop(unfinished, step, initial)


def _product(posterior: Posterior, u: Float[Array, " d"]) -> Callable[[Array], Array]:
    """Products with the Hessian of l at u, in coordinates orthonormal there."""
    down, up = frame(posterior.metric(u))
    _, push = jax.linearize(jax.grad(lambda u: objective(u, posterior)), u)
    return lambda v: down(push(up(v)))


def _step(
    product: Callable[[Array], Array],
    gradient: Float[Array, " d"],
    radius: Float[Array, ""],
    tolerance: float,
) -> tuple[Float[Array, " d"], Float[Array, ""], Float[Array, ""], Int[Array, ""]]:
    """The step, its promise, the decrement where it is Newton's, and the number of products."""
    size = jnp.linalg.norm(gradient)
    # Closer than a tenth of the gradient, by which a step that is not stalled decreases it.
    close = jnp.maximum(jnp.minimum(0.05, jnp.sqrt(size)) * size, 1e-3 * tolerance)

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
    promise = -(gradient @ move + 0.5 * move @ image)
    return move, promise, jnp.where(is_outside, jnp.inf, decrement), count


def _to_boundary(
    move: Float[Array, " d"], direction: Float[Array, " d"], radius: Float[Array, ""]
) -> Float[Array, ""]:
    """The t > 0 with `|move + t direction| = radius`."""
    a, b = direction @ direction, move @ direction
    c = jnp.maximum(radius**2 - move @ move, 0)
    return c / (b + jnp.sqrt(b**2 + a * c))

"""Minimizing -log q^G: BFGS from several starts, then Newton in a trust region of the metric."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpyro import handlers
from numpyro.infer import init_to_sample

from volform.inference.local import Expansion, expand, objective
from volform.models import Posterior


class Trajectory(eqx.Module):
    """State of Newton's method: the expansion at the best point so far.

    Attributes:
        at: the expansion at the current point.
        move: the step to try next, in the frame of `at`.
        radius: radius of the trust region, in the metric's norm.
        steps: steps tried.
        stalled: whether no step improves any more, to rounding.
    """

    at: Expansion
    move: Float[Array, " d"]
    radius: Float[Array, ""]
    steps: Int[Array, ""]
    stalled: Any


@eqx.filter_jit
def starting_points(posterior: Posterior, key: PRNGKeyArray, count: int) -> Float[Array, "n d"]:
    """Starts: the origin of u, then uniform on (-2, 2)^d as NumPyro starts, then prior draws.

    Sites without a sampler (improper priors) are drawn as by `init_to_uniform`.
    """
    wide, deep = jax.random.split(key)
    draws = (count - 1) // 2
    uniform = jax.random.uniform(wide, (count - 1 - draws, posterior.dim), minval=-2.0, maxval=2.0)
    points = [jnp.zeros((1, posterior.dim)), uniform]
    if draws:
        keys = jax.random.split(deep, draws)
        points.append(jax.vmap(lambda key: _prior_draw(posterior, key))(keys))
    return jnp.concatenate(points)


def _prior_draw(posterior: Posterior, key: PRNGKeyArray) -> Float[Array, " d"]:
    seeded = handlers.seed(posterior.model, key)
    trace = posterior.program.trace(handlers.substitute(seeded, substitute_fn=init_to_sample))
    return posterior.unconstrain({name: trace[name]["value"] for name in posterior.names})


@eqx.filter_jit
def descend(
    posterior: Posterior, starts: Float[Array, "n d"], max_steps: int
) -> tuple[Float[Array, "n d"], Int[Array, " n"]]:
    """Optimistix's BFGS on -log q^G from every start at once (L-BFGS above 1000 parameters)."""
    method = optx.BFGS if posterior.dim <= 1000 else optx.LBFGS
    solver = method(rtol=1e-4, atol=1e-4)

    def run(start: Float[Array, " d"]) -> tuple[Float[Array, " d"], Int[Array, ""]]:
        found = optx.minimise(
            objective, solver, start, args=posterior, max_steps=max_steps, throw=False
        )
        is_finite = jnp.all(jnp.isfinite(found.value))
        return jnp.where(is_finite, found.value, start), found.stats["num_steps"]

    return jax.vmap(run)(starts)


@eqx.filter_jit
def refine(
    posterior: Posterior, u: Float[Array, " d"], tolerance: float, max_steps: int
) -> Trajectory:
    """Newton's method with the exact Hessian of -log q^G, in a trust region of the metric.

    Goes on below `tolerance` while steps still improve: log det H needs the mode to more digits
    than l does. Each step minimizes the quadratic model exactly within a ball of the
    metric's norm, in the eigenbasis of E = G^-1 H (More & Sorensen 1983). Directions of negative
    curvature are followed down, so that a saddle is left.
    """

    def unfinished(state: Trajectory) -> Any:
        at = state.at
        is_minimum = (at.gradient_norm < 1e-6 * tolerance) & (at.eigenvalues[0] >= 0.0)
        finite = jnp.isfinite(at.value) & jnp.isfinite(at.gradient_norm)
        ongoing = finite & ~is_minimum & ~state.stalled & (state.steps < max_steps)
        return (state.steps == 0) | ongoing

    def step(state: Trajectory) -> Trajectory:
        at, move, first = state.at, state.move, state.steps == 0
        trial = expand(posterior, jnp.where(first, at.u, at.u + at.frame @ move))
        predicted = -(at.gradient @ move + 0.5 * (at.eigenvalues * move) @ move)
        actual = at.value - trial.value
        # Below rounding of l itself its differences say nothing; the gradient still does.
        blind = predicted < 1e-10 * (1.0 + jnp.abs(at.value))
        closer = trial.gradient_norm < at.gradient_norm
        accept = jnp.where(blind, closer, actual > 1e-4 * predicted)
        accept = accept & jnp.isfinite(trial.value) & jnp.all(jnp.isfinite(trial.eigenvalues))
        length = jnp.linalg.norm(move)
        wider = jnp.where(actual > 0.75 * predicted, 2.0 * length, 0.0)
        radius = jnp.where(accept, jnp.maximum(state.radius, wider), 0.25 * length)
        # The first radius is the length of the Newton step itself, whatever the metric's units; at
        # a saddle, where that may be zero, the length at which l changes by about one.
        lowest = trial.eigenvalues[0]
        escape = jnp.where(lowest < 0.0, jax.lax.rsqrt(jnp.abs(lowest)), 0.0)
        radius = jnp.where(first, jnp.maximum(1.01 * trial.newton_length, escape), radius)
        best = jax.tree.map(lambda new, old: jnp.where(accept | first, new, old), trial, at)
        slow = blind & ~(trial.gradient_norm < 0.1 * at.gradient_norm)
        stalled = ~first & (slow | (radius < 1e-12 * at.newton_length))
        return Trajectory(best, _trust_region_step(best, radius), radius, state.steps + 1, stalled)

    shapes = eqx.filter_eval_shape(expand, posterior, u)
    nowhere = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    nowhere = eqx.tree_at(
        lambda e: (e.u, e.value), nowhere, (u, jnp.full_like(nowhere.value, jnp.inf))
    )
    initial = Trajectory(
        nowhere, jnp.zeros_like(u), jnp.ones((), u.dtype), jnp.array(0), jnp.array(False)
    )
    return jax.lax.while_loop(unfinished, step, initial)


def _trust_region_step(at: Expansion, radius: Float[Array, ""]) -> Float[Array, " d"]:
    """argmin of g.s + 1/2 s.diag(eigenvalues).s over |s| <= radius, in the frame."""
    g, eigenvalues = at.gradient, at.eigenvalues
    lowest = eigenvalues[0]
    precision = jnp.finfo(g.dtype)
    tiny = 4.0 * precision.eps * jnp.max(jnp.abs(eigenvalues)) + precision.tiny
    # A nudge along the lowest eigenvector decides the direction at an exact saddle.
    least = jnp.where(lowest < 0.0, 1e-6 * jnp.abs(lowest) * radius, 0.0)
    nudge = jnp.maximum(jnp.abs(g[0]), least)
    g = g.at[0].set(jnp.where(g[0] < 0.0, -nudge, nudge))

    def length(shift: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.linalg.norm(g / (eigenvalues + shift))

    low = jnp.maximum(0.0, -lowest) + jnp.where(lowest <= 0.0, tiny, 0.0)
    high = jnp.maximum(low, jnp.linalg.norm(g) / radius - lowest) + tiny

    def halve(_: Any, bounds: tuple) -> tuple:
        low, high = bounds
        middle = jnp.where(high > 4.0 * low, jnp.sqrt((low + tiny) * high), 0.5 * (low + high))
        outside = length(middle) > radius
        return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

    _, shift = jax.lax.fori_loop(0, 60, halve, (low, high))
    inside = (lowest > 0.0) & (length(jnp.zeros_like(low)) <= radius)
    return -g / (eigenvalues + jnp.where(inside, 0.0, shift))

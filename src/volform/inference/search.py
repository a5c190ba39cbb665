"""Minimizing -log q^G: BFGS from several starts, then Newton's method in a trust region."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from numpyro import handlers
from numpyro.infer import init_to_sample

from volform.inference.local import Expansion, expand, objective
from volform.inference.truncated import settle
from volform.inference.trust import Attempt, first_attempt
from volform.models import Posterior


class Trajectory(eqx.Module):
    """State of Newton's method: the expansion at the best point so far.

    Attributes:
        at: the expansion at the current point.
        scale: units 1 / s_i of the coordinates, s_i^2 the largest |H_ii| so far, shape (d,).
        attempt: the step to try next; its length and the radius are in those units.
    """

    at: Expansion
    scale: Float[Array, " d"]
    attempt: Attempt


class End(eqx.Module):
    """Where a search ended: the expansion there, and the steps of Newton's method."""

    at: Expansion
    steps: Int[Array, ""]


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
        points.append(prior_draws(posterior, deep, draws))
    return jnp.concatenate(points)


@eqx.filter_jit
def prior_draws(posterior: Posterior, key: PRNGKeyArray, count: int) -> Float[Array, "n d"]:
    """Draws from the prior; of sites without a sampler as by `init_to_uniform`."""
    return jax.vmap(lambda key: _prior_draw(posterior, key))(jax.random.split(key, count))


def _prior_draw(posterior: Posterior, key: PRNGKeyArray) -> Float[Array, " d"]:
    seeded = handlers.seed(posterior.model, key)
    trace = posterior.program.trace(handlers.substitute(seeded, substitute_fn=init_to_sample))
    return posterior.unconstrain({name: trace[name]["value"] for name in posterior.names})


@eqx.filter_jit
def descend(
    posterior: Posterior, starts: Float[Array, "n d"], max_steps: int
) -> tuple[Float[Array, "n d"], Int[Array, " n"]]:
    """Optimistix's BFGS on -log q^G from every start at once; above 1,000 parameters `settle`."""
    if posterior.dim > 1000:
        ends = jax.lax.map(lambda start: settle(posterior, start, 1e-4, max_steps), starts)
        return ends.u, ends.gradients
    solver = optx.BFGS(rtol=1e-4, atol=1e-4)

    def run(start: Float[Array, " d"]) -> tuple[Float[Array, " d"], Int[Array, ""]]:
        found = optx.minimise(
            objective, solver, start, args=posterior, max_steps=max_steps, throw=False
        )
        is_finite = jnp.all(jnp.isfinite(found.value))
        return jnp.where(is_finite, found.value, start), found.stats["num_steps"]

    return jax.vmap(run)(starts)


@eqx.filter_jit
def refine(
    posterior: Posterior, starts: Float[Array, "n d"], tolerance: float, max_steps: int
) -> End:
    """Newton's method with the exact Hessian of -log q^G, from one point after the other.

    Goes on below `tolerance` while steps still improve: log det H needs the mode to more digits
    than l does. Steps stay in a trust region, in the units that the Hessian's diagonal gives the
    coordinates (More 1978). Where H is positive definite the step is Newton's, cut to that length;
    elsewhere it minimizes the quadratic model within the ball exactly (More & Sorensen 1983), and
    follows directions of negative curvature down, so that a saddle is left.
    """

    def run(u: Float[Array, " d"]) -> End:
        end = newton(posterior, u, tolerance, max_steps)
        return End(end.at, end.attempt.steps)

    # Not vmapped: under vmap every step would pay for both kinds.
    return jax.lax.map(run, starts)


def newton(
    posterior: Posterior, u: Float[Array, " d"], tolerance: float, max_steps: int
) -> Trajectory:
    """Newton's method from one point: the last state of its trajectory."""
    rounding = max(1e-10, 100.0 * float(jnp.finfo(u.dtype).eps))

    def unfinished(state: Trajectory) -> Bool[Array, ""]:
        at = state.at
        return state.attempt.goes_on(at.value, at.gradient_norm, tolerance, max_steps)

    def step(state: Trajectory) -> Trajectory:
        at, attempt = state.at, state.attempt
        trial = expand(posterior, at.u + attempt.move)
        values, slopes = (at.value, trial.value), (at.gradient_norm, trial.gradient_norm)
        length = jnp.linalg.norm(state.scale * attempt.move)
        accept, radius, stalled = attempt.outcome(values, slopes, length, rounding)
        first = attempt.steps == 0
        accept = first | (accept & jnp.all(jnp.isfinite(trial.hessian)))
        best = jax.tree.map(lambda new, old: jnp.where(accept, new, old), trial, at)
        scale = jnp.maximum(state.scale, jnp.sqrt(jnp.abs(jnp.diagonal(best.hessian))))
        units = jnp.where(scale > 0.0, scale, 1.0)
        move, radius, decrement = _step(best, units, jnp.where(first, jnp.inf, radius))
        promise = -(best.gradient @ move + 0.5 * move @ best.hessian @ move)
        following = Attempt(move, promise, decrement, radius, attempt.steps + 1, stalled)
        return Trajectory(best, scale, following)

    shapes = eqx.filter_eval_shape(expand, posterior, u)
    nowhere = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    nowhere = eqx.tree_at(
        lambda e: (e.u, e.value), nowhere, (u, jnp.full_like(nowhere.value, jnp.inf))
    )
    initial = Trajectory(nowhere, jnp.zeros_like(u), first_attempt(u))
    return jax.lax.while_loop(unfinished, step, initial)


def _step(
    at: Expansion, units: Float[Array, " d"], radius: Float[Array, ""]
) -> tuple[Float[Array, " d"], Float[Array, ""], Float[Array, ""]]:
    """The step within `radius`, the radius itself, and the Newton decrement.

    An infinite radius is given a length: that of the Newton step; at a saddle, where that may be
    zero, the length at which l changes by about one.
    """
    gradient, hessian = at.gradient / units, at.hessian / (units[:, None] * units)
    factor = jnp.linalg.cholesky(hessian)

    def newton() -> tuple[Array, Array, Array]:
        step = -cho_solve((factor, True), gradient)
        decrement = jnp.sqrt(jnp.maximum(-gradient @ step, 0.0))
        length = jnp.linalg.norm(step)
        cut = jnp.where(length > radius, radius / length, 1.0)
        return cut * step, jnp.where(jnp.isinf(radius), length, radius), decrement

    def within_ball() -> tuple[Array, Array, Array]:
        eigenvalues, vectors = jnp.linalg.eigh(hessian)
        slope = vectors.T @ gradient
        length = jnp.linalg.norm(slope / jnp.abs(eigenvalues))
        given = jnp.maximum(1.01 * length, jax.lax.rsqrt(jnp.abs(eigenvalues[0])))
        bound = jnp.where(jnp.isinf(radius), given, radius)
        step = vectors @ _trust_region_step(slope, eigenvalues, bound)
        return step, bound, jnp.full_like(bound, jnp.inf)

    step, radius, decrement = jax.lax.cond(jnp.all(jnp.isfinite(factor)), newton, within_ball)
    return step / units, radius, decrement


def _trust_region_step(
    g: Float[Array, " d"], eigenvalues: Float[Array, " d"], radius: Float[Array, ""]
) -> Float[Array, " d"]:
    """argmin of g.s + 1/2 s.diag(eigenvalues).s over |s| <= radius, with a negative eigenvalue."""
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
    return -g / (eigenvalues + shift)

"""Minimizing -log q^G by Newton's method with the exact Hessian, in a trust region."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float, Int

from volform.compilation import QUICK_UP_TO, by_numbers, numbers_in
from volform.inference.modes.expansion import SecondOrder, expand_second
from volform.inference.modes.trust_region import TrialStep, initial_step
from volform.limits import NEWTON_FROM_ALL_UP_TO
from volform.models.posterior import Posterior

# Relative error of l in float64, of sums over data and of derivatives' cancellations; in float32 a
# hundred roundings.
ROUNDING = 1e-10
# An infinite first radius becomes the length of the step by |eigenvalues| and a little more, so
# that this step itself is inside.
BEYOND_STEP = 1.01
# At an exact saddle the gradient says nothing: a slope along the lowest eigenvector, a millionth of
# what its curvature gives at the radius, decides the direction there, and elsewhere no digit.
NUDGE = 1e-6
# Bisections of the shift: 2^-60 is below rounding.
BISECTIONS = 60
# Parameters up to which a Hessian counts as one reading of the data. It takes a gradient for each:
# of NumPyro's hidden Markov model, 33 parameters and 600 words, it takes 17 ms compiled quickly and
# 6 with optimizations, which a search asks for a thousand times.
GRADIENTS = 3
# Of the coordinates that a chart bends, logarithms and logits of values: a step of e^5 in the
# value. One of e^67, which a quadratic model asks for far out, keeps a solver of equations busy.
LONGEST_BENT = 5.0
# Of those coordinates, beyond which a search ends, as its density rises toward an edge: e^200 is
# 10^87. Without a bound each of 160 starts for that model takes all of its steps.
FARTHEST_BENT = 200.0

# Starts of one call of the program; more of them than are given cost the zeros of their matrices.
AT_ONCE = 16


Points = Float[np.ndarray, "n d"] | Float[Array, "n d"]


class NewtonState(eqx.Module):
    """State of Newton's method: the expansion at the best point so far.

    Attributes:
        at: the expansion at the current point.
        scale: units 1 / s_i of the coordinates, s_i^2 the largest |H_ii| so far, shape (d,).
        trial: the step to try next; its length and the radius are in those units.
    """

    at: SecondOrder
    scale: Float[Array, " d"]
    trial: TrialStep


class SearchResult(eqx.Module):
    """End of a search: the expansion there, steps of Newton's method, starts that ended here."""

    at: SecondOrder
    steps: Int[Array, ""]
    starts: int = eqx.field(static=True, default=1)


def newton_from(
    posterior: Posterior, starts: Points, tolerance: float, max_steps: int
) -> list[SearchResult]:
    """Newton's method with the exact Hessian of -log q^G, from one point after the other.

    Goes on below `tolerance` while steps still improve: log det H needs the mode to more digits
    than l does. Steps stay in a trust region, in the units that the Hessian's diagonal gives the
    coordinates (More 1978). Where H is positive definite the step is Newton's, cut to that length;
    elsewhere it minimizes the quadratic model within the ball exactly (More & Sorensen 1983), and
    follows directions of negative curvature down, so that a saddle is left.

    One program serves every number of starts, and expansions (`expansions`) as well.
    """
    points = np.asarray(starts)
    at_once = AT_ONCE if points.shape[1] <= NEWTON_FROM_ALL_UP_TO else 1
    bounds = jnp.asarray(tolerance, points.dtype), jnp.asarray(max_steps)
    found = []
    for first in range(0, len(points), at_once):
        now = points[first : first + at_once]
        padded = np.concatenate([now, np.zeros((at_once - len(now), now.shape[1]), now.dtype)])
        ends, steps = jax.tree.map(
            np.asarray, _newton_each(posterior, padded, np.asarray(len(now)), *bounds)
        )
        each = [jax.tree.map(lambda leaf, i=i: leaf[i], ends) for i in range(len(now))]
        found += map(SearchResult, each, steps)
    return found


def expansions(posterior: Posterior, points: Points) -> list[SecondOrder]:
    """-log q^G to second order at each point."""
    # Newton's method looks at its start before it takes a step.
    return [end.at for end in newton_from(posterior, points, 0.0, max_steps=1)]


def _newton_each(posterior: Posterior, starts: Points, *rest: Any) -> Any:
    return _each_by_numbers(_numbers_of(posterior, starts.shape[1]))(posterior, starts, *rest)


def has_quick_hessians(posterior: Posterior) -> bool:
    """Tell whether Hessians take little time beside the compilation of another program."""
    return _numbers_of(posterior, posterior.dim) <= QUICK_UP_TO


def _numbers_of(posterior: Posterior, dim: int) -> float:
    """Numbers that a Hessian reads."""
    return numbers_in(posterior) * max(1.0, dim / GRADIENTS)


@by_numbers
def _each_by_numbers(
    posterior: Posterior,
    starts: Float[Array, "n d"],
    count: Int[Array, ""],
    tolerance: Float[Array, ""],
    max_steps: Int[Array, ""],
) -> tuple[SecondOrder, Int[Array, " n"]]:
    """The ends from the first `count` starts, and the steps to them."""

    # Not vmapped: under vmap every step would pay for both kinds.
    def run(i: Int[Array, ""], found: Any) -> Any:
        state = newton(posterior, starts[i], tolerance, max_steps)
        end = state.at, state.trial.steps
        return jax.tree.map(lambda all_ends, leaf: all_ends.at[i].set(leaf), found, end)

    nowhere = _nowhere(starts[0]), jnp.array(0)
    empty = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(starts), *leaf.shape)), nowhere)
    return jax.lax.fori_loop(0, count, run, empty)


def _nowhere(u: Float[Array, " d"]) -> SecondOrder:
    """An expansion that holds nothing, of infinite value."""
    none, vector = jnp.zeros((), u.dtype), jnp.zeros_like(u)
    matrix = jnp.zeros((u.size, u.size), u.dtype)
    return SecondOrder(u, none + jnp.inf, vector, none, none, matrix, matrix)


def newton(
    posterior: Posterior,
    u: Float[Array, " d"],
    tolerance: float | Float[Array, ""],
    max_steps: int | Int[Array, ""],
) -> NewtonState:
    """Newton's method from one point: the last state of its trajectory."""
    rounding = max(ROUNDING, 100.0 * float(jnp.finfo(u.dtype).eps))
    is_bent = jnp.asarray(~posterior.layout.lines)

    def unfinished(state: NewtonState) -> Bool[Array, ""]:
        at = state.at
        is_far = jnp.any(is_bent & (jnp.abs(at.u) > FARTHEST_BENT))
        may_go_on = state.trial.should_continue(at.value, at.gradient_norm, tolerance, max_steps)
        return may_go_on & ~(is_far & (state.trial.steps > 0))  # a start is looked at anywhere

    def step(state: NewtonState) -> NewtonState:
        at, attempt = state.at, state.trial
        trial = expand_second(posterior, at.u + attempt.move)
        values, slopes = (at.value, trial.value), (at.gradient_norm, trial.gradient_norm)
        length = jnp.linalg.norm(state.scale * attempt.move)
        accept, radius, stalled = attempt.assess(values, slopes, length, rounding)
        first = attempt.steps == 0
        accept = first | (accept & jnp.all(jnp.isfinite(trial.hessian)))
        best = jax.tree.map(lambda new, old: jnp.where(accept, new, old), trial, at)
        scale = jnp.maximum(state.scale, jnp.sqrt(jnp.abs(jnp.diagonal(best.hessian))))
        units = jnp.where(scale > 0.0, scale, 1.0)
        move, radius, decrement = _step(best, units, jnp.where(first, jnp.inf, radius))
        longest = jnp.max(jnp.abs(jnp.where(is_bent, move, 0.0)))
        move = move * jnp.where(longest > LONGEST_BENT, LONGEST_BENT / longest, 1.0)
        predicted = -(best.gradient @ move + 0.5 * move @ best.hessian @ move)
        following = TrialStep(move, predicted, decrement, radius, attempt.steps + 1, stalled)
        return NewtonState(best, scale, following)

    initial = NewtonState(_nowhere(u), jnp.zeros_like(u), initial_step(u))
    return jax.lax.while_loop(unfinished, step, initial)


def _step(
    at: SecondOrder, units: Float[Array, " d"], radius: Float[Array, ""]
) -> tuple[Float[Array, " d"], Float[Array, ""], Float[Array, ""]]:
    """The step within `radius`, the radius itself, and the Newton decrement.

    An infinite radius is given a length: that of the Newton step; at a saddle, where that may be
    zero, the length at which l changes by about one.
    """
    gradient, hessian = at.gradient / units, at.hessian / jnp.outer(units, units)
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
        # Below half of the digits an eigenvalue is flat to rounding, which says nothing of lengths.
        flat = jnp.sqrt(jnp.finfo(slope.dtype).eps) * jnp.max(jnp.abs(eigenvalues))
        sizes = jnp.maximum(jnp.abs(eigenvalues), flat)
        length = jnp.linalg.norm(slope / sizes)
        given = jnp.maximum(BEYOND_STEP * length, jax.lax.rsqrt(sizes[0]))
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
    least = jnp.where(lowest < 0.0, NUDGE * jnp.abs(lowest) * radius, 0.0)
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

    _, shift = jax.lax.fori_loop(0, BISECTIONS, halve, (low, high))
    return -g / (eigenvalues + shift)

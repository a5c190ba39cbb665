"""Warm-up of a Riemannian sampler: its step size, and the time of its trajectories."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpyro.infer.hmc_util import dual_averaging

TARGET_ACCEPT = 0.9
# Also that of a warm-up that is too short to look for one. The slow coordinate of a hierarchy needs
# it, and the correlation of neighbors flatters short times: by it eight schools stayed at 2 for one
# key of four, with a fifth of the effective draws for a gradient that they have at 8.
FIRST_TIME = 8.0
# Shares of the warm-up: the way from the start, and each of the times 8, 16 and 32.
ON_THE_WAY, AT_ONE_TIME, TIMES = 0.1, 0.15, 3
SHORTEST_SEARCH = 100  # warm-up draws
# A longer time with a score this near to the best is taken, for the same reason.
NEAR_THE_BEST, HOPELESS = 0.65, 0.4

_begin_averaging, _averaged = dual_averaging()


class WarmUp(NamedTuple):
    """The state of the warm-up.

    Attributes:
        step_size: of the leapfrog.
        time: mean time of a trajectory.
        averaging: the state of NumPyro's dual averaging of the step size.
        searching: whether other times are still looked at.
        best_time: the time with the highest score.
        best_score: that score, `(1 - r) / (1 + r)` of a gradient: r is the largest autocorrelation
            of the coordinates and their squares, of lag one.
        failures: how many times were worse since.
        center: means of the coordinates, about which squares are taken, shape (d,).
        sums: of the stage: of the coordinates and squares, of their squares, and of the products
            of neighbors, shape (3, 2 d).
        number: how many are summed.
        gradients: gradients of the stage.
    """

    step_size: Float[Array, ""]
    time: Float[Array, ""]
    averaging: Any
    searching: Bool[Array, ""]
    best_time: Float[Array, ""]
    best_score: Float[Array, ""]
    failures: Int[Array, ""]
    center: Float[Array, " d"]
    sums: Float[Array, "3 k"]
    number: Float[Array, ""]
    gradients: Float[Array, ""]


def begin(dim: int, warmup: int, dtype: Any) -> WarmUp:
    """Before the first draw: in a metric of unit scale a step of `d^-1/4 / 2` is near to right.

    Args:
        dim: number of parameters d.
        warmup: number of warm-up draws.
        dtype: of the draws.
    """
    searching = warmup >= SHORTEST_SEARCH
    step_size = jnp.asarray(0.5 * dim**-0.25, dtype)
    time = jnp.asarray(FIRST_TIME, dtype)
    zero = jnp.zeros((), dtype)
    return WarmUp(
        step_size,
        time,
        _restarted(step_size),
        jnp.asarray(searching),
        time,
        zero,
        jnp.zeros((), int),
        jnp.zeros(dim, dtype),
        jnp.zeros((3, 2 * dim), dtype),
        zero,
        zero,
    )


def _restarted(step_size: Float[Array, ""]) -> Any:
    center: Any = jnp.log(2.0 * step_size)
    state = _begin_averaging(center)
    return jax.tree.map(lambda x: x.astype(step_size.dtype), state)


def learned(
    state: WarmUp,
    i: Int[Array, ""],
    warmup: int,
    before: Float[Array, "c d"],
    after: Float[Array, "c d"],
    accept: Float[Array, " c"],
    steps: Int[Array, " c"],
) -> WarmUp:
    """The state after one more draw of every chain, which share one step size and time.

    Args:
        state: the state.
        i: number of draws before.
        warmup: number of warm-up draws.
        before: the draws before.
        after: the draws.
        accept: probabilities of acceptance.
        steps: gradients that they took.
    """
    averaging = _averaged(TARGET_ACCEPT - jnp.mean(accept), state.averaging)
    averaging = jax.tree.map(lambda new, old: new.astype(old.dtype), averaging, state.averaging)
    old, new = (_with_squares(u - state.center) for u in (before, after))
    sums = state.sums + jnp.stack([jnp.sum(part, axis=0) for part in (new, new**2, old * new)])
    state = state._replace(
        step_size=jnp.exp(averaging[0]),
        averaging=averaging,
        sums=sums,
        number=state.number + accept.size,
        gradients=state.gradients + jnp.sum(steps).astype(sums.dtype),
    )
    begun, stage = int(ON_THE_WAY * warmup), max(int(AT_ONE_TIME * warmup), 1)
    number = (i + 1 - begun) // stage
    ends = state.searching & (i + 1 >= begun) & ((i + 1 - begun) % stage == 0)
    state = jax.lax.cond(ends, lambda s: _next_stage(s, number), lambda s: s, state)
    is_last = i + 1 == warmup
    step_size = jnp.where(is_last, jnp.exp(state.averaging[1]), state.step_size)
    return state._replace(step_size=step_size)


def _with_squares(u: Float[Array, "c d"]) -> Float[Array, "c k"]:
    return jnp.concatenate([u, u**2], axis=1)


def _next_stage(state: WarmUp, stage: Int[Array, ""]) -> WarmUp:
    """Score the time that a stage was run at, and choose the next."""
    mean, square, product = state.sums / state.number
    variance = jnp.maximum(square - mean**2, jnp.finfo(mean.dtype).tiny)
    correlation = jnp.clip((product - mean**2) / variance, -0.9, 0.999)
    score = jnp.min((1.0 - correlation) / (1.0 + correlation)) * state.number / state.gradients
    # The first stage is the way from the start, which tells nothing of times.
    score = jnp.where(stage == 0, 0.0, score)
    is_good = score >= NEAR_THE_BEST * state.best_score
    best_time = jnp.where(is_good & (stage > 0), state.time, state.best_time)
    failures = jnp.where(is_good, 0, state.failures + 1)
    following = jnp.where(stage == 0, state.time, 2.0 * state.time)
    over = (failures >= 2) | (score < HOPELESS * state.best_score) | (stage >= TIMES)
    restarted = _restarted(state.step_size)
    averaging = jax.tree.map(lambda a, b: jnp.where(over, a, b), restarted, state.averaging)
    return state._replace(
        time=jnp.where(over, best_time, following),
        averaging=averaging,
        searching=~over,
        best_time=best_time,
        best_score=jnp.maximum(score, state.best_score),
        failures=failures,
        center=state.center + mean[: state.center.size],
        sums=jnp.zeros_like(state.sums),
        number=jnp.zeros_like(state.number),
        gradients=jnp.zeros_like(state.gradients),
    )

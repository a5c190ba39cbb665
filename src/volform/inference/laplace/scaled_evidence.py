"""Log evidence as a function of the logs of precisions, and its maximum by Newton's method."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.compilation import steady
from volform.inference.laplace.moving import LogDeterminant
from volform.inference.laplace.rescaling import NoiseFit

ASCENT_STEPS = 100
# Of a scale, in logs: there its evidence has long stopped changing.
FURTHEST = 25.0


class ScaledEvidence(eqx.Module):
    """Log evidence as a function of the logs of the precisions, less what does not depend on them.

    Attributes:
        parts: of the log determinant.
        squares: for each group the sum of ((value - mean) / scale)^2.
        counts: the number of coordinates.
        fit: of the likelihood, where its scale is moved too.
    """

    parts: list[LogDeterminant]
    squares: Float[Array, " groups"]
    counts: Float[Array, " groups"]
    fit: NoiseFit | None

    def __call__(self, x: Float[Array, " k"]) -> Float[Array, ""]:
        """Its value."""
        logs, count = self._logs(x), self.squares.size
        found = 0.5 * jnp.sum(self.counts * x[:count] - jnp.exp(x[:count]) * self.squares)
        if self.fit is not None:
            found += 0.5 * (self.fit.number * x[count] - jnp.exp(x[count]) * self.fit.squares)
        return found - 0.5 * self.log_det(logs)

    def log_det(self, logs: Float[Array, " l"]) -> Float[Array, ""]:
        """That of the precision, less that of R."""
        weights, c = jnp.exp(logs[:-1]), jnp.exp(logs[-1])
        return sum((part.at(weights, c) for part in self.parts), jnp.zeros((), c.dtype))

    def derivatives(self, x: Float[Array, " k"]) -> tuple[Array, Array]:
        """Gradient and Hessian."""
        logs, count = self._logs(x), self.squares.size
        slope = jnp.zeros_like(x).at[:count].set(self.counts - jnp.exp(x[:count]) * self.squares)
        bend = jnp.zeros_like(x).at[:count].set(-jnp.exp(x[:count]) * self.squares)
        if self.fit is not None:
            pull = jnp.exp(x[count]) * self.fit.squares
            slope, bend = slope.at[count].set(self.fit.number - pull), bend.at[count].set(-pull)
        parts = [part.derivatives(logs) for part in self.parts]
        # Of the weights of the groups, and of c where it moves; not of the weight that is held.
        kept = jnp.asarray([*range(count), count + 1][: x.size])
        slope -= sum(first[kept] for first, _ in parts)
        curved = jnp.diag(bend) - sum(second[kept][:, kept] for _, second in parts)
        return 0.5 * slope, 0.5 * curved

    def terms(self, x: Float[Array, " k"]) -> Float[Array, ""]:
        """The size of the sums whose difference the gradient is."""
        count = self.squares.size
        found = jnp.sum(self.counts) + jnp.sum(jnp.exp(x[:count]) * self.squares)
        if self.fit is None:
            return found
        return found + self.fit.number + jnp.exp(x[count]) * self.fit.squares

    def _logs(self, x: Float[Array, " k"]) -> Float[Array, " l"]:
        """Of the weights of all groups, of what is held, and of c."""
        count = self.squares.size
        c = jnp.zeros(1, x.dtype) if self.fit is None else x[count:]
        return jnp.concatenate([x[:count], jnp.zeros(1, x.dtype), c])


class Ascent(NamedTuple):
    """The end of Newton's method, the gain since the start, and log det P / R there."""

    x: Float[Array, " k"]
    gain: Float[Array, ""]
    log_det: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    steps: Array
    converged: Array


def _newton(problem: ScaledEvidence, x: Float[Array, " k"]) -> tuple[Array, Array]:
    """The gradient, and a step that moves no log by more than 3."""
    slope, curved = problem.derivatives(x)
    values, axes = jnp.linalg.eigh(-curved)
    values = jnp.maximum(values, jnp.finfo(x.dtype).eps * jnp.maximum(values[-1], 1.0))
    along = axes @ ((axes.T @ slope) / values)
    return slope, along * jnp.minimum(1.0, 3.0 / jnp.max(jnp.abs(along)))


@steady
def ascend(problem: ScaledEvidence, start: Float[Array, " k"]) -> Ascent:
    """The maximum of a concave function by Newton's method, with steps halved until it rises."""
    eps = jnp.finfo(start.dtype).eps

    def step(state: tuple) -> tuple:
        x, value, number, _ = state
        slope, along = _newton(problem, x)
        rise = slope @ along

        def is_low(size: Array) -> Array:
            enough = problem(x + size * along) >= value + 1e-4 * size * rise
            return ~enough & (size > eps)

        size = jax.lax.while_loop(is_low, lambda s: 0.5 * s, jnp.ones((), x.dtype))
        found = problem(x + size * along)
        is_higher = found > value
        x = jnp.where(is_higher, x + size * along, x)
        is_done = ~is_higher | (rise < 4.0 * eps) | (jnp.max(jnp.abs(x)) > FURTHEST)
        return x, jnp.where(is_higher, found, value), number + 1, is_done

    first = start, problem(start), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    x, value, steps, _ = jax.lax.while_loop(
        lambda state: ~state[3] & (state[2] < ASCENT_STEPS), step, first
    )
    # Where the value no longer tells two points apart the gradient is some root of eps; the last
    # step, by the gradient alone, brings it from 1e-7 to 1e-15 (of 16 weights, measured).
    slope, along = _newton(problem, x)
    last = problem.derivatives(x + along)[0]
    is_better = jnp.linalg.norm(last) < jnp.linalg.norm(slope)
    x, slope = jnp.where(is_better, x + along, x), jnp.where(is_better, last, slope)
    value = jnp.where(is_better, problem(x), value)
    norm = jnp.linalg.norm(slope)
    # Of a gradient that is a difference of sums of the size of counts and squares.
    is_close = norm <= jnp.sqrt(eps) * (1.0 + problem.terms(x)) * 0.1
    converged = is_close & (jnp.max(jnp.abs(x)) <= FURTHEST)
    log_det = problem.log_det(jnp.zeros(start.size + 2 - (problem.fit is not None), start.dtype))
    return Ascent(x, value - problem(start), log_det, norm, steps, converged)

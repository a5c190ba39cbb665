"""What methods with a trust region have in common: when to take a step, and when to stop."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Attempt(eqx.Module):
    """The step to try next in minimizing l.

    Attributes:
        move: the step.
        promise: the decrease of l that the quadratic model promises for it.
        decrement: Newton decrement sqrt(dl^T H^-1 dl); infinite where H is not positive definite.
        radius: radius of the trust region.
        steps: steps tried.
        stalled: whether no step improves any more, to rounding.
    """

    move: Float[Array, " d"]
    promise: Float[Array, ""]
    decrement: Float[Array, ""]
    radius: Float[Array, ""]
    steps: Int[Array, ""]
    stalled: Bool[Array, ""]

    def goes_on(
        self, value: Float[Array, ""], slope: Float[Array, ""], tolerance: float, max_steps: int
    ) -> Bool[Array, ""]:
        """Whether to try it, from where l has this value and a gradient of this norm."""
        is_minimum = jnp.maximum(slope, self.decrement) < 1e-4 * tolerance
        finite = jnp.isfinite(value) & jnp.isfinite(slope)
        ongoing = finite & ~is_minimum & ~self.stalled & (self.steps < max_steps)
        return (self.steps == 0) | ongoing

    def outcome(
        self,
        values: tuple[Float[Array, ""], Float[Array, ""]],
        slopes: tuple[Float[Array, ""], Float[Array, ""]],
        length: Float[Array, ""],
        rounding: float,
    ) -> tuple[Bool[Array, ""], Float[Array, ""], Bool[Array, ""]]:
        """Whether to take the step, the next radius, and whether no step improves any more.

        Args:
            values: l before the step and after it.
            slopes: norms of its gradient, likewise.
            length: that of the step, in the units of the radius.
            rounding: relative error of l, below which its differences say nothing; the gradient
                still does.
        """
        actual = values[0] - values[1]
        blind = self.promise < rounding * (1.0 + jnp.abs(values[0]))
        accept = jnp.where(blind, slopes[1] < slopes[0], actual > 1e-4 * self.promise)
        accept = accept & jnp.isfinite(values[1]) & jnp.isfinite(slopes[1])
        wider = jnp.where(actual > 0.75 * self.promise, 2.0 * length, 0.0)
        radius = jnp.where(accept, jnp.maximum(self.radius, wider), 0.25 * length)
        is_first = self.steps == 0
        stalled = ~is_first & blind & ~(slopes[1] < 0.1 * slopes[0])
        return is_first | accept, radius, stalled


def first_attempt(like: Float[Array, " d"]) -> Attempt:
    """None at all: the point itself, which is taken whatever it is."""
    one = jnp.ones((), like.dtype)
    return Attempt(jnp.zeros_like(like), one, one, one, jnp.array(0), jnp.array(False))

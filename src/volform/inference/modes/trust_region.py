"""Trust region that two methods share: when to take a step, and when to stop."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Steps are taken at a ten-thousandth of the predicted decrease, Armijo's usual c_1; the region
# grows to twice the step where three quarters are reached, and shrinks to a quarter of a refused
# step (Nocedal & Wright 2006, Numerical Optimization, sections 3.1 and 4.1).
SUFFICIENT_DECREASE = 1e-4
GOOD_PREDICTION = 0.75
GROWTH, SHRINKAGE = 2.0, 0.25
# Near a minimum a Newton step squares the gradient: one that leaves a tenth works on rounding.
STALLED_ABOVE = 0.1
# An error e of the mode moves l by e^2 / 2, but log det H by e: the search goes on below the
# tolerance while steps improve, at most by these four digits.
BEYOND_TOLERANCE = 1e-4


class TrialStep(eqx.Module):
    """The step to try next in minimizing l.

    Attributes:
        move: the step.
        predicted_decrease: the decrease of l that the quadratic model promises for it.
        decrement: Newton decrement sqrt(dl^T H^-1 dl); infinite where H is not positive definite.
        radius: radius of the trust region.
        steps: steps tried.
        stalled: whether no step improves any more, to rounding.
    """

    move: Float[Array, " d"]
    predicted_decrease: Float[Array, ""]
    decrement: Float[Array, ""]
    radius: Float[Array, ""]
    steps: Int[Array, ""]
    stalled: Bool[Array, ""]

    def should_continue(
        self,
        value: Float[Array, ""],
        slope: Float[Array, ""],
        tolerance: float | Float[Array, ""],
        max_steps: int | Int[Array, ""],
    ) -> Bool[Array, ""]:
        """Tell whether to try it, from where l has this value and a gradient of this norm."""
        is_minimum = jnp.maximum(slope, self.decrement) < BEYOND_TOLERANCE * tolerance
        finite = jnp.isfinite(value) & jnp.isfinite(slope)
        ongoing = finite & ~is_minimum & ~self.stalled & (self.steps < max_steps)
        return (self.steps == 0) | ongoing

    def assess(
        self,
        values: tuple[Float[Array, ""], Float[Array, ""]],
        slopes: tuple[Float[Array, ""], Float[Array, ""]],
        length: Float[Array, ""],
        rounding: float,
    ) -> tuple[Bool[Array, ""], Float[Array, ""], Bool[Array, ""]]:
        """Judge the step: whether to take it, the next radius, whether no step improves any more.

        Args:
            values: l before the step and after it.
            slopes: norms of its gradient, likewise.
            length: that of the step, in the units of the radius.
            rounding: relative error of l, below which its differences say nothing; the gradient
                still does.
        """
        actual = values[0] - values[1]
        blind = self.predicted_decrease < rounding * (1.0 + jnp.abs(values[0]))
        accept = jnp.where(
            blind, slopes[1] < slopes[0], actual > SUFFICIENT_DECREASE * self.predicted_decrease
        )
        accept = accept & jnp.isfinite(values[1]) & jnp.isfinite(slopes[1])
        wider = jnp.where(actual > GOOD_PREDICTION * self.predicted_decrease, GROWTH * length, 0.0)
        radius = jnp.where(accept, jnp.maximum(self.radius, wider), SHRINKAGE * length)
        is_first = self.steps == 0
        stalled = ~is_first & blind & ~(slopes[1] < STALLED_ABOVE * slopes[0])
        return is_first | accept, radius, stalled


def initial_step(like: Float[Array, " d"]) -> TrialStep:
    """None at all: the point itself, which is taken whatever it is."""
    one = jnp.ones((), like.dtype)
    return TrialStep(jnp.zeros_like(like), one, one, one, jnp.array(0), jnp.array(False))

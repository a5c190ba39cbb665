"""A minimizer of optimistix that keeps what its function returns beside the value, by step."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Int


class Records(eqx.Module):
    """State of a recorded search.

    Attributes:
        own: state of the minimizer.
        kept: what was kept, each leaf with an axis of steps first.
        count: number of steps.
    """

    own: Any
    kept: Any
    count: Int[Array, ""]


class Recorded(optx.AbstractMinimiser):
    """A minimizer whose state keeps the auxiliary output of every step.

    Attributes:
        minimizer: of optimistix.
        steps: the most that it may take.
    """

    minimizer: optx.AbstractMinimiser
    rtol: float
    atol: float
    norm: Callable
    steps: int = eqx.field(static=True)

    def __init__(self, minimizer: optx.AbstractMinimiser, steps: int):
        self.minimizer, self.steps = minimizer, steps
        self.rtol, self.atol, self.norm = minimizer.rtol, minimizer.atol, minimizer.norm

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> Records:
        """The minimizer's start, and nothing kept."""
        own = self.minimizer.init(fn, y, args, options, f_struct, aux_struct, tags)
        kept = jax.tree.map(lambda s: jnp.zeros((self.steps, *s.shape), s.dtype), aux_struct)
        return Records(own, kept, jnp.array(0))

    def step(self, fn, y, args, options, state, tags):
        """The minimizer's step, its auxiliary output kept."""
        y, own, aux = self.minimizer.step(fn, y, args, options, state.own, tags)
        kept = jax.tree.map(lambda all, now: all.at[state.count].set(now), state.kept, aux)
        return y, Records(own, kept, state.count + 1), aux

    def terminate(self, fn, y, args, options, state, tags):
        """The minimizer's verdict."""
        return self.minimizer.terminate(fn, y, args, options, state.own, tags)

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        """The minimizer's result."""
        return self.minimizer.postprocess(fn, y, aux, args, options, state.own, tags, result)

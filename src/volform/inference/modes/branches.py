"""Starts inside each summand of a density that is a sum: needles that no prior draw is near to.

Of a density whose program holds `jnp.logaddexp(a, b)` or a `logsumexp` of a few, a narrow summand
with most of the mass is seen by nothing that draws: the basin of a spike of width .01 in five
dimensions holds 10^-8 of the prior, and its slope underflows eight widths away. But the summand
alone, a Gaussian mostly, has a slope everywhere.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jaxtyping import Array, Bool, Float

from volform.compilation import evaluate_equation
from volform.models.layout import Layout
from volform.models.posterior import Posterior

MOST_SUMMANDS = 8  # that are searched, the first in the program, and of a sum that is taken apart

Choice = Callable[[int], int | None]  # of a summand, by the number of those of a sum that is met
Held = Bool[np.ndarray, "..."]  # elements of a variable that hold a summand in place of a sum

_REARRANGEMENTS = {"broadcast_in_dim", "concatenate", "reshape", "slice", "squeeze", "stack"}


class Summand(eqx.Module):
    """A density on R^d that is a posterior's with one summand of a sum in place of the sum.

    With respect to Lebesgue measure: its modes are only starts, and a metric that is read off the
    whole model takes most of the time of compilation.

    Attributes:
        posterior: the posterior.
        number: which sum of the program, counted from zero.
        side: which of its summands.
    """

    posterior: Posterior
    number: int = eqx.field(static=True)
    side: int = eqx.field(static=True)

    @property
    def numbers_read(self) -> float:
        """Numbers that a run reads besides its arguments; infinite in a loop of unknown length."""
        return self.posterior.numbers_read

    @property
    def layout(self) -> Layout:
        """The latent sites."""
        return self.posterior.layout

    def metric(self, u: Float[Array, " d"]) -> lx.AbstractLinearOperator:
        """The identity."""
        return lx.IdentityLinearOperator(jax.eval_shape(lambda: u))

    def log_density_lebesgue(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density."""
        met = []

        def choose(count: int) -> int | None:
            met.append(count)
            return self.side if len(met) == self.number + 1 else None

        closed = _program(self.posterior, u)
        return _evaluated(closed, [u], [np.zeros(u.shape, bool)], choose)[0][0]


def summands(posterior: Posterior) -> list[Summand]:
    """The posterior with each summand of the scalar sums that its program holds."""
    sums: list[int] = []
    closed = _program(posterior, jnp.zeros(posterior.dim))
    # `append` gives None: no sum is replaced.
    start = jnp.zeros(posterior.dim)
    none = [np.zeros(start.shape, bool)]
    jax.eval_shape(lambda u: _evaluated(closed, [u], none, sums.append)[0], start)
    each = [(number, side) for number, count in enumerate(sums) for side in range(count)]
    return [Summand(posterior, number, side) for number, side in each[:MOST_SUMMANDS]]


def _program(posterior: Posterior, u: Float[Array, " d"]) -> ClosedJaxpr:
    return jax.make_jaxpr(lambda u: posterior.log_density_lebesgue(u))(u)


def _evaluated(
    closed: Any, inputs: Sequence[Any], replaced: Sequence[Held], choose: Choice
) -> tuple[list[Any], list[Held]]:
    """Outputs of the program with a summand in place of each sum that one is chosen for.

    A sum of such a sum is replaced as well, by the summand that it is in: a needle inside a sum
    inside a sum has nothing beside it.

    Args:
        closed: the program.
        inputs: its inputs.
        replaced: which of their elements hold a summand in place of a sum already.
        choose: gives the summand of each sum, in the order of the program.

    Returns:
        The outputs, and which of their elements hold a summand in place of a sum.
    """
    jaxpr, values, held = closed.jaxpr, dict[Any, Any](), dict[Any, Held]()
    exponents: dict[Any, Any] = {}  # of `sum(exp(a))`, by the variable that holds it
    values.update(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    held.update(zip(jaxpr.invars, replaced, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    def held_by(variable: Any) -> Held:
        known = None if isinstance(variable, Literal) else held.get(variable)
        return np.zeros(getattr(variable.aval, "shape", ()), bool) if known is None else known

    for eqn in jaxpr.eqns:
        given, flags = [read(v) for v in eqn.invars], [held_by(v) for v in eqn.invars]
        inner = _called(eqn)
        parts = _parts(eqn, given, flags, exponents)
        chosen = None if parts is None else choose(len(parts.flags))
        if parts is not None and parts.flags.sum() == 1:
            chosen = int(np.argmax(parts.flags))
        if inner is not None:
            outputs, marks = _evaluated(inner, given, flags, choose)
        elif parts is not None and chosen is not None:
            outputs, marks = [parts.logs[chosen]], [np.ones((), bool)]
        else:
            outputs = evaluate_equation(jaxpr, eqn, given)
            marks = [_carried(eqn, flags, v.aval) for v in eqn.outvars]
        values.update(zip(eqn.outvars, outputs, strict=True))
        held.update(zip(eqn.outvars, marks, strict=True))
    return list(map(read, jaxpr.outvars)), list(map(held_by, jaxpr.outvars))


def _carried(eqn: JaxprEqn, flags: Sequence[Held], output: Any) -> Held:
    """Elements of an output that hold a summand, at least where it is a rearrangement."""
    shape = getattr(output, "shape", ())
    if not any(flag.any() for flag in flags):
        return np.zeros(shape, bool)
    if eqn.primitive.name in _REARRANGEMENTS:
        with jax.ensure_compile_time_eval():
            return np.asarray(eqn.primitive.bind(*map(jnp.asarray, flags), **eqn.params))
    alike = [flag for flag in flags if flag.shape == shape and flag.any()]
    # Of `a - max(a)` the maximum holds it in all of its elements, and a in one.
    common = np.logical_and.reduce(alike) if alike else np.ones(shape, bool)
    return common if common.any() else np.logical_or.reduce(alike)


def _called(eqn: JaxprEqn) -> Any:
    # A softplus, of charts and of logits, is the logarithm of a sum that nobody wrote.
    is_call = eqn.primitive.name in {"jit", "pjit"} and eqn.params["name"] != "softplus"
    return eqn.params["jaxpr"] if is_call else None


class _Parts(NamedTuple):
    """Logarithms of summands, and which of them hold a summand in place of a sum."""

    logs: Any
    flags: Held


def _parts(
    eqn: JaxprEqn, given: list[Any], flags: list[Held], exponents: dict[Any, _Parts]
) -> _Parts | None:
    """Summands if it is the logarithm of a sum, with one number as its result.

    That of `jnp.logaddexp` is a call; of `logsumexp` it is the last of `exp`, `mul` by weights,
    `reduce_sum`, `abs` and `log`, which `exponents` keeps the thread of.
    """
    if not eqn.outvars:  # of a callback
        return None
    name, output = eqn.primitive.name, eqn.outvars[0]
    shape = getattr(output.aval, "shape", None)
    if name == "custom_jvp_call" and shape == ():
        is_sum = eqn.params["call_jaxpr"].jaxpr.debug_info.func_name == "logaddexp"
        return _Parts(given, np.array(flags)) if is_sum else None
    known = [i for i, v in enumerate(eqn.invars) if not isinstance(v, Literal) and v in exponents]
    if name == "exp" and shape is not None and len(shape) == 1 and shape[0] <= MOST_SUMMANDS:
        exponents[output] = _Parts(given[0], flags[0])
    elif name == "mul" and len(known) == 1:  # by the weights `b` of `logsumexp`
        logs, held = exponents[eqn.invars[known[0]]]
        exponents[output] = _Parts(logs + jnp.log(jnp.abs(given[1 - known[0]])), held)
    elif shape == () and known:
        exponent = exponents[eqn.invars[known[0]]]
        if name == "log":
            return exponent
        if name in {"reduce_sum", "abs"}:
            exponents[output] = exponent
    return None

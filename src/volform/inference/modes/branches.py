"""Starts inside each summand of a density that is a sum: needles that no prior draw is near to.

Of a density whose program holds `jnp.logaddexp(a, b)` or a `logsumexp` of a few, a narrow summand
with most of the mass is seen by nothing that draws: the basin of a spike of width .01 in five
dimensions holds 10^-8 of the prior, and its slope underflows eight widths away. But the summand
alone, a Gaussian mostly, has a slope everywhere.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jaxtyping import Array, Float

from volform.models.layout import Layout
from volform.models.posterior import Posterior

MOST_SUMMANDS = 8  # that are searched, the first in the program, and of a sum that is taken apart

Choice = Callable[[int], int | None]  # of a summand, by the number of those of a sum that is met


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
        return _evaluated(closed, [u], [False], choose)[0][0]


def summands(posterior: Posterior) -> list[Summand]:
    """The posterior with each summand of the scalar sums that its program holds."""
    sums: list[int] = []
    closed = _program(posterior, jnp.zeros(posterior.dim))
    # `append` gives None: no sum is replaced.
    jax.eval_shape(
        lambda u: _evaluated(closed, [u], [False], sums.append)[0], jnp.zeros(posterior.dim)
    )
    each = [(number, side) for number, count in enumerate(sums) for side in range(count)]
    return [Summand(posterior, number, side) for number, side in each[:MOST_SUMMANDS]]


def _program(posterior: Posterior, u: Float[Array, " d"]) -> ClosedJaxpr:
    return jax.make_jaxpr(lambda u: posterior.log_density_lebesgue(u))(u)


def _evaluated(
    closed: Any, inputs: Sequence[Any], replaced: Sequence[bool], choose: Choice
) -> tuple[list[Any], list[bool]]:
    """Outputs of the program with a summand in place of each sum that one is chosen for.

    Args:
        closed: the program.
        inputs: its inputs.
        replaced: which of them hold a summand in place of a sum already.
        choose: gives the summand of each sum, in the order of the program.

    Returns:
        The outputs, and which of them hold a summand in place of a sum.
    """
    jaxpr, values = closed.jaxpr, dict[Any, Any]()
    exponents: dict[Any, Any] = {}  # of `sum(exp(a))`, by the variable that holds it
    values.update(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    held = {v for v, is_held in zip(jaxpr.invars, replaced, strict=True) if is_held}

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    def holds(variable: Any) -> bool:
        return not isinstance(variable, Literal) and variable in held

    for eqn in jaxpr.eqns:
        given, flags = [read(v) for v in eqn.invars], [holds(v) for v in eqn.invars]
        inner = _called(eqn)
        parts = _parts(eqn, given, exponents)
        chosen = None if parts is None else choose(len(parts))
        if parts is given and sum(flags) == 1:  # a sum of a sum: its summand, and nothing beside
            chosen = flags.index(True)
        if inner is not None:
            outputs, marks = _evaluated(inner, given, flags, choose)
        elif parts is not None and chosen is not None:
            outputs, marks = [parts[chosen]], [True]
        else:
            outputs = _of_one(jaxpr, eqn, given)
            marks = [any(flags)] * len(outputs)
        values.update(zip(eqn.outvars, outputs, strict=True))
        held |= {v for v, is_held in zip(eqn.outvars, marks, strict=True) if is_held}
    return list(map(read, jaxpr.outvars)), list(map(holds, jaxpr.outvars))


def _of_one(jaxpr: Jaxpr, eqn: JaxprEqn, given: Sequence[Any]) -> list[Any]:
    # A variable that is given twice is one input of the program of this equation.
    pairs = zip(eqn.invars, given, strict=True)
    inputs = {v: value for v, value in pairs if not isinstance(v, Literal)}
    one = jaxpr.replace(constvars=[], invars=[*inputs], outvars=[*eqn.outvars], eqns=[eqn])
    return jaxpr_as_fun(ClosedJaxpr(one, ()))(*inputs.values())


def _called(eqn: JaxprEqn) -> Any:
    # A softplus, of charts and of logits, is the logarithm of a sum that nobody wrote.
    is_call = eqn.primitive.name in {"jit", "pjit"} and eqn.params["name"] != "softplus"
    return eqn.params["jaxpr"] if is_call else None


def _parts(eqn: JaxprEqn, given: list[Any], exponents: dict[Any, Any]) -> Any:
    """Logarithms of the summands if it is the logarithm of a sum, with one number as its result.

    That of `jnp.logaddexp` is a call; of `logsumexp` it is the last of `exp`, `mul` by weights,
    `reduce_sum`, `abs` and `log`, which `exponents` keeps the thread of.
    """
    if not eqn.outvars:  # of a callback
        return None
    name, output = eqn.primitive.name, eqn.outvars[0]
    shape = getattr(output.aval, "shape", None)
    if name == "custom_jvp_call" and shape == ():
        is_sum = eqn.params["call_jaxpr"].jaxpr.debug_info.func_name == "logaddexp"
        return given if is_sum else None
    known = [i for i, v in enumerate(eqn.invars) if not isinstance(v, Literal) and v in exponents]
    if name == "exp" and shape is not None and len(shape) == 1 and shape[0] <= MOST_SUMMANDS:
        exponents[output] = given[0]
    elif name == "mul" and len(known) == 1:  # by the weights `b` of `logsumexp`
        logs = exponents[eqn.invars[known[0]]] + jnp.log(jnp.abs(given[1 - known[0]]))
        exponents[output] = logs
    elif shape == () and known:
        exponent = exponents[eqn.invars[known[0]]]
        if name == "log":
            return exponent
        if name in {"reduce_sum", "abs"}:
            exponents[output] = exponent
    return None

"""Starts inside each summand of a density that is a sum: needles that no prior draw is near to.

Of a density whose program holds `jnp.logaddexp(a, b)`, a narrow summand with most of the mass is
seen by nothing that draws: the basin of a spike of width .01 in five dimensions holds 10^-8 of the
prior, and its slope underflows eight widths away. But the summand alone, a Gaussian mostly, has a
slope everywhere.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jaxtyping import Array, Float

from volform.models.layout import Layout
from volform.models.posterior import Posterior

MOST_SUMS = 4  # that are taken apart, the first in the program; each is two searches more


class Summand(eqx.Module):
    """A density on R^d that is a posterior's with one summand of a sum in place of the sum.

    With respect to Lebesgue measure: its modes are only starts, and a metric that is read off the
    whole model takes most of the time of compilation.

    Attributes:
        posterior: the posterior.
        number: which sum of the program, counted from zero.
        side: which of its two summands.
    """

    posterior: Posterior
    number: int = eqx.field(static=True)
    side: int = eqx.field(static=True)

    @property
    def constants(self) -> int:
        """Number of elements of the arrays that the posterior reads and that are no arguments."""
        return self.posterior.constants

    @property
    def layout(self) -> Layout:
        """The latent sites."""
        return self.posterior.layout

    def metric(self, u: Float[Array, " d"]) -> lx.AbstractLinearOperator:
        """The identity."""
        return lx.IdentityLinearOperator(jax.eval_shape(lambda: u))

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density."""
        closed = _program(self.posterior, u)
        part = _with_summand(closed.jaxpr, self.number, self.side, itertools.count())
        return jaxpr_as_fun(ClosedJaxpr(part, closed.consts))(u)[0]


def summands(posterior: Posterior) -> list[Summand]:
    """The posterior with each summand of the scalar sums that its program holds."""
    sums = _count_sums(_program(posterior, jnp.zeros(posterior.dim)).jaxpr)
    return [
        Summand(posterior, number, side)
        for number in range(min(sums, MOST_SUMS))
        for side in (0, 1)
    ]


def _program(posterior: Posterior, u: Float[Array, " d"]) -> ClosedJaxpr:
    return jax.make_jaxpr(lambda u: posterior.log_density_lebesgue(u))(u)


def _is_sum(eqn: JaxprEqn) -> bool:
    """Tell whether it is a call of `jnp.logaddexp` with one number as its result."""
    if eqn.primitive.name != "custom_jvp_call":
        return False
    aval: Any = eqn.outvars[0].aval
    name = eqn.params["call_jaxpr"].jaxpr.debug_info.func_name
    return aval.shape == () and name == "logaddexp"


def _called(eqn: JaxprEqn) -> Any:
    # A softplus, of charts and of logits, is the logarithm of a sum that nobody wrote.
    is_call = eqn.primitive.name in {"jit", "pjit"} and eqn.params["name"] != "softplus"
    return eqn.params["jaxpr"] if is_call else None


def _count_sums(jaxpr: Jaxpr) -> int:
    return sum(
        _count_sums(inner.jaxpr) if (inner := _called(eqn)) is not None else _is_sum(eqn)
        for eqn in jaxpr.eqns
    )


def _with_summand(jaxpr: Jaxpr, number: int, side: int, sums: Iterator[int]) -> Jaxpr:
    """The program with a summand in place of one sum; `sums` counts those that were met."""
    instead: dict[Any, Any] = {}
    eqns = []

    def renamed(variables: Any) -> list[Any]:
        return [v if isinstance(v, Literal) else instead.get(v, v) for v in variables]

    for eqn in jaxpr.eqns:
        inner, inputs = _called(eqn), renamed(eqn.invars)
        if inner is not None:
            taken = _with_summand(inner.jaxpr, number, side, sums)
            params = eqn.params | {"jaxpr": ClosedJaxpr(taken, inner.consts)}
            eqns.append(eqn.replace(invars=inputs, params=params))
        elif _is_sum(eqn) and next(sums) == number:
            instead[eqn.outvars[0]] = inputs[side]
        else:
            eqns.append(eqn.replace(invars=inputs))
    return jaxpr.replace(eqns=eqns, outvars=renamed(jaxpr.outvars))

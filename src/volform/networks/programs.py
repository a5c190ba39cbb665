"""Programs of functions: written out in equations, evaluated with something added on the way."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jaxtyping import Array

from volform.compilation import as_closed, evaluate_equation

_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2"}


def written_out(function: Callable[..., Any], *args: Any) -> ClosedJaxpr:
    """The jaxpr of a function with the calls of compiled and checkpointed functions written out."""
    closed = jax.make_jaxpr(function)(*args)
    return jax.make_jaxpr(lambda *inputs: outputs_of(closed, evaluate(closed, inputs)))(
        *jax.tree.leaves(args)
    )


def evaluate(
    closed: ClosedJaxpr, inputs: Sequence[Any], added: Mapping[int, Array] | None = None
) -> dict[Any, Any]:
    """Values of all variables, with `added` added to the results of the equations it numbers."""
    jaxpr, added = closed.jaxpr, {} if added is None else added
    values = dict[Any, Any](zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    for number, eqn in enumerate(jaxpr.eqns):
        given = [read(values, v) for v in eqn.invars]
        inner = eqn.params.get("jaxpr") if eqn.primitive.name in _CALLS else None
        if inner is None:
            outputs = evaluate_equation(jaxpr, eqn, given)
        else:
            called = as_closed(inner)
            outputs = outputs_of(called, evaluate(called, given))
        if number in added:
            outputs = [outputs[0] + added[number]]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return values


def outputs_of(closed: ClosedJaxpr, values: Mapping[Any, Any]) -> list[Any]:
    """Results of a jaxpr, of the values of its variables."""
    return [read(values, v) for v in closed.jaxpr.outvars]


def read(values: Mapping[Any, Any], variable: Any) -> Any:
    """The value of a variable, or of a literal."""
    return variable.val if isinstance(variable, Literal) else values[variable]


def windows(eqn: JaxprEqn, h: Array) -> Array:
    """Windows of the images that a convolution reads, the filters' features and pixels last."""
    numbers = eqn.params["dimension_numbers"]
    weights: Any = getattr(eqn.invars[1].aval, "shape", ())
    found = jax.lax.conv_general_dilated_patches(
        h,
        [weights[axis] for axis in numbers.rhs_spec[2:]],
        eqn.params["window_strides"],
        eqn.params["padding"],
        eqn.params["lhs_dilation"],
        eqn.params["rhs_dilation"],
        dimension_numbers=numbers,
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.moveaxis(found, numbers.out_spec[1], -1)

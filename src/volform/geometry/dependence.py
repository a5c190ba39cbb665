"""Dependence of a function's outputs on its inputs, read off the jaxpr, nothing is evaluated."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from volform.compilation import parts_of_scan


def dependence(f: Callable[..., Any], *args: Any) -> Any:
    """A pytree of bools laid out like `f(*args)`: True where a leaf depends on `args`.

    Conservative: branches and `while` loops are taken to mix all inputs into all outputs.
    """
    treedefs = []

    def leaves(*args: Any) -> list[Any]:
        # Only leaves leave the trace: NumPyro keeps the counts of a Multinomial in the treedef,
        # and an array there cannot be compared, which tracing would do.
        found, treedef = jax.tree.flatten(f(*args))
        treedefs.append(treedef)
        return found

    jaxpr = jax.make_jaxpr(leaves)(*args).jaxpr
    return jax.tree.unflatten(treedefs[-1], _reached(jaxpr, [True] * len(jaxpr.invars)))


def moves(flags: Any) -> bool:
    """Tell whether any leaf of a pytree of flags is set."""
    return any(jax.tree.leaves(flags))


def has_open_loop(f: Callable[..., Any], *args: Any) -> bool:
    """Tell whether a function holds a loop of unknown length, as an adaptive solver does."""
    return holds_open_loop(jax.make_jaxpr(f)(*args).jaxpr)


def holds_open_loop(jaxpr: Jaxpr) -> bool:
    """Tell whether a program holds a loop of unknown length."""
    return any(
        eqn.primitive.name == "while" or any(map(holds_open_loop, _programs_in(eqn)))
        for eqn in jaxpr.eqns
    )


def numbers_computed(jaxpr: Jaxpr) -> int:
    """Number of elements that a run of a program computes, those in its loops each time."""
    count = 0
    for eqn in jaxpr.eqns:
        inner = sum(map(numbers_computed, _programs_in(eqn)))
        own = 0 if inner else sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)
        count += own + inner * eqn.params.get("length", 1)
    return count


def _programs_in(eqn: JaxprEqn) -> list[Jaxpr]:
    leaves = jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_program)
    return [getattr(inner, "jaxpr", inner) for inner in leaves if _is_program(inner)]


def _is_program(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def _reached(jaxpr: Jaxpr, inputs: list[bool]) -> list[bool]:
    reached = {var for var, flag in zip(jaxpr.invars, inputs, strict=True) if flag}
    for eqn in jaxpr.eqns:
        flags = [not isinstance(v, Literal) and v in reached for v in eqn.invars]
        if not any(flags):
            continue
        inner = _called(eqn)
        if inner is not None and eqn.primitive.name == "scan":
            outputs = _through_scan(eqn, inner, flags)
        elif inner is None:
            outputs = [True] * len(eqn.outvars)
        else:
            outputs = _reached(inner, flags)
        reached.update(var for var, flag in zip(eqn.outvars, outputs, strict=True) if flag)
    return [not isinstance(v, Literal) and v in reached for v in jaxpr.outvars]


def _through_scan(eqn: JaxprEqn, body: Jaxpr, flags: list[bool]) -> list[bool]:
    start, carries = parts_of_scan(eqn)
    end = start + carries
    while True:  # what a carry has been reached by once, it may pass on in the next step
        outputs = _reached(body, flags)
        carry = [a or b for a, b in zip(flags[start:end], outputs[:carries], strict=True)]
        if carry == flags[start:end]:
            return carry + outputs[carries:]
        flags = flags[:start] + carry + flags[end:]


def _called(eqn: JaxprEqn) -> Jaxpr | None:
    for name in ("jaxpr", "call_jaxpr"):
        inner = eqn.params.get(name)
        if isinstance(inner, ClosedJaxpr):
            inner = inner.jaxpr
        if isinstance(inner, Jaxpr):
            fits = len(inner.invars) == len(eqn.invars) and len(inner.outvars) == len(eqn.outvars)
            is_plain = "linear" not in eqn.params or eqn.primitive.name == "scan"
            return inner if fits and is_plain else None
    return None

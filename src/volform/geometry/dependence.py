"""Which outputs of a function depend on its input: read off the jaxpr, nothing is evaluated."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def dependence(f: Callable[..., Any], *args: Any) -> Any:
    """A pytree of bools laid out like `f(*args)`: True where a leaf depends on `args`.

    Conservative: loops and branches are taken to mix all their inputs into all their outputs.
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
    """Whether any leaf of a pytree of flags is set."""
    return any(jax.tree.leaves(flags))


def _reached(jaxpr: Jaxpr, inputs: list[bool]) -> list[bool]:
    reached = {var for var, flag in zip(jaxpr.invars, inputs, strict=True) if flag}
    for eqn in jaxpr.eqns:
        flags = [not isinstance(v, Literal) and v in reached for v in eqn.invars]
        if not any(flags):
            continue
        inner = _called(eqn.params, len(eqn.invars), len(eqn.outvars))
        outputs = [True] * len(eqn.outvars) if inner is None else _reached(inner, flags)
        reached.update(var for var, flag in zip(eqn.outvars, outputs, strict=True) if flag)
    return [not isinstance(v, Literal) and v in reached for v in jaxpr.outvars]


def _called(params: dict[str, Any], inputs: int, outputs: int) -> Jaxpr | None:
    for name in ("jaxpr", "call_jaxpr"):
        inner = params.get(name)
        if isinstance(inner, ClosedJaxpr):
            inner = inner.jaxpr
        if isinstance(inner, Jaxpr):
            fits = len(inner.invars) == inputs and len(inner.outvars) == outputs
            is_plain = "num_consts" not in params and "linear" not in params  # not a scan
            return inner if fits and is_plain else None
    return None

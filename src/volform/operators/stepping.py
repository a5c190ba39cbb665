"""Lanczos' method one compiled step after the other, where a compiled loop would be slow."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from volform.operators.base import is_known
from volform.operators.krylov import Decomposition, advanced, begun
from volform.operators.pencil import Pencil


def is_slow_in_loops(form: Pencil) -> bool:
    """Whether products hold convolutions: in loops on CPUs XLA runs their gradients slowly."""
    return is_known(form) and bool(_holds_convolution(form))


@eqx.filter_jit  # so that a form is looked at once for each shape of it, and not each time
def _holds_convolution(form: Pencil) -> Bool[Array, ""]:
    jaxpr = jax.make_jaxpr(lambda v: form.mv()(v))(jnp.zeros(form.size(), form.dtype()))
    return jnp.array(_holds(jaxpr.jaxpr, jax.lax.conv_general_dilated_p))


def _holds(jaxpr: Jaxpr, primitive: Primitive) -> bool:
    for eqn in jaxpr.eqns:
        if eqn.primitive is primitive:
            return True
        inner = [v for v in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr) if _is_jaxpr(v)]
        if any(_holds(getattr(v, "jaxpr", v), primitive) for v in inner):
            return True
    return False


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def decompositions(
    form: Pencil, key: PRNGKeyArray, starts: Float[Array, "b n"], depth: int
) -> Decomposition:
    """`lanczos` from each of the vectors, along a leading axis; not to be traced."""
    carry, entries = _begun(starts, depth), []
    for i in range(depth):
        carry, entry = _advanced(form, key, carry, jnp.array(i))
        entries.append(entry)
    alphas, betas = (jnp.stack(column, 1) for column in zip(*entries, strict=True))
    return Decomposition(carry[0], alphas, betas)


@eqx.filter_jit
def _begun(starts: Float[Array, "b n"], depth: int) -> tuple[Array, ...]:
    return jax.vmap(lambda start: begun(start, depth))(starts)


@eqx.filter_jit
def _advanced(form: Pencil, key: PRNGKeyArray, carry: tuple[Array, ...], i: Array) -> Any:
    product = form.mv()
    return jax.vmap(lambda one: advanced(product, key, one, i))(carry)

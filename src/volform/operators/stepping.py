"""Compiled steps one after the other, where a compiled loop of them would be slow."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from volform.operators.base import is_known, mapped
from volform.operators.krylov import Decomposition, advanced, begun, signs
from volform.operators.methods import Krylov
from volform.operators.pencil import Pencil

_IN_CACHE = 16  # vectors at once, of which convolutions take less time than of one or of 100


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


def over_probes(of_form: Callable[[Pencil], Callable], form: Pencil, by: Krylov) -> Any:
    """`of_form(form)` of each of the probes of `by`, along a leading axis."""
    if not is_slow_in_loops(form):
        return _together(of_form, form, by)
    probes, batch = probes_of(form, by), by.batch or _IN_CACHE
    parts = [probes[start : start + batch] for start in range(0, len(probes), batch)]
    found = [_of_part(of_form, form, part) for part in parts]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


@eqx.filter_jit
def _together(of_form: Callable[[Pencil], Callable], form: Pencil, by: Krylov) -> Any:
    return mapped(of_form(form), probes_of(form, by), by.batch)


@eqx.filter_jit
def probes_of(form: Pencil, by: Krylov) -> Float[Array, "probes n"]:
    """The probes of `by`, compiled."""
    return signs(by, jnp.zeros(form.size(), form.dtype()))


@eqx.filter_jit
def _of_part(of_form: Callable[[Pencil], Callable], form: Pencil, part: Array) -> Any:
    return jax.vmap(of_form(form))(part)

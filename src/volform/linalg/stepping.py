"""Compiled steps one after the other, where a compiled loop of them would be slow."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from volform.linalg.lanczos import Decomposition, advanced, begun, signs
from volform.linalg.methods import Krylov
from volform.linalg.operator import is_known, mapped
from volform.linalg.pencil import Pencil

_IN_CACHE = 10  # vectors at once, each of which takes less time than alone or among a hundred


def runs_in_steps(form: Pencil) -> bool:
    """Tell whether loops would be slow, and can be left to Python since nothing is traced."""
    return is_known(form) and _is_slow_in_loops(form)


def _is_slow_in_loops(form: Pencil) -> bool:
    """Tell whether products hold convolutions: in loops on CPUs XLA runs their gradients slowly."""
    return bool(_looked_at(form)) if is_known(form) else _holds_convolution(form)


@eqx.filter_jit  # so that a form is looked at once for each shape of it, and not each time
def _looked_at(form: Pencil) -> Bool[Array, ""]:
    return jnp.array(_holds_convolution(form))


def _holds_convolution(form: Pencil) -> bool:
    jaxpr = jax.make_jaxpr(lambda v: form.mv()(v))(jnp.zeros(form.size(), form.dtype()))
    return _holds(jaxpr.jaxpr, jax.lax.conv_general_dilated_p)


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


def over_probes(
    combine: Callable[[Array, Array], Array],
    products: Callable[[Pencil], Callable],
    form: Pencil,
    by: Krylov,
) -> Any:
    """`combine(z, products(form)(z))` of each probe z of `by`, along a leading axis."""
    probes, batch = probes_of(form, by), by.batch or _IN_CACHE
    is_slow = _is_slow_in_loops(form)
    if not (is_slow and is_known(form)):
        return _in_loop(combine, products, form, probes, by.batch if is_slow else batch)
    product = _linearized(products, form)
    parts = [probes[start : start + batch] for start in range(0, len(probes), batch)]
    return jnp.concatenate([_of_part(combine, product, part) for part in parts])


@eqx.filter_jit
def probes_of(form: Pencil, by: Krylov) -> Float[Array, "probes n"]:
    """The probes of `by`, compiled."""
    return signs(by, jnp.zeros(form.size(), form.dtype()))


@eqx.filter_jit
def _in_loop(
    combine: Callable,
    products: Callable,
    form: Pencil,
    probes: Float[Array, "b n"],
    batch: int | None,
) -> Any:
    product = products(form)
    return mapped(lambda z: combine(z, product(z)), probes, batch)


@eqx.filter_jit
def _linearized(products: Callable, form: Pencil) -> Callable[[Array], Array]:
    # As a pytree, so that what is fixed is computed once for all parts.
    return jax.linearize(products(form), jnp.zeros(form.size(), form.dtype()))[1]


@eqx.filter_jit
def _of_part(combine: Callable, product: Callable, part: Float[Array, "b n"]) -> Array:
    return jax.vmap(lambda z: combine(z, product(z)))(part)

"""Derivatives along coordinates: in forward mode, and in reverse where JAX has no other."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.geometry.scores import tangent_like


def lacks_forward_mode(error: Exception) -> bool:
    """Tell whether it is JAX's refusal to take a custom_vjp function forward, once or twice."""
    return "custom_vjp" in str(error) or "custom_lin" in str(error)


def along_coordinates(f: Callable[[Array], Any], u: Float[Array, " d"]) -> tuple[Any, Any]:
    """The value of f at u, and its derivatives along each coordinate.

    In reverse, one row after the other, where the function has a reverse derivative of its own and
    no forward one, as solvers of differential equations have.

    Args:
        f: function of u, its value a pytree of arrays.
        u: point, shape (d,).

    Returns:
        The value, and a pytree like it with a leading axis d; zeros for integers.
    """

    def moved_along(direction: Float[Array, " d"]) -> tuple[Any, Any]:
        value, tangent = jax.jvp(f, (u,), (direction,))
        return value, tangent_like(value, tangent)

    try:
        return jax.vmap(moved_along, out_axes=(None, 0))(jnp.eye(u.size, dtype=u.dtype))
    except (TypeError, NotImplementedError) as error:
        if not lacks_forward_mode(error):
            raise
    return _in_reverse(f, u)


def _in_reverse(f: Callable[[Array], Any], u: Float[Array, " d"]) -> tuple[Any, Any]:
    def reals(u: Float[Array, " d"]) -> tuple[Float[Array, " m"], Any]:
        value = jax.tree.map(jnp.asarray, f(u))
        return ravel_pytree([leaf for leaf in jax.tree.leaves(value) if _is_real(leaf)])[0], value

    flat, pull, value = jax.vjp(reals, u, has_aux=True)
    (jacobian,) = jax.vmap(pull)(jnp.eye(flat.size, dtype=flat.dtype))
    leaves, structure = jax.tree.flatten(value)
    _, unravel = ravel_pytree([leaf for leaf in leaves if _is_real(leaf)])
    moved = iter(jax.vmap(unravel)(jacobian.T))
    tangents = [
        next(moved) if _is_real(leaf) else jnp.zeros((u.size, *leaf.shape)) for leaf in leaves
    ]
    return value, structure.unflatten(tangents)


def _is_real(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def held(tree: PyTree) -> PyTree:
    """Take a pytree for constant: its arrays without their derivatives."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, tree)

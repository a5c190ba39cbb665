"""Derivatives along coordinates: both modes give the same."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from numpy.testing import assert_allclose

from volform.geometry import along_coordinates


@jax.custom_vjp
def exp_in_reverse(x: Any) -> Any:
    return jnp.exp(x)


exp_in_reverse.defvjp(lambda x: (jnp.exp(x),) * 2, lambda y, g: (g * y,))


def of(exp: Any, u: Any) -> Any:
    return {"a": exp(u[:2]) @ jnp.ones((2, 2)), "count": jnp.arange(3), "b": [u[2] * exp(u[0])]}


def test_both_modes_agree() -> None:
    u = jnp.array([0.3, -0.7, 1.1])
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jacfwd(lambda u: exp_in_reverse(u))(u)
    value, moved = along_coordinates(lambda u: of(exp_in_reverse, u), u)
    plain, along = along_coordinates(lambda u: of(jnp.exp, u), u)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-14), value, plain)
    assert jax.tree.map(jnp.shape, moved) == {"a": (3, 2), "count": (3, 3), "b": [(3,)]}
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-14), moved, along)
    assert_allclose(moved["a"], jnp.exp(u)[:, None] * jnp.array([[1.0] * 2] * 2 + [[0.0] * 2]))


def test_other_errors_pass() -> None:
    with pytest.raises(TypeError, match="no number"):
        along_coordinates(lambda u: _refused(), jnp.zeros(2))


def _refused() -> Any:
    raise TypeError("no number")

"""Jacobi fields and the determinant of exp against closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform.errors import GeodesicError, SingularMetricError
from volform.geometry import (
    DiagonalField,
    TangentSpace,
    exp,
    exp_determinant,
    jacobi_field,
    pushforward,
)

from .laws import close, random_chain


class Ball(vf.Metric):
    """Constant curvature kappa, by stereographic projection."""

    kappa: jax.Array

    def __call__(self, x):
        return DiagonalField(lambda x: 4.0 / (1.0 + self.kappa * (x @ x)) ** 2 * jnp.ones_like(x))(
            x
        )


def ball(kappa):
    return Ball(jnp.asarray(float(kappa)))


X, V, W = jnp.array([0.2, -0.3, 0.1]), jnp.array([0.5, 0.2, -0.4]), jnp.array([-0.1, 0.3, 0.7])


@pytest.mark.parametrize("d", [2, 3, 4])
def test_determinant_of_exp_in_constant_curvature(d):
    x, v = jnp.linspace(0.1, 0.3, d), jnp.linspace(-0.6, 0.5, d)
    for kappa, sine in ((1.0, np.sin), (0.0, lambda r: r), (-1.0, np.sinh)):
        r = exp(ball(kappa), x, v).length
        assert_allclose(exp_determinant(ball(kappa), x, v), (sine(r) / r) ** (d - 1), rtol=1e-9)
    # Past the antipode of even and odd multiplicity.
    v = v * 4.0 / exp(ball(1.0), x, v).length
    assert_allclose(exp_determinant(ball(1.0), x, v), (np.sin(4.0) / 4.0) ** (d - 1), rtol=1e-9)


def test_jacobi_field_is_the_derivative_of_exp():
    metric = ball(-1.0)
    field = jacobi_field(metric, exp(metric, X, V), W)
    ends = [exp(metric, X, V + e * W).end for e in (1e-5, -1e-5)]
    assert_allclose(field, (ends[0] - ends[1]) / 2e-5, rtol=1e-7)


def test_in_another_chart():
    f, metric = random_chain(np.random.default_rng(3), 3), ball(-1.0)
    carried, path = vf.pullback(metric, f.inv), exp(metric, X, V)
    there = exp(carried, f(X), pushforward(f, X, V))
    field = jacobi_field(carried, there, pushforward(f, X, W))
    close(field, pushforward(f, path.end, jacobi_field(metric, path, W)), 1e-8)
    found = exp_determinant(carried, f(X), pushforward(f, X, V))
    assert_allclose(found, exp_determinant(metric, X, V), rtol=1e-8)


def test_under_jit_vmap_and_grad():
    metric = ball(1.0)
    scales = jnp.array([0.5, 1.0])
    many = jax.jit(
        jax.vmap(lambda t: jax.value_and_grad(lambda t: exp_determinant(metric, X, t * V))(t))
    )
    values, slopes = many(scales)
    r = exp(metric, X, V).length * scales
    assert_allclose(values, (np.sin(r) / r) ** 2, rtol=1e-9)
    wanted = 2.0 * np.sin(r) / r * (np.cos(r) / r - np.sin(r) / r**2) * r / scales
    assert_allclose(slopes, wanted, rtol=1e-8)


def test_of_a_tangent_space():
    metric, space = ball(-1.0), TangentSpace(X)
    path = exp(metric, X, V)
    moved = jacobi_field(metric, path, space.vector(W))
    assert_allclose(moved.components, jacobi_field(metric, path, W))
    assert_allclose(exp_determinant(metric, X, space.vector(V)), exp_determinant(metric, X, V))


EDGE = DiagonalField(lambda x: 1.0 / jnp.abs(1.0 - x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: exp_determinant(ball(1), X, jnp.ones(2)), GeodesicError, "`velocity` of exp_det"),
        (lambda: exp_determinant(ball(1), X, X * jnp.nan), GeodesicError, "not finite"),
        (lambda: jacobi_field(ball(1), exp(ball(1), X, V), 1.0), GeodesicError, "`vector` of jac"),
        (
            lambda: exp_determinant(EDGE, jnp.zeros(1), 4.0 * jnp.ones(1)),
            SingularMetricError,
            "stops after 0.5 of its length",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()

import time

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose

import volform as vf
from volform.errors import VolformError
from volform.geometry.structure import BlockDiagonal, Dense, Segments
from volform.geometry.tensors import (
    flat,
    gradient,
    inner,
    norm,
    pull_covector,
    push_bilinear,
    push_covector,
    push_operator,
    pushforward,
    sharp,
)

from .diffeomorphisms import (
    COVECTOR,
    CURVED,
    HESSIAN,
    PHI,
    POINT,
    VECTOR,
    Setting,
    anywhere,
    random_diffeomorphism,
)

RULES = {
    "vector": (pushforward, Setting.vector),
    "covector": (push_covector, Setting.vector),
    "bilinear form": (push_bilinear, Setting.matrix),
    "operator": (push_operator, Setting.matrix),
}
rules = pytest.mark.parametrize(("push", "drawn"), RULES.values(), ids=RULES)


def close(actual, desired, rtol=1e-10):
    """Equal to `rtol` of the largest entry."""
    assert_allclose(actual, desired, rtol=rtol, atol=rtol * np.abs(desired).max())


# --- Laws that every rule obeys


@rules
@given(setting=anywhere())
def test_composition(push, drawn, setting):
    thing, f, x = drawn(setting), setting.f, setting.point
    g = random_diffeomorphism(setting.rng, setting.d)
    twice = push(g.forward, f.forward(x), push(f.forward, x, thing))
    close(push(f.then(g).forward, x, thing), twice)


@rules
@given(setting=anywhere())
def test_inverse(push, drawn, setting):
    thing, f, x = drawn(setting), setting.f, setting.point
    close(push(f.inverse, f.forward(x), push(f.forward, x, thing)), thing)


@rules
@given(setting=anywhere())
def test_linearity(push, drawn, setting):
    f, x, a, b = setting.f.forward, setting.point, drawn(setting), drawn(setting)
    close(push(f, x, 2.0 * a - b), 2.0 * push(f, x, a) - push(f, x, b))


# --- Each rule against its definition


@given(setting=anywhere())
def test_rules_are_those_of_the_dense_jacobian(setting):
    x, f, v, b = setting.point, setting.f.forward, setting.vector(), setting.matrix()
    j = jax.jacobian(f)(x)
    close(pushforward(f, x, v), j @ v)
    close(pull_covector(f, x, v), j.T @ v)
    close(push_covector(f, x, v), np.linalg.inv(j).T @ v)
    close(push_bilinear(f, x, b), np.linalg.inv(j).T @ b @ np.linalg.inv(j))
    close(push_operator(f, x, b), j @ b @ np.linalg.inv(j))


@given(setting=anywhere())
def test_differentials_are_covectors(setting):
    f, x, y = setting.f, setting.point, setting.f.forward(setting.point)
    in_theta = jax.grad(setting.function)(x)
    in_psi = jax.grad(lambda y: setting.function(f.inverse(y)))(y)
    close(push_covector(f.forward, x, in_theta), in_psi)
    close(pull_covector(f.forward, x, in_psi), in_theta)


@given(setting=anywhere())
def test_metrics_are_bilinear_forms(setting):
    f, x = setting.f, setting.point
    carried = vf.pullback(setting.metric, f.inverse)(f.forward(x)).as_matrix()
    close(carried, push_bilinear(f.forward, x, setting.metric(x).as_matrix()))


@given(setting=anywhere())
def test_velocities_of_curves_are_vectors(setting):
    x, v, f = setting.point, setting.vector(), setting.f.forward
    velocity = jax.jacobian(lambda t: f(x + t * v + t**2 * x))(0.0)
    close(pushforward(f, x, v), velocity)


# --- Pairings, the musical maps, gradients


@given(setting=anywhere())
def test_pairing_and_inner_product_are_invariant(setting):
    x, f, g = setting.point, setting.f.forward, setting.metric
    v, u, w = setting.vector(), setting.vector(), setting.vector()
    carried = vf.pullback(g, setting.f.inverse)
    jv, ju = pushforward(f, x, v), pushforward(f, x, u)
    size = norm(g, x, u) * norm(g, x, v)
    assert_allclose(push_covector(f, x, w) @ jv, w @ v, atol=1e-10 * jnp.abs(w * v).max())
    assert_allclose(inner(carried, f(x), ju, jv), inner(g, x, u, v), atol=1e-10 * size)
    assert_allclose(norm(carried, f(x), jv), norm(g, x, v), rtol=1e-10)


@given(setting=anywhere())
def test_flat_and_sharp_are_inverse(setting):
    x, g, v = setting.point, setting.metric, setting.vector()
    close(sharp(g, x, flat(g, x, v)), v)
    close(flat(g, x, sharp(g, x, v)), v)
    close(inner(g, x, sharp(g, x, v), sharp(g, x, v)), v @ sharp(g, x, v))


@given(setting=anywhere())
def test_gradient_is_a_vector(setting):
    x, f, g = setting.point, setting.f, setting.metric
    carried = vf.pullback(g, f.inverse)
    in_psi = gradient(carried, lambda y: setting.function(f.inverse(y)), f.forward(x))
    close(in_psi, pushforward(f.forward, x, gradient(g, setting.function, x)), rtol=1e-9)


@given(setting=anywhere())
def test_naive_gradient_has_the_induced_metric(setting):
    """Plain gradient descent in psi is gradient descent in theta under J^T J."""
    x, f = setting.point, setting.f
    naive = jax.grad(lambda y: setting.function(f.inverse(y)))(f.forward(x))
    induced = vf.pullback(vf.Euclidean(), f.forward)
    close(
        pushforward(f.inverse, f.forward(x), naive),
        gradient(induced, setting.function, x),
        rtol=1e-9,
    )


# --- The worked figures


def test_function_figure():
    assert_allclose(PHI.inverse(PHI.forward(POINT)), POINT, rtol=1e-14)


def test_pairing_figure():
    v, w = pushforward(PHI.forward, POINT, VECTOR), push_covector(PHI.forward, POINT, COVECTOR)
    assert_allclose([COVECTOR @ VECTOR, w @ v], 0.73, rtol=1e-14)
    # With J^T for J^-T, as printed in Example 3(b), it would be:
    j = jax.jacobian(PHI.forward)(POINT)
    assert_allclose((j.T @ COVECTOR) @ v, 0.4164, atol=5e-5)


def test_inner_product_figure():
    carried, psi = vf.pullback(CURVED, PHI.inverse), PHI.forward(POINT)
    v = pushforward(PHI.forward, POINT, VECTOR)
    assert_allclose(inner(CURVED, POINT, VECTOR, VECTOR), 1.97253579, atol=5e-9)
    assert_allclose(inner(carried, psi, v, v), 1.97253579, atol=5e-9)
    # With G at psi for G at phi^-1(psi), as printed in rule (d), it would be:
    assert_allclose(inner(CURVED, psi, VECTOR, VECTOR), 1.89424, atol=5e-6)


def test_determinant_figures():
    """det H changes, det(G^-1 H) does not."""
    h, g = push_bilinear(PHI.forward, POINT, HESSIAN), CURVED(POINT).as_matrix()
    e = np.linalg.solve(g, HESSIAN)
    carried = push_operator(PHI.forward, POINT, e)
    assert_allclose(np.linalg.det(HESSIAN), 4.34, rtol=1e-14)
    assert_allclose(np.linalg.det(h), 2.2177, atol=5e-5)
    assert_allclose([np.linalg.det(e), np.linalg.det(carried)], 1.05719193, atol=5e-9)
    assert_allclose([np.trace(e), np.trace(carried)], 2.12248654, atol=5e-9)
    # With G for G^-1, as printed in Eq. (2), it would be:
    assert_allclose(np.linalg.det(g @ HESSIAN), 17.8, atol=0.05)


@pytest.mark.parametrize("d", [1, 3, 10])
def test_appendix_a_figures(d):
    """L = |theta|^2 and psi = 3 theta: det H = 2^d, (2/9)^d in psi, and det E = 2^d in both."""
    x, h = jnp.zeros(d), 2.0 * jnp.eye(d)
    carried = push_bilinear(lambda t: 3.0 * t, x, h)
    assert_allclose(np.linalg.det(carried), (2 / 9) ** d, rtol=1e-12)
    e = push_operator(lambda t: 3.0 * t, x, h)
    assert_allclose(np.linalg.det(e), 2.0**d, rtol=1e-12)


# --- Pytrees, structure, transformations, errors


TREE = {"b": jnp.array([0.3, -0.2]), "a": jnp.array(1.5)}


def test_points_are_pytrees():
    def f(a, b):
        return {"c": jnp.exp(a), "d": b * a}

    v = {"a": jnp.array(1.0), "b": jnp.array([2.0, 3.0])}
    w = {"c": jnp.array(0.5), "d": jnp.array([1.0, -1.0])}
    jv, jtw = pushforward(f, TREE, v), pull_covector(f, TREE, w)
    back = push_covector(f, TREE, jtw)
    close(jv["d"], TREE["b"] + 1.5 * v["b"])
    close(jtw["a"], 0.5 * jnp.exp(1.5) + TREE["b"] @ w["d"])
    close(jnp.append(back["d"], back["c"]), jnp.append(w["d"], w["c"]))
    metric = vf.Euclidean(2.0)
    slope = gradient(metric, lambda a, b: a**2 + b @ b, TREE)
    close(slope["a"], 12.0)
    close(slope["b"], 8.0 * TREE["b"])


def test_groups_of_sites_are_spread():
    point = (jnp.array(2.0), jnp.array(3.0))
    close(pushforward(lambda a, b: a * b, point, (jnp.array(1.0), jnp.array(0.0))), 3.0)


OPERATORS = {
    "dense": Dense(jnp.diag(jnp.array([2.0, 3.0, 4.0])) + 0.5, TREE),
    "identity": lx.IdentityLinearOperator(jax.eval_shape(lambda: TREE)),
    "diagonal": lx.DiagonalLinearOperator({"a": jnp.array(2.0), "b": jnp.array([3.0, 4.0])}),
    "blocks": BlockDiagonal(
        {
            "b": Dense(jnp.array([[2.0, 0.5], [0.5, 1.0]]), TREE["b"]),
            "a": lx.DiagonalLinearOperator(jnp.array(4.0)),
        }
    ),
}


class Constant(vf.Metric):
    operator: lx.AbstractLinearOperator

    def __call__(self, point):
        return self.operator


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_sharp_is_the_dense_solution(operator):
    w = {"a": jnp.array(1.0), "b": jnp.array([2.0, 3.0])}
    solved = sharp(Constant(operator), TREE, w)
    dense = np.linalg.solve(operator.as_matrix(), [1.0, 2.0, 3.0])
    close(jnp.append(solved["a"], solved["b"]), dense)


def test_sharp_on_segments():
    blocks = (Dense(jnp.array([[2.0, 0.5], [0.5, 1.0]]), jnp.zeros(2)), OPERATORS["diagonal"])
    operator = Segments((blocks[0], lx.DiagonalLinearOperator(jnp.array(4.0))))
    w = jnp.array([1.0, 2.0, 3.0])
    close(sharp(Constant(operator), w, w), np.linalg.solve(operator.as_matrix(), w))


def test_diagonal_metrics_cost_linear_time():
    n = 1_000_000
    point = {"a": jnp.ones(n), "b": jnp.ones(())}
    metric = vf.geometry.Product({"a": vf.Euclidean(2.0), "b": vf.Euclidean()})
    start = time.perf_counter()
    slope = gradient(metric, lambda a, b: a @ a + b, point)
    assert float(slope["a"][-1]) == 8.0
    assert time.perf_counter() - start < 2.0


def test_under_jit_vmap_and_grad():
    points = POINT + np.linspace(0, 1, 4)[:, None]
    pushed = jax.jit(jax.vmap(lambda x: push_bilinear(PHI.forward, x, HESSIAN)))(points)
    close(pushed[2], push_bilinear(PHI.forward, points[2], HESSIAN))
    raised = jax.jit(jax.vmap(lambda x: sharp(CURVED, x, COVECTOR)))(points)
    close(raised[3], np.linalg.solve(CURVED(points[3]).as_matrix(), COVECTOR))
    slope = jax.jacobian(lambda x: sharp(CURVED, x, COVECTOR))(POINT)
    step = 1e-5 * np.eye(2)
    differences = [
        (sharp(CURVED, POINT + h, COVECTOR) - sharp(CURVED, POINT - h, COVECTOR)) / 2e-5
        for h in step
    ]
    assert_allclose(slope, np.stack(differences, -1), atol=1e-9)


@pytest.mark.parametrize("push", [push_covector, push_bilinear, push_operator])
def test_no_diffeomorphism(push):
    thing = jnp.ones(2) if push is push_covector else jnp.eye(2)
    with pytest.raises(VolformError, match="`f` maps 2 coordinates to 1, so it is no diffeo"):
        push(jnp.sum, jnp.ones(2), thing)


def test_singular_jacobian_is_not_hidden():
    assert not jnp.isfinite(push_covector(jnp.square, jnp.array(0.0), jnp.array(1.0)))


def test_singular_metric_is_not_hidden():
    flat_direction = vf.pullback(vf.Euclidean(), lambda x: x[:1])
    assert jnp.isnan(sharp(flat_direction, jnp.ones(2), jnp.ones(2))).any()

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform.errors import VolformError
from volform.geometry import (
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
from volform.linalg import BlockDiagonal, DenseOperator, FlatBlocks

from .laws import COVECTOR, CURVED, HESSIAN, PHI, POINT, VECTOR, close, law

# --- Laws that every rule obeys


def carried(f, s, vectors, matrices):
    """Each kind of object, carried by f from s.x."""
    return {
        "vector": pushforward(f, s, vectors[0]),
        "covector": push_covector(f, s, vectors[1]),
        "bilinear form": push_bilinear(f, s, matrices[0]),
        "operator": push_operator(f, s, matrices[1]),
    }


def again(f, x, things):
    """Each of the objects, carried on by f from x."""
    vectors = things["vector"], things["covector"]
    return carried(f, x, vectors, (things["bilinear form"], things["operator"]))


@law()
def test_composition(s):
    """Along g o f is along f, then along g."""
    once = carried(lambda x: s.g(s.f(x)), s.x, s.vectors, s.matrices)
    return again(s.g, s.y, carried(s.f, s.x, s.vectors, s.matrices)), once


@law()
def test_inverse(s):
    """Along f, then along f^-1, is no change."""
    back = again(s.f.inv, s.y, carried(s.f, s.x, s.vectors, s.matrices))
    return back, carried(lambda x: x, s.x, s.vectors, s.matrices)


# --- Each rule against its definition


@law()
def test_rules_are_those_of_the_dense_jacobian(s):
    j, v, w, b, e = jax.jacobian(s.f)(s.x), *s.vectors[:2], *s.matrices
    j_inv = jnp.linalg.inv(j)
    expected = {
        "vector": j @ v,
        "covector": j_inv.T @ w,
        "bilinear form": j_inv.T @ b @ j_inv,
        "operator": j @ e @ j_inv,
    }
    actual = carried(s.f, s.x, s.vectors, s.matrices)
    return (actual, pull_covector(s.f, s.x, w)), (expected, j.T @ w)


@law()
def test_differentials_are_covectors(s):
    in_theta, in_psi = jax.grad(s.function)(s.x), jax.grad(s.carried_function)(s.y)
    pushed, pulled = push_covector(s.f, s.x, in_theta), pull_covector(s.f, s.x, in_psi)
    return (pushed, pulled), (in_psi, in_theta)


@law()
def test_metrics_are_bilinear_forms(s):
    return s.carried_metric(s.y).as_matrix(), push_bilinear(s.f, s.x, s.metric(s.x).as_matrix())


@law()
def test_velocities_of_curves_are_vectors(s):
    v = s.vectors[0]
    return pushforward(s.f, s.x, v), jax.jacobian(lambda t: s.f(s.x + t * v + t**2 * s.x))(0.0)


# --- Pairings, the musical maps, gradients


@law()
def test_pairing_is_invariant(s):
    v, w = s.vectors[:2]
    paired = push_covector(s.f, s.x, w) @ pushforward(s.f, s.x, v)
    return paired, w @ v, jnp.abs(v) @ jnp.abs(w)


@law()
def test_inner_product_is_invariant(s):
    u, v = s.vectors[:2]
    ju, jv = pushforward(s.f, s.x, u), pushforward(s.f, s.x, v)
    size = norm(s.metric, s.x, u) * norm(s.metric, s.x, v)
    return inner(s.carried_metric, s.y, ju, jv), inner(s.metric, s.x, u, v), size


@law()
def test_norm_is_invariant(s):
    v = s.vectors[0]
    return norm(s.carried_metric, s.y, pushforward(s.f, s.x, v)), norm(s.metric, s.x, v)


@law()
def test_flat_and_sharp_are_inverse(s):
    v = s.vectors[0]
    up, down = sharp(s.metric, s.x, v), flat(s.metric, s.x, v)
    squared = inner(s.metric, s.x, up, up)
    expected = (v, v, v @ up)
    return (sharp(s.metric, s.x, down), flat(s.metric, s.x, up), squared), expected


@law()
def test_gradient_is_a_vector(s):
    in_theta = gradient(s.metric, s.function, s.x)
    in_psi = gradient(s.carried_metric, s.carried_function, s.y)
    return in_psi, pushforward(s.f, s.x, in_theta)


@law()
def test_naive_gradient_has_the_induced_metric(s):
    """Plain gradient descent in psi is gradient descent in theta under J^T J."""
    naive = jax.grad(s.carried_function)(s.y)
    induced = vf.pullback(vf.Euclidean(), s.f)
    return pushforward(s.f.inv, s.y, naive), gradient(induced, s.function, s.x)


# --- The worked figures


def test_function_figure():
    assert_allclose(PHI.inv(PHI(POINT)), POINT, rtol=1e-14)


def test_pairing_figure():
    v, w = pushforward(PHI, POINT, VECTOR), push_covector(PHI, POINT, COVECTOR)
    assert_allclose([COVECTOR @ VECTOR, w @ v], 0.73, rtol=1e-14)
    # With J^T for J^-T, as printed in Example 3(b), it would be:
    j = jax.jacobian(PHI)(POINT)
    assert_allclose((j.T @ COVECTOR) @ v, 0.4164, atol=5e-5)


def test_inner_product_figure():
    metric, psi = vf.pullback(CURVED, PHI.inv), PHI(POINT)
    v = pushforward(PHI, POINT, VECTOR)
    assert_allclose(inner(CURVED, POINT, VECTOR, VECTOR), 1.97253579, atol=5e-9)
    assert_allclose(inner(metric, psi, v, v), 1.97253579, atol=5e-9)
    # With G at psi for G at phi^-1(psi), as printed in rule (d), it would be:
    assert_allclose(inner(CURVED, psi, VECTOR, VECTOR), 1.89424, atol=5e-6)


def test_determinant_figures():
    """det H changes, det(G^-1 H) does not."""
    h, g = push_bilinear(PHI, POINT, HESSIAN), CURVED(POINT).as_matrix()
    e = np.linalg.solve(g, HESSIAN)
    e_psi = push_operator(PHI, POINT, e)
    assert_allclose(np.linalg.det(HESSIAN), 4.34, rtol=1e-14)
    assert_allclose(np.linalg.det(h), 2.2177, atol=5e-5)
    assert_allclose([np.linalg.det(e), np.linalg.det(e_psi)], 1.05719193, atol=5e-9)
    assert_allclose([np.trace(e), np.trace(e_psi)], 2.12248654, atol=5e-9)
    # With G for G^-1, as printed in Eq. (2), it would be:
    assert_allclose(np.linalg.det(g @ HESSIAN), 17.8, atol=0.05)


@pytest.mark.parametrize("d", [1, 3, 10])
def test_appendix_a_figures(d):
    """L = |theta|^2 and psi = 3 theta: det H = 2^d, (2/9)^d in psi, and det E = 2^d in both."""
    x, h = jnp.zeros(d), 2.0 * jnp.eye(d)
    h_psi = push_bilinear(lambda t: 3.0 * t, x, h)
    assert_allclose(np.linalg.det(h_psi), (2 / 9) ** d, rtol=1e-12)
    e = push_operator(lambda t: 3.0 * t, x, h)
    assert_allclose(np.linalg.det(e), 2.0**d, rtol=1e-12)


# --- Pytrees, structure, transformations, errors


TREE = {"b": jnp.array([0.3, -0.2]), "a": jnp.array(1.5)}


def test_points_are_pytrees():
    def f(a, b):
        return {"c": jnp.exp(a), "d": b * a}

    @jax.jit
    def carried(v, w):
        jtw = pull_covector(f, TREE, w)
        return pushforward(f, TREE, v), jtw, push_covector(f, TREE, jtw)

    v = {"a": jnp.array(1.0), "b": jnp.array([2.0, 3.0])}
    w = {"c": jnp.array(0.5), "d": jnp.array([1.0, -1.0])}
    jv, jtw, back = carried(v, w)
    close(jv["d"], TREE["b"] + 1.5 * v["b"])
    close(jtw["a"], 0.5 * jnp.exp(1.5) + TREE["b"] @ w["d"])
    close(jnp.append(back["d"], back["c"]), jnp.append(w["d"], w["c"]))
    metric = vf.Euclidean(2.0)
    slope = gradient(metric, lambda p: p["a"] ** 2 + p["b"] @ p["b"], TREE)
    close(slope["a"], 12.0)
    close(slope["b"], 8.0 * TREE["b"])


def test_groups_of_sites_are_spread():
    point = (jnp.array(2.0), jnp.array(3.0))
    close(pushforward(lambda a, b: a * b, point, (jnp.array(1.0), jnp.array(0.0))), 3.0)


OPERATORS = {
    "dense": DenseOperator(jnp.diag(jnp.array([2.0, 3.0, 4.0])) + 0.5, TREE),
    "identity": lx.IdentityLinearOperator(jax.eval_shape(lambda: TREE)),
    "diagonal": lx.DiagonalLinearOperator({"a": jnp.array(2.0), "b": jnp.array([3.0, 4.0])}),
    "blocks": BlockDiagonal(
        {
            "b": DenseOperator(jnp.array([[2.0, 0.5], [0.5, 1.0]]), TREE["b"]),
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
    blocks = (
        DenseOperator(jnp.array([[2.0, 0.5], [0.5, 1.0]]), jnp.zeros(2)),
        OPERATORS["diagonal"],
    )
    operator = FlatBlocks((blocks[0], lx.DiagonalLinearOperator(jnp.array(4.0))))
    w = jnp.array([1.0, 2.0, 3.0])
    close(sharp(Constant(operator), w, w), np.linalg.solve(operator.as_matrix(), w))


def test_diagonal_metrics_cost_linear_memory():
    n = 1_000_000  # a matrix would take 8 TB
    point = {"a": jnp.ones(n), "b": jnp.ones(())}
    metric = vf.geometry.Product({"a": vf.Euclidean(2.0), "b": vf.Euclidean()})
    slope = gradient(metric, lambda p: p["a"] @ p["a"] + p["b"], point)
    assert float(slope["a"][-1]) == 8.0


def test_under_jit_vmap_and_grad():
    points = POINT + np.linspace(0, 1, 4)[:, None]
    pushed = jax.jit(jax.vmap(lambda x: push_bilinear(PHI, x, HESSIAN)))(points)
    close(pushed[2], push_bilinear(PHI, points[2], HESSIAN))
    raised = jax.jit(jax.vmap(lambda x: sharp(CURVED, x, COVECTOR)))(points)
    close(raised[3], np.linalg.solve(CURVED(points[3]).as_matrix(), COVECTOR))
    at = jax.jit(lambda x: sharp(CURVED, x, COVECTOR))
    differences = [(at(POINT + h) - at(POINT - h)) / 2e-5 for h in 1e-5 * np.eye(2)]
    assert_allclose(jax.jit(jax.jacobian(at))(POINT), np.stack(differences, -1), atol=1e-9)


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

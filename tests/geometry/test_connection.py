import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from numpy.testing import assert_allclose

import volform as vf
from volform.geometry import (
    connection,
    gradient,
    log_volume,
    push_bilinear,
    push_operator,
    pushforward,
    riemann,
)

from .laws import CURVED, HESSIAN, PHI, POINT, close, law

# Compiled: run operation by operation, third derivatives take seconds.
christoffel = eqx.filter_jit(connection.christoffel)
covariant_hessian = eqx.filter_jit(connection.covariant_hessian)
eigenvalues = eqx.filter_jit(connection.generalized_eigenvalues)
relative = eqx.filter_jit(connection.raise_index)
scalar_curvature = eqx.filter_jit(riemann.scalar_curvature)

# --- Christoffel symbols


@law((1, 3))
def test_christoffel_symbols_are_those_of_levi_civita(s):
    """No torsion, and parallel transport keeps G: d_l G_ij = Gamma_{j,il} + Gamma_{i,jl}."""
    gamma = christoffel(s.metric, s.x)
    first_kind = jnp.einsum("km,mij->kij", s.metric(s.x).as_matrix(), gamma)
    slope = jax.jacfwd(lambda x: s.metric(x).as_matrix())(s.x)
    kept = jnp.einsum("jil->ijl", first_kind) + first_kind
    return (gamma, kept), (jnp.swapaxes(gamma, 1, 2), slope)


@law((1, 3), rtol=1e-9)
def test_christoffel_symbols_change_by_their_rule(s):
    """J Gamma(J^-1, J^-1) + J d2 f^-1, Eq. (7)."""
    j, j_inv = jax.jacobian(s.f)(s.x), jax.jacobian(s.f.inv)(s.y)
    second = jax.hessian(s.f.inv)(s.y)  # [k, a, b]
    inner = jnp.einsum("kij,ia,jb->kab", christoffel(s.metric, s.x), j_inv, j_inv)
    return christoffel(s.carried_metric, s.y), jnp.einsum("ck,kab->cab", j, inner + second)


def test_euclidean_metric_carried_to_a_chart_has_symbols():
    y = PHI(POINT)
    assert_allclose(christoffel(vf.Euclidean(), POINT), 0.0, atol=0.0)
    symbols = christoffel(vf.pullback(vf.Euclidean(), PHI.inv), y)
    j, second = jax.jit(jax.jacobian(PHI))(POINT), jax.jit(jax.hessian(PHI.inv))(y)
    close(symbols, jnp.einsum("ck,kab->cab", j, second))


def test_polar_coordinates():
    """Gamma^r_tt = -r, Gamma^t_rt = 1/r."""
    polar = vf.pullback(vf.Euclidean(), lambda r, t: jnp.stack([r * jnp.cos(t), r * jnp.sin(t)]))
    gamma = christoffel(polar, (jnp.array(2.0), jnp.array(0.7)))
    close(gamma, [[[0.0, 0.0], [0.0, -2.0]], [[0.0, 0.5], [0.5, 0.0]]])


# --- The covariant Hessian


@law(rtol=1e-8)
def test_covariant_hessian_is_a_tensor(s):
    h = covariant_hessian(s.metric, s.function, s.x)
    return covariant_hessian(s.carried_metric, s.carried_function, s.y), push_bilinear(s.f, s.x, h)


def test_plain_hessian_is_no_tensor():
    def function(t):
        return jnp.sin(t[0]) * jnp.exp(t[1])

    y = PHI(POINT)
    plain = jax.jit(jax.hessian(lambda y: function(PHI.inv(y))))(y)
    hessian = jax.jit(jax.hessian(function))(POINT)
    carried = jax.jit(lambda h: push_bilinear(PHI, POINT, h))(hessian)
    assert np.abs(plain - carried).max() > 0.1
    euclidean = vf.pullback(vf.Euclidean(), PHI.inv)
    close(covariant_hessian(euclidean, lambda y: function(PHI.inv(y)), y), carried)


@law()
def test_covariant_hessian_from_christoffel_symbols(s):
    connection = jnp.einsum("kij,k->ij", christoffel(s.metric, s.x), jax.grad(s.function)(s.x))
    h = jax.hessian(s.function)(s.x) - connection
    return covariant_hessian(s.metric, s.function, s.x), h


@law((1, 3), rtol=1e-9)
def test_covariant_hessian_is_half_the_change_of_the_metric_along_the_gradient(s):
    """Hess L = 1/2 Lie_{grad L} G, which needs no connection at all."""

    def field(x):
        return gradient(s.metric, s.function, x)

    def matrix(x):
        return s.metric(x).as_matrix()

    along = jax.jvp(matrix, (s.x,), (field(s.x),))[1]
    slope = matrix(s.x) @ jax.jacobian(field)(s.x)
    lie = along + slope + slope.T
    return covariant_hessian(s.metric, s.function, s.x), 0.5 * lie


@law((1, 3), rtol=1e-9)
def test_trace_is_the_laplace_beltrami_operator(s):
    """tr_G H = 1/sqrt(det G) d_i (sqrt(det G) (grad L)^i)."""

    def volume(x):
        return jnp.exp(log_volume(s.metric, x))

    def flux(x):
        return volume(x) * gradient(s.metric, s.function, x)

    e = relative(s.metric, s.x, covariant_hessian(s.metric, s.function, s.x))
    divergence = jnp.trace(jax.jacobian(flux)(s.x)) / volume(s.x)
    return jnp.trace(e), divergence, jnp.abs(e).sum()


@law()
def test_covariant_hessian_at_a_critical_point_is_the_plain_one(s):
    slope = jax.grad(s.function)(s.x)

    def flat_at_x(x):
        return s.function(x) - slope @ x

    h = covariant_hessian(s.metric, flat_at_x, s.x)
    return (h, h), (jax.hessian(s.function)(s.x), h.T)


def test_geodesics_have_no_acceleration_of_their_own():
    """Along the hyperbolic geodesic t -> (tanh t, sech t) the second derivative of L is Hess L."""
    half_plane = vf.geometry.MatrixField(lambda p: jnp.eye(2) / p[1] ** 2)

    def curve(t):
        return jnp.stack([jnp.tanh(t), 1.0 / jnp.cosh(t)])

    def function(p):
        return jnp.sin(p[0]) + p[0] * p[1] ** 3

    p, v = jax.jvp(curve, (0.4,), (1.0,))
    second = jax.jit(jax.grad(jax.grad(lambda t: function(curve(t)))))(0.4)
    close(v @ covariant_hessian(half_plane, function, p) @ v, second)


# --- Relative to the metric


@law(rtol=1e-9)
def test_relative_operator_and_its_spectrum_are_invariant(s):
    h = s.matrices[0] + s.matrices[0].T
    h_psi = push_bilinear(s.f, s.x, h)
    e = relative(s.metric, s.x, h)
    in_psi = relative(s.carried_metric, s.y, h_psi), eigenvalues(s.carried_metric, s.y, h_psi)
    return in_psi, (push_operator(s.f, s.x, e), eigenvalues(s.metric, s.x, h))


@law()
def test_relative_operator_solves(s):
    h = s.matrices[0] + s.matrices[0].T
    return s.metric(s.x).as_matrix() @ relative(s.metric, s.x, h), h


@law()
def test_eigenvalues_are_those_of_the_relative_operator(s):
    h = s.matrices[0] + s.matrices[0].T
    e, values = relative(s.metric, s.x, h), eigenvalues(s.metric, s.x, h)
    powers = jnp.stack([jnp.trace(e), jnp.trace(e @ e), jnp.trace(e @ e @ e)])
    sums = jnp.stack([jnp.sum(values), jnp.sum(values**2), jnp.sum(values**3)])
    return sums, powers, jnp.maximum(1.0, jnp.abs(values).sum()) ** 3


def test_spectrum_figures():
    y, carried = PHI(POINT), vf.pullback(CURVED, PHI.inv)
    h = push_bilinear(PHI, POINT, HESSIAN)
    for values in (eigenvalues(CURVED, POINT, HESSIAN), eigenvalues(carried, y, h)):
        assert_allclose(values, [0.79848, 1.32401], atol=5e-6)
        assert_allclose(np.prod(values), 1.05719193, atol=5e-9)
        assert_allclose(np.sum(values), 2.12248654, atol=5e-9)


def test_eigenvectors_are_vectors():
    e = relative(CURVED, POINT, HESSIAN)
    values, vectors = scipy.linalg.eigh(HESSIAN, CURVED(POINT).as_matrix())
    carried = push_operator(PHI, POINT, e)
    for value, vector in zip(values, vectors.T, strict=True):
        pushed = pushforward(PHI, POINT, vector)
        close(carried @ pushed, value * pushed)


@pytest.mark.parametrize("d", [1, 3, 10])
def test_appendix_a_spectrum(d):
    """L = |theta|^2 and psi = 3 theta: E has d eigenvalues 2 in both coordinates."""
    tripled = vf.pullback(vf.Euclidean(), lambda p: p / 3.0)
    h = covariant_hessian(tripled, lambda p: jnp.sum((p / 3.0) ** 2), jnp.ones(d))
    close(h, 2 / 9 * np.eye(d))
    close(eigenvalues(tripled, jnp.ones(d), h), np.full(d, 2.0))


def test_pytrees_and_structure():
    point = {"b": jnp.array([1.0, 2.0]), "a": jnp.array(3.0)}
    metric = vf.geometry.Product(
        {"b": vf.geometry.DiagonalField(lambda b: b**2), "a": vf.Euclidean(0.5)}
    )
    h = covariant_hessian(metric, lambda p: p["a"] * p["b"][0] + jnp.sum(p["b"] ** 3), point)
    # Gamma^k_kk = 1/b_k for G = b^2, and dL/db = (a + 3 b_0^2, 3 b_1^2).
    close(h, [[0.0, 1.0, 0.0], [1.0, 6.0 - 6.0, 0.0], [0.0, 0.0, 12.0 - 6.0]])
    close(relative(metric, point, h), np.diag([1 / 4, 1.0, 1 / 4]) @ h)
    close(eigenvalues(metric, point, np.diag([8.0, 1.0, 12.0])), [1.0, 2.0, 3.0])


# --- Curvature


def sphere(n):
    """The unit sphere S^n by its projection from a pole."""

    def embedded(x):
        square = x @ x
        return jnp.append(2.0 * x, square - 1.0) / (1.0 + square)

    return vf.pullback(vf.Euclidean(), embedded)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("radius", [1.0, 2.0])
def test_curvature_of_spheres(n, radius):
    x = jnp.linspace(0.2, 0.9, n)
    curvature = scalar_curvature(radius**2 * sphere(n), x)
    assert_allclose(curvature, n * (n - 1) / radius**2, rtol=1e-10, atol=1e-12)


def test_curvature_of_flat_space():
    assert scalar_curvature(vf.Euclidean(), POINT) == 0.0
    carried = vf.pullback(vf.Euclidean(), PHI.inv)
    assert_allclose(scalar_curvature(carried, PHI(POINT)), 0.0, atol=1e-12)


@law((2, 3), rtol=1e-8)
def test_curvature_is_invariant(s):
    return scalar_curvature(s.carried_metric, s.y), scalar_curvature(s.metric, s.x)


def quartic(t):
    return t @ jnp.asarray(HESSIAN) @ t / 2.0 + 0.3 * t[0] ** 4 - 0.2 * t[0] * t[1] ** 3


def graph(t):
    return jnp.append(t, quartic(t))


def test_gaussian_curvature_of_a_graph():
    """R / 2 = det(d2L) / (1 + |dL|^2)^2, and det E with G = I at the critical point only."""
    induced = vf.pullback(vf.Euclidean(), graph)
    for t in (np.zeros(2), POINT):
        slope, h = jax.jit(jax.grad(quartic))(t), jax.jit(jax.hessian(quartic))(t)
        gaussian = np.linalg.det(h) / (1.0 + slope @ slope) ** 2
        assert_allclose(scalar_curvature(induced, t) / 2.0, gaussian, rtol=1e-10)
        det_e = np.linalg.det(
            relative(vf.Euclidean(), t, covariant_hessian(vf.Euclidean(), quartic, t))
        )
        assert np.isclose(det_e, gaussian, rtol=1e-12) == (t is not POINT)


def test_shape_operator_of_a_graph_at_a_critical_point():
    """The derivative of the unit normal of the graph is E there."""

    def normal(t):
        direction = jnp.append(-jax.grad(quartic)(t), 1.0)
        return direction / jnp.linalg.norm(direction)

    origin = np.zeros(2)
    e = relative(vf.Euclidean(), origin, covariant_hessian(vf.Euclidean(), quartic, origin))
    close(-jax.jit(jax.jacobian(normal))(origin)[:2], e)


def test_under_jit_and_vmap():
    points = POINT + np.linspace(0, 1, 3)[:, None]
    for at in (
        lambda x: christoffel(CURVED, x),
        lambda x: covariant_hessian(CURVED, quartic, x),
        lambda x: eigenvalues(CURVED, x, HESSIAN),
        lambda x: scalar_curvature(CURVED, x),
    ):
        close(jax.jit(jax.vmap(at))(points)[1], at(points[1]))


def test_singular_metric_is_not_hidden():
    singular, x = vf.pullback(vf.Euclidean(), lambda x: x[:1]), jnp.ones(2)
    assert jnp.isnan(christoffel(singular, x)).any()
    assert jnp.isnan(eigenvalues(singular, x, HESSIAN)).any()
    assert jnp.isnan(scalar_curvature(singular, x))

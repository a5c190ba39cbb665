import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_allclose

import volform as vf
from volform.geometry.connection import (
    christoffel,
    covariant_hessian,
    eigenvalues,
    relative,
    scalar_curvature,
)
from volform.geometry.tensors import gradient, push_bilinear, push_operator, pushforward

from .diffeomorphisms import CURVED, HESSIAN, PHI, POINT, Setting, anywhere


def close(actual, desired, rtol=1e-10):
    """Equal to `rtol` of the largest entry."""
    assert_allclose(actual, desired, rtol=rtol, atol=rtol * np.abs(desired).max())


def in_psi(setting: Setting):
    """The same point, metric and function in the other coordinates."""
    f = setting.f
    carried = vf.pullback(setting.metric, f.inverse)
    return f.forward(setting.point), carried, lambda y: setting.function(f.inverse(y))


# --- Christoffel symbols


@given(setting=anywhere(3))
def test_christoffel_symbols_are_metric_and_symmetric(setting):
    """Levi-Civita: no torsion, and d_l G_ij = Gamma_{j,il} + Gamma_{i,jl}."""
    x, g = setting.point, setting.metric
    gamma = christoffel(g, x)
    close(gamma, jnp.swapaxes(gamma, 1, 2))
    first_kind = jnp.einsum("km,mij->kij", g(x).as_matrix(), gamma)
    slope = jax.jacfwd(lambda x: g(x).as_matrix())(x)
    close(jnp.einsum("jil->ijl", first_kind) + jnp.einsum("ijl->ijl", first_kind), slope)


@settings(max_examples=10)
@given(setting=anywhere(3))
def test_christoffel_symbols_change_by_their_rule(setting):
    """J Gamma(J^-1, J^-1) + J d2 phi^-1, Eq. (7)."""
    y, carried, _ = in_psi(setting)
    back = setting.f.inverse
    j, j_inv = jax.jacobian(setting.f.forward)(setting.point), jax.jacobian(back)(y)
    second = jax.jacfwd(jax.jacfwd(back))(y)  # [k, a, b]
    inner = jnp.einsum("kij,ia,jb->kab", christoffel(setting.metric, setting.point), j_inv, j_inv)
    close(christoffel(carried, y), jnp.einsum("ck,kab->cab", j, inner + second), rtol=1e-9)


def test_euclidean_metric_carried_to_a_chart_has_symbols():
    y = PHI.forward(POINT)
    assert_allclose(christoffel(vf.Euclidean(), POINT), 0.0, atol=0.0)
    symbols = christoffel(vf.pullback(vf.Euclidean(), PHI.inverse), y)
    j, second = jax.jacobian(PHI.forward)(POINT), jax.hessian(PHI.inverse)(y)
    close(symbols, jnp.einsum("ck,kab->cab", j, second))


def test_polar_coordinates():
    """Gamma^r_tt = -r, Gamma^t_rt = 1/r."""
    polar = vf.pullback(
        vf.Euclidean(), lambda r, t: jnp.stack([r * jnp.cos(t), r * jnp.sin(t)])
    )
    gamma = christoffel(polar, (jnp.array(2.0), jnp.array(0.7)))
    close(gamma, [[[0.0, 0.0], [0.0, -2.0]], [[0.0, 0.5], [0.5, 0.0]]])


# --- The covariant Hessian


@given(setting=anywhere())
def test_covariant_hessian_is_a_tensor(setting):
    y, carried, function = in_psi(setting)
    h = covariant_hessian(setting.metric, setting.function, setting.point)
    close(
        covariant_hessian(carried, function, y),
        push_bilinear(setting.f.forward, setting.point, h),
        rtol=1e-8,
    )


def test_plain_hessian_is_no_tensor():
    def function(t):
        return jnp.sin(t[0]) * jnp.exp(t[1])

    y = PHI.forward(POINT)
    plain = jax.hessian(lambda y: function(PHI.inverse(y)))(y)
    carried = push_bilinear(PHI.forward, POINT, jax.hessian(function)(POINT))
    assert np.abs(plain - carried).max() > 0.1
    euclidean = vf.pullback(vf.Euclidean(), PHI.inverse)
    close(covariant_hessian(euclidean, lambda y: function(PHI.inverse(y)), y), carried)


@given(setting=anywhere())
def test_covariant_hessian_from_christoffel_symbols(setting):
    x, g, function = setting.point, setting.metric, setting.function
    connection = jnp.einsum("kij,k->ij", christoffel(g, x), jax.grad(function)(x))
    close(covariant_hessian(g, function, x), jax.hessian(function)(x) - connection)


@given(setting=anywhere(3))
def test_covariant_hessian_is_half_the_change_of_the_metric_along_the_gradient(setting):
    """Hess L = 1/2 Lie_{grad L} G, which needs no connection at all."""
    x, g = setting.point, setting.metric

    def field(x):
        return gradient(g, setting.function, x)

    def matrix(x):
        return g(x).as_matrix()

    along = jax.jvp(matrix, (x,), (field(x),))[1]
    slope = matrix(x) @ jax.jacobian(field)(x)
    close(covariant_hessian(g, setting.function, x), 0.5 * (along + slope + slope.T), rtol=1e-9)


@given(setting=anywhere(3))
def test_trace_is_the_laplace_beltrami_operator(setting):
    """tr_G H = 1/sqrt(det G) d_i (sqrt(det G) (grad L)^i)."""
    x, g = setting.point, setting.metric

    def flux(x):
        return jnp.exp(vf.geometry.log_volume(g, x)) * gradient(g, setting.function, x)

    divergence = jnp.trace(jax.jacobian(flux)(x)) * jnp.exp(-vf.geometry.log_volume(g, x))
    e = relative(g, x, covariant_hessian(g, setting.function, x))
    close(jnp.trace(e), divergence, rtol=1e-9)


@given(setting=anywhere())
def test_covariant_hessian_at_a_critical_point_is_the_plain_one(setting):
    x, slope = setting.point, jax.grad(setting.function)(setting.point)

    def flat_at_x(y):
        return setting.function(y) - slope @ y

    h = covariant_hessian(setting.metric, flat_at_x, x)
    close(h, jax.hessian(flat_at_x)(x))
    close(h, h.T)


def test_geodesics_have_no_acceleration_of_their_own():
    """Along the hyperbolic geodesic t -> (tanh t, sech t) the second derivative of L is Hess L."""
    half_plane = vf.geometry.MatrixField(lambda p: jnp.eye(2) / p[1] ** 2)

    def curve(t):
        return jnp.stack([jnp.tanh(t), 1.0 / jnp.cosh(t)])

    def function(p):
        return jnp.sin(p[0]) + p[0] * p[1] ** 3

    p, v = curve(0.4), jax.jacobian(curve)(0.4)
    second = jax.grad(jax.grad(lambda t: function(curve(t))))(0.4)
    close(v @ covariant_hessian(half_plane, function, p) @ v, second)


# --- Relative to the metric


@given(setting=anywhere())
def test_relative_operator_and_its_spectrum_are_invariant(setting):
    x, (y, carried, _) = setting.point, in_psi(setting)
    b = setting.matrix()
    h = b + b.T
    h_psi = push_bilinear(setting.f.forward, x, h)
    e = relative(setting.metric, x, h)
    close(e, np.linalg.solve(setting.metric(x).as_matrix(), h))
    close(relative(carried, y, h_psi), push_operator(setting.f.forward, x, e), rtol=1e-9)
    values = eigenvalues(setting.metric, x, h)
    close(values, np.sort(np.linalg.eigvals(e).real), rtol=1e-9)
    close(eigenvalues(carried, y, h_psi), values, rtol=1e-9)


def test_spectrum_figures():
    y, carried = PHI.forward(POINT), vf.pullback(CURVED, PHI.inverse)
    h = push_bilinear(PHI.forward, POINT, HESSIAN)
    for values in (eigenvalues(CURVED, POINT, HESSIAN), eigenvalues(carried, y, h)):
        assert_allclose(values, [0.79848, 1.32401], atol=5e-6)
        assert_allclose(np.prod(values), 1.05719193, atol=5e-9)
        assert_allclose(np.sum(values), 2.12248654, atol=5e-9)


def test_eigenvectors_are_vectors():
    e = relative(CURVED, POINT, HESSIAN)
    values, vectors = np.linalg.eig(e)
    carried = push_operator(PHI.forward, POINT, e)
    for value, vector in zip(values, vectors.T, strict=True):
        pushed = pushforward(PHI.forward, POINT, vector)
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
    h = covariant_hessian(metric, lambda a, b: a * b[0] + jnp.sum(b**3), point)
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
    carried = vf.pullback(vf.Euclidean(), PHI.inverse)
    assert_allclose(scalar_curvature(carried, PHI.forward(POINT)), 0.0, atol=1e-12)


@settings(max_examples=10)
@given(setting=anywhere(3))
def test_curvature_is_invariant(setting):
    y, carried, _ = in_psi(setting)
    original = scalar_curvature(setting.metric, setting.point)
    assert_allclose(scalar_curvature(carried, y), original, rtol=1e-8, atol=1e-8)


def quartic(t):
    return t @ jnp.asarray(HESSIAN) @ t / 2.0 + 0.3 * t[0] ** 4 - 0.2 * t[0] * t[1] ** 3


def graph(t):
    return jnp.append(t, quartic(t))


def test_gaussian_curvature_of_a_graph():
    """R / 2 = det(d2L) / (1 + |dL|^2)^2, and det E with G = I at the critical point only."""
    induced = vf.pullback(vf.Euclidean(), graph)
    for t in (np.zeros(2), POINT):
        slope, h = jax.grad(quartic)(t), jax.hessian(quartic)(t)
        gaussian = np.linalg.det(h) / (1.0 + slope @ slope) ** 2
        assert_allclose(scalar_curvature(induced, t) / 2.0, gaussian, rtol=1e-10)
        det_e = np.linalg.det(relative(vf.Euclidean(), t, covariant_hessian(vf.Euclidean(), quartic, t)))
        assert np.isclose(det_e, gaussian, rtol=1e-12) == (t is not POINT)


def test_shape_operator_of_a_graph_at_a_critical_point():
    """The derivative of the unit normal of the graph is E there."""

    def normal(t):
        direction = jnp.append(-jax.grad(quartic)(t), 1.0)
        return direction / jnp.linalg.norm(direction)

    origin = np.zeros(2)
    e = relative(vf.Euclidean(), origin, covariant_hessian(vf.Euclidean(), quartic, origin))
    close(-jax.jacobian(normal)(origin)[:2], e)


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

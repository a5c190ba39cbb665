"""Geodesics against closed forms of spaces of constant curvature, and laws that hold in all."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform.errors import ConvergenceError, GeodesicError, SingularMetricError, TrustWarning
from volform.geometry import (
    DiagonalField,
    distance,
    exp,
    geodesic,
    inner,
    log,
    norm,
    pushforward,
    riemann,
    scalar_curvature,
    transport,
)

from .laws import close, law, random_chain


class Space(vf.Metric):
    """The surface of Gaussian curvature kappa in normal coordinates, swollen by a bump."""

    kappa: jax.Array
    bump: jax.Array

    def __call__(self, x):
        square = x @ x
        sine = sinc(self.kappa * square)
        # dr^2 + S(r)^2 dphi^2; (1 - S^2 / r^2) / r^2 is smooth at 0.
        z = self.kappa * square
        near = self.kappa * (1.0 / 3.0 - 2.0 * z / 45.0 + z**2 / 315.0)
        safe = jnp.where(jnp.abs(z) < 1e-3, 1.0, square)
        radial = jnp.where(jnp.abs(z) < 1e-3, near, (1.0 - sine**2) / safe)
        matrix = sine**2 * jnp.eye(x.size) + radial * jnp.outer(x, x)
        return vf.geometry.MatrixField(lambda x: jnp.exp(self.bump * jnp.exp(-square)) * matrix)(x)


def sinc(z):
    """sin(sqrt z) / sqrt z, sinh(sqrt -z) / sqrt -z."""
    root = jnp.sqrt(jnp.where(jnp.abs(z) < 1e-6, 1.0, jnp.abs(z)))
    found = jnp.where(z > 0.0, jnp.sin(root), jnp.sinh(root)) / root
    return jnp.where(jnp.abs(z) < 1e-6, 1.0 - z / 6.0 + z**2 / 120.0, found)


def cosine(z):
    root = jnp.sqrt(jnp.where(z == 0.0, 1.0, jnp.abs(z)))
    found = jnp.where(z > 0.0, jnp.cos(root), jnp.cosh(root))
    return jnp.where(z == 0.0, 1.0, found)


def space(kappa, bump=0.0):
    return Space(jnp.asarray(float(kappa)), jnp.asarray(bump))


def embed(kappa, x):
    """In R^3, or Minkowski's space, where geodesics are plane sections."""
    z = kappa * (x @ x)
    return jnp.append(sinc(z) * x, cosine(z))


@jax.jit
def embedded_exp(kappa, x, v):
    start, velocity = jax.jvp(lambda x: embed(kappa, x), (x,), (v,))
    flat = velocity[:2] @ velocity[:2]
    last = velocity[2] ** 2
    square = flat + jnp.where(kappa == 0.0, 0.0, last / jnp.where(kappa == 0.0, 1.0, kappa))
    z = kappa * square
    return start * cosine(z) + velocity * sinc(z), jnp.sqrt(square)


X, V, W = jnp.array([0.4, -0.3]), jnp.array([0.9, 0.7]), jnp.array([-0.2, 0.5])
KAPPAS = (1.0, 0.0, -1.0)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_geodesics_of_constant_curvature(kappa):
    metric = space(kappa)
    path = exp(metric, X, V)
    end, length = embedded_exp(kappa, X, V)
    assert_allclose(embed(kappa, path.end), end, rtol=1e-10, atol=1e-10)
    assert_allclose(path.length, length, rtol=1e-12)
    assert path.residual < 1e-11  # energy is conserved
    back = geodesic(metric, X, path.end)
    assert_allclose(back.velocity, V, rtol=1e-10, atol=1e-10)
    assert_allclose(back.length, length, rtol=1e-11)
    assert back.residual < 1e-11
    assert_allclose(log(metric, X, path.end), V, rtol=1e-10, atol=1e-10)
    halves = [distance(metric, X, path(0.3)), distance(metric, path(0.3), path.end)]
    assert_allclose(np.array(halves) / length, [0.3, 0.7], rtol=1e-10)
    assert_allclose(path(np.array([0.0, 1.0])), np.stack([X, path.end]), atol=1e-11)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_transport_keeps_inner_products_and_turns_by_the_curvature(kappa):
    """Round a triangle a vector turns by the integral of K, which is the excess of its angles."""
    metric = space(kappa)
    polar = np.array([[1.2, 0.0], [1.3, 1.1], [0.7, 0.6]])
    corners = [jnp.asarray(r * np.array([np.cos(t), np.sin(t)])) for r, t in polar]
    moved, excess = W, -np.pi
    for i, corner in enumerate(corners):
        path = geodesic(metric, corner, corners[(i + 1) % 3])
        other = geodesic(metric, corner, corners[i - 1])
        excess += abs(angle(metric, corner, path.velocity, other.velocity))
        moved = transport(metric, path, moved)
        assert_allclose(norm(metric, path.end, moved), norm(metric, corners[0], W), rtol=1e-11)
    assert_allclose(angle(metric, corners[0], W, moved), excess, rtol=1e-10, atol=1e-10)
    if kappa == 1.0:  # an independent integration by Dopri8 at rtol 1e-12, and K times the area
        assert_allclose(excess, 0.2716686168289302, rtol=1e-10)


def angle(metric, point, v, w):
    """From v to w, with a sign."""
    cross = jnp.linalg.det(jnp.stack([v, w])) * jnp.exp(vf.geometry.log_volume(metric, point))
    return np.arctan2(cross, inner(metric, point, v, w))


def test_velocity_is_transported():
    path = exp(space(-1.0), X, V)
    velocity = transport(path.metric, path, V)
    ahead, behind = path(1.0 + 1e-4), path(1.0 - 1e-4)
    assert_allclose(velocity, (ahead - behind) / 2e-4, rtol=1e-7)


def test_geodesics_of_a_chart():
    """Length, exponential map and transport are carried by a random diffeomorphism."""
    f = random_chain(np.random.default_rng(3), 2)
    metric = space(-1.0)
    carried = vf.pullback(metric, f.inv)
    path, there = exp(metric, X, V), exp(carried, f(X), pushforward(f, X, V))
    close((there.end, there.length), (f(path.end), path.length), 1e-8)
    moved = transport(carried, there, pushforward(f, X, W))
    close(moved, pushforward(f, path.end, transport(metric, path, W)), 1e-8)


def rao(one, other):
    """Distance of two Normals, from the upper half-plane (mu / sqrt 2, sigma)."""
    (m, s), (n, t) = one, other
    return np.sqrt(2.0) * np.arccosh(1.0 + ((m - n) ** 2 / 2.0 + (s - t) ** 2) / (2.0 * s * t))


def test_rao_distance_of_normals():
    """Up to a length of 8: shooting alone, from a straight line, fails beyond 4."""
    metric, rng = vf.Fisher(dist.Normal), np.random.default_rng(0)
    for length in (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0):
        for _ in range(2):
            start = rng.normal(), np.exp(0.5 * rng.normal())
            v = rng.normal(size=2)
            v *= length / np.sqrt(v[0] ** 2 + 2.0 * v[1] ** 2) * start[1]
            end = half_plane_exp(start, v)
            found = distance(metric, start, end)
            assert_allclose(found, length, rtol=1e-10)
            assert_allclose(rao(start, end), length, rtol=1e-7)  # arccosh loses digits


def half_plane_exp(start, v):
    """In closed form: geodesics of x^2 + y^2 over y^2 are half circles, with x = mu / sqrt 2."""
    vx, vy, y = v[0] / np.sqrt(2.0), v[1], start[1]
    t = np.hypot(vx, vy) / y
    c, s = vy / np.hypot(vx, vy), vx / np.hypot(vx, vy)
    down = np.cosh(t) - c * np.sinh(t)
    return start[0] + np.sqrt(2.0) * y * s * np.sinh(t) / down, y / down


def test_rao_distances_of_the_reference(reference):
    records = json.loads((reference / "motion" / "geodesics.json").read_text())["geodesics"]
    for r in (r for r in records if r["manifold"] == "hyper"):
        start, end = (tuple(map(float, r[key])) for key in ("x", "exp"))
        v = log(vf.Fisher(dist.Normal), start, end)
        assert_allclose(v, r["v"], atol=1e-10)


def test_derivatives_of_the_distance():
    """First variation: dL = <gamma', db>; by a parameter of the metric, finite differences."""
    metric = space(-1.0)
    by_metric, by_end = jax.jit(jax.grad(lambda metric, b: distance(metric, X, b), (0, 1)))(
        metric, W
    )
    path = geodesic(metric, X, W)
    unit = transport(metric, path, path.velocity / path.length)
    close(by_end, metric(W).mv(unit), 1e-8)
    ends = [distance(space(-1.0 + e), X, W) for e in (1e-4, -1e-4)]
    assert_allclose(by_metric.kappa, (ends[0] - ends[1]) / 2e-4, rtol=1e-6)
    assert distance(metric, X, X) == 0.0


@pytest.mark.slow
def test_distances_to_many_points():
    """Under jit, vmap and grad together, with a derivative of zero where the points are one."""
    metric, points = space(-1.0), jnp.stack([W, 2.0 * W, V, X])

    def length(a, b):
        return distance(metric, a, b)

    found = jax.jit(jax.vmap(jax.value_and_grad(length), (None, 0)))(X, points)
    for value, slope, point in zip(*found, points[:3], strict=False):
        path = geodesic(metric, X, point)
        close((value, slope), (path.length, -metric(X).mv(path.velocity / path.length)), 1e-8)
    close((found[0][3], found[1][3]), (np.zeros(()), np.zeros(2)))


def test_two_ways_round_a_bump_are_a_cut_locus():
    metric = space(0.0, bump=2.0)
    a, b = jnp.array([-2.0, 0.1]), jnp.array([2.0, 0.1])
    with pytest.warns(TrustWarning, match="Several geodesics .* cut locus") as caught:
        path = geodesic(metric, a, b)
    assert caught[0].filename == __file__
    assert path(0.5)[1] > 0.5  # round it, on the nearer side
    assert path.length < 4.0 * np.exp(1.0)


def test_single_precision():
    metric = DiagonalField(lambda x: jnp.ones_like(x) * (1.0 + x @ x))
    path = exp(metric, jnp.zeros(2, jnp.float32), jnp.ones(2, jnp.float32))
    assert path.end.dtype == path.length.dtype == jnp.float32
    assert path.residual < 1e-4


@pytest.mark.float32
def test_rao_distance_in_float32():
    found = distance(vf.Fisher(dist.Normal), (-1.0, 1.0), (1.0, 1.0))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.sqrt(2) * np.arccosh(2), rtol=1e-4)


# --- Curvature

sectional_curvature = eqx.filter_jit(riemann.sectional_curvature)


@law((3,), rtol=1e-8)
def test_curvatures_agree(s):
    """The traces of Riemann's tensor, its symmetries, and planes in it; in two charts."""
    tensor = riemann.riemann_curvature(s.metric, s.x)
    ricci = riemann.ricci_curvature(s.metric, s.x)
    inverse = jnp.linalg.inv(s.metric(s.x).as_matrix())
    v, w, _ = s.vectors
    plane = jnp.einsum("ijkl,i,j,k,l", tensor, v, w, v, w)
    area = jnp.linalg.det(jnp.stack([v, w]) @ s.metric(s.x).as_matrix() @ jnp.stack([v, w]).T)
    bianchi = tensor + jnp.einsum("iklj->ijkl", tensor) + jnp.einsum("iljk->ijkl", tensor)
    here = riemann.sectional_curvature(s.metric, s.x, v, w)
    pushed = [pushforward(s.f, s.x, u) for u in (v, w)]
    there = riemann.sectional_curvature(s.carried_metric, s.y, *pushed)
    return (
        (jnp.sum(inverse * ricci), tensor, bianchi, here, there),
        (
            scalar_curvature(s.metric, s.x),
            jnp.einsum("klij->ijkl", tensor),
            jnp.zeros_like(tensor),
            plane / area,
            here,
        ),
        jnp.abs(tensor).max(),
    )


@pytest.mark.parametrize("kappa", KAPPAS)
def test_space_of_constant_curvature(kappa):
    metric = space(kappa)
    assert_allclose(sectional_curvature(metric, X, V, W), kappa, atol=1e-10)
    g, tensor = metric(X).as_matrix(), jax.jit(riemann.riemann_curvature)(metric, X)
    whole = np.einsum("ik,jl->ijkl", g, g) - np.einsum("il,jk->ijkl", g, g)
    assert_allclose(tensor, kappa * whole, atol=1e-10)


# --- Bad input

# Of one dimension: infinite at 1, where the length from 0 is 2.
EDGE = DiagonalField(lambda x: 1.0 / jnp.abs(1.0 - x))
INDEFINITE = vf.geometry.MatrixField(lambda x: jnp.diag(jnp.array([1.0, -1.0])))
ORIGIN, UNIT = jnp.zeros(1), jnp.ones(1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: geodesic(space(1), X, X), GeodesicError, "`start` and `end` .* same point"),
        (lambda: exp(space(1), X, jnp.ones(3)), GeodesicError, r"`velocity` of exp .*\(3,\)"),
        (lambda: exp(space(1), X, (1.0, 2.0)), GeodesicError, "`velocity` of exp has the layout"),
        (lambda: log(space(1), X, X * jnp.nan), GeodesicError, "`end` of log .* not finite"),
        (
            lambda: log(EDGE, {"a": 1.0, "b": X}, {"a": 1.0, "b": X / 0.0}),
            GeodesicError,
            "b = .*inf",
        ),
        (lambda: distance(space(1), X, jnp.array([1, 2])), GeodesicError, "`end` .*int.*float"),
        (lambda: transport(EDGE, exp(EDGE, ORIGIN, UNIT), 1.0), GeodesicError, "`vector` of tran"),
        (lambda: exp(INDEFINITE, X, V), SingularMetricError, r"definite at \[ 0.4, -0.3\]"),
        (lambda: exp(EDGE, UNIT, UNIT), SingularMetricError, "is not finite at 1."),
        (lambda: geodesic(EDGE, ORIGIN, UNIT), SingularMetricError, "not finite at 1."),
        (lambda: geodesic(EDGE, ORIGIN, 2.0 * UNIT), ConvergenceError, "No geodesic .* to 2."),
        (lambda: exp(EDGE, ORIGIN, 4.0 * UNIT), SingularMetricError, r"stops at 1., after 0.5 of"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_one_of_many_points_of_a_path_lies_outside():
    with pytest.raises(SingularMetricError, match=r"stops at 1\., after 0\.667 of its length"):
        exp(EDGE, ORIGIN, UNIT)(np.array([0.5, 3.0]))


def test_what_fails_inside_of_jit_is_not_a_number():
    end = jax.jit(lambda v: exp(EDGE, ORIGIN, v).end)
    assert np.isnan(end(4.0 * UNIT)).all()
    assert np.isfinite(end(UNIT)).all()


def sheared(x):
    """A map of the plane that squeezes a strip to a fortieth."""
    return jnp.stack([x[0], x[1] + 10.0 * jnp.tanh(4.0 * x[0])])


def deep(d, seed):
    """Ten residual layers, each one to one."""
    random = np.random.default_rng(seed)
    w, b = random.normal(size=(10, d, d)), random.normal(size=(10, d))
    w = 0.75 * w / np.linalg.norm(w, ord=2, axis=(1, 2))[:, None, None]

    def f(x):
        for k in range(10):
            x = x + jnp.tanh(w[k] @ x + b[k])
        return x

    return f


@pytest.mark.parametrize(
    ("f", "ends"),
    [
        pytest.param(sheared, [[-3.0, 0.0], [3.0, 1.0]], id="sheared"),
        pytest.param(deep(2, 1), [[-4.0, 1.0], [3.0, -5.0]], id="plane-1"),
        pytest.param(deep(2, 3), [[-4.0, 1.0], [3.0, -5.0]], id="plane-3"),
        pytest.param(deep(3, 1), [[-4.0, 1.0, 2.0], [3.0, -5.0, 0.0]], id="space-1"),
        pytest.param(deep(3, 3), [[-4.0, 1.0, 2.0], [3.0, -5.0, 0.0]], id="space-3"),
    ],
)
def test_a_geodesic_of_a_diffeomorphism_is_the_chord_of_its_image(f, ends):
    """Where a map squeezes, no path near to the straight line is one."""
    a, b = jnp.array(ends)
    found = distance(vf.pullback(vf.Euclidean(), f), a, b)
    close(found, jnp.linalg.norm(f(a) - f(b)), 1e-9)

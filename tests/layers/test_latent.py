"""Shortest paths and means in latent spaces: against closed forms and in other charts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.optimize import minimize

import volform as vf
from volform.errors import ConvergenceError, DataError, MetricError
from volform.layers import frechet_mean, shortest_path

NORMAL = vf.Fisher(lambda v: dist.Normal(v[0], jnp.exp(v[1])))
SOFTMAX = vf.Fisher(lambda z: dist.CategoricalLogits(z))


def decoder(z):
    """One to one: a bijection of the plane."""
    return jnp.array([z[0] + 0.5 * jnp.tanh(z[1]), z[1] + 0.4 * jnp.tanh(z[0])])


def same(z):
    return z


def test_flat_outputs():
    a, b, *_ = points = jax.random.normal(jax.random.key(0), (9, 2))
    path = shortest_path(vf.Euclidean(), decoder, a, b)
    chord = jnp.linalg.norm(decoder(a) - decoder(b))
    np.testing.assert_allclose(path.length, chord, rtol=1e-12)
    outputs = jax.vmap(decoder)(path.points)
    expected = decoder(a)[None] + jnp.outer(jnp.linspace(0, 1, 33), decoder(b) - decoder(a))
    np.testing.assert_allclose(outputs, expected, atol=1e-9)
    assert path.straight > path.length
    weights = jnp.arange(1.0, 10.0)
    found = frechet_mean(vf.Euclidean(), decoder, points, weights, segments=4)
    mean = weights @ jax.vmap(decoder)(points) / weights.sum()
    np.testing.assert_allclose(decoder(found), mean, atol=1e-7)


def test_great_circle_of_probabilities():
    w = jnp.array([[1.0, -0.4], [0.2, 0.9], [-0.8, 0.1]])
    ends = jnp.array([[1.0, -0.5], [-0.7, 1.2]])
    p, q = jax.nn.softmax(ends @ w.T)
    exact = 2.0 * jnp.arccos(jnp.sum(jnp.sqrt(p * q)))
    errors = []
    for segments in (16, 32):
        path = shortest_path(SOFTMAX, lambda z: w @ z, *ends, segments=segments)
        errors.append(abs(float(path.length - exact)))
        assert errors[-1] < float(path.residual)
    assert errors[1] < errors[0] / 12.0  # of the fourth order
    assert errors[1] < 1e-6


def test_exact_geodesics():
    """Of normals: the distance and the middle of the hyperbolic plane."""
    a, b = jnp.array([-1.0, 0.0]), jnp.array([1.0, 0.0])
    path = shortest_path(NORMAL, same, a, b)
    exact = 2.0 * np.sqrt(2.0) * np.arcsinh(1.0 / np.sqrt(2.0))
    np.testing.assert_allclose(path.length, exact, rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(path.points[16, 1]), np.sqrt(1.5), rtol=1e-4)
    mean = frechet_mean(NORMAL, same, jnp.stack([a, b]))
    np.testing.assert_allclose(mean, [0.0, 0.5 * np.log(1.5)], atol=1e-4)


@pytest.mark.parametrize("apart", [0.1, 1.0, 3.0, 10.0, 30.0])
def test_far_apart(apart):
    """Of normals: from beside the straight line, which is ten times too long, and to 1e-3."""
    ends = jnp.array([[-apart, 0.3], [apart, -0.2]])
    path = shortest_path(NORMAL, same, *ends, segments=64)
    assert abs(path.length - hyperbolic(*ends)) < float(path.residual)
    assert path.residual < 5e-3 * path.length
    assert path.straight >= path.length


def hyperbolic(a, b):
    """Distance of two normals `(mu, log sigma)`, of the metric `(dmu^2 + 2 dsigma^2) / sigma^2`."""
    a, b = (jnp.array([v[0] / jnp.sqrt(2.0), jnp.exp(v[1])]) for v in (a, b))
    return jnp.sqrt(2.0) * jnp.arccosh(1.0 + 0.5 * jnp.sum((a - b) ** 2) / (a[1] * b[1]))


def test_near_a_corner():
    """Of the simplex: probabilities of e^-6 and less on the way."""
    a, b = jnp.array([6.0, 0.0, 0.0]), jnp.array([0.0, 6.0, 0.0])
    path = shortest_path(SOFTMAX, same, a, b)
    exact = 2.0 * jnp.arccos(jnp.sum(jnp.sqrt(jax.nn.softmax(a) * jax.nn.softmax(b))))
    assert abs(path.length - exact) < float(path.residual) < 0.01


@pytest.mark.parametrize("around", [1, -1])
def test_straight_line_over_a_hill(around):
    """The straight line is a saddle by symmetry: shorter ways lead past on both sides."""

    def hill(z):
        return jnp.append(z, 4.0 * jnp.exp(-jnp.sum(z**2)))

    ends = around * jnp.array([[-2.0, 0.0], [2.0, 0.0]])
    path = shortest_path(vf.Euclidean(), hill, *ends)
    assert path.length < 0.6 * path.straight
    assert jnp.abs(path.points[16, 1]) > 1.0


def test_outputs_that_come_back_between_two_points():
    """32 segments see a fraction of 32 turns of a circle: the error says that it was not seen."""

    def circle(z):
        return jnp.array([jnp.cos(z[0]), jnp.sin(z[0])])

    path = shortest_path(vf.Euclidean(), circle, jnp.zeros(1), jnp.array([200.0]))
    assert path.residual > path.length
    path = shortest_path(vf.Euclidean(), circle, jnp.zeros(1), jnp.array([20.0]), segments=128)
    np.testing.assert_allclose(path.length, 20.0, atol=float(path.residual))
    assert path.residual < 0.1


@pytest.mark.parametrize(
    "points",
    [
        [[-6.0, 0.0], [6.0, 0.0]],  # (0, log(19) / 2)
        [[-6.0, 0.0], [6.0, 0.0], [0.0, 0.0]],  # one is at the mean of coordinates
        [[0.0, 0.0], [1.0, 0.0], [4.0, -1.0], [-2.0, 0.5]],
    ],
)
def test_means_against_least_squares_of_exact_distances(points):
    points = jnp.array(points)
    spread = jax.value_and_grad(
        lambda mean: jnp.sum(jax.vmap(lambda p: hyperbolic(mean, p) ** 2)(points))
    )
    exact = minimize(spread, points.mean(0) + 0.1, jac=True, tol=1e-10).x
    found = [frechet_mean(NORMAL, same, points, segments=n) for n in (8, 16)]
    errors = [np.abs(mean - exact).max() for mean in found]
    assert errors[1] < 1e-5
    assert errors[1] < errors[0] / 8.0  # of the fourth order


def test_weights_beyond_all_numbers_and_none():
    points = jnp.array([[-1.0, 0.2], [1.0, 0.0], [7.0, 7.0]])
    found = frechet_mean(NORMAL, same, points, [1e308, 1e308, 0.0], segments=4)
    alone = frechet_mean(NORMAL, same, points[:2], segments=4)
    np.testing.assert_allclose(found, alone, atol=1e-7)


@pytest.mark.float32
def test_single_precision():
    points = jnp.array([[0, 0], [1, 0], [4, -1], [-2, 0.5]], jnp.float32)
    found = frechet_mean(NORMAL, same, points)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [1.43966, 0.57169], atol=2e-3)  # as above
    path = shortest_path(NORMAL, same, points[2], points[3])
    assert path.length.dtype == jnp.float32
    np.testing.assert_allclose(path.length, hyperbolic(points[2], points[3]), rtol=1e-3)


def test_other_coordinates():
    """Of the latent space: `z = chart(u)`."""

    def chart(u):
        return jnp.array([jnp.sinh(u[0]), u[1] + 0.3 * u[0] ** 2])

    us = 0.7 * jax.random.normal(jax.random.key(1), (5, 2))
    zs = jax.vmap(chart)(us)
    moved = shortest_path(NORMAL, lambda u: decoder(chart(u)), us[0], us[1], segments=16)
    path = shortest_path(NORMAL, decoder, zs[0], zs[1], segments=16)
    np.testing.assert_allclose(moved.length, path.length, rtol=1e-8)
    np.testing.assert_allclose(jax.vmap(chart)(moved.points), path.points, atol=1e-8)
    found = frechet_mean(NORMAL, lambda u: decoder(chart(u)), us, segments=4)
    mean = frechet_mean(NORMAL, decoder, zs, segments=4)
    np.testing.assert_allclose(chart(found), mean, atol=1e-6)


def test_where_outputs_do_not_differ():
    """A decoder that forgets its second coordinate: no path is better than another, and it says."""

    def forgetful(z):
        return jnp.array([jnp.sinh(z[0]), 1e-7 * z[1]])

    path = shortest_path(vf.Euclidean(), forgetful, jnp.zeros(2), jnp.ones(2))
    assert path.condition > 1e13


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (jnp.zeros(2), jnp.zeros(3), "`start` has shape"),
        (jnp.zeros(2), jnp.zeros(2), "are the same point"),
        (jnp.zeros(2), jnp.array([1.0, jnp.nan]), "should be finite numbers"),
        (jnp.zeros(2, int), jnp.ones(2, int), "`start` has shape .* and dtype int64"),
        (jnp.zeros((2, 2)), jnp.ones((2, 2)), "be a vector of floating-point numbers"),
    ],
)
def test_bad_points(a, b, message):
    with pytest.raises(DataError, match=message):
        shortest_path(vf.Euclidean(), same, a, b)


def test_bad_input():
    a, b = jnp.zeros(2), jnp.ones(2)
    family: Any = dist.Normal
    with pytest.raises(DataError, match="`segments` is 5"):
        shortest_path(vf.Euclidean(), same, a, b, segments=5)
    with pytest.raises(MetricError, match="`metric` of shortest_path holds"):
        shortest_path(family, same, a, b)
    with pytest.raises(MetricError, match="`metric` of frechet_mean holds"):
        frechet_mean(family, same, a[None])
    with pytest.raises(DataError, match="`weights` is"):
        frechet_mean(vf.Euclidean(), same, jnp.stack([a, b]), jnp.array([1.0, -1.0]))
    with pytest.raises(DataError, match="should have a positive number"):
        frechet_mean(vf.Euclidean(), same, jnp.stack([a, b]), jnp.zeros(2))
    with pytest.raises(DataError, match="`segments` is 2"):
        frechet_mean(vf.Euclidean(), same, jnp.stack([a, b]), segments=2)
    with pytest.raises(DataError, match="`f` returns dict"):
        shortest_path(vf.Euclidean(), lambda z: {"mu": z}, a, b)
    with pytest.raises(DataError, match="`f` gives NaN or infinite outputs at"):
        shortest_path(vf.Euclidean(), lambda z: jnp.log(z - 0.5), a, b)
    with pytest.raises(DataError, match="`points` has shape"):
        frechet_mean(vf.Euclidean(), same, a)
    with pytest.raises(ConvergenceError, match="No shortest path settled"):
        shortest_path(vf.Euclidean(), nowhere_between, -b, b)
    with pytest.raises(ConvergenceError, match="The Fréchet mean of `points` has not settled"):
        frechet_mean(vf.Euclidean(), nowhere_between, jnp.stack([-b, 2.0 * b]))


def nowhere_between(z):
    return jnp.log(jnp.abs(z) - 0.5)

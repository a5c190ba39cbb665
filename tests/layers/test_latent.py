"""Shortest paths and means in latent spaces: against closed forms and in other charts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

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
        (jnp.zeros(2, int), jnp.ones(2, int), "vectors of floating-point numbers"),
        (jnp.zeros((2, 2)), jnp.ones((2, 2)), "vectors of floating-point numbers"),
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
    with pytest.raises(DataError, match="`points` has shape"):
        frechet_mean(vf.Euclidean(), same, a)
    with pytest.raises(ConvergenceError, match="No shortest path settled"):
        shortest_path(vf.Euclidean(), lambda z: jnp.log(z - 0.5), a, b)
    with pytest.raises(ConvergenceError, match="The Fréchet mean of `points` has not settled"):
        frechet_mean(vf.Euclidean(), lambda z: jnp.log(z - 0.5), jnp.stack([a, b]))

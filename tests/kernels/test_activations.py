"""Closed forms against brute force: expectations over the plane, and Price's theorem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss
from tests.kernels.nets import ACTIVATIONS, NAMES

from volform import kernels as k, networks as nn
from volform.kernels.propagation.moments import Moments, of_one

COVARIANCES = [(0.8, 0.5, -0.6), (0.3, 1.1, 0.0), (0.7, 0.7, 0.6999)]


def moments(a, b, c):
    a, b, c = (jnp.full((1, 1), value) for value in (a, b, c))
    return Moments(a, b, c, jnp.sqrt(a * b - c * c))


def over_the_plane(f, a, b, c):
    """E[f(u) f(v)] in polar coordinates, the circle cut where u or v is zero."""
    t = np.arctan2(np.sqrt(a * b - c * c), c)
    cuts = np.sort(np.mod([np.pi / 2, -np.pi / 2, t + np.pi / 2, t - np.pi / 2], 2 * np.pi))
    cuts = np.append(cuts, cuts[0] + 2 * np.pi)
    z, w = leggauss(60)
    half = np.diff(cuts) / 2
    phi = (cuts[:-1] + half)[:, None] + half[:, None] * z
    # Radii with weight r exp(-r^2 / 2), up to where it is below rounding.
    r, v = leggauss(120)
    r, v = 6.5 * (r + 1), 6.5 * v
    u = np.sqrt(a) * r * np.cos(phi)[..., None]
    other = np.sqrt(b) * r * np.cos(phi - t)[..., None]
    radial = (np.asarray(f(u)) * np.asarray(f(other))) @ (v * r * np.exp(-(r**2) / 2))
    return np.sum(radial * w * half[:, None]) / (2 * np.pi)


def slope(f):
    return lambda u: jax.jvp(f, (jnp.asarray(u),), (jnp.ones_like(u),))[1]


@pytest.mark.parametrize("f", ACTIVATIONS, ids=NAMES)
@pytest.mark.parametrize("abc", COVARIANCES)
def test_covariances_are_expectations(f, abc):
    np.testing.assert_allclose(
        k.covariance(f, moments(*abc))[0, 0], over_the_plane(f, *abc), rtol=1e-9, atol=1e-10
    )
    np.testing.assert_allclose(
        k.slope_covariance(f, moments(*abc))[0, 0],
        over_the_plane(slope(f), *abc),
        rtol=1e-8,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    "f",
    [f for f in ACTIVATIONS if type(f).__name__ != "Sign" and getattr(f, "degree", 1) > 0],
    ids=[n for n, f in zip(NAMES, ACTIVATIONS, strict=True)
         if type(f).__name__ != "Sign" and getattr(f, "degree", 1) > 0],
)  # fmt: skip
def test_price(f):
    """`d E[f f] / d E[u v] = E[f' f']`: also the derivative that autodiff takes of the kernel."""

    def covariance(a, b, c):
        return k.covariance(f, moments(a, b, c))[0, 0]

    gradient = jax.grad(covariance, (0, 1, 2))(0.8, 0.5, -0.3)
    step = 1e-5
    shifted = [covariance(0.8 + step, 0.5, -0.3) - covariance(0.8 - step, 0.5, -0.3),
               covariance(0.8, 0.5 + step, -0.3) - covariance(0.8, 0.5 - step, -0.3)]  # fmt: skip
    np.testing.assert_allclose(gradient[:2], np.array(shifted) / (2 * step), rtol=1e-7, atol=1e-9)
    expected = k.slope_covariance(f, moments(0.8, 0.5, -0.3))[0, 0]
    np.testing.assert_allclose(gradient[2], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("f", ACTIVATIONS, ids=NAMES)
def test_images_have_the_area_of_their_moments(f):
    for abc in COVARIANCES[:2]:
        out = k.image_moments(f, moments(*abc))
        square = out.left * out.right - out.cross**2
        np.testing.assert_allclose(out.area**2, square, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(out.left, k.covariance(f, of_one(jnp.full((1, 1), abc[0]))))


@pytest.mark.parametrize("order", [8, 16, 32, 64])
@pytest.mark.parametrize("variance", [0.5, 2.0])
def test_error_of_quadrature_is_of_the_right_size(order, variance):
    pair = moments(variance, variance, 0.95 * variance)
    exact = nn.Erf()
    f = nn.Elementwise(exact.__call__, order)
    value, derivative = k.quadrature_error(f, jnp.asarray(variance))
    assert abs(k.covariance(f, pair) - k.covariance(exact, pair))[0, 0] < value + 1e-14
    gap = abs(k.slope_covariance(f, pair) - k.slope_covariance(exact, pair))[0, 0]
    assert gap < derivative + 1e-13


def test_nodes_reproduce_polynomials():
    z, w = hermegauss(40)
    f = nn.Elementwise(lambda u: u**5 - 2 * u, order=8)
    expected = np.sum(w * (z**5 - 2 * z) ** 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(
        k.covariance(f, of_one(jnp.ones((1, 1))))[0, 0], expected, rtol=1e-12
    )
    assert max(k.quadrature_error(f, jnp.ones(()))) < 1e-20

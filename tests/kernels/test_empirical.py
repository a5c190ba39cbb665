"""Kernels of finite networks: against the dense Jacobian, other coordinates, and the limit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from tests.kernels.nets import SEQUENCES, X2, X, around, conv

import volform as vf
from volform import kernels as k, networks as nn
from volform.errors import DataError, MetricError, NetworkError
from volform.geometry import MatrixField, Product
from volform.networks import NTP, SP

NET = nn.serial(nn.Dense(5, 1.4, 0.2), nn.Erf(), nn.Dense(3, 1.4, 0.2))


@pytest.fixture(scope="module")
def params():
    return NET.init(jax.random.key(1), X.shape)


def dense_kernel(f, params, x1, x2, inverse):
    flat, unravel = ravel_pytree(params)
    jacobians = [np.asarray(jax.jacrev(lambda p, x=x: f(unravel(p), x))(flat)) for x in (x1, x2)]
    full = np.einsum("aip,pq,biq->abi", jacobians[0], inverse, jacobians[1])
    return full.mean(2)


@pytest.mark.parametrize("chunk", [None, 1, 2, 4, 6])
def test_equals_the_dense_product(params, chunk):
    size = ravel_pytree(params)[0].size
    found = k.empirical_ntk(NET.apply, params, X, X2, chunk=chunk)
    expected = dense_kernel(NET.apply, params, X, X2, np.eye(size))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    own = k.empirical_ntk(NET.apply, params, X, chunk=chunk)
    np.testing.assert_array_equal(own, own.T)
    assert np.linalg.eigvalsh(own)[0] > -1e-14


def test_metrics(params):
    named = {"a": params[0], "b": params[2]}
    flat, _ = ravel_pytree(named)
    root = np.random.default_rng(0).normal(size=(flat.size, flat.size))
    matrix = root @ root.T + np.eye(flat.size)

    def f(p, x):
        return NET.apply((p["a"], (), p["b"]), x)

    full = MatrixField(lambda **_: jnp.asarray(matrix))
    found = k.empirical_ntk(f, named, X, X2, metric=full)
    np.testing.assert_allclose(
        found, dense_kernel(f, named, X, X2, np.linalg.inv(matrix)), rtol=1e-9
    )
    blocks = Product({"a": vf.Euclidean(2.0), "b": vf.Euclidean(0.5)})
    inverse = np.diag(np.r_[np.full(25, 4.0), np.full(18, 0.25)])
    found = k.empirical_ntk(f, named, X, X2, metric=blocks)
    np.testing.assert_allclose(found, dense_kernel(f, named, X, X2, inverse), rtol=1e-12)


def test_one_model_in_two_coordinates(params):
    """NTP's metric written in the coordinates of SP gives NTP's kernel; the flat one does not."""
    scale = {"w": 1.4 / np.sqrt(4.0), "b": 0.2}, {"w": 1.4 / np.sqrt(5.0), "b": 0.2}
    moved = [jax.tree.map(jnp.multiply, s, p) for s, p in zip(scale, params[::2], strict=True)]
    weights = {f"{name}{i}": moved[i][name] for i in range(2) for name in ("w", "b")}

    def f(p, x):
        layers = ({"w": p["w0"], "b": p["b0"]}, (), {"w": p["w1"], "b": p["b1"]})
        return NET.apply(layers, x, parametrization=SP())

    np.testing.assert_allclose(f(weights, X), NET.apply(params, X), rtol=1e-12)
    metric = Product(
        {f"{name}{i}": vf.Euclidean(scale[i][name]) for i in range(2) for name in ("w", "b")}
    )
    carried = k.empirical_ntk(f, weights, X, X2, metric=metric)
    expected = k.empirical_ntk(NET.apply, params, X, X2)
    np.testing.assert_allclose(carried, expected, rtol=1e-12)
    assert np.abs(k.empirical_ntk(f, weights, X, X2) - expected).max() > 0.1


def wide(width):
    return nn.serial(nn.Dense(width, 1.4), nn.Relu(), nn.Dense(1, 1.4))


def convolutional(width):
    return nn.serial(conv((2,), width), nn.Relu(), nn.GlobalAvgPool(), nn.Dense(1, 1.4))


@pytest.mark.parametrize(
    ("make", "x1", "x2"), [(wide, X, X2), (convolutional, SEQUENCES, SEQUENCES[:2, ::-1])]
)
def test_converges_like_the_root_of_the_width(make, x1, x2, key):
    """Root mean square distance to the limit over draws, at widths 32 to 512."""
    widths, errors = [32, 512], []
    limit = jax.jit(partial(k.kernel, make(1)))(x1, x2).ntk
    for width in widths:
        net = make(width)

        def distance(key, net=net):
            found = k.empirical_ntk(net.apply, net.init(key, x1.shape), x1, x2)
            return jnp.mean((found - limit) ** 2)

        squares = jax.lax.map(jax.jit(distance), jax.random.split(key, 100))
        errors.append(float(jnp.sqrt(jnp.mean(squares))))
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_covariance_under_the_prior(seed):
    net = nn.serial(nn.Dense(400, 1.4, 0.2), nn.Relu(), nn.Dense(4, 1.4, 0.2))
    found = k.empirical_nngp(net, X, X2, key=jax.random.key(seed), draws=400)
    limit = k.kernel(net, X, X2).nngp
    assert np.all(np.abs(found.value - limit) < 4.5 * found.error)
    assert np.all(found.error < 0.1)


def test_covariance_of_convolutions_under_the_prior(key):
    net = convolutional(200)
    found = jax.jit(lambda key: k.empirical_nngp(net, SEQUENCES, key=key, draws=200))(key)
    limit = jax.jit(partial(k.kernel, net))(SEQUENCES).nngp
    assert np.all(np.abs(found.value - limit) < 4 * found.error)
    assert np.all(found.error < 0.15 * limit)


def test_covariance_in_another_parametrization(key):
    net = around(nn.Relu())
    pair = [
        k.empirical_nngp(net, X, key=key, draws=20, parametrization=p).value for p in (SP(), NTP())
    ]
    np.testing.assert_allclose(*pair, rtol=1e-12)  # one law, from the same random numbers


def test_misuse(params, key):
    with pytest.raises(MetricError, match=r"`metric` is 3.0, which is no metric"):
        k.empirical_ntk(NET.apply, params, X, metric=3.0)
    with pytest.raises(NetworkError, match=r"`function` returned shape \(\) for 6 examples"):
        k.empirical_ntk(lambda p, x: jnp.sum(NET.apply(p, x)), params, X)
    with pytest.raises(NetworkError, match="`chunk` is 0; it should be a positive number"):
        k.empirical_ntk(NET.apply, params, X, chunk=0)
    with pytest.raises(NetworkError, match=r"`draws` is 1; .* at least 2"):
        k.empirical_nngp(NET, X, key=key, draws=1)


def test_arguments_in_another_order_are_told():
    net = nn.serial(nn.Dense(3), nn.Relu(), nn.Dense(1))
    x = jnp.ones((2, 4))
    params = net.init(jax.random.key(0), x.shape)
    with pytest.raises(DataError, match=r"`x2` is a tuple, .* in their order"):
        k.empirical_ntk(net.apply, x, x, params)
    with pytest.raises(DataError, match=r"`x1` is a tuple, .* in their order"):
        k.empirical_ntk(net.apply, x, params)
    with pytest.raises(NetworkError, match=r"`function` could not be run as `function\(params, x"):
        k.empirical_ntk(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 1))}, x)

"""Dissimilarities, and the curvature of functions of outputs, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from tests.geometry.laws import CURVED

import volform as vf
from volform.optimizers import (
    Bregman,
    KullbackLeibler,
    PulledBack,
    SquaredDistance,
    function_space_distance,
    gn_hvp,
    log_sum_exp,
    negative_entropy,
    pullback_mvp,
)

U, W = jnp.array([0.3, -0.8]), jnp.array([1.1, 0.2])
P, Q = jnp.array([0.2, 0.5, 0.3]), jnp.array([0.6, 0.1, 0.3])
ALL = {
    "distance": (SquaredDistance(CURVED), U, W),
    "Bregman": (Bregman(lambda x: jnp.sum(jnp.exp(x)) + x[0] ** 4), U, W),
    "log-sum-exp": (log_sum_exp(), U, W),
    "entropy": (negative_entropy(), P, Q),
    "Normal": (KullbackLeibler(lambda x: dist.Normal(x[0], jnp.exp(x[1]))), U, W),
    "Bernoulli": (KullbackLeibler(lambda x: dist.Bernoulli(logits=x)), U, W),
    "Poisson": (KullbackLeibler(lambda x: dist.Poisson(jnp.exp(x)), jax.random.key(0)), U, W),
    "pulled back": (PulledBack(SquaredDistance(), lambda x: jnp.sinh(x) + x[::-1]), U, W),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.standard_promotion  # NumPyro's Bernoulli
def test_zero_where_equal_and_positive_elsewhere(name):
    rho, u, w = ALL[name]
    compiled = jax.jit(jax.value_and_grad(rho.__call__))
    assert float(compiled(u, w)[0]) > 0.0
    zero, slope = compiled(w, w)
    assert abs(float(zero)) < 1e-15
    assert np.abs(slope).max() < 1e-14
    values = np.linalg.eigvalsh(rho.metric(w).as_matrix())
    assert values[0] > -1e-12 * values[-1]


def test_closed_forms():
    softmax = jax.nn.softmax
    p, q = softmax(U), softmax(W)
    assert_allclose(log_sum_exp()(U, W), np.sum(q * np.log(q / p)), rtol=1e-13)  # KL(p_w || p_u)
    assert_allclose(negative_entropy()(P, Q), np.sum(P * np.log(P / Q)), rtol=1e-13)
    square = SquaredDistance(CURVED)
    assert_allclose(square(U, W), 0.5 * (U - W) @ CURVED(W).as_matrix() @ (U - W), rtol=1e-14)
    assert isinstance(SquaredDistance().metric, vf.Euclidean)


@pytest.mark.standard_promotion
def test_of_any_family():
    """The Fisher metric is the Hessian of the divergence; by draws to the error of them."""
    rho, u, w = ALL["Bernoulli"]
    a, b = jax.nn.sigmoid(u), jax.nn.sigmoid(w)
    assert_allclose(
        rho(u, w), np.sum(a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))), rtol=1e-12
    )
    assert_allclose(rho.metric(w).as_matrix(), np.diag(b * (1 - b)), atol=1e-14)
    rho, u, w = ALL["Poisson"]
    m, n = np.exp(u), np.exp(w)
    exact = np.sum(m * np.log(m / n) - m + n)
    found = KullbackLeibler(rho.family, jax.random.key(1), draws=100_000)(u, w)
    assert_allclose(found, exact, rtol=0.02)
    normal = KullbackLeibler(dist.Normal)
    at = (jnp.array(0.4), jnp.array(1.7))
    assert_allclose(
        normal.metric(at).as_matrix(),
        vf.Fisher(dist.Normal)(at).as_matrix(),
        rtol=1e-12,
        atol=1e-14,
    )


# --- outputs of a small network, as functions of its parameters

X = jnp.linspace(-1.0, 1.0, 4)
V = jnp.array([0.2, -1.0, 0.4, 0.9])
AT = jnp.array([0.5, -0.3, 0.8, 0.1])


def network(w, x):
    return jnp.stack([jnp.tanh(w[0] * x + w[1]), w[2] * x * w[3]])


def outputs(w):
    return jax.vmap(lambda x: network(w, x))(X)


class MeanOverRows(Bregman):
    def __call__(self, u, w):
        return jnp.mean(jax.vmap(super().__call__)(u, w))


@pytest.mark.parametrize("rho", [SquaredDistance(), MeanOverRows(jax.nn.logsumexp)])
def test_the_product_is_that_of_the_hessian(rho):
    pulled = PulledBack(rho, outputs)
    hessian = jax.jit(jax.hessian(lambda u: pulled(u, AT)))(AT)
    matrix = jax.jit(jax.vmap(lambda v: pullback_mvp(outputs, rho, AT, v)))(jnp.eye(4))
    assert_allclose(matrix, hessian, rtol=1e-12, atol=1e-14)
    assert_allclose(matrix, matrix.T, atol=1e-14)
    assert np.linalg.eigvalsh(matrix)[0] > -1e-14


def test_kullback_leibler_has_one_metric_in_both_directions():
    forward = KullbackLeibler(lambda z: dist.Categorical(logits=z))
    swapped = log_sum_exp()
    z = jnp.array([0.3, -0.1, 1.0])
    v = jnp.array([1.0, 2.0, -1.0])
    assert_allclose(forward.metric(z).mv(v), swapped.metric(z).mv(v), rtol=1e-12)


def test_gauss_newton_is_the_pull_back_of_bregman():
    y = jnp.array([0, 1, 1, 0])

    def cross_entropy(z):
        return jnp.mean(jax.nn.logsumexp(z, 1) - jnp.take_along_axis(z, y[:, None], 1)[:, 0])

    rho = MeanOverRows(jax.nn.logsumexp)
    target = outputs(AT)

    @jax.jit
    def products():
        squares = lambda z: 0.5 * jnp.sum((z - target) ** 2)  # noqa: E731
        found = [gn_hvp(outputs, fn, AT, V) for fn in (cross_entropy, squares)]
        full = [
            jax.jvp(jax.grad(lambda w, fn=fn: fn(outputs(w))), (AT,), (V,))[1]
            for fn in (cross_entropy, squares)
        ]
        return pullback_mvp(outputs, rho, AT, V), found, full

    pulled, found, full = products()
    assert_allclose(found[0], pulled, rtol=1e-13, atol=1e-16)
    assert np.abs(full[0] - found[0]).max() > 1e-3
    assert_allclose(found[1], full[1], rtol=1e-12)  # where the residuals vanish


def test_distance_of_functions():
    rho = SquaredDistance()
    apart = jax.jit(lambda v: function_space_distance(network, rho, AT + v, AT, X))
    found = apart(V)
    exact = 0.5 * jnp.mean(jnp.sum((outputs(AT) - outputs(AT + V)) ** 2, 1))
    assert_allclose(found, exact, rtol=1e-14)
    metric = PulledBack(rho, network, X).metric(AT).as_matrix()
    errors = [abs(float(apart(h * V) - h**2 * V @ metric @ V / 2)) for h in (1e-2, 5e-3)]
    assert_allclose(np.log2(errors[0] / errors[1]), 3.0, atol=0.05)
    twice = PulledBack(rho, network, jnp.concatenate([X, X])).metric(AT).as_matrix()
    assert_allclose(twice, metric, rtol=1e-13)  # no matter how many examples

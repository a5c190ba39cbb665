"""Gaussian processes: evidence, posterior and trained networks against dense computations."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.linalg
import scipy.stats
from tests.compilations import compilations
from tests.kernels.nets import EDGE, X2, X, around

import volform as vf
from volform import kernels as k, networks as nn
from volform.errors import DataError, KernelError
from volform.networks import SP

REFERENCE = json.loads((Path(__file__).parent / "kernel_reference.json").read_text())["kernels"]
Y = np.cos(2.0 * np.arange(6))
RELU = around(nn.Relu(), nn.Relu())


@pytest.mark.parametrize(
    ("name", "net"),
    [("relu_d2_bias", RELU), ("gelu_d1_bias", around(nn.Gelu()))],
)
def test_reference_evidence(name, net):
    expected = REFERENCE[name]
    found = k.evidence(net, X, Y, noise=0.1).log_z
    np.testing.assert_allclose(found, expected["nngp_logml"], rtol=1e-12)
    np.testing.assert_allclose(k.gaussian_process(net, X, noise=0.1).log_prob(Y), found, rtol=1e-13)
    tangent = dist.MultivariateNormal(0.0, k.kernel(net, X).ntk + 0.01 * np.eye(6))
    np.testing.assert_allclose(tangent.log_prob(Y), expected["ntk_logml"], rtol=1e-12)


def test_evidence_of_many_outputs_adds():
    many = k.evidence(RELU, X, np.stack([Y, Y**2], 1), noise=0.1).log_z
    one = [k.evidence(RELU, X, y, noise=0.1).log_z for y in (Y, Y**2)]
    np.testing.assert_allclose(many, sum(one), rtol=1e-13)


def test_chain_rule_of_evidence_and_prediction():
    """`p(y, y') = p(y) p(y' | y)`."""
    other = np.array([0.3, -0.2, 0.5])
    joint = k.evidence(RELU, np.r_[X, X2], np.r_[Y, other], noise=0.3).log_z
    found = k.predict(RELU, X, Y, X2, noise=0.3)
    step = dist.MultivariateNormal(found.mean, found.covariance + 0.09 * np.eye(3)).log_prob(other)
    first = k.evidence(RELU, X, Y, noise=0.3).log_z
    np.testing.assert_allclose(first + step, joint, rtol=1e-12)
    pair = k.predict(RELU, X, np.stack([Y, -Y], 1), X2, noise=0.3)
    np.testing.assert_allclose(pair.mean, np.stack([found.mean, -found.mean], 1), rtol=1e-12)


def differences(f, at, h=1e-4):
    """The gradient by central differences of fourth order."""
    steps = h * np.eye(len(at))
    pairs = [(f(at + e) - f(at - e), f(at + 2 * e) - f(at - 2 * e)) for e in steps]
    return np.array([(8 * near - far) / (12 * h) for near, far in pairs])


def test_gradient_of_evidence():
    def log_evidence(theta):
        w_std, b_std, noise = theta
        layer = nn.Dense(8, w_std, b_std)
        net = nn.serial(layer, nn.Relu(), layer, nn.Erf(), layer)
        return k.evidence(net, X, Y, noise=noise).log_z

    theta = np.array([1.4, 0.3, 0.2])
    gradient = jax.jit(jax.grad(log_evidence))(theta)
    np.testing.assert_allclose(gradient, differences(jax.jit(log_evidence), theta), rtol=1e-8)


def in_features(net, time, noise, scaling):
    """Mean and covariance at X2 of the flow of weights of features with this NTK, as one ODE."""
    both = np.r_[X, X2]
    kernel = k.kernel(net, both, parametrization=scaling)
    features = np.linalg.cholesky(kernel.ntk + 1e-13 * np.eye(9))
    old, new = features[:6], features[6:]
    # d(w, f0, y)/dt: w moves by -old^T (f0 + old w - y) - noise^2 w.
    system = np.zeros((21, 21))
    system[:9] = np.c_[-old.T @ old - noise**2 * np.eye(9), -old.T, old.T]
    flow = scipy.linalg.expm(system * time)[:9]
    gain = np.c_[new @ flow[:, 9:15], np.eye(3)]  # of f0 at X and at X2
    return new @ flow[:, 15:] @ Y, gain @ kernel.nngp @ gain.T


@pytest.mark.parametrize("noise", [None, 0.4])
@pytest.mark.parametrize("time", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("scaling", [None, SP()])
def test_training_is_the_flow(time, noise, scaling):
    found = k.predict_trained(RELU, X, Y, X2, time=time, noise=noise, parametrization=scaling)
    mean, covariance = in_features(RELU, time, noise or 0.0, scaling)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("noise", [None, 0.4])
def test_training_for_ever(noise):
    for_ever = k.predict_trained(RELU, X, Y, X2, noise=noise)
    long = k.predict_trained(RELU, X, Y, X2, time=1e6, noise=noise)
    np.testing.assert_allclose(for_ever.mean, long.mean, rtol=1e-9)
    np.testing.assert_allclose(for_ever.covariance, long.covariance, rtol=1e-9, atol=1e-12)
    kernel = k.kernel(RELU, np.r_[X, X2]).ntk
    solution = np.linalg.solve(kernel[:6, :6] + (noise or 0.0) ** 2 * np.eye(6), Y)
    np.testing.assert_allclose(for_ever.mean, kernel[6:, :6] @ solution, rtol=1e-10)
    if noise is None:
        at_data = k.predict_trained(RELU, X, Y, X)
        np.testing.assert_allclose(at_data.mean, Y, rtol=1e-10)
        np.testing.assert_allclose(at_data.covariance, np.zeros((6, 6)), atol=1e-12)


def test_gradient_of_training():
    """Also where eigenvalues of the kernel repeat or are zero."""

    @jax.jit
    def loss(theta, x):
        layer = nn.Dense(8, theta[0], theta[1])
        net = nn.serial(layer, nn.Relu(), layer)
        found = k.predict_trained(net, x, Y, X2, time=theta[2])
        return jnp.sum(jnp.sin(found.mean)) + jnp.sum(jnp.sin(found.covariance))

    gradient, theta = jax.jit(jax.grad(loss)), np.array([1.4, 0.3, 2.0])
    for x in (X, np.eye(4)[[0, 1, 2, 3, 0, 0]]):
        expected = differences(lambda at, x=x: loss(at, x), theta)
        np.testing.assert_allclose(gradient(theta, x), expected, rtol=1e-7)


def test_training_of_finite_networks(key):
    """Gradient descent from 200 initial points, width 512."""
    net = nn.serial(nn.Dense(512, 1.4, 0.3), nn.Erf(), nn.Dense(1, 1.4, 0.3))
    rate, steps = 0.1, 50

    @jax.jit
    def trained(key):
        def loss(params):
            return jnp.sum((net.apply(params, X)[:, 0] - Y) ** 2) / 2

        def step(_, params):
            return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params))

        params = jax.lax.fori_loop(0, steps, step, net.init(key, X.shape))
        return net.apply(params, X2)[:, 0]

    outputs = np.asarray(jax.lax.map(trained, jax.random.split(key, 200)))
    limit = k.predict_trained(net, X, Y, X2, time=rate * steps)
    error = outputs.std(0) / np.sqrt(200)
    assert np.all(np.abs(outputs.mean(0) - limit.mean) < 4 * error)
    np.testing.assert_allclose(np.cov(outputs.T), limit.covariance, rtol=0.35, atol=0.01)


@pytest.mark.parametrize(
    "law",
    [
        lambda x, y, _, noise: k.evidence(RELU, x, y, noise=noise).log_z,
        lambda x, y, new, noise: k.predict(RELU, x, y, new, noise=noise),
        lambda x, y, new, noise: k.predict_trained(RELU, x, y, new, noise=noise),
        lambda x, y, new, noise: k.predict_trained(RELU, x, y, new, noise=noise, time=0.3),
    ],
    ids=["evidence", "predict", "trained for ever", "trained"],
)
def test_one_program_serves_all_numbers_of_a_step(law):
    """Of examples and of new ones; the law is that of no more examples than there are."""
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(24, 3)), rng.normal(size=(8, 3))
    y = np.stack([np.sin(x[:, 0]), x[:, 1]], 1)
    law(x[:22], y[:22], new[:3], 0.3)
    with compilations() as seen:
        found = law(x[:21], y[:21], new[:5], 0.2)
    assert not seen
    expected = jax.jit(law)(x[:21], y[:21], new[:5], 0.2)
    for part, wanted in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert isinstance(part, jax.Array)
        assert (part.shape, part.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(part, wanted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("w_std", [1e-8, 1e10])
@pytest.mark.parametrize("time", [math.inf, 3.0])
def test_rows_that_fill_up_set_no_scale(w_std, time):
    """Of 5 examples in a program for 8, with variances far from one."""
    x, variance = X[:5], w_std**2
    found = k.predict_trained(
        nn.Dense(1, w_std), x, Y[:5], X2, jitter=0.1 * variance, time=time / variance
    )
    gram, cross = x @ x.T / 4 + 0.1 * np.eye(5), X2 @ x.T / 4
    left = np.zeros((5, 5)) if time == math.inf else scipy.linalg.expm(-gram * time)
    expected = cross @ np.linalg.solve(gram, Y[:5] - left @ Y[:5])
    np.testing.assert_allclose(found.mean, expected, rtol=1e-10)


def test_jitter_is_only_what_is_asked_for():
    with pytest.raises(KernelError, match=r"`net` and `x`.*definite with `jitter=0.0`"):
        k.evidence(RELU, EDGE, Y)
    with pytest.raises(KernelError, match="not positive definite"):
        k.predict_trained(RELU, EDGE, Y, X2)
    with_jitter = k.evidence(RELU, EDGE, Y, jitter=0.01).log_z
    np.testing.assert_allclose(with_jitter, k.evidence(RELU, EDGE, Y, noise=0.1).log_z, rtol=1e-12)
    assert np.isnan(jax.jit(lambda y: k.evidence(RELU, EDGE, y).log_z)(Y))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"noise": 0.0}, KernelError, "`noise` is 0.0; it should be a positive number.*None"),
        ({"noise": math.nan}, KernelError, "`noise` is nan"),
        ({"jitter": -1.0}, KernelError, "`jitter` is -1.0; it should be a variance"),
        ({"y": Y[:4]}, DataError, r"`y` has shape \(4,\) and `x` has 6 rows"),
        ({"y": np.full(6, np.inf)}, DataError, "`y` holds 6 entries that are NaN or infinite"),
        ({"y": np.arange(6)}, DataError, "`y` has dtype int"),
        ({"x": X[0]}, DataError, r"`x` has shape \(4,\)"),
    ],
)
def test_misuse(arguments, error, match):
    given = {"x": X, "y": Y, "noise": 0.1, **arguments}
    for function, more in [(k.evidence, ()), (k.predict, (X2,)), (k.predict_trained, (X2,))]:
        rest = {name: value for name, value in given.items() if name not in ("x", "y")}
        with pytest.raises(error, match=match):
            function(RELU, given["x"], given["y"], *more, **rest)


def test_time():
    with pytest.raises(KernelError, match=r"`time` is -1.0; it should be the duration"):
        k.predict_trained(RELU, X, Y, X2, time=-1.0)


def test_hyperparameters_in_a_model():
    """What NUTS sees, under `jit`: the prior times the evidence, and its gradient."""

    def net(w_std):
        return nn.serial(nn.Dense(1, w_std, 1.0), nn.Erf(), nn.Dense(1, w_std))

    def model(y):
        w_std = numpyro.sample("w_std", dist.LogNormal(0.5, 0.5))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        numpyro.sample("y", k.gaussian_process(net(w_std), X, noise=noise), obs=y)

    def log_density(values):
        return numpyro.infer.util.log_density(model, (Y,), {}, values)[0]

    def expected(values):
        prior = dist.LogNormal(0.5, 0.5).log_prob(values["w_std"])
        prior += dist.HalfNormal(1.0).log_prob(values["noise"])
        return prior + k.evidence(net(values["w_std"]), X, Y, noise=values["noise"]).log_z

    values = {"w_std": jnp.array(1.2), "noise": jnp.array(0.3)}
    found, gradient = jax.jit(jax.value_and_grad(log_density))(values)
    value, slope = jax.jit(jax.value_and_grad(expected))(values)
    np.testing.assert_allclose(found, value, rtol=1e-13)
    for name in values:
        np.testing.assert_allclose(gradient[name], slope[name], rtol=1e-11)


@pytest.mark.standard_promotion
@pytest.mark.rank_promotion  # draws of MultivariateNormal
def test_classes_by_laplace():
    """Against Rasmussen & Williams (2006), algorithm 3.1, and their log evidence (3.32)."""
    x = np.random.default_rng(0).normal(size=(12, 2))
    y = np.where(x[:, 0] * x[:, 1] > 0, 1.0, 0.0)
    net = around(nn.Erf())

    def model(x, y):
        f = numpyro.sample("f", k.gaussian_process(net, x, jitter=1e-6))
        numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)

    found = vf.laplace(vf.condition(model, x, y), second_order=False).evidence
    K, f = np.asarray(k.kernel(net, x).nngp) + 1e-6 * np.eye(12), np.zeros(12)
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-f))
        s = np.sqrt(p * (1.0 - p))
        B = np.eye(12) + s[:, None] * K * s
        b = s**2 * f + y - p
        a = b - s * np.linalg.solve(B, s * (K @ b))
        f = K @ a
    likelihood = y @ f - np.sum(np.log1p(np.exp(f)))
    expected = likelihood - 0.5 * a @ f - 0.5 * np.linalg.slogdet(B)[1]
    np.testing.assert_allclose(found.log_z, expected, rtol=1e-10)


@pytest.mark.standard_promotion  # tinygp has integers of its own
def test_as_a_kernel_of_tinygp():
    tinygp = pytest.importorskip("tinygp")

    class NNGP(tinygp.kernels.Kernel):
        net: nn.Layer

        def evaluate(self, one, other):
            return k.kernel(self.net, one[None], other[None]).nngp[0, 0]

    gp = tinygp.GaussianProcess(NNGP(RELU), X, diag=0.01)
    ours = k.evidence(RELU, X, Y, noise=0.1).log_z
    np.testing.assert_allclose(gp.log_probability(Y), ours, rtol=1e-10)

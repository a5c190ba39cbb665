"""Where two inputs nearly or exactly agree: no lost digits, no NaN, exact symmetry."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.nets import ACTIVATIONS, EDGE, NAMES, X2, X, around

from volform import kernels as k, networks as nn
from volform.kernels.propagation.moments import Moments

FEW = [nn.Relu(), nn.RectifiedMonomial(2), nn.Gelu(), nn.Elementwise(jnp.tanh)]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("angle", [1e-3, 1e-6, 1e-9, 1e-14])
def test_angles_near_either_end(angle, sign):
    """A rounded cosine knows angles to 1e-8 only; here the kernel's slope is exact at any."""
    x = np.array([[1.0, 0.0], [sign, sign * np.tan(angle)]])
    net = nn.serial(nn.Dense(8), nn.Relu(), nn.Dense(8))
    kernel = k.kernel(net, x)
    slope = (kernel.ntk - kernel.nngp)[0, 1] / (x @ x.T / 2)[0, 1]
    away = np.pi - angle if sign > 0 else angle
    np.testing.assert_allclose(slope, away / (2 * np.pi), rtol=1e-12)


@pytest.mark.parametrize("angle", [1e-4, 1e-7, 1e-10])
def test_small_angles_survive_layers(angle):
    """Relu takes the angle t to t sqrt(1 - 2 t / (3 pi)), up to t^3."""
    net = nn.serial(nn.Dense(8), nn.Relu(), nn.Dense(8), nn.Sign())
    x = np.array([[1.0, 0.0], [1.0, np.tan(angle)]])
    after = (1 - k.kernel(net, x).nngp[0, 1]) * np.pi / 2
    np.testing.assert_allclose(after, angle * np.sqrt(1 - 2 * angle / (3 * np.pi)), atol=1e-15)
    biased = nn.serial(nn.Dense(8, b_std=1.0), nn.Sign())
    tiny = (1 - k.kernel(biased, x).nngp[0, 1]) * np.pi / 2
    # (sqrt(1/2), 1) and its neighbor at the distance angle / sqrt(2).
    np.testing.assert_allclose(tiny, angle / np.sqrt(3), rtol=2 * angle + 1e-15 / angle)


@pytest.mark.parametrize(("f", "bend"), [(nn.Relu(), 1.0), (nn.LeakyRelu(0.1), 0.81 / 1.01)])
@pytest.mark.parametrize("angle", [1e-8, 1e-11, 1e-15])
def test_no_digit_of_a_small_angle_is_lost(f, bend, angle):
    ends, cross, area = jnp.ones((1, 1)), jnp.cos(angle), jnp.sin(angle)
    found = k.image_moments(f, Moments(ends, ends, cross * ends, area * ends)).angle
    np.testing.assert_allclose(found, angle * (1 - bend * angle / (3 * np.pi)), rtol=2e-15)


@pytest.mark.parametrize("f", ACTIVATIONS, ids=NAMES)
def test_duplicates_have_the_same_kernels(f):
    for kernel in k.kernel(around(f, nn.Relu(), b_std=None), EDGE):
        np.testing.assert_array_equal(kernel, kernel.T)
        np.testing.assert_allclose(kernel[0], kernel[1], rtol=1e-14, atol=1e-15)
        np.testing.assert_allclose(kernel[0, 0], kernel[0, 1], rtol=1e-14)


def test_gradients_are_finite_at_degenerate_inputs():
    def total(x, w_std, b_std):
        first = nn.Dense(8, w_std, b_std)
        kernel = k.kernel(nn.serial(first, nn.Sin(), first, nn.Relu(), first), x)
        return jnp.sum(kernel.nngp) + jnp.sum(kernel.ntk)

    gradient = jax.jit(jax.grad(total, (0, 1, 2)))
    for b_std in (0.0, 0.2):
        assert all(np.all(np.isfinite(part)) for part in gradient(EDGE, 1.4, b_std))


@pytest.mark.parametrize("f", ACTIVATIONS, ids=NAMES)
def test_kernels_are_positive_semidefinite(f):
    x = np.concatenate([X, X + 1e-7, 3.0 * X[:2], EDGE])
    for kernel in k.kernel(around(f), x):
        np.testing.assert_array_equal(kernel, kernel.T)
        spectrum = np.linalg.eigvalsh(kernel)
        assert spectrum[0] > -1e-14 * spectrum[-1]


# Derivatives of each activation are tested by themselves, in test_price.
@pytest.mark.parametrize("f", [FEW[0], FEW[3]])
def test_gradients_by_differences(f):
    """In a direction of inputs, w_std and b_std at once."""
    direction = np.sin(np.arange(24)).reshape(6, 4)

    def kernels(t):
        first = nn.Dense(8, 1.1 + t, 0.3 - 0.5 * t)
        kernel = k.kernel(nn.serial(first, f, first), X + t * direction, X2)
        return jnp.stack(kernel)

    weights = np.cos(np.arange(36.0)).reshape(2, 6, 3)
    forward = jax.jit(lambda: jax.jvp(kernels, (0.0,), (1.0,))[1])()
    backward = jax.jit(jax.grad(lambda t: jnp.sum(kernels(t) * weights)))(0.0)
    h, along = 1e-4, jax.jit(kernels)
    five = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    np.testing.assert_allclose(forward, five, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(backward, np.sum(forward * weights), rtol=1e-10)


def test_gradient_where_inputs_agree():
    """The covariance is once differentiable there: half that of a linear layer."""
    x, y = jnp.asarray(X[:1]), jnp.asarray(X[:1])
    net = nn.serial(nn.Dense(8), nn.Relu(), nn.Dense(8))
    gradient = jax.jit(jax.grad(lambda x, y: k.kernel(net, x, y).nngp[0, 0]))
    np.testing.assert_allclose(gradient(x, y), X[:1] / 8, rtol=1e-13)
    np.testing.assert_allclose(gradient(x, -y), np.zeros((1, 4)), atol=1e-15)


def test_scaled_inputs_in_a_wide_range():
    """A relu network without biases is homogeneous, from 1e-150 to 1e150."""
    net = around(nn.Relu(), nn.Relu(), b_std=None)
    one = k.kernel(net, X)
    for scale in (1e-150, 1e-20, 1e20, 1e70):
        for kernel, expected in zip(k.kernel(net, scale * X), one, strict=True):
            np.testing.assert_allclose(kernel / scale / scale, expected, rtol=1e-12)


def test_jit_and_vmap():
    net = around(nn.Gelu(), nn.Relu())
    kernel = k.kernel(net, X, X2)
    jitted = jax.jit(lambda n, *x: k.kernel(n, *x))(net, X, X2)
    np.testing.assert_allclose(jitted.ntk, kernel.ntk, rtol=1e-13)

    def at(w_std):
        return k.kernel(nn.serial(nn.Dense(8, w_std), nn.Relu(), nn.Dense(1)), X)

    many = jax.vmap(at)(jnp.array([0.5, 1.0, 2.0]))
    np.testing.assert_allclose(many.ntk[2], at(2.0).ntk, rtol=1e-13)
    np.testing.assert_allclose(many.nngp[1], 4 * many.nngp[0], rtol=1e-13)


@pytest.mark.parametrize(("f", "bound"), [(nn.Relu(), 5e-7), (nn.Erf(), 1e-4), (FEW[-1], 1e-4)])
def test_float32(f, bound):
    """Relative to the largest entry; smooth activations know an angle t to rounding / t."""
    x = np.concatenate([X, X + 1e-3, EDGE])
    kernels = partial(k.kernel, around(f, nn.Relu()))
    exact = kernels(x.astype(np.float32).astype(float))
    for kernel, expected in zip(kernels(x.astype(np.float32)), exact, strict=True):
        assert kernel.dtype == jnp.float32
        error = np.abs(np.asarray(kernel, float) - expected).max() / np.abs(expected).max()
        assert error < bound

"""Standard, neural tangent and maximal-update parametrization: which kernels have a limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.nets import finite

from volform import kernels as k, networks as nn
from volform.errors import NetworkError
from volform.networks import NTP, SP, ImprovedSP, MuP

# The example of the reference figures: one hidden layer, w_std = 1.3, no biases.
X1, X2 = np.array([[1.0, 0.5, -0.3]]), np.array([[0.2, 1.0, 0.4]])
WIDTHS = 4.0 ** np.arange(3, 8)  # 64 to 16,384


def net(width):
    return nn.serial(nn.Dense(int(width), 1.3), nn.Relu(), nn.Dense(1, 1.3))


def test_figures_of_the_limit():
    kernel = k.kernel(net(64), X1, X2)
    assert round(float(kernel.ntk[0, 0]), 5) == 0.53045
    assert round(float(kernel.nngp[0, 0]), 5) == 0.35066  # the last layer's part
    assert round(float(kernel.ntk[0, 0] - kernel.nngp[0, 0]), 5) == 0.17979  # the first layer's


def test_standard_kernel_grows_like_the_width():
    kernels = [k.kernel(net(w), X1, X2, parametrization=SP()) for w in WIDTHS]
    last = [float(kernel.ntk[0, 0]) for kernel in kernels]
    assert np.polyfit(np.log(WIDTHS), np.log(last), 1)[0] == pytest.approx(1.0, abs=5e-3)
    # Measured with finite networks, of the last layer alone: 12.6, 53.9, 211, 861, 3389.
    first = last[1] - WIDTHS[1] * (last[1] - last[0]) / (WIDTHS[1] - WIDTHS[0])
    np.testing.assert_allclose(np.array(last) - first, [12.6, 53.9, 211, 861, 3389], rtol=0.06)
    limit = k.kernel(net(64), X1, X2).nngp
    for kernel in kernels:
        np.testing.assert_allclose(kernel.nngp, limit, rtol=1e-14)


def residual(width):
    branch = nn.summed(nn.Identity(), nn.serial(nn.Relu(), nn.Dense(width)))
    return nn.serial(nn.Dense(width), branch, nn.Relu(), nn.Dense(1))


def test_widths_in_place_of_the_layers_own():
    found = k.kernel(residual(8), X1, X2, parametrization=SP(), widths=(64, 64))
    same = k.kernel(residual(64), X1, X2, parametrization=SP())
    np.testing.assert_array_equal(found, same)
    with pytest.raises(NetworkError, match=r"`widths` is \(64,\), while .* has 2 hidden layers"):
        k.kernel(residual(8), X1, X2, widths=(64,))
    with pytest.raises(NetworkError, match=r"`widths` is 512, while .* has 2 hidden layers"):
        k.kernel(residual(8), X1, X2, widths=512)


def test_neural_tangent_kernel_has_a_limit():
    for width in WIDTHS:
        kernel = k.kernel(net(width), X1, X2, parametrization=NTP())
        np.testing.assert_allclose(kernel.ntk, k.kernel(net(1), X1, X2).ntk, rtol=1e-14)


def test_improved_standard_kernel_has_that_of_its_base_width():
    base = k.kernel(net(64), X1, X2, parametrization=SP())
    for width in WIDTHS:
        kernel = k.kernel(net(width), X1, X2, parametrization=ImprovedSP(base_width=64))
        np.testing.assert_allclose(kernel.ntk, base.ntk, rtol=1e-13)


def test_maximal_update_has_no_gaussian_process_and_a_tangent_kernel():
    kernels = [k.kernel(net(w), X1, X2, parametrization=MuP()) for w in WIDTHS]
    variance = [float(kernel.nngp[0, 0]) for kernel in kernels]
    np.testing.assert_allclose(np.array(variance) * WIDTHS, variance[0] * WIDTHS[0], rtol=1e-13)
    tangent = [float(kernel.ntk[0, 0]) for kernel in kernels]
    np.testing.assert_allclose(tangent, tangent[0], rtol=1e-13)


@pytest.mark.parametrize("scaling", [SP(), NTP(), MuP()], ids=repr)
def test_leading_order_is_that_of_finite_networks(key, scaling):
    """Means over draws of `J J^T` and of products of outputs, at width 256 with biases."""
    deep = nn.serial(
        nn.Dense(256, 1.3, 0.4), nn.Relu(), nn.Dense(256, 1.1, 0.3), nn.Erf(), nn.Dense(1, 1.2, 0.2)
    )
    x = np.concatenate([X1, X2])

    nngp, ntk = finite(deep, x, scaling, jax.random.split(key, 60))
    expected = k.kernel(deep, x, parametrization=scaling)
    np.testing.assert_allclose(ntk.mean(0), expected.ntk, rtol=0.04)
    error = np.asarray(nngp).std(0) / np.sqrt(60)
    assert np.all(np.abs(nngp.mean(0) - expected.nngp) < 3 * error)


@pytest.mark.parametrize("kind", [int, np.float64, np.asarray, jnp.array])
def test_any_number(kind):
    """What is traced and what is not makes no difference."""
    kernel = k.kernel(nn.Dense(1, kind(2.0), kind(3.0)), X1)
    np.testing.assert_allclose(kernel.nngp, k.kernel(nn.Dense(1, 2.0, 3.0), X1).nngp, rtol=1e-15)

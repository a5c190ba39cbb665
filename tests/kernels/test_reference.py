"""Kernels against numbers of an independent program, and against networks of finite width."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf
from numpy.polynomial.hermite_e import hermegauss
from tests.kernels.nets import EDGE, IMAGES, SEQUENCES, X2, X, around, conv, dense

from volform import kernels as k, networks as nn
from volform.networks import SP

REFERENCE = json.loads((Path(__file__).parent / "kernel_reference.json").read_text())["kernels"]

NETS = {
    "relu_d1_nobias": around(nn.Relu(), b_std=None),
    "relu_d1_bias": around(nn.Relu()),
    "relu_d2_nobias": around(nn.Relu(), nn.Relu(), b_std=None),
    "relu_d2_bias": around(nn.Relu(), nn.Relu()),
    "relu_d5_bias": around(*[nn.Relu()] * 5),
    "linear_d2_bias": around(nn.Identity(), nn.Identity()),
    "erf_d1_bias": around(nn.Erf()),
    "erf_d2_bias": around(nn.Erf(), nn.Erf()),
    "gelu_d1_bias": around(nn.Gelu()),
    "leakyrelu0.1_d1_bias": around(nn.LeakyRelu(0.1)),
    "abs_d1_bias": around(nn.Abs()),
    "sin_d1_bias": around(nn.Sin()),
    "cos_d1_bias": around(nn.Cos()),
    "rbf_gamma1_d1_bias": around(nn.Rbf(1.0)),
    "sigmoid_like_d1_bias": around(nn.Elementwise(lambda u: (1 + erf(u / 2.4020563531719796)) / 2)),
    "layernorm_relu": nn.serial(dense(), nn.LayerNorm(), nn.Relu(), dense()),
    "residual_relu": nn.serial(
        dense(), nn.summed(nn.Identity(), nn.serial(nn.Relu(), dense())), nn.Relu(), dense()
    ),
    "fanin_concat": nn.serial(
        nn.concatenated(
            nn.serial(dense(16), nn.Relu()), nn.serial(nn.Dense(48, w_std=1.0, b_std=0.1), nn.Erf())
        ),
        dense(),
    ),
}
VALID = conv((3, 3), padding=nn.Padding.VALID)
PICTURES = {
    "conv2d_flatten": nn.serial(conv((3, 3)), nn.Relu(), VALID, nn.Relu(), nn.Flatten(), dense()),
    "conv2d_gap": nn.serial(conv((3, 3)), nn.Relu(), VALID, nn.Relu(), nn.GlobalAvgPool(), dense()),
    "conv1d_same_flatten": nn.serial(conv(), nn.Relu(), conv(), nn.Relu(), nn.Flatten(), dense()),
}


def triangle(rows):
    """The symmetric matrix with these rows of its upper triangle."""
    full = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        full[i, i:] = full[i:, i] = row
    return full


@pytest.mark.parametrize("name", NETS)
def test_reference(name):
    """One list of inputs layer by layer; two of them in one program, in tiles."""
    expected, kernel = REFERENCE[name], k.kernel(NETS[name], X)
    cross = jax.jit(partial(k.kernel, NETS[name], tile=4))(X2, X)
    np.testing.assert_allclose(kernel.nngp, triangle(expected["nngp"]), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(kernel.ntk, triangle(expected["ntk"]), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(cross.nngp, expected["nngp_X2_X"], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(cross.ntk, expected["ntk_X2_X"], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", PICTURES)
def test_reference_of_images(name):
    in_tiles = jax.jit(partial(k.kernel, PICTURES[name], tile=3))
    kernel = in_tiles(SEQUENCES if "1d" in name else IMAGES)
    nngp, ntk = (triangle(REFERENCE[name][kind]) for kind in ("nngp", "ntk"))
    np.testing.assert_allclose(kernel.nngp, nngp, rtol=1e-12)
    if name == "conv2d_flatten":
        # The reference rounds the angle of an image with itself here: 1.3e-9. The next test.
        np.testing.assert_allclose(kernel.ntk[2, 2], ntk[2, 2], rtol=1e-8)
        ntk[2, 2] = kernel.ntk[2, 2]
    np.testing.assert_allclose(kernel.ntk, ntk, rtol=1e-12)


def test_convolution_written_out():
    """In extended precision, image by image."""
    x, area = IMAGES.astype(np.longdouble), np.longdouble(9)
    nngp = np.einsum("nhwc,mhwc->nmhw", x, x) / 2
    ntk = np.zeros_like(nngp)

    def summed(kernel, size):
        pad = (size + 2 - kernel.shape[-1]) // 2
        kernel = np.pad(kernel, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
        return sum(kernel[..., i : i + size, j : j + size] for i in range(3) for j in range(3))

    spread, shift = np.longdouble(1.4) ** 2, np.longdouble(0.2) ** 2
    for size in (5, 3):
        nngp = spread * summed(nngp, size) / area + shift
        ntk = spread * summed(ntk, size) / area + nngp
        variance = np.einsum("nnhw->nhw", nngp)
        scale = np.sqrt(variance[:, None] * variance)
        angle = np.arccos(np.where(np.eye(4)[..., None, None] > 0, 1, nngp / scale))
        ntk = ntk * (np.pi - angle) / (2 * np.pi)
        nngp = scale * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    nngp, ntk = (spread * kernel.mean((2, 3)) for kernel in (nngp, ntk))
    found = jax.jit(partial(k.kernel, PICTURES["conv2d_flatten"]))(IMAGES)
    np.testing.assert_allclose(found.nngp, (nngp + shift).astype(float), rtol=1e-14)
    np.testing.assert_allclose(found.ntk, (ntk + nngp + shift).astype(float), rtol=1e-14)


def test_reference_at_degenerate_inputs():
    expected, kernel = REFERENCE["edge_relu_d2_bias"], k.kernel(NETS["relu_d2_bias"], EDGE)
    np.testing.assert_allclose(kernel.nngp, triangle(expected["nngp"]), rtol=1e-13)
    np.testing.assert_allclose(kernel.ntk, triangle(expected["ntk"]), rtol=1e-13)


def test_reference_standard_parametrization():
    net = nn.serial(dense(64), nn.Relu(), dense(128), nn.Relu(), dense(1))
    expected = REFERENCE["standard_relu_d2_w64_128"]
    kernel = k.kernel(net, X, parametrization=SP())
    np.testing.assert_allclose(kernel.nngp, triangle(expected["nngp"]), rtol=1e-12)
    np.testing.assert_allclose(kernel.ntk, triangle(expected["ntk"]), rtol=1e-12, atol=1e-11)


def test_quadrature_of_the_reference():
    """Of tanh, the reference has the numbers of 25 nodes in each direction; 120 give those here."""

    def by_nodes(count):
        z, weights = hermegauss(count)
        inputs = 1.4**2 * (X @ X.T) / 4 + 0.04
        own = np.sqrt(np.diag(inputs))
        cosine = np.clip(inputs / (own[:, None] * own), -1, 1)[:, :, None, None]
        other = cosine * z[:, None] + np.sqrt(1 - cosine**2) * z
        left = np.tanh(own[:, None] * z)[:, None, :, None]
        products = left * np.tanh(own[:, None, None] * other)
        mean = np.einsum("p,q,ijpq->ij", weights, weights, products) / (2 * np.pi)
        return np.triu(1.4**2 * mean + 0.04)  # which is not symmetric, but as the count grows

    expected = triangle(REFERENCE["tanh_quad25_d1_bias"]["nngp"])
    np.testing.assert_allclose(by_nodes(25), np.triu(expected), rtol=1e-12, atol=1e-13)
    found = k.kernel(around(nn.Elementwise(jnp.tanh)), X).nngp
    np.testing.assert_allclose(np.triu(found), by_nodes(120), rtol=1e-8)


@pytest.mark.parametrize("b_std", [0.2, None])
def test_init_and_apply(key, b_std):
    block = nn.summed(nn.Identity(), nn.serial(nn.Relu(), dense(8, b_std)))
    net = nn.serial(nn.Flatten(), dense(8, b_std), block, nn.Relu(), dense(2, b_std))
    x = X.reshape(6, 2, 2)
    params = net.init(key, x.shape)
    z = X @ params[1]["w"].T * 1.4 / 2.0 + (0.0 if b_std is None else b_std * params[1]["b"][None])
    inner = params[2][1][1]
    z += np.maximum(z, 0) @ inner["w"].T * 1.4 / np.sqrt(8.0)
    z += 0.0 if b_std is None else b_std * inner["b"][None]
    out = np.maximum(z, 0) @ params[4]["w"].T * 1.4 / np.sqrt(8.0)
    out += 0.0 if b_std is None else b_std * params[4]["b"][None]
    np.testing.assert_allclose(net.apply(params, x), out, rtol=1e-12)
    assert len(jax.tree.leaves(params)) == (6 if b_std else 3)
    assert k.kernel(net, x).nngp.shape == (6, 6)


def test_residual_kernel_is_that_of_samples(key):
    """Two branches, one of them nested: the covariance of outputs over draws from the prior."""
    block = nn.summed(nn.Identity(), nn.serial(nn.Erf(), dense(32)), nn.serial(dense(32)))
    net = nn.serial(dense(32), block, nn.Abs(), dense(1))
    sample = jax.jit(jax.vmap(lambda own: net.apply(net.init(own, X.shape), X)[:, 0]))
    outputs = sample(jax.random.split(key, 4000))
    products = np.asarray(outputs[:, :, None] * outputs[:, None, :])
    error = products.std(0) / np.sqrt(len(products))
    assert np.all(np.abs(products.mean(0) - k.kernel(net, X).nngp) < 4 * error + 0.02)


def test_layer_normalization_at_finite_width(key):
    """The mean kernel of 40 networks of width 512, and the function's own normalization."""
    net = nn.serial(nn.Dense(512, 1.4), nn.LayerNorm(), nn.Relu(), nn.Dense(1, 1.4))
    values = net.layers[1].apply((), 3.0 * X + 1.0)
    np.testing.assert_allclose(values.mean(1), 0.0, atol=1e-14)
    np.testing.assert_allclose(values.std(1), 1.0, rtol=1e-10)
    found = jax.lax.map(
        lambda own: k.empirical_ntk(net.apply, net.init(own, X.shape), X),
        jax.random.split(key, 40),
    )
    np.testing.assert_allclose(found.mean(0), k.kernel(net, X).ntk, rtol=0.03, atol=0.03)

"""Kernels against numbers of an independent program, and against networks of finite width."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.nets import EDGE, X2, X, around, dense

from volform import kernels as k
from volform.geometry import SP

REFERENCE = json.loads((Path(__file__).parent / "kernel_reference.json").read_text())["kernels"]

NETS = {
    "relu_d1_nobias": around(k.Relu(), b_std=None),
    "relu_d2_bias": around(k.Relu(), k.Relu()),
    "relu_d5_bias": around(*[k.Relu()] * 5),
    "linear_d2_bias": around(k.Identity(), k.Identity()),
    "erf_d1_bias": around(k.Erf()),
    "erf_d2_bias": around(k.Erf(), k.Erf()),
    "gelu_d1_bias": around(k.Gelu()),
    "leakyrelu0.1_d1_bias": around(k.LeakyRelu(0.1)),
    "abs_d1_bias": around(k.Abs()),
    "sin_d1_bias": around(k.Sin()),
    "cos_d1_bias": around(k.Cos()),
    "rbf_gamma1_d1_bias": around(k.Rbf(1.0)),
    "layernorm_relu": k.serial(dense(), k.LayerNorm(), k.Relu(), dense()),
    "residual_relu": k.serial(
        dense(), k.summed(k.Identity(), k.serial(k.Relu(), dense())), k.Relu(), dense()
    ),
}


def triangle(rows):
    """The symmetric matrix with these rows of its upper triangle."""
    full = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        full[i, i:] = full[i:, i] = row
    return full


@pytest.mark.parametrize("name", NETS)
def test_reference(name):
    expected, kernel = REFERENCE[name], NETS[name].kernel(X)
    cross = NETS[name].kernel(X2, X)
    np.testing.assert_allclose(kernel.nngp, triangle(expected["nngp"]), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(kernel.ntk, triangle(expected["ntk"]), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(cross.nngp, expected["nngp_X2_X"], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(cross.ntk, expected["ntk_X2_X"], rtol=1e-12, atol=1e-13)


def test_reference_at_degenerate_inputs():
    expected, kernel = REFERENCE["edge_relu_d2_bias"], NETS["relu_d2_bias"].kernel(EDGE)
    np.testing.assert_allclose(kernel.nngp, triangle(expected["nngp"]), rtol=1e-13)
    np.testing.assert_allclose(kernel.ntk, triangle(expected["ntk"]), rtol=1e-13)


def test_reference_standard_parametrization():
    net = k.serial(dense(64), k.Relu(), dense(128), k.Relu(), dense(1))
    expected = REFERENCE["standard_relu_d2_w64_128"]
    kernel = net.kernel(X, parametrization=SP())
    np.testing.assert_allclose(kernel.nngp, triangle(expected["nngp"]), rtol=1e-12)
    np.testing.assert_allclose(kernel.ntk, triangle(expected["ntk"]), rtol=1e-12, atol=1e-11)


def test_quadrature_is_closer_than_the_reference():
    """Of tanh, the reference is off by its own quadrature; a finer one here shows by how much."""
    expected = triangle(REFERENCE["tanh_quad25_d1_bias"]["nngp"])
    coarse, fine = (around(k.Elementwise(jnp.tanh, order)).kernel(X).nngp for order in (64, 128))
    assert np.abs(coarse - fine).max() < 1e-9
    assert 1e-5 < np.abs(expected - fine).max() < 1e-3


@pytest.mark.parametrize("b_std", [0.2, None])
def test_init_and_apply(key, b_std):
    block = k.summed(k.Identity(), k.serial(k.Relu(), dense(8, b_std)))
    net = k.serial(k.Flatten(), dense(8, b_std), block, k.Relu(), dense(2, b_std))
    x = X.reshape(6, 2, 2)
    params = net.init(key, x.shape)
    z = X @ params[1]["w"].T * 1.4 / 2.0 + (0.0 if b_std is None else b_std * params[1]["b"])
    inner = params[2][1][1]
    z += np.maximum(z, 0) @ inner["w"].T * 1.4 / np.sqrt(8.0)
    z += 0.0 if b_std is None else b_std * inner["b"]
    out = np.maximum(z, 0) @ params[4]["w"].T * 1.4 / np.sqrt(8.0)
    out += 0.0 if b_std is None else b_std * params[4]["b"]
    np.testing.assert_allclose(net.apply(params, x), out, rtol=1e-12)
    assert len(jax.tree.leaves(params)) == (6 if b_std else 3)
    assert net.kernel(x).nngp.shape == (6, 6)


def test_residual_kernel_is_that_of_samples(key):
    """Two branches, one of them nested: the covariance of outputs over draws from the prior."""
    block = k.summed(k.Identity(), k.serial(k.Erf(), dense(32)), k.serial(dense(32)))
    net = k.serial(dense(32), block, k.Abs(), dense(1))
    sample = jax.jit(jax.vmap(lambda own: net.apply(net.init(own, X.shape), X)[:, 0]))
    outputs = sample(jax.random.split(key, 4000))
    products = np.asarray(outputs[:, :, None] * outputs[:, None, :])
    error = products.std(0) / np.sqrt(len(products))
    assert np.all(np.abs(products.mean(0) - net.kernel(X).nngp) < 4 * error + 0.02)


def test_layer_normalization_at_finite_width(key):
    """The mean kernel of 40 networks of width 512, and the function's own normalization."""
    net = k.serial(k.Dense(512, 1.4), k.LayerNorm(), k.Relu(), k.Dense(1, 1.4))
    values = net.layers[1].apply((), 3.0 * X + 1.0)
    np.testing.assert_allclose(values.mean(1), 0.0, atol=1e-14)
    np.testing.assert_allclose(values.std(1), 1.0, rtol=1e-10)
    found = jax.lax.map(
        lambda own: k.empirical_ntk(net.apply, net.init(own, X.shape), X),
        jax.random.split(key, 40),
    )
    np.testing.assert_allclose(found.mean(0), net.kernel(X).ntk, rtol=0.03, atol=0.03)

"""Layers with several parts: written out, and as the means of networks of finite width."""

import itertools

import jax
import numpy as np
import pytest
from tests.kernels.nets import SEQUENCES, X2, X, conv, dense, finite

from volform import kernels as k
from volform.networks import NTP, SP

ATTENTION = k.GlobalSelfAttention(
    48, 8, 64, 8, w_key_std=1.5, w_value_std=1.1, w_std=1.3, b_std=0.2
)
GATED = k.multiplied(conv((1,), width=32), k.serial(conv((2,), width=32), k.Erf()))
BLOCK = k.summed(k.Identity(), k.serial(k.Relu(), conv(width=32)))


@pytest.mark.parametrize(
    ("net", "scaling"),
    [
        (k.serial(conv(width=48), k.Relu(), ATTENTION, k.GlobalAvgPool(), dense(1)), NTP()),
        (k.serial(conv(width=32), BLOCK, GATED, k.Flatten(), dense(1)), SP()),
    ],
)
def test_networks_of_finite_width(net, scaling, key):
    """Means over 100 draws of `J J^T` and of products of outputs."""
    x = SEQUENCES[:3, :3]

    draws = finite(net, x, scaling, jax.random.split(key, 100))
    kernels = jax.jit(lambda x: net.kernel(x, parametrization=scaling))(x)
    for found, kernel in zip(draws, kernels, strict=True):
        error = np.asarray(found).std(0) / 10.0
        bias = 0.05 * np.abs(kernel).max()  # of order 1 / width
        assert np.all(np.abs(found.mean(0) - kernel) < 3 * error + bias)
        assert np.all(error < 0.25 * np.abs(kernel).max())


def test_standard_kernel_of_convolutions_grows_like_the_channels():
    def tangent(width):
        net = k.serial(conv(width=width), k.Relu(), conv(width=8), k.Flatten(), dense(1))
        return np.asarray(net.kernel(SEQUENCES, parametrization=SP()).ntk)

    first, second, fourth = (tangent(width) for width in (8, 16, 32))
    np.testing.assert_allclose(fourth - second, 2 * (second - first), rtol=1e-12)
    # The second layer's part, fan_in times the kernel of its inputs, as the last layer sees it.
    inner = k.serial(conv(), k.Relu(), conv(b_std=None), k.Flatten()).kernel(SEQUENCES).nngp
    np.testing.assert_allclose(second - first, 8 * 3 * inner, rtol=1e-12)


def test_attention_written_out():
    """Weights by the softmax of covariances of pixels, values of one dense layer."""
    x, s = SEQUENCES, 1.5**2
    inner = np.einsum("npc,mqc->nmpq", x, x) / 2
    own = np.exp(s * np.einsum("nnpq->npq", inner))
    own /= own.sum(-1, keepdims=True)
    mixed = (1.1 * 1.3) ** 2 * np.einsum("npr,nmrt,mqt->nmpq", own, inner, own).mean((2, 3))
    net = k.serial(ATTENTION, k.GlobalAvgPool())
    kernel = jax.jit(net.kernel)(x)
    np.testing.assert_allclose(kernel.nngp, mixed + 0.04, rtol=1e-12)
    np.testing.assert_allclose(kernel.ntk, 2 * mixed + 0.04, rtol=1e-12)


def test_product_rule():
    """`(K K', T K' + K T')`, behind a shared layer."""
    one, two = k.serial(k.Erf(), dense()), k.serial(k.Relu(), dense(), k.Erf())
    (k1, t1), (k2, t2) = (k.serial(dense(), branch).kernel(X, X2) for branch in (one, two))
    kernel = k.serial(dense(), k.multiplied(one, two)).kernel(X, X2)
    np.testing.assert_allclose(kernel.nngp, k1 * k2, rtol=1e-13)
    np.testing.assert_allclose(kernel.ntk, t1 * k2 + k1 * t2, rtol=1e-13)


def test_dropout_of_images_is_a_mean_over_masks():
    """Over all masks of three pixels, in closed form for a layer that is linear in its weights."""
    rate, x = 0.6, SEQUENCES[:2, :3, :1]
    net = k.serial(conv((2,)), k.GlobalAvgPool())
    masks = np.array(list(itertools.product([0.0, 1.0], repeat=3)))
    chance = np.prod(np.where(masks > 0, rate, 1 - rate), 1)
    kernels = [jax.jit(net.kernel)(masks[:, :, None] * own / rate).nngp for own in x]
    dropped = k.serial(k.Dropout(rate), *net.layers)
    found, across = jax.jit(lambda x: (dropped.kernel(x), dropped.kernel(x, x[:1])))(x)
    for i, kernel in enumerate(kernels):
        np.testing.assert_allclose(found.nngp[i, i], np.diag(kernel) @ chance, rtol=1e-12)
    np.testing.assert_allclose(across.nngp[0, 0], chance @ kernels[0] @ chance, rtol=1e-12)
    np.testing.assert_allclose(across.nngp[1, 0], found.nngp[1, 0], rtol=1e-12)
    np.testing.assert_allclose(found.ntk, found.nngp, rtol=1e-12)


def test_dropout_of_vectors():
    """Behind an activation both kernels of an input with itself are divided by the rate."""
    plain, dropped = (
        k.serial(dense(b_std=None), k.Relu(), *middle, k.Dense(1))
        for middle in ((), (k.Dropout(0.5),))
    )
    double = np.where(np.eye(6), 2.0, 1.0)
    for found, expected in zip(dropped.kernel(X), plain.kernel(X), strict=True):
        np.testing.assert_allclose(found, double * expected, rtol=1e-13)
    for found, expected in zip(dropped.kernel(X, X2), plain.kernel(X, X2), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13)
    # The angle that a further layer sees: noise takes inputs away from each other, even equal ones.
    again = k.serial(*dropped.layers, k.Sign()).kernel(np.concatenate([X, X])).nngp
    kernel = dropped.kernel(np.concatenate([X, X])).nngp
    scale = np.sqrt(np.outer(np.diag(kernel), np.diag(kernel)))
    cosine = np.where(np.eye(12), 1.0, kernel / scale)
    np.testing.assert_allclose(again, 1 - 2 * np.arccos(cosine) / np.pi, rtol=1e-12, atol=1e-14)


def test_finite_networks_look_at_all_branches(key):
    net = k.serial(k.concatenated(dense(3), dense(5)), k.Dropout(0.5), k.multiplied(dense(2)))
    params = net.init(key, X.shape)
    hidden = [1.4 / 2.0 * X @ own["w"].T + 0.2 * own["b"][None] for own in params[0]]
    (last,) = params[2]
    outputs = 1.4 / np.sqrt(8.0) * np.concatenate(hidden, 1) @ last["w"].T + 0.2 * last["b"][None]
    np.testing.assert_allclose(net.apply(params, X), outputs, rtol=1e-12)

"""Layers with several parts: written out, and as the means of networks of finite width."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest
from tests.kernels.nets import SEQUENCES, TOKENS, X2, X, conv, dense, finite, local, spread

from volform import kernels as k, networks as nn
from volform.networks import NTP, SP

ATTENTION = nn.GlobalSelfAttention(
    48, 8, 64, 8, w_key_std=1.5, w_value_std=1.1, w_std=1.3, b_std=0.2
)
GATED = nn.multiplied(conv((1,), width=32), nn.serial(conv((2,), width=32), nn.Erf()))
BLOCK = nn.summed(nn.Identity(), nn.serial(nn.Relu(), conv(width=32)))


DECODER = spread(width=48, strides=(2,)), nn.Relu(), spread((2,), width=48), nn.Erf()
LOCAL = local(width=48), nn.Relu(), local((2,), width=48), nn.Erf()
WORDS = nn.Embedding(5, 48, 1.4), conv((2,), width=48), nn.Relu()


@pytest.mark.parametrize(
    ("net", "scaling"),
    [
        (nn.serial(conv(width=48), nn.Relu(), ATTENTION, nn.GlobalAvgPool(), dense(1)), NTP()),
        (nn.serial(conv(width=32), BLOCK, GATED, nn.Flatten(), dense(1)), SP()),
        (nn.serial(*DECODER, nn.GlobalSumPool(), dense(1)), NTP()),
        (nn.serial(*LOCAL, nn.GlobalAvgPool(), dense(1)), NTP()),
        (nn.serial(*LOCAL, nn.SumPool((2,)), conv((1,)), nn.Flatten(), dense(1)), SP()),
        (nn.serial(*WORDS, nn.GlobalSumPool(), dense(1)), SP()),
    ],
)
def test_networks_of_finite_width(net, scaling, key):
    """Means over 100 draws of `J J^T` and of products of outputs."""
    is_of_words = isinstance(net.layers[0], nn.Embedding)
    x = TOKENS[:3] if is_of_words else SEQUENCES[:3, :3]

    draws = finite(net, x, scaling, jax.random.split(key, 100))
    kernels = jax.jit(lambda x: k.kernel(net, x, parametrization=scaling))(x)
    for found, kernel in zip(draws, kernels, strict=True):
        error = np.asarray(found).std(0) / 10.0
        bias = 0.05 * np.abs(kernel).max()  # of order 1 / width
        assert np.all(np.abs(found.mean(0) - kernel) < 3 * error + bias)
        assert np.all(error < 0.25 * np.abs(kernel).max())


def test_standard_kernel_of_convolutions_grows_like_the_channels():
    def tangent(width):
        net = nn.serial(conv(width=width), nn.Relu(), conv(width=8), nn.Flatten(), dense(1))
        return np.asarray(k.kernel(net, SEQUENCES, parametrization=SP()).ntk)

    first, second, fourth = (tangent(width) for width in (8, 16, 32))
    np.testing.assert_allclose(fourth - second, 2 * (second - first), rtol=1e-12)
    # The second layer's part, fan_in times the kernel of its inputs, as the last layer sees it.
    inner = k.kernel(nn.serial(conv(), nn.Relu(), conv(b_std=None), nn.Flatten()), SEQUENCES).nngp
    np.testing.assert_allclose(second - first, 8 * 3 * inner, rtol=1e-12)


def test_attention_written_out():
    """Weights by the softmax of covariances of pixels, values of one dense layer."""
    x, s = SEQUENCES, 1.5**2
    inner = np.einsum("npc,mqc->nmpq", x, x) / 2
    own = np.exp(s * np.einsum("nnpq->npq", inner))
    own /= own.sum(-1, keepdims=True)
    mixed = (1.1 * 1.3) ** 2 * np.einsum("npr,nmrt,mqt->nmpq", own, inner, own).mean((2, 3))
    net = nn.serial(ATTENTION, nn.GlobalAvgPool())
    kernel = jax.jit(partial(k.kernel, net))(x)
    np.testing.assert_allclose(kernel.nngp, mixed + 0.04, rtol=1e-12)
    np.testing.assert_allclose(kernel.ntk, 2 * mixed + 0.04, rtol=1e-12)


def test_product_rule():
    """`(K K', T K' + K T')`, behind a shared layer."""
    one, two = nn.serial(nn.Erf(), dense()), nn.serial(nn.Relu(), dense(), nn.Erf())
    (k1, t1), (k2, t2) = (k.kernel(nn.serial(dense(), branch), X, X2) for branch in (one, two))
    kernel = k.kernel(nn.serial(dense(), nn.multiplied(one, two)), X, X2)
    np.testing.assert_allclose(kernel.nngp, k1 * k2, rtol=1e-13)
    np.testing.assert_allclose(kernel.ntk, t1 * k2 + k1 * t2, rtol=1e-13)


def test_dropout_of_images_is_a_mean_over_masks():
    """Over all masks of three pixels, in closed form for a layer that is linear in its weights."""
    rate, x = 0.6, SEQUENCES[:2, :3, :1]
    net = nn.serial(conv((2,)), nn.GlobalAvgPool())
    masks = np.array(list(itertools.product([0.0, 1.0], repeat=3)))
    chance = np.prod(np.where(masks > 0, rate, 1 - rate), 1)
    kernels = [jax.jit(partial(k.kernel, net))(masks[:, :, None] * own / rate).nngp for own in x]
    dropped = nn.serial(nn.Dropout(rate), *net.layers)
    found, across = jax.jit(lambda x: (k.kernel(dropped, x), k.kernel(dropped, x, x[:1])))(x)
    for i, kernel in enumerate(kernels):
        np.testing.assert_allclose(found.nngp[i, i], np.diag(kernel) @ chance, rtol=1e-12)
    np.testing.assert_allclose(across.nngp[0, 0], chance @ kernels[0] @ chance, rtol=1e-12)
    np.testing.assert_allclose(across.nngp[1, 0], found.nngp[1, 0], rtol=1e-12)
    np.testing.assert_allclose(found.ntk, found.nngp, rtol=1e-12)


def test_dropout_of_vectors():
    """Behind an activation both kernels of an input with itself are divided by the rate."""
    plain, dropped = (
        nn.serial(dense(b_std=None), nn.Relu(), *middle, nn.Dense(1))
        for middle in ((), (nn.Dropout(0.5),))
    )
    double = np.where(np.eye(6), 2.0, 1.0)
    for found, expected in zip(k.kernel(dropped, X), k.kernel(plain, X), strict=True):
        np.testing.assert_allclose(found, double * expected, rtol=1e-13)
    for found, expected in zip(k.kernel(dropped, X, X2), k.kernel(plain, X, X2), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13)
    # The angle that a further layer sees: noise takes inputs away from each other, even equal ones.
    again = k.kernel(nn.serial(*dropped.layers, nn.Sign()), np.concatenate([X, X])).nngp
    kernel = k.kernel(dropped, np.concatenate([X, X])).nngp
    scale = np.sqrt(np.outer(np.diag(kernel), np.diag(kernel)))
    cosine = np.where(np.eye(12), 1.0, kernel / scale)
    np.testing.assert_allclose(again, 1 - 2 * np.arccos(cosine) / np.pi, rtol=1e-12, atol=1e-14)


def test_finite_networks_look_at_all_branches(key):
    net = nn.serial(nn.concatenated(dense(3), dense(5)), nn.Dropout(0.5), nn.multiplied(dense(2)))
    params = net.init(key, X.shape)
    hidden = [1.4 / 2.0 * X @ own["w"].T + 0.2 * own["b"][None] for own in params[0]]
    (last,) = params[2]
    outputs = 1.4 / np.sqrt(8.0) * np.concatenate(hidden, 1) @ last["w"].T + 0.2 * last["b"][None]
    np.testing.assert_allclose(net.apply(params, X), outputs, rtol=1e-12)

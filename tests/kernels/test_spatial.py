"""Kernels of images: exact for one linear layer of any width, and as the layers need them."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.nets import IMAGES, SEQUENCES, conv, dense

from volform import kernels as k, networks as nn
from volform.kernels import LayerContext, Pairs, of_examples
from volform.networks import NTP, SP, ImprovedSP, MuP

SAME, VALID, CIRCULAR = nn.Padding
ROLLED = np.roll(SEQUENCES, 2, 1)
STRIDED = nn.serial(conv((3, 2), strides=(2, 1), padding=VALID), nn.GlobalAvgPool())
SIDE_BY_SIDE = nn.serial(nn.concatenated(conv(), conv((2,), width=3)), nn.Flatten())
BASE = ImprovedSP(base_width=5)
LINEAR = [
    (IMAGES, STRIDED, NTP()),
    (IMAGES, STRIDED, SP()),
    (IMAGES, nn.serial(conv((2, 3), strides=(1, 2)), nn.Flatten()), MuP()),
    (IMAGES, nn.serial(conv((3, 4), padding=CIRCULAR), nn.AvgPool((2, 1)), nn.Flatten()), NTP()),
    (IMAGES, nn.serial(nn.AvgPool((2, 2)), conv((2, 2), padding=CIRCULAR), nn.Flatten()), BASE),
    (
        SEQUENCES,
        nn.serial(conv(), nn.AvgPool((3,), strides=(2,), padding=SAME), nn.Flatten()),
        NTP(),
    ),
    (SEQUENCES, nn.serial(conv((9,), strides=(2,), padding=CIRCULAR), nn.GlobalAvgPool()), NTP()),
    (SEQUENCES, SIDE_BY_SIDE, NTP()),
]


@pytest.mark.parametrize(("x", "net", "scaling"), LINEAR)
def test_one_linear_layer(x, net, scaling, key):
    """Linear in its weights: the tangent kernel of any draw is exactly that of the limit."""

    @jax.jit
    def kernels(x):
        params = net.init(key, x.shape, parametrization=scaling)
        outputs = jax.jacrev(lambda p: net.apply(p, x, parametrization=scaling))(params)
        rows = [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(outputs)]
        found = sum(jnp.einsum("akp,bkp->ab", row, row) for row in rows) / rows[0].shape[1]
        return found, k.kernel(net, x, parametrization=scaling)

    found, kernel = kernels(x)
    np.testing.assert_allclose(kernel.ntk, found, rtol=1e-12)
    if isinstance(scaling, NTP):
        np.testing.assert_allclose(kernel.nngp, found, rtol=1e-12)


LAYERS = [
    nn.AvgPool((3,), strides=(2,), padding=SAME),
    nn.Dropout(0.7),
    nn.GlobalSelfAttention(8, 2, 4, 4, w_key_std=2.0),
    nn.concatenated(conv(strides=(2,)), nn.AvgPool((2,))),
    nn.multiplied(conv((2,), width=2), nn.Identity()),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_area_and_pairs(layer):
    """The area is that of the moments, and equal pixels are the diagonal of all of them."""
    place = LayerContext(nn.whole(NTP()), Pairs.ALL)

    @jax.jit
    def states(x):
        full = of_examples(x, x[:2], Pairs.ALL, is_same=False)
        end = k.propagate_needed(layer, full, place)
        equal = full.restricted(k.pairs_needed(layer, Pairs.EQUAL))
        return end, k.propagate_needed(layer, equal, place._replace(pairs=Pairs.EQUAL))

    end, equal = states(SEQUENCES)
    for moments in (end.moments, *end.self_moments):
        square = moments.left * moments.right - moments.cross**2
        np.testing.assert_allclose(moments.area**2, square, rtol=1e-9, atol=1e-13)
    for found, expected in zip(equal.moments, end.restricted(Pairs.EQUAL).moments, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    assert equal.self_moments == ()
    assert equal.moments.cross.ndim == 3


class Watched(nn.Activation):
    """The identity, which notes the shape of the moments that it is asked for."""

    note: Callable = eqx.field(static=True)

    def __call__(self, u):
        return u


@k.covariance.register
def _(f: Watched, moments):
    f.note(moments.cross.shape)
    return moments.cross


@k.slope_covariance.register
def _(f: Watched, moments):
    return jnp.ones_like(moments.cross)


@pytest.mark.parametrize(
    ("end", "before", "behind"),
    [
        ((conv(), nn.Flatten()), (4, 4, 6), (4, 4, 6)),
        ((conv(), nn.GlobalAvgPool()), (4, 4, 6, 6), (4, 4, 6, 6)),
        ((nn.AvgPool((2,)), conv(), nn.Flatten()), (4, 4, 6, 6), (4, 4, 3)),
        ((nn.GlobalSelfAttention(8, 1, 4, 4), nn.Flatten()), (4, 4, 6, 6), (4, 4, 6)),
    ],
)
def test_pairs_of_pixels_are_kept_where_they_are_looked_at(end, before, behind):
    seen = []
    *middle, last = end
    watched = Watched(seen.append)
    net = nn.serial(conv(), watched, *middle, conv(), watched, last)
    jax.eval_shape(partial(k.kernel, net), SEQUENCES)
    assert before in seen
    assert behind in seen
    assert ((4, 4, 6, 6) in seen) == (len(before) == 4)


DEEP = [
    nn.serial(conv(padding=CIRCULAR), nn.Gelu(), conv((2,), padding=CIRCULAR), nn.Relu(), *end)
    for end in [(nn.Flatten(), dense()), (nn.GlobalAvgPool(), dense())]
]


@pytest.mark.parametrize("net", DEEP)
def test_equal_images(net):
    """Images twice, and turned around the circle, on which a mean over all pixels is blind."""
    x = np.concatenate([SEQUENCES, SEQUENCES, ROLLED])
    for kernel in jax.jit(partial(k.kernel, net))(x):
        np.testing.assert_allclose(kernel[:4], kernel[4:8], rtol=1e-14)
        np.testing.assert_allclose(np.diag(kernel)[:4], np.diag(kernel[:4, 4:8]), rtol=1e-14)
        np.testing.assert_allclose(kernel[:8, :8][:4, :4], kernel[8:, 8:], rtol=1e-13)
        spectrum = np.linalg.eigvalsh(kernel)
        assert spectrum[0] > -1e-14 * spectrum[-1]
        if net is DEEP[1]:
            np.testing.assert_allclose(kernel[:4, :4], kernel[:4, 8:], rtol=1e-12)


def test_float32():
    net, x = DEEP[1], np.concatenate([SEQUENCES[:2], SEQUENCES[:2] + 1e-3])
    exact = jax.jit(partial(k.kernel, net))(x.astype(np.float32).astype(float))
    for kernel, expected in zip(
        jax.jit(partial(k.kernel, net))(x.astype(np.float32)), exact, strict=True
    ):
        assert kernel.dtype == jnp.float32
        error = np.abs(np.asarray(kernel, float) - expected).max() / np.abs(expected).max()
        assert error < 2e-5


@pytest.mark.slow
def test_gradients_by_differences():
    """In a direction of images and w_std at once, of images with themselves too."""
    direction = np.sin(np.arange(24.0)).reshape(4, 3, 2)

    def total(t):
        first = nn.Conv(8, (2,), 1.1 + t, 0.3 - 0.5 * t)
        net = nn.serial(first, nn.Relu(), nn.GlobalAvgPool(), dense())
        return jnp.sum(jnp.stack(k.kernel(net, SEQUENCES[:, :3] + t * direction)) * weights)

    weights = np.cos(np.arange(32.0)).reshape(2, 4, 4)
    value, gradient = jax.jit(total), jax.jit(jax.grad(total))(0.0)
    h = 1e-4
    five = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    np.testing.assert_allclose(gradient, five, rtol=1e-8)

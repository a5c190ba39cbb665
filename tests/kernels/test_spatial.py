"""Kernels of images: exact for one linear layer of any width, and as the layers need them."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.nets import IMAGES, SEQUENCES, conv, dense

from volform import kernels as k
from volform.kernels import LayerContext, Pairs, of_examples
from volform.networks import NTP, SP, ImprovedSP, MuP

SAME, VALID, CIRCULAR = k.Padding
ROLLED = np.roll(SEQUENCES, 2, 1)
STRIDED = k.serial(conv((3, 2), strides=(2, 1), padding=VALID), k.GlobalAvgPool())
SIDE_BY_SIDE = k.serial(k.concatenated(conv(), conv((2,), width=3)), k.Flatten())
BASE = ImprovedSP(base_width=5)
LINEAR = [
    (IMAGES, STRIDED, NTP()),
    (IMAGES, STRIDED, SP()),
    (IMAGES, k.serial(conv((2, 3), strides=(1, 2)), k.Flatten()), MuP()),
    (IMAGES, k.serial(conv((3, 4), padding=CIRCULAR), k.AvgPool((2, 1)), k.Flatten()), NTP()),
    (IMAGES, k.serial(k.AvgPool((2, 2)), conv((2, 2), padding=CIRCULAR), k.Flatten()), BASE),
    (SEQUENCES, k.serial(conv(), k.AvgPool((3,), strides=(2,), padding=SAME), k.Flatten()), NTP()),
    (SEQUENCES, k.serial(conv((9,), strides=(2,), padding=CIRCULAR), k.GlobalAvgPool()), NTP()),
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
        return found, net.kernel(x, parametrization=scaling)

    found, kernel = kernels(x)
    np.testing.assert_allclose(kernel.ntk, found, rtol=1e-12)
    if isinstance(scaling, NTP):
        np.testing.assert_allclose(kernel.nngp, found, rtol=1e-12)


LAYERS = [
    k.AvgPool((3,), strides=(2,), padding=SAME),
    k.Dropout(0.7),
    k.GlobalSelfAttention(8, 2, 4, 4, w_key_std=2.0),
    k.concatenated(conv(strides=(2,)), k.AvgPool((2,))),
    k.multiplied(conv((2,), width=2), k.Identity()),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_area_and_pairs(layer):
    """The area is that of the moments, and equal pixels are the diagonal of all of them."""
    place = LayerContext(NTP(), is_first=True, is_last=True, pairs=Pairs.ALL)

    @jax.jit
    def states(x):
        full = of_examples(x, x[:2], Pairs.ALL, is_same=False)
        end = layer.propagate_needed(full, place)
        equal = full.restricted(layer.pairs_needed(Pairs.EQUAL))
        return end, layer.propagate_needed(equal, place._replace(pairs=Pairs.EQUAL))

    end, equal = states(SEQUENCES)
    for moments in (end.moments, *end.self_moments):
        square = moments.left * moments.right - moments.cross**2
        np.testing.assert_allclose(moments.area**2, square, rtol=1e-9, atol=1e-13)
    for found, expected in zip(equal.moments, end.restricted(Pairs.EQUAL).moments, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    assert equal.self_moments == ()
    assert equal.moments.cross.ndim == 3


class Watched(k.Activation):
    """The identity, which notes the shape of the moments that it is asked for."""

    note: Callable = eqx.field(static=True)

    def __call__(self, u):
        return u

    def covariance(self, moments):
        self.note(moments.cross.shape)
        return moments.cross

    def slope_covariance(self, moments):
        return jnp.ones_like(moments.cross)


@pytest.mark.parametrize(
    ("end", "before", "behind"),
    [
        ((conv(), k.Flatten()), (4, 4, 6), (4, 4, 6)),
        ((conv(), k.GlobalAvgPool()), (4, 4, 6, 6), (4, 4, 6, 6)),
        ((k.AvgPool((2,)), conv(), k.Flatten()), (4, 4, 6, 6), (4, 4, 3)),
        ((k.GlobalSelfAttention(8, 1, 4, 4), k.Flatten()), (4, 4, 6, 6), (4, 4, 6)),
    ],
)
def test_pairs_of_pixels_are_kept_where_they_are_looked_at(end, before, behind):
    seen = []
    *middle, last = end
    watched = Watched(seen.append)
    net = k.serial(conv(), watched, *middle, conv(), watched, last)
    jax.eval_shape(net.kernel, SEQUENCES)
    assert before in seen
    assert behind in seen
    assert ((4, 4, 6, 6) in seen) == (len(before) == 4)


DEEP = [
    k.serial(conv(padding=CIRCULAR), k.Gelu(), conv((2,), padding=CIRCULAR), k.Relu(), *end)
    for end in [(k.Flatten(), dense()), (k.GlobalAvgPool(), dense())]
]


@pytest.mark.parametrize("net", DEEP)
def test_equal_images(net):
    """Images twice, and turned around the circle, on which a mean over all pixels is blind."""
    x = np.concatenate([SEQUENCES, SEQUENCES, ROLLED])
    for kernel in jax.jit(net.kernel)(x):
        np.testing.assert_allclose(kernel[:4], kernel[4:8], rtol=1e-14)
        np.testing.assert_allclose(np.diag(kernel)[:4], np.diag(kernel[:4, 4:8]), rtol=1e-14)
        np.testing.assert_allclose(kernel[:8, :8][:4, :4], kernel[8:, 8:], rtol=1e-13)
        spectrum = np.linalg.eigvalsh(kernel)
        assert spectrum[0] > -1e-14 * spectrum[-1]
        if net is DEEP[1]:
            np.testing.assert_allclose(kernel[:4, :4], kernel[:4, 8:], rtol=1e-12)


def test_float32():
    net, x = DEEP[1], np.concatenate([SEQUENCES[:2], SEQUENCES[:2] + 1e-3])
    exact = jax.jit(net.kernel)(x.astype(np.float32).astype(float))
    for kernel, expected in zip(jax.jit(net.kernel)(x.astype(np.float32)), exact, strict=True):
        assert kernel.dtype == jnp.float32
        error = np.abs(np.asarray(kernel, float) - expected).max() / np.abs(expected).max()
        assert error < 2e-5


@pytest.mark.slow
def test_gradients_by_differences():
    """In a direction of images and w_std at once, of images with themselves too."""
    direction = np.sin(np.arange(24.0)).reshape(4, 3, 2)

    def total(t):
        first = k.Conv(8, (2,), 1.1 + t, 0.3 - 0.5 * t)
        net = k.serial(first, k.Relu(), k.GlobalAvgPool(), dense())
        return jnp.sum(jnp.stack(net.kernel(SEQUENCES[:, :3] + t * direction)) * weights)

    weights = np.cos(np.arange(32.0)).reshape(2, 4, 4)
    value, gradient = jax.jit(total), jax.jit(jax.grad(total))(0.0)
    h = 1e-4
    five = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    np.testing.assert_allclose(gradient, five, rtol=1e-8)

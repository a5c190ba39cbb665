"""Kernels of images: exact for one linear layer of any width, and as the layers need them."""

import itertools
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.nets import GRAPH, IMAGES, SEQUENCES, TOKENS, conv, dense, local, spread

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
    (
        SEQUENCES,
        nn.serial(spread((3,), strides=(2,), padding=VALID), nn.SumPool((2,)), nn.Flatten()),
        NTP(),
    ),
    (IMAGES, nn.serial(spread((2, 3), strides=(3, 1)), nn.GlobalSumPool()), MuP()),
    (SEQUENCES, nn.serial(spread((4,), strides=(3,), padding=CIRCULAR), nn.GlobalAvgPool()), SP()),
    (IMAGES, nn.serial(local((3, 2), strides=(2, 1)), nn.GlobalSumPool()), NTP()),
    (SEQUENCES, nn.serial(local((4,), padding=CIRCULAR), nn.AvgPool((3,)), nn.Flatten()), MuP()),
    (SEQUENCES, nn.serial(nn.SumPool((3,), strides=(1,)), local((2,)), nn.Flatten()), NTP()),
    (SEQUENCES, nn.serial(nn.Aggregate(GRAPH), conv((1,)), nn.GlobalSumPool()), NTP()),
    (SEQUENCES, nn.serial(conv((2,)), nn.Aggregate(GRAPH / 3), nn.Flatten()), MuP()),
    (TOKENS, nn.serial(nn.Embedding(5, 4, 1.4), nn.Flatten()), NTP()),
    (
        TOKENS,
        nn.serial(nn.Embedding(5, 4, 1.4), nn.SumPool((2,), strides=(1,)), nn.Flatten()),
        SP(),
    ),
    (TOKENS[..., None], nn.serial(nn.Embedding(5, 4), nn.GlobalSumPool()), MuP()),
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


def taps(layer, pixels):
    """Of each output pixel the inputs that it sees, by loops: the tap's number, and the pixel."""
    size, steps = layer.filter_shape[0], layer.strides[0]
    if isinstance(layer, nn.ConvLocal):
        count = -(-pixels // steps)
        before = max((count - 1) * steps + size - pixels, 0) // 2
        seen = [[(d, p * steps - before + d) for d in range(size)] for p in range(count)]
        return [[(d, q) for d, q in row if 0 <= q < pixels] for row in seen]
    # Each input pixel is written to the outputs around its place: the transpose of a convolution.
    found = [[] for _ in range(pixels * steps)]
    before = size - 1 if steps > size - 1 else -(-(size + steps - 2) // 2)
    for q in range(pixels):
        for d in range(size):
            place = q * steps + before - d
            if 0 <= place < len(found):
                found[place].append((d, q))
    return found


@pytest.mark.parametrize("make", [nn.ConvTranspose, nn.ConvLocal])
@pytest.mark.parametrize(("size", "step"), [(3, 2), (2, 3), (4, 1)])
def test_weights_of_each_tap_by_loops(make, size, step):
    """`sum W_pd W_p'd' (x_q . x_q')` of all taps, whose weights are one or unrelated."""
    layer = make(8, (size,), 1.4, 0.3, strides=(step,))
    seen = taps(layer, 6)
    shared = make is nn.ConvTranspose
    sums = np.zeros((4, 4))
    for p, q in np.ndindex(len(seen), len(seen)):
        for (d, at), (e, other) in itertools.product(seen[p], seen[q]):
            if d == e and (shared or p == q):
                sums += 1.4**2 / (2 * size) * SEQUENCES[:, at] @ SEQUENCES[:, other].T
        sums += 0.3**2 * (shared or p == q)
    kernel = k.kernel(nn.serial(layer, nn.GlobalSumPool()), SEQUENCES)
    np.testing.assert_allclose(kernel.nngp, sums, rtol=1e-12)
    np.testing.assert_allclose(kernel.ntk, sums, rtol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding", [SAME, VALID])
def test_transposed_convolution_is_that_of_jax(dims, padding):
    random = np.random.default_rng(dims)
    for step, size in itertools.product((1, 2, 3), (1, 2, 3)):
        x = random.normal(size=(2, *(3, 4, 2)[:dims], 2))
        layer = nn.ConvTranspose(3, (size,) * dims, strides=(step,) * dims, padding=padding)
        weight = random.normal(size=(3, size**dims * 2))
        names = "HWD"[:dims]
        wanted = jax.lax.conv_transpose(
            x,
            np.moveaxis(weight.reshape(3, *(size,) * dims, 2), 0, -1),
            (step,) * dims,
            padding.name,
            dimension_numbers=(f"N{names}C", f"{names}IO", f"N{names}C"),
        )
        np.testing.assert_allclose(layer.product(weight, x), wanted, rtol=1e-12, atol=1e-13)


LAYERS = [
    nn.Aggregate(GRAPH),
    nn.SumPool((3,), strides=(2,), padding=SAME),
    spread((3,), strides=(2,)),
    local((3,), strides=(2,)),
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

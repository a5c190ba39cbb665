"""Moments against inner products of explicit vectors, in extended precision.

A unit's values at two inputs are two vectors, E is their inner product: a sum of uncorrelated
units is a direct sum of vectors, a product of independent ones is a tensor product.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.nets import IMAGES, SEQUENCES

from volform import kernels as k, networks as nn
from volform.kernels.propagation import inputs, moments
from volform.networks.window import SpreadWindow, window

SEEDS = range(3)
DIMENSIONS = (1, 2, 5)


def vectors(seed, d, near=0.0):
    """Four and three vectors; those of the second list nearly those of the first if `near`."""
    rng = np.random.default_rng([seed, d])
    left, right = rng.normal(size=(4, d)), rng.normal(size=(3, d))
    return (left, left[:3] + near * right) if near else (left, right)


def of_vectors(left, right):
    """Moments of lists of vectors, the area by the Lagrange identity, without a difference."""
    left, right = left.astype(np.longdouble), right.astype(np.longdouble)
    minors = np.einsum("ai,bj->abij", left, right)
    area = np.sqrt(np.sum((minors - minors.swapaxes(2, 3)) ** 2, (2, 3)) / 2)
    ends = np.sum(left**2, 1)[:, None], np.sum(right**2, 1)[None]
    parts = (*ends, left @ right.T, area)
    return moments.Moments(*(jnp.asarray(part.astype(float)) for part in parts))


def require_equal(found, expected, rtol=1e-13):
    for part, wanted in zip(found, expected, strict=True):
        scale = float(jnp.max(jnp.abs(wanted))) or 1.0
        np.testing.assert_allclose(part, wanted, rtol=rtol, atol=rtol * scale)


def direct_sum(a, b):
    return np.concatenate([a, b], 1)


def tensor_product(a, b):
    return np.einsum("ni,nj->nij", a, b).reshape(len(a), -1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize(("combine", "method"), [(direct_sum, "plus"), (tensor_product, "product")])
def test_sums_and_products_of_units(combine, method, seed, d):
    one, other = vectors(seed, d), vectors(seed + 10, d + 1)
    found = getattr(of_vectors(*one), method)(of_vectors(*other))
    together = [combine(a, b) for a, b in zip(one, other, strict=True)]
    require_equal(found, of_vectors(*together))
    # Either is commutative, and the square of the area is that of the moments.
    require_equal(getattr(of_vectors(*other), method)(of_vectors(*one)), found)
    square = found.left * found.right - found.cross**2
    np.testing.assert_allclose(found.area**2, square, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_algebra_of_moments(seed):
    """Associative, distributive, and scaled by numbers."""
    a, b, c = (of_vectors(*vectors(seed + 10 * i, 3)) for i in range(3))
    require_equal(a.plus(b).plus(c), a.plus(b.plus(c)))
    require_equal(a.product(b).product(c), a.product(b.product(c)))
    require_equal(a.product(b.plus(c)), a.product(b).plus(a.product(c)), rtol=1e-12)
    require_equal(a.plus(b).times(0.3), a.times(0.3).plus(b.times(0.3)))
    require_equal(a.plus(a), a.times(2.0))
    one = moments.constant(1.0, a)
    require_equal(a.product(one), a)
    ones = [np.ones((len(x), 1)) for x in vectors(seed, 3)]
    lifted = of_vectors(*(direct_sum(x, o) for x, o in zip(vectors(seed, 3), ones, strict=True)))
    require_equal(a.plus(one), lifted)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("near", [1e-3, 1e-7, 1e-12])
def test_nothing_is_lost_where_units_nearly_agree(seed, near):
    """The distance of neighbors, and what sums and products make of small areas."""
    pair, shift = vectors(seed, 4, near), vectors(seed + 5, 4, near)
    found = of_vectors(*pair)
    expected = np.sum((pair[0][:, None] - pair[1]) ** 2, -1)
    known = 1e-13 + 4e-16 / near  # what rounding of the variances leaves
    np.testing.assert_allclose(found.distance, expected, rtol=known)
    both = of_vectors(*shift)
    for combine, got in ((direct_sum, found.plus(both)), (tensor_product, found.product(both))):
        wanted = of_vectors(*(combine(a, b) for a, b in zip(pair, shift, strict=True)))
        np.testing.assert_allclose(got.area, wanted.area, rtol=known)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("d", [2, 3, 40])
def test_angles_of_vectors(seed, d):
    left, right = vectors(seed, d)
    found = of_vectors(left, right)
    lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    np.testing.assert_allclose(found.scale, lengths, rtol=1e-14)
    np.testing.assert_allclose(found.angle, np.arccos(left @ right.T / lengths), rtol=1e-10)
    np.testing.assert_allclose(found.angle + found.opposite_angle, np.pi, rtol=1e-15)
    turned = of_vectors(left, -right)
    np.testing.assert_allclose(turned.angle, found.opposite_angle, rtol=1e-13)
    np.testing.assert_allclose(found.shortfall + found.cross, found.scale, rtol=1e-13)
    np.testing.assert_allclose(found.excess - found.cross, found.scale, rtol=1e-13)
    # An angle is a distance on the sphere: three of them satisfy the triangle inequality.
    own = of_vectors(left, left).angle
    triangle = own[:, :, None] + own[None] - own[:, None]
    assert np.min(triangle) > -1e-12


@pytest.mark.parametrize("d", [1, 4, 32, 33, 200])
@pytest.mark.parametrize("seed", SEEDS)
def test_moments_of_inputs_are_inner_products(seed, d):
    """By chords for few features, by one product of matrices for many."""
    left, right = vectors(seed, d)
    expected = of_vectors(left / np.sqrt(d), right / np.sqrt(d))
    require_equal(inputs.of_inputs(jnp.asarray(left), jnp.asarray(right)), expected, rtol=1e-12)


def test_angle_has_the_derivative_of_an_angle():
    """Over directions that change the area, the cross-moment and both variances."""

    @jax.jit
    def angle(t):
        left = jnp.array([1.0, 0.4, -0.2]) + t * jnp.array([0.3, -0.5, 0.1])
        right = jnp.array([-0.3, 0.8, 0.5])
        return inputs.of_inputs(left[None], right[None]).angle[0, 0]

    h = 1e-4
    five = (8 * (angle(h) - angle(-h)) - (angle(2 * h) - angle(-2 * h))) / (12 * h)
    np.testing.assert_allclose(jax.jit(jax.grad(angle))(0.0), five, rtol=1e-10)


def test_sums_have_the_derivatives_of_longer_vectors():
    """The first two, of all four moments: the size that the area is divided by has none left."""
    rng = np.random.default_rng(0)
    starts, along = rng.normal(size=(2, 4, 1, 3))

    def moments_at(t, parts):
        left, right = (
            jnp.concatenate([(starts + t * along)[i] for i in pair], 1) for pair in parts
        )
        found = inputs.of_inputs(left, right)
        return found.times(left.shape[1] / 3)

    def by_sum(t):
        return moments_at(t, ((0,), (1,))).plus(moments_at(t, ((2,), (3,))))

    def at_once(t):
        return moments_at(t, ((0, 2), (1, 3)))

    for slope in (jax.jacrev, lambda f: jax.jacfwd(jax.jacrev(f))):
        require_equal(jax.jit(slope(by_sum))(0.3), jax.jit(slope(at_once))(0.3), rtol=1e-12)


# --- Windows


def by_loops(pixels, shape, strides, padding):
    """The pixels of each window, from the definition."""
    counts = [
        (n - size) // step + 1 if padding is nn.Padding.VALID else -(-n // step)
        for n, size, step in zip(pixels, shape, strides, strict=True)
    ]
    padded = [
        0 if padding is nn.Padding.VALID else max((count - 1) * step + size - n, 0) // 2
        for n, size, step, count in zip(pixels, shape, strides, counts, strict=True)
    ]
    rows = []
    for corner in itertools.product(*map(range, counts)):
        row = []
        for offset in itertools.product(*map(range, shape)):
            at = [c * s - p + o for c, s, p, o in zip(corner, strides, padded, offset, strict=True)]
            if padding is nn.Padding.CIRCULAR:
                at = [i % n for i, n in zip(at, pixels, strict=True)]
            inside = all(0 <= i < n for i, n in zip(at, pixels, strict=True))
            row.append(np.ravel_multi_index(at, pixels) if inside else np.prod(pixels))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("padding", nn.Padding)
@pytest.mark.parametrize(
    ("pixels", "shape", "strides"),
    [
        ((6,), (3,), (1,)),
        ((7,), (2,), (3,)),
        ((5,), (5,), (2,)),
        ((5, 4), (3, 2), (1, 1)),
        ((5, 4), (2, 3), (2, 1)),
        ((4, 3, 3), (2, 2, 3), (1, 2, 1)),
    ],
)
def test_windows_are_where_they_should_be(pixels, shape, strides, padding):
    found = window(shape, strides, padding, "Conv", "filter_shape")
    table = found.table(pixels)
    np.testing.assert_array_equal(table, by_loops(pixels, shape, strides, padding))
    assert len(table) == np.prod(found.counts(pixels))
    # The same windows as cut out of the padded image.
    image = np.arange(1.0, np.prod(pixels) + 1).reshape(1, *pixels, 1)
    padded = np.asarray(found.padded(jnp.asarray(image)))[0, ..., 0]
    views = np.lib.stride_tricks.sliding_window_view(padded, shape)
    views = views[tuple(slice(None, None, step) for step in strides)]
    values = np.append(np.arange(1.0, np.prod(pixels) + 1), 0.0)[table]
    np.testing.assert_array_equal(views.reshape(values.shape), values)


@pytest.mark.parametrize("padding", nn.Padding)
@pytest.mark.parametrize(
    ("pixels", "shape", "strides"),
    [
        ((4,), (3,), (2,)),
        ((3,), (2,), (3,)),
        ((2, 3), (4, 1), (2, 2)),
        ((2, 3, 2), (2, 3, 1), (1, 2, 3)),
    ],
)
def test_windows_between_pixels_are_where_they_should_be(pixels, shape, strides, padding):
    """In a table of pixels as in images that are spread out, of which zeros are the gaps."""
    found = SpreadWindow(*window(shape, strides, padding, "ConvTranspose", "filter_shape"))
    values = np.append(np.arange(1.0, np.prod(pixels) + 1), 0.0)
    padded = np.asarray(found.padded(jnp.asarray(values[:-1].reshape(1, *pixels, 1))))[0, ..., 0]
    views = np.lib.stride_tricks.sliding_window_view(padded, shape)
    table = found.table(pixels)
    np.testing.assert_array_equal(views.reshape(table.shape), values[table])
    assert views.shape[: len(pixels)] == found.counts(pixels) == found.placed((*pixels, 1), "layer")


@pytest.mark.parametrize(("x", "size"), [(SEQUENCES, (6,)), (IMAGES, (5, 5))])
def test_a_window_of_all_pixels_is_a_mean_over_all(x, size):
    """Of a pool; and of a convolution, whose weights are independent, the mean of equal pixels."""

    @jax.jit
    def kernels(x):
        pooled = k.kernel(nn.serial(nn.AvgPool(size), nn.Flatten()), x)
        wide = k.kernel(nn.serial(nn.Conv(1, size, padding=nn.Padding.VALID), nn.Flatten()), x)
        return (
            pooled.nngp,
            k.kernel(nn.GlobalAvgPool(), x).nngp,
            wide.nngp,
            k.kernel(nn.Flatten(), x).nngp,
        )

    pooled, everywhere, wide, flat = kernels(x)
    np.testing.assert_allclose(pooled, everywhere, rtol=1e-13)
    np.testing.assert_allclose(wide, flat, rtol=1e-13)
    means = x.reshape(len(x), -1, x.shape[-1]).mean(1)
    np.testing.assert_allclose(everywhere, means @ means.T / x.shape[-1], rtol=1e-12, atol=1e-14)

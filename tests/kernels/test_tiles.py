"""Kernels of many examples: in tiles, and from products of matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.nets import dense

from volform import kernels as k
from volform.errors import KernelError
from volform.kernels import moments

NET = k.serial(dense(), k.Relu(), k.Dropout(0.9), dense())
RNG = np.random.default_rng(0)
WIDE = RNG.normal(size=(23, 40)) + 0.5
WIDE[[3, 4, 5]] = [WIDE[20], -WIDE[21], WIDE[22] + 1e-9 * WIDE[0]]


def sine(x):
    """Of the angles of all pairs, by the chords of unit vectors in extended precision."""
    e = x.astype(np.longdouble)
    e = e / np.sqrt(np.sum(e**2, 1, keepdims=True))
    difference, total = e[:, None] - e, e[:, None] + e
    return np.sqrt(np.sum(difference**2, 2) * np.sum(total**2, 2)) / 2


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_areas_of_many_features(shift):
    x = WIDE + shift
    found = moments.of_inputs(jnp.asarray(x), jnp.asarray(x))
    np.testing.assert_allclose(found.area / found.scale, sine(x), rtol=1e-13, atol=4e-16)
    np.testing.assert_allclose(found.cross, x @ x.T / 40, rtol=1e-14, atol=1e-14)
    assert found.area[3, 20] == 0
    assert shift or found.area[4, 21] == 0


def test_gradient_of_many_features():
    """Of two examples, in a direction, by differences."""
    x, along = jnp.asarray(WIDE[:2]), jnp.asarray(WIDE[6:8])

    def parts(t):
        found = moments.of_inputs(x + t * along, x)
        return jnp.stack([found.cross[0, 1], found.area[0, 1], found.cross[1, 1]])

    h = 1e-3
    five = (8 * (parts(h) - parts(-h)) - (parts(2 * h) - parts(-2 * h))) / (12 * h)
    np.testing.assert_allclose(jax.jvp(parts, (0.0,), (1.0,))[1], five, rtol=1e-9)


@pytest.mark.parametrize("tile", [1, 7, 22])
def test_tiles_give_the_same_kernels(tile):
    one, two = NET.kernel(WIDE), NET.kernel(WIDE, WIDE[:9])
    for found, expected in zip(NET.kernel(WIDE, tile=tile), one, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        np.testing.assert_array_equal(found, found.T)
    if tile == 7:
        for found, expected in zip(NET.kernel(WIDE, WIDE[:9], tile=tile), two, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_gradient_through_tiles():
    def total(w_std, tile):
        layer = k.Dense(8, w_std)
        return jnp.sum(jnp.sin(k.serial(layer, k.Relu(), layer).kernel(WIDE, tile=tile).ntk))

    gradient = [jax.jit(jax.grad(total), static_argnums=1)(1.3, tile) for tile in (9, 23)]
    np.testing.assert_allclose(gradient[0], gradient[1], rtol=1e-12)


@pytest.mark.parametrize("tile", [0, -3, 2.5, True])
def test_tile(tile):
    with pytest.raises(KernelError, match=f"`tile` is {tile}; it should be a whole number"):
        NET.kernel(WIDE, tile=tile)

"""Kernels of many examples: tiles, operators, conjugate gradients, several devices."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.compilations import compilations
from tests.kernels.nets import SEQUENCES, TOKENS, X, conv, dense, local, spread

from volform import kernels as k, networks as nn
from volform.errors import ConvergenceError, DataError, KernelError, OperatorError
from volform.kernels import context_of, iterative, kernel_block
from volform.kernels.propagation import inputs, moments, sizes
from volform.linalg import Exact, Krylov, XTrace, trace
from volform.networks import SP

DEVICES = Path(__file__).parent / "gram_devices.py"
NET = nn.serial(dense(), nn.Relu(), nn.Dropout(0.9), dense())
RNG = np.random.default_rng(0)
WIDE = RNG.normal(size=(23, 40)) + 0.5
WIDE[[3, 4, 5]] = [WIDE[20], -WIDE[21], WIDE[22] + 1e-9 * WIDE[0]]
Y = np.sin(WIDE[:, 0])
BY = Krylov(jax.random.key(0), probes=8)


def sine(x):
    """Of the angles of all pairs, by the chords of unit vectors in extended precision."""
    e = x.astype(np.longdouble)
    e = e / np.sqrt(np.sum(e**2, 1, keepdims=True))
    difference, total = e[:, None] - e, e[:, None] + e
    return np.sqrt(np.sum(difference**2, 2) * np.sum(total**2, 2)) / 2


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_areas_of_many_features(shift):
    x = WIDE + shift
    found = inputs.of_inputs(jnp.asarray(x), jnp.asarray(x))
    np.testing.assert_allclose(found.area / found.scale, sine(x), rtol=1e-13, atol=4e-16)
    np.testing.assert_allclose(found.cross, x @ x.T / 40, rtol=1e-14, atol=1e-14)
    assert found.area[3, 20] == 0
    assert shift or found.area[4, 21] == 0


def test_gradient_of_many_features():
    """Of two examples, in a direction, by differences."""
    x, along = jnp.asarray(WIDE[:2]), jnp.asarray(WIDE[6:8])

    def parts(t):
        found = inputs.of_inputs(x + t * along, x)
        return jnp.stack([found.cross[0, 1], found.area[0, 1], found.cross[1, 1]])

    h = 1e-3
    five = (8 * (parts(h) - parts(-h)) - (parts(2 * h) - parts(-2 * h))) / (12 * h)
    np.testing.assert_allclose(jax.jvp(parts, (0.0,), (1.0,))[1], five, rtol=1e-9)


@pytest.mark.parametrize("tile", [1, 7, 22])
def test_tiles_give_the_same_kernels(tile):
    one, two = k.kernel(NET, WIDE), k.kernel(NET, WIDE, WIDE[:9])
    for found, expected in zip(k.kernel(NET, WIDE, tile=tile), one, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        np.testing.assert_array_equal(found, found.T)
    if tile == 7:
        for found, expected in zip(k.kernel(NET, WIDE, WIDE[:9], tile=tile), two, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (nn.serial(conv((2,)), nn.Erf(), nn.Flatten(), nn.Dense(1)), SEQUENCES),
        (nn.serial(dense(), nn.LayerNorm(), nn.multiplied(dense(), nn.Gelu()), nn.Dense(2)), X),
    ],
)
def test_one_program_gives_the_kernels_of_layers(net, x):
    """Layer by layer; compiled as a whole, with more rows or without; and in tiles."""

    def compiled(x):
        return [k.kernel(net, x, parametrization=SP(), tile=tile) for tile in (None, 3)]

    kernel = kernel_block(net, jnp.asarray(x), jnp.asarray(x), context_of(SP()), is_same=True)
    for found in [k.kernel(net, x, parametrization=SP()), *jax.jit(compiled)(x)]:
        for part, expected in zip(found, kernel, strict=True):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(part / scale, expected / scale, rtol=0, atol=1e-13)


@pytest.mark.parametrize("features", [3, 40])
def test_one_program_serves_all_numbers_of_a_step(features):
    """The kernels are those of no more rows than there are; other weights take the same one."""
    x, other = RNG.normal(size=(112, features)), RNG.normal(size=(40, features))
    net, again = (
        nn.serial(nn.Dense(8, w_std, 0.2), nn.Relu(), nn.Dense(8)) for w_std in (1.4, 1.3)
    )
    k.kernel(net, x[:100])
    k.kernel(net, x[:100], other[:37])
    with compilations() as seen:
        found = [
            k.kernel(net, x[:97]),
            k.kernel(net, x[:101]),
            k.kernel(net, x),
            k.kernel(again, x[:98]),
        ]
        found.append(k.kernel(net, x[:99], other[:39]))
    assert not seen
    plain = jax.jit(lambda net, *x: k.kernel(net, *x))
    expected = [plain(net, x[:97]), plain(net, x[:101]), plain(net, x), plain(again, x[:98])]
    expected.append(plain(net, x[:99], other[:39]))
    for kernel, wanted in zip(found, expected, strict=True):
        for part, values in zip(kernel, wanted, strict=True):
            assert isinstance(part, jax.Array)
            assert part.dtype == values.dtype
            scale = np.abs(values).max()
            np.testing.assert_allclose(part / scale, values / scale, rtol=1e-14, atol=1e-14)
    for part in found[1]:
        np.testing.assert_array_equal(part, part.T)


def test_steps():
    """No less than there are and hardly more, and never what columns share a line of cache by."""
    found = np.array([sizes.stepped(count, 362) for count in range(1, 400)])
    counts = np.arange(1, 400)
    assert np.all(found >= counts)
    assert np.all(found[8:] <= 1.25 * counts[8:] + 8)
    assert np.all(np.diff(found) >= 0)
    np.testing.assert_array_equal(found[362:], counts[362:])
    assert np.all(found[:362] % 64)
    assert len(set(found[:362])) == 23
    assert sizes.stepped(3, 5) == 5


def test_arrays_stay_where_they_are():
    """On a device that was chosen, or on any; and they do not change with what they came from."""
    memory = np.zeros(5 * 40 + 8)
    x = memory[-memory.ctypes.data // 8 % 8 :][:200].reshape(5, 40)  # which JAX may use as its own
    x[:] = WIDE[:5]
    given = sizes.as_array(x)
    x[:] = 0.0
    np.testing.assert_array_equal(given, WIDE[:5])
    chosen = jax.device_put(given, jax.devices()[0])
    for inputs_, is_chosen in ((given, False), (chosen, True)):
        found = k.kernel(NET, inputs_)
        assert found.ntk.committed == is_chosen
        np.testing.assert_allclose(found.ntk, k.kernel(NET, WIDE).ntk[:5, :5], rtol=1e-12)


def test_roots_are_continuous():
    """At zero too: what is rounded to either side of it has a root and a derivative near zero."""
    x = jnp.array([-1e-17, 0.0, 1e-300, 4.0])
    np.testing.assert_allclose(moments.root(x), [0.0, 0.0, 1e-150, 2.0], rtol=1e-15)
    slopes = jax.vmap(jax.grad(moments.root))(x)
    np.testing.assert_allclose(slopes, [0.0, 0.0, 5e149, 0.25], rtol=1e-15)


def test_gradient_through_tiles():
    def total(w_std, tile):
        layer = nn.Dense(8, w_std)
        return jnp.sum(jnp.sin(k.kernel(nn.serial(layer, nn.Relu(), layer), WIDE, tile=tile).ntk))

    gradient = [jax.jit(jax.grad(total), static_argnums=1)(1.3, tile) for tile in (9, 23)]
    np.testing.assert_allclose(gradient[0], gradient[1], rtol=1e-12)


@pytest.mark.parametrize("is_kept", [False, True])
def test_operators(is_kept):
    vectors = RNG.normal(size=(23, 2))
    for make, matrix in zip((k.nngp_operator, k.ntk_operator), k.kernel(NET, WIDE), strict=True):
        operator = make(NET, WIDE, tile=6, is_kept=is_kept)
        # Rounding is relative to the summands, of which an entry near zero is a small rest.
        summands = np.abs(matrix) @ np.abs(vectors[:, 0])
        difference = np.abs(operator.mv(vectors[:, 0]) - matrix @ vectors[:, 0])
        assert np.max(difference / summands) < 1e-14
        np.testing.assert_allclose(operator.as_matrix(), matrix, rtol=1e-12)
        exact = jnp.trace(matrix) + 23 * 0.5
        np.testing.assert_allclose(trace(operator + 0.5, by=Exact()).value, exact, rtol=1e-12)


WORDS = nn.serial(nn.Embedding(5, 8), nn.Flatten(), dense(), nn.Erf(), dense())
VECTORS = nn.serial(nn.Conv(8, (1,), np.sqrt(5.0)), *WORDS.layers[1:])
READ = RNG.integers(0, 5, size=(9, 3))
ONES, RESPONSE = np.eye(5)[READ], np.sin(READ.sum(1))


def test_gaussian_processes_of_tokens():
    """Of integers, operators and evidences are those of vectors with a one."""
    expected = k.evidence(VECTORS, ONES, RESPONSE, noise=0.5).log_z
    found = k.evidence(WORDS, READ, RESPONSE, noise=0.5).log_z
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    gram, matrix = k.ntk_operator(WORDS, READ, tile=4), k.kernel(VECTORS, ONES).ntk
    assert gram.in_structure().dtype == jnp.float64
    np.testing.assert_allclose(gram.mv(jnp.asarray(RESPONSE)), matrix @ RESPONSE, rtol=1e-12)


def test_gaussian_processes_of_tokens_by_other_ways():
    exact = k.evidence(VECTORS, ONES, RESPONSE, noise=0.5).log_z
    by = Krylov(jax.random.key(0))
    found = k.evidence(WORDS, READ, RESPONSE, noise=0.5, by=by).log_z
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    new = READ[:2] % 3
    mean = k.predict_trained(WORDS, READ, RESPONSE, new, time=5.0).mean
    wanted = k.predict_trained(VECTORS, ONES, RESPONSE, np.eye(5)[new], time=5.0).mean
    np.testing.assert_allclose(mean, wanted, rtol=1e-9)


@pytest.mark.slow
def test_solutions_where_the_preconditioner_sees_little():
    """Small noise and many directions: the method runs long, and may not run away."""
    x, new = RNG.normal(size=(300, 40)), RNG.normal(size=(5, 40))
    net, y = nn.serial(nn.Dense(1, 1.4, 0.2), nn.Relu(), nn.Dense(1, 1.4, 0.2)), np.sin(x[:, 0])
    found = k.predict(net, x, y, new, noise=0.01, by=BY)
    for part, exact in zip(found, k.predict(net, x, y, new, noise=0.01), strict=True):
        np.testing.assert_allclose(part, exact, rtol=1e-8, atol=1e-9)


@pytest.mark.slow
def test_evidence_by_products():
    """All of 300 examples, of which the preconditioner sees a part."""
    x = RNG.normal(size=(300, 3))
    y = np.stack([np.sin(x[:, 0]), x[:, 1]], 1)
    net = nn.serial(dense(), nn.Erf(), dense())
    for noise in (0.3, 0.03):
        found = k.evidence(net, x, y, noise=noise, by=BY)
        exact = k.evidence(net, x, y, noise=noise).log_z
        assert abs(found.log_z - exact) < 4 * found.error + 1e-8 * abs(exact)
        assert found.error < 1e-2 * abs(exact)
    mean, covariance = k.predict(net, x, y, x[:3] + 0.1, noise=0.3, by=BY)
    expected = k.predict(net, x, y, x[:3] + 0.1, noise=0.3)
    np.testing.assert_allclose(mean, expected.mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(covariance, expected.covariance, rtol=1e-8, atol=1e-9)


def test_pivoted_factor():
    """Exact at full rank, and the largest pivot goes first."""
    matrix = jnp.asarray(k.kernel(NET, WIDE).nngp)
    columns = [lambda i: matrix[:, i], jnp.diagonal(matrix)]
    full = iterative.partial_cholesky(*columns, 23)
    np.testing.assert_allclose(full @ full.T, matrix, rtol=1e-12)
    few = iterative.partial_cholesky(*columns, 5)
    np.testing.assert_array_equal(few, full[:, :5])
    assert jnp.argmax(jnp.diagonal(matrix)) == jnp.argmax(jnp.abs(few[:, 0]))


@pytest.mark.parametrize("tile", [0, -3, 2.5, True])
def test_tile(tile):
    for function in (
        lambda: k.kernel(NET, WIDE, tile=tile),
        lambda: k.nngp_operator(NET, WIDE, tile=tile),
    ):
        with pytest.raises(KernelError, match=f"`tile` is {tile}; it should be a whole number"):
            function()


def test_tiles_fit_the_layer_with_most_pairs():
    """Of pixels that a layer makes, or compares all of although the layers before do not."""
    end = nn.Relu(), nn.GlobalAvgPool(), dense()
    plain = k.tile_side(nn.serial(conv(), *end), SEQUENCES)  # 6 pixels, all pairs
    assert k.tile_side(nn.serial(local(), *end), SEQUENCES) == plain
    assert k.tile_side(nn.serial(nn.Embedding(5, 8), conv(), *end), TOKENS) == plain * 2
    larger = nn.residual(spread(strides=(3,)), nn.AvgPool((3,)), conv())
    triple = np.repeat(SEQUENCES, 3, 1)
    assert k.tile_side(nn.serial(conv(), larger, *end), SEQUENCES) == k.tile_side(
        nn.serial(conv(), *end), triple
    )
    flat = nn.serial(spread(strides=(3,)), nn.Flatten(), dense())
    assert k.tile_side(flat, SEQUENCES) < k.tile_side(nn.serial(conv(), nn.Flatten()), SEQUENCES)


def test_duplicates_are_named():
    net, x = nn.serial(dense(), nn.Relu(), dense()), WIDE[[0, 3, 20]]
    with pytest.raises(KernelError, match=r"examples 1 and 2 are the same.*give a `noise`"):
        k.evidence(net, x, Y[:3])
    many = np.concatenate([WIDE[:4]] * 2)
    with pytest.raises(KernelError, match="0 and 4, 1 and 5, 2 and 6 and 1 more pairs are"):
        k.evidence(net, many, np.r_[Y[:4], Y[:4]])


def test_misuse(monkeypatch):
    with pytest.raises(KernelError, match=r"`noise` is None with `jitter=0.0`; by `Krylov`"):
        k.evidence(NET, WIDE, Y, by=BY)
    with pytest.raises(OperatorError, match="`by` of evidence is `XTrace`"):
        k.evidence(NET, WIDE, Y, noise=0.1, by=XTrace(jax.random.key(0)))
    with pytest.raises(DataError, match=r"`x` has shape \(40,\)"):
        k.ntk_operator(NET, WIDE[0])
    monkeypatch.setattr(iterative, "_STEPS", 1)
    monkeypatch.setattr(iterative, "_RANK", 1)
    with pytest.raises(ConvergenceError, match="after 1 steps with a relative residual of"):
        k.evidence(nn.serial(dense(), nn.Erf(), dense()), WIDE[6:], Y[6:], noise=1e-3, by=BY)

"""Laws that kernels of infinitely wide networks obey, whatever the layers, inputs and sizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.nets import (
    ACTIVATIONS,
    SEQUENCES,
    TOKENS,
    X2,
    X,
    around,
    conv,
    dense,
    finite,
    local,
    spread,
)

from volform import kernels as k, networks as nn
from volform.networks import NTP

SEEDS = range(2)
NETS = {
    "shallow": around(nn.Erf()),
    "deep": around(nn.Relu(), nn.Gelu()),
    "residual": nn.serial(
        dense(), nn.summed(nn.Identity(), nn.serial(nn.Sin(), dense())), nn.Relu(), dense()
    ),
    "gated": nn.serial(nn.multiplied(dense(), nn.serial(dense(), nn.Erf())), dense()),
    "normalized": nn.serial(dense(), nn.LayerNorm(), nn.LeakyRelu(0.1), dense()),
}


@pytest.fixture(params=NETS)
def net(request):
    return NETS[request.param]


def require_equal(found, expected, rtol=1e-12):
    for part, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(part, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


def inputs(seed, n=6, d=4):
    return np.random.default_rng([seed, d]).normal(size=(n, d))


def rotation(seed, d):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


# --- Networks of finite width

# Of each kind one; expectations of all of them are in test_activations.
KINDS = list({type(f): f for f in ACTIVATIONS[::-1]}.values())


@pytest.mark.parametrize("f", KINDS, ids=lambda f: type(f).__name__)
def test_one_hidden_layer_has_these_means_at_any_width(f, key):
    """The first layer is Gaussian and the weights behind it are independent: there is no bias.

    Means over draws of `J J^T` and of products of outputs, of networks with 24 units.
    """
    draws, x = 1500, 0.7 * X[:3]
    net = nn.serial(nn.Dense(24, 0.9, 0.3), f, nn.Dense(1, 1.2, 0.2))
    expected = k.kernel(net, x)
    for found, kernel in zip(
        finite(net, x, NTP(), jax.random.split(key, draws)), expected, strict=True
    ):
        error = np.asarray(found).std(0) / np.sqrt(draws)
        assert np.all(np.abs(found.mean(0) - kernel) < 4.5 * error + 1e-12)
        assert np.all(error < 0.15 * np.abs(kernel).max())


# --- Symmetries of the inputs


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("d", [4, 40])
def test_rotations_of_the_inputs_change_nothing(net, seed, d):
    x, turn = inputs(seed, 6, d), rotation(seed, d)
    require_equal(k.kernel(net, x @ turn), k.kernel(net, x), rtol=1e-11)


@pytest.mark.parametrize("seed", SEEDS)
def test_order_of_the_inputs_is_that_of_rows_and_columns(net, seed):
    order = np.random.default_rng(seed).permutation(6)
    full, x = k.kernel(net, X), X[order]
    require_equal(k.kernel(net, x), [part[order][:, order] for part in full], rtol=1e-13)
    require_equal(k.kernel(net, x, X), [part[order] for part in full], rtol=1e-13)
    require_equal(k.kernel(net, X, x), [part[:, order] for part in full], rtol=1e-13)


def test_two_lists_in_either_order(net):
    require_equal(k.kernel(net, X2, X), [part.T for part in k.kernel(net, X, X2)], rtol=1e-14)
    require_equal(k.kernel(net, X, X[:3]), [part[:, :3] for part in k.kernel(net, X)], rtol=1e-13)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("d", [1, 4, 40])
def test_kernels_are_those_of_covariances(net, seed, d):
    """Semidefinite, Cauchy-Schwarz, and the tangent kernel holds that of the last layer."""
    x = inputs(seed, 6, d)
    nngp, ntk = (np.asarray(part) for part in k.kernel(net, x))
    for matrix in (nngp, ntk, ntk - nngp):
        spectrum = np.linalg.eigvalsh(matrix)
        assert spectrum[0] > -1e-13 * np.abs(nngp).max()
    for matrix in (nngp, ntk):
        bound = np.sqrt(np.outer(np.diag(matrix), np.diag(matrix)))
        assert np.all(np.abs(matrix) <= bound * (1 + 1e-13))


PARITY = [
    (nn.Erf(), -1.0),
    (nn.Sin(), -1.0),
    (nn.Sign(), -1.0),
    (nn.Monomial(3), -1.0),
    (nn.Identity(), -1.0),
    (nn.Cos(), 1.0),
    (nn.Abs(), 1.0),
    (nn.Gaussian(), 1.0),
    (nn.Hermite(4), 1.0),
    (nn.Elementwise(lambda u: u * jnp.tanh(u)), 1.0),
]


@pytest.mark.parametrize(("f", "sign"), PARITY)
def test_odd_and_even_functions(f, sign):
    """`K(-x, y) = K(x, y)` of an even one, minus that of an odd one, without biases."""
    net = around(f, nn.Erf(), b_std=None)
    require_equal(k.kernel(net, -X, X2), [sign * part for part in k.kernel(net, X, X2)], rtol=1e-12)


HOMOGENEOUS = [
    (nn.Relu(), 1),
    (nn.LeakyRelu(0.2), 1),
    (nn.Abs(), 1),
    (nn.Identity(), 1),
    (nn.RectifiedMonomial(2), 2),
    (nn.RectifiedMonomial(3), 3),
    (nn.Monomial(2), 2),
    (nn.Monomial(3), 3),
    (nn.Sign(), 0),
    (nn.RectifiedMonomial(0), 0),
]


@pytest.mark.parametrize(("f", "degree"), HOMOGENEOUS)
@pytest.mark.parametrize("depth", [1, 2])
def test_homogeneous_functions(f, degree, depth):
    """Scaled inputs scale the kernels, each list with a power of its own factor."""
    net, factors = around(*[f] * depth, b_std=None), (0.3, 5.0)
    power = (factors[0] * factors[1]) ** degree**depth
    found = k.kernel(net, factors[0] * X, factors[1] * X2)
    require_equal(found, [power * part for part in k.kernel(net, X, X2)], rtol=1e-12)


def test_normalized_networks_see_directions_only():
    net = nn.serial(nn.Dense(8, 1.4), nn.LayerNorm(), nn.Gelu(), dense())
    lengths = np.array([0.1, 1.0, 3.0, 10.0, 0.5, 2.0])[:, None]
    found, expected = k.kernel(net, lengths * X), k.kernel(net, X)
    require_equal(found[:1], expected[:1], rtol=1e-9)  # eps is added to the smallest variance
    twice = nn.serial(nn.Dense(8, 1.4), nn.LayerNorm(), nn.LayerNorm(), nn.Gelu(), dense())
    require_equal(k.kernel(twice, X), expected, rtol=1e-11)


@pytest.mark.parametrize("depth", [1, 2, 5, 30])
def test_critical_initialization_keeps_the_variance(depth):
    """With w_std = sqrt(2) relu layers keep K(x, x), and T(x, x) grows by it with each layer.

    Of inputs that agree depth keeps the digits.
    """
    layers = [nn.Dense(8, np.sqrt(2.0)), nn.Relu()] * depth
    x = np.concatenate([X, X])
    nngp, ntk = k.kernel(nn.serial(*layers, nn.Dense(8, np.sqrt(2.0))), x)
    first = 2 * np.mean(x**2, 1)
    np.testing.assert_allclose(np.diag(nngp), first, rtol=1e-13)
    np.testing.assert_allclose(np.diag(ntk), (depth + 1) * first, rtol=1e-13)
    # Angles become smaller.
    assert np.all(nngp >= x @ x.T / 2 - 1e-12)
    np.testing.assert_allclose(ntk[:6, :6], ntk[:6, 6:], rtol=1e-13)


# --- How layers are put together

A, B, C = dense(), nn.serial(dense(), nn.Erf(), dense()), nn.serial(dense(), nn.Relu(), dense())


def ends(*layers):
    return k.kernel(nn.serial(*layers, nn.Relu(), dense()), X, X2)


def added(*branches):
    return ends(nn.summed(*branches))


def wide(*branches):
    return k.kernel(nn.serial(nn.concatenated(*branches), dense()), X, X2)


def gated(*branches):
    return k.kernel(nn.serial(nn.multiplied(*branches), dense()), X, X2)


def test_serial_is_associative_and_identity_is_neutral():
    layers = [dense(), nn.Relu(), dense(), nn.Erf(), dense()]
    flat = k.kernel(nn.serial(*layers), X, X2)
    for cut in range(1, 5):
        nested = nn.serial(nn.serial(*layers[:cut]), nn.serial(*layers[cut:]))
        require_equal(k.kernel(nested, X, X2), flat, rtol=1e-14)
    with_identity = [layer for each in layers for layer in (each, nn.Identity())]
    require_equal(k.kernel(nn.serial(*with_identity), X, X2), flat, rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "joined"), [(nn.summed, added), (nn.concatenated, wide), (nn.multiplied, gated)]
)
def test_branches_commute_and_associate(make, joined):
    expected = joined(A, B, C)
    require_equal(joined(C, A, B), expected, rtol=1e-13)
    require_equal(joined(make(A, B), C), expected, rtol=1e-13)
    require_equal(joined(A, make(B, C)), expected, rtol=1e-13)
    require_equal(joined(B), joined(nn.serial(B)), rtol=1e-14)


def test_products_distribute_over_sums():
    left = gated(A, nn.summed(B, C))
    for part, one, other in zip(left, gated(A, B), gated(A, C), strict=True):
        # Each of the networks on the right has the bias of the last layer.
        np.testing.assert_allclose(part + 0.04, one + other, rtol=1e-12)


def test_sum_of_dense_layers_is_a_dense_layer():
    """Variances add up: one of standard deviation 1.5 is the sum of those of 0.9 and 1.2."""
    two = nn.summed(nn.Dense(8, 0.9, 0.3), nn.Dense(8, 1.2, 0.4))
    require_equal(ends(two), ends(nn.Dense(8, 1.5, 0.5)), rtol=1e-13)


def test_copies_side_by_side_are_one():
    require_equal(wide(B, B, B), wide(B), rtol=1e-13)


def test_dropout_twice():
    """Units are kept with the product of both probabilities; with 1 nothing happens."""

    def make(*middle):
        return nn.serial(dense(), nn.Relu(), *middle, dense())

    once = k.kernel(make(nn.Dropout(0.42)), X)
    require_equal(k.kernel(make(nn.Dropout(0.6), nn.Dropout(0.7)), X), once, rtol=1e-13)
    require_equal(k.kernel(make(nn.Dropout(1.0)), X), k.kernel(make(), X), rtol=1e-14)


# --- Images


def test_images_of_one_pixel_are_vectors():
    """Convolution, pooling and flattening do nothing but what dense layers do."""
    x, flat = X[:, None, :], around(nn.Relu(), nn.Erf())
    ends = (conv, nn.Flatten()), (spread, nn.GlobalAvgPool()), (local, nn.GlobalSumPool())
    for layer, end in ends:
        net = nn.serial(conv((1,)), nn.Relu(), layer((1,)), nn.Erf(), end, dense())
        require_equal(jax.jit(partial(k.kernel, net))(x), k.kernel(flat, X), rtol=1e-13)


@pytest.mark.parametrize("padding", nn.Padding)
def test_flattened_images_do_not_tell_whether_weights_are_shared(padding):
    """Layers of the same windows, with weights for all pixels or for each of them."""
    shared, own = (
        nn.serial(
            layer((3,), padding=padding),
            nn.Relu(),
            layer((2,), strides=(2,)),
            nn.Flatten(),
            dense(),
        )
        for layer in (conv, local)
    )
    require_equal(k.kernel(own, SEQUENCES), k.kernel(shared, SEQUENCES), rtol=1e-14)


@pytest.mark.parametrize("padding", [nn.Padding.SAME, nn.Padding.CIRCULAR])
def test_transposed_windows_next_to_each_other_are_windows(padding):
    nets = (
        nn.serial(conv(), nn.Erf(), layer(padding=padding), nn.Relu(), nn.GlobalAvgPool())
        for layer in (conv, spread)
    )
    require_equal(*(k.kernel(net, SEQUENCES) for net in nets), rtol=1e-14)


def test_pixels_spread_out_see_themselves():
    """A filter as large as the strides repeats each pixel; each copy has one of as many taps."""
    many = nn.serial(nn.Conv(8, (1,)), nn.Erf(), nn.ConvTranspose(8, (3,), strides=(3,)))
    one = nn.serial(nn.Conv(8, (1,)), nn.Erf(), nn.Conv(8, (1,), np.sqrt(1 / 3)))
    found, expected = (k.kernel(nn.serial(net, nn.Flatten()), SEQUENCES) for net in (many, one))
    require_equal(found, expected, rtol=1e-13)


@pytest.mark.parametrize("window", [{"padding": nn.Padding.SAME}, {"strides": (1,)}])
def test_sums_are_means_times_counts(window):
    def kernel(pool, w_std):
        behind = nn.Conv(8, (1,), w_std), nn.Erf(), nn.GlobalAvgPool()
        return k.kernel(nn.serial(conv(), nn.Relu(), pool, *behind), SEQUENCES)

    pools = (nn.SumPool((4,), **window), 0.35), (nn.AvgPool((4,), **window), 1.4)
    found, expected = (kernel(*each) for each in pools)
    np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-12)
    np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-12)


def test_graphs_are_sums_over_neighbors():
    """Neighbors in a window, no others, all; and two nodes with the same neighbors are one."""
    body, end = (conv(), nn.Relu()), (nn.Conv(8, (1,)), nn.Relu(), nn.GlobalAvgPool())

    def kernel(layer):
        return k.kernel(nn.serial(*body, layer, *end), SEQUENCES)

    windows = (np.arange(6) // 2 == np.arange(3)[:, None]).astype(float)
    require_equal(kernel(nn.Aggregate(windows)), kernel(nn.SumPool((2,))), rtol=1e-13)
    require_equal(kernel(nn.Aggregate(windows / 2)), kernel(nn.AvgPool((2,))), rtol=1e-13)
    require_equal(kernel(nn.Aggregate(np.eye(6))), kernel(nn.Identity()), rtol=1e-12)
    order = np.random.default_rng(1).permutation(6)
    require_equal(kernel(nn.Aggregate(np.eye(6)[order])), kernel(nn.Identity()), rtol=1e-12)
    twins, one = nn.Aggregate(np.ones((2, 6))), nn.Aggregate(np.ones((1, 6)))
    require_equal(kernel(twins), kernel(one), rtol=1e-14)


def test_sums_over_all_pixels():
    body = conv(), nn.Relu()
    everywhere = k.kernel(nn.serial(*body, nn.GlobalSumPool()), SEQUENCES)
    mean = k.kernel(nn.serial(*body, nn.GlobalAvgPool()), SEQUENCES)
    require_equal(everywhere, [36 * part for part in mean], rtol=1e-14)
    whole = k.kernel(nn.serial(*body, nn.SumPool((6,)), nn.Flatten()), SEQUENCES)
    require_equal(whole, everywhere, rtol=1e-13)


@pytest.mark.parametrize("end", [nn.Flatten(), nn.GlobalSumPool()])
def test_tokens_are_vectors_with_a_one(end):
    """Of 5 entries, which a dense layer divides by: its w_std is larger by the root of 5."""
    behind = conv((2,)), nn.Relu(), conv((2,)), end, dense()
    words = nn.serial(nn.Embedding(5, 8, 1.4), *behind)
    vectors = nn.serial(nn.Conv(8, (1,), 1.4 * np.sqrt(5.0)), *behind)
    found = k.kernel(words, TOKENS), k.kernel(words, TOKENS, TOKENS[:2])
    x = np.eye(5)[TOKENS]
    require_equal(found[0], k.kernel(vectors, x), rtol=1e-13)
    require_equal(found[1], k.kernel(vectors, x, x[:2]), rtol=1e-13)


def test_windows_of_one_pixel_do_not_mix_pixels():
    """A network on each pixel by itself: any order of the pixels gives the same kernels."""
    net = nn.serial(conv((1,)), nn.Relu(), conv((1,)), nn.Flatten(), dense())
    order = np.random.default_rng(0).permutation(6)
    kernel = jax.jit(partial(k.kernel, net))
    require_equal(kernel(SEQUENCES[:, order]), kernel(SEQUENCES), rtol=1e-13)


def test_attention_to_everything_is_a_mean():
    """As w_key_std goes to zero all pixels count the same, to the order of its square."""

    @jax.jit
    def kernels(w_key_std):
        attention = nn.GlobalSelfAttention(8, 1, 4, 4, w_key_std, 1.4, 1.0)
        return k.kernel(nn.serial(attention, nn.GlobalAvgPool(), dense()), SEQUENCES).nngp

    mean = k.kernel(nn.serial(nn.GlobalAvgPool(), nn.Dense(8, 1.4), dense()), SEQUENCES).nngp
    errors = [np.abs(kernels(w_key_std) - mean).max() for w_key_std in (1e-2, 1e-3)]
    assert errors[0] < 1e-4 * np.abs(mean).max()
    np.testing.assert_allclose(errors[0] / errors[1], 100.0, rtol=0.05)


def test_attention_does_not_look_at_places():
    """The same pixels in another order, in one of two images too, give the same kernels."""
    attention = nn.GlobalSelfAttention(8, 2, 4, 4, w_key_std=2.0, b_std=0.1)
    net = nn.serial(conv((1,)), nn.Relu(), attention, nn.GlobalAvgPool(), dense())
    order = np.random.default_rng(1).permutation(6)
    kernel, x = jax.jit(partial(k.kernel, net)), np.array(SEQUENCES)
    x[1] = x[1, order]
    require_equal(kernel(x), kernel(SEQUENCES), rtol=1e-12)


# --- Quadrature


@pytest.mark.parametrize("exact", [nn.Erf(), nn.Gelu()])
def test_quadrature_converges_to_closed_forms(exact):
    """Errors fall with the order, to rounding at 64 terms for inputs of moderate variance."""
    wanted = k.kernel(around(exact), 0.5 * X)
    errors = []
    for order in (4, 16, 64):
        found = k.kernel(around(nn.Elementwise(exact.__call__, order)), 0.5 * X)
        errors.append(max(np.abs(a - b).max() for a, b in zip(found, wanted, strict=True)))
    assert errors[2] < 1e-9
    assert errors[1] < 0.1 * errors[0]
    assert errors[2] < errors[1] + 1e-14

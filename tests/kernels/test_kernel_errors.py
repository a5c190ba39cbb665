"""Misuse of layers and kernels gets an error that names the argument and says what helps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from tests.kernels.nets import IMAGES, SEQUENCES, TOKENS, X2, X, around, conv, dense, local, spread

from volform import kernels as k, networks as nn
from volform.errors import DataError, NetworkError

NET = around(nn.Relu())


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (X[0], r"`x1` has shape \(4,\).*`x\[:, None\]`"),
        (X[:0], r"`x1` has shape \(0, 4\) and is empty"),
        (np.ones((2, 2), int), r"`x1` has dtype int.*astype\(float\)"),
        (np.where(X > 0.5, np.nan, X), r"`x1` holds \d+ entries that are NaN"),
    ],
)
def test_inputs(x, match):
    with pytest.raises(DataError, match=match):
        k.kernel(NET, x)


def test_second_inputs():
    with pytest.raises(DataError, match=r"`x2` has examples of shape \(3,\).*\(4,\)"):
        k.kernel(NET, X, X2[:, :3])
    with pytest.raises(DataError, match=r"`x2` has shape \(4,\)"):
        k.kernel(NET, X, X2[0])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nn.Dense(0), "`width` of Dense is 0"),
        (lambda: nn.Dense(2.5), "`width` of Dense is 2.5"),
        (lambda: nn.Dense(2, w_std=0.0), "`w_std` is 0.0; it should be a positive"),
        (lambda: nn.Dense(2, w_std=np.nan), "`w_std` is nan"),
        (lambda: nn.Dense(2, b_std=-1.0), "`b_std` is -1.0.*or None"),
        (lambda: nn.LayerNorm(0.0), "`eps` is 0.0"),
        (lambda: nn.Rbf(-1.0), "`gamma` is -1.0"),
        (lambda: nn.RectifiedMonomial(4), "`degree` of RectifiedMonomial is 4.*Elementwise"),
        (lambda: nn.Conv(0, (3,)), "`width` of Conv is 0"),
        (lambda: nn.Conv(8, 3), r"`filter_shape` of Conv is 3; .*\(3, 3\) for images"),
        (lambda: nn.Conv(8, ()), r"`filter_shape` of Conv is \(\)"),
        (lambda: nn.Conv(8, (3, 0)), r"`filter_shape` of Conv is \(3, 0\)"),
        (
            lambda: nn.Conv(8, (3, 3), strides=(2,)),
            r"`strides` of Conv is \(2,\); .*each direction",
        ),
        (lambda: nn.Conv(8, (3,), strides=(0,)), r"`strides` of Conv is \(0,\)"),
        (lambda: nn.Conv(8, (3,), padding="SAME"), "`padding` of Conv is 'SAME'.*`Padding.SAME`"),
        (lambda: nn.AvgPool((-2,)), r"`window_shape` of AvgPool is \(-2,\)"),
        (lambda: nn.SumPool((2, 0)), r"`window_shape` of SumPool is \(2, 0\)"),
        (lambda: nn.ConvTranspose(8, (3,), strides=(0,)), r"`strides` of ConvTranspose is \(0,\)"),
        (lambda: nn.ConvLocal(8, 3), r"`filter_shape` of ConvLocal is 3"),
        (lambda: nn.ConvLocal(8, (3,), b_std=-1.0), r"`b_std` is -1.0"),
        (lambda: nn.Aggregate([1.0, 0.0]), r"`adjacency` of Aggregate has shape \(2,\)"),
        (lambda: nn.Aggregate([[np.nan]]), "`adjacency` of Aggregate holds .* NaN"),
        (lambda: nn.Aggregate(1j * np.eye(2)), "`adjacency` of Aggregate holds complex"),
        (lambda: nn.Aggregate("path"), "`adjacency` of Aggregate is a str"),
        (lambda: nn.Embedding(0, 8), r"`count` of Embedding is 0; .*`Embedding\(1000, 64\)`"),
        (lambda: nn.Embedding(5, 2.5), r"`width` of Embedding is 2.5"),
        (lambda: nn.Embedding(5, 8, 0.0), "`w_std` is 0.0.*of a vector"),
        (
            lambda: nn.serial(conv(), nn.Embedding(5, 8)),
            "has Embedding behind Conv.*first",
        ),
        (lambda: nn.Dropout(0.0), "`rate` of Dropout is 0.0; .* a unit is kept"),
        (lambda: nn.Dropout(1.5), "`rate` of Dropout is 1.5"),
        (lambda: nn.GlobalSelfAttention(8, 0, 4, 4), "`heads` of GlobalSelfAttention is 0"),
        (lambda: nn.GlobalSelfAttention(8, 1, 4, 4, w_key_std=-1.0), "`w_std` is -1.0"),
        (lambda: nn.Monomial(-1), "`degree` is -1"),
        (lambda: nn.Polynomial(()), r"`coefficients` of Polynomial are \(\)"),
        (lambda: nn.Elementwise(3.0), "`function` of Elementwise is 3.0"),
        (lambda: nn.Elementwise(jnp.tanh, order=0), "`order` of Elementwise is 0"),
        (lambda: nn.serial(), "`layers` holds nothing"),
        (lambda: nn.serial(nn.Dense(2), jnp.tanh), "`layers` holds .*Elementwise"),
        (lambda: nn.multiplied(nn.Identity(), nn.Relu()), "`branches` Identity .* of multiplied"),
        (lambda: nn.summed(nn.Identity(), nn.Relu()), "`branches` Identity and ABRelu.*correlated"),
    ],
)
def test_layers(make, match):
    with pytest.raises(NetworkError, match=match):
        make()


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (nn.Relu(), r"`ABRelu\(\)` follows values that are not Gaussian.*Dense"),
        (
            nn.serial(dense(), nn.Relu(), nn.Erf()),
            r"`Erf\(\)` follows values that are not Gaussian",
        ),
        (
            nn.serial(dense(), nn.Relu(), nn.LayerNorm()),
            r"`LayerNorm\(\)` follows values that are not",
        ),
        (nn.summed(dense(2), dense(3)), r"`branches` of summed have outputs of shapes \(2,\)"),
    ],
)
def test_networks_without_a_kernel(net, match):
    with pytest.raises(NetworkError, match=match):
        k.kernel(net, X)


@pytest.mark.parametrize(
    ("x", "layers", "match"),
    [
        (X, (conv(),), r"`Conv\(8\)` with a window of \(3,\) got examples of shape \(4,\)"),
        (IMAGES, (conv(),), r"`Conv\(8\)` .* shape \(5, 5, 2\); it takes .*\(n, channels\)"),
        (SEQUENCES, (conv((2, 2)),), r"`Conv\(8\)` .*\(height, width, channels\)"),
        (IMAGES, (conv((3, 6), padding=nn.Padding.VALID),), r"`Conv\(8\)` .*larger than .*\(5"),
        (SEQUENCES, (nn.AvgPool((7,)),), r"`AvgPool` has a window of \(7,\), larger"),
        (SEQUENCES, (nn.SumPool((7,)),), r"`SumPool` has a window of \(7,\), larger"),
        (X, (spread(),), r"`ConvTranspose\(8\)` with a window of \(3,\) got examples of shape"),
        (IMAGES, (local(),), r"`ConvLocal\(8\)` .* shape \(5, 5, 2\); it takes"),
        (SEQUENCES, (nn.Aggregate(np.eye(5)),), r"`Aggregate` of 5 nodes got .*\(6, 2\); "),
        (SEQUENCES, (local(),), r"`net` ends in images of shape \(6, 8\)"),
        (SEQUENCES, (conv(), nn.Softmax(), conv(), nn.Flatten()), "`Softmax` has no kernel"),
        (SEQUENCES, (conv(),), r"`net` ends in images of shape \(6, 8\).*GlobalAvgPool"),
        (SEQUENCES, (conv(), nn.Flatten(), nn.Relu()), "not Gaussian"),
        (X, (nn.concatenated(dense(), dense()), nn.Relu()), "not Gaussian"),
        (X, (dense(), nn.Dropout(0.5), nn.Relu()), "not Gaussian"),
        (X, (nn.multiplied(dense(), dense()), nn.Relu()), "not Gaussian"),
        (X, (nn.GlobalSelfAttention(8, 1, 4, 4),), r"`GlobalSelfAttention\(8\)` got .*\(4,\)"),
        (SEQUENCES, (nn.concatenated(conv(), nn.AvgPool((2,))), nn.Flatten()), "the same pixels"),
    ],
)  # fmt: skip
def test_images(x, layers, match):
    with pytest.raises(NetworkError, match=match):
        k.kernel(nn.serial(*layers), x)


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (TOKENS + 1, r"`x1` holds the token 5; an `Embedding` of 5 tokens takes .*0 to 4.*`count`"),
        (TOKENS - 1, r"`x1` holds the token -1"),
        (TOKENS / 2, r"`x1` has dtype float64; .* whole numbers from 0 to 4.*`x1.astype\(int\)`"),
        (TOKENS > 1, r"`x1` has dtype bool"),
        (TOKENS[0], r"`x1` has shape \(3,\)"),
        (TOKENS[:0], r"`x1` has shape \(0, 3\) and is empty"),
    ],
)
def test_tokens(x, match, key):
    net = nn.serial(nn.Embedding(5, 8), nn.Flatten(), dense())
    with pytest.raises(DataError, match=match):
        k.kernel(net, x)
    params = net.init(key, TOKENS.shape)
    with pytest.raises(DataError, match=match.replace("x1", "x")):
        net.apply(params, x)


def test_tokens_that_a_program_hides(key):
    """Under `jit` nothing can be said: a token that is none makes for NaN, and for no neighbor."""
    net = nn.serial(nn.Embedding(5, 8), nn.Flatten(), dense())
    params = net.init(key, TOKENS.shape)
    found = jax.jit(net.apply)(params, np.array([[0, 1, 2], [0, 1, -1], [5, 1, 2]]))
    np.testing.assert_array_equal(np.isnan(found).any(1), [False, True, True])


def test_what_is_no_network_of_layers(key):
    words = nn.Embedding(5, 8)
    (rows,) = words.maps(words.init(key, TOKENS.shape))
    with pytest.raises(NetworkError, match=r"`Embedding\(5, 8\)` got values of dtype float64"):
        rows(X)
    with pytest.raises(DataError, match=r"`x1` has dtype int64; .*astype\(float\)"):
        k.kernel(nn.summed(words, nn.Conv(8, (1,))), TOKENS)
    with pytest.raises(NetworkError, match=r"`net` is a Network; .*its `layers`"):
        k.kernel(nn.MLP((3,)), X)


def test_shapes(key):
    with pytest.raises(NetworkError, match=r"`Dense\(8\)` got examples of shape \(2, 2\).*Flatten"):
        k.kernel(NET, X.reshape(6, 2, 2))
    with pytest.raises(NetworkError, match=r"`params` holds weights of shape \(8, 4\).*on 3 feat"):
        NET.apply(NET.init(key, (1, 4)), X[:, :3])
    net = nn.serial(conv((2, 2)), nn.Flatten(), dense())
    with pytest.raises(NetworkError, match=r"`params` holds .*\(8, 8\); .*\(8, 4\)"):
        net.apply(net.init(key, IMAGES.shape), IMAGES[..., :1])
    with pytest.raises(NetworkError, match=r"`branches` of summed have outputs of shapes"):
        nn.summed(dense(2), dense(3)).init(key, (1, 4))


def test_parametrization():
    with pytest.raises(NetworkError, match=r"`parametrization` is 'standard'"):
        k.kernel(NET, X, parametrization="standard")


@pytest.mark.leaks
def test_traced_values_pass():
    assert np.isnan(jax.jit(lambda s: k.kernel(nn.Dense(2, s), X).nngp)(jnp.nan)).all()


def test_outputs_that_are_no_gaussian_process_have_no_evidence():
    """Behind the last weights a function of each output, or pixels with kernels of their own."""
    x, y = jnp.linspace(-1.0, 1.0, 12).reshape(3, 2, 2, 1), jnp.ones((3, 4))
    pixels = nn.serial(nn.Conv(1, (1, 1)), nn.Flatten())
    with pytest.raises(NetworkError, match=r"ends in `Flatten\(\)` of shape \(2, 2, 1\)"):
        k.evidence(pixels, x, y, noise=0.1)
    with pytest.raises(NetworkError, match=r"ends in `Flatten\(\)`"):
        k.predict(pixels, x, y, x, noise=0.1)
    bent = nn.serial(nn.Flatten(), nn.Dense(1), nn.Relu())
    with pytest.raises(NetworkError, match=r"ends in `ABRelu.*no Gaussian process"):
        k.evidence(bent, x, y[:, 0], noise=0.1)
    # Channels of one pixel, or of their mean, are alike.
    pooled = nn.serial(nn.Conv(1, (1, 1)), nn.GlobalAvgPool(), nn.Flatten())
    mean = x.mean((1, 2))
    expected = scipy.stats.multivariate_normal(np.zeros(3), mean @ mean.T + 0.01 * np.eye(3))
    found = k.evidence(pooled, x, y[:, 0], noise=0.1).log_z
    assert float(found) == pytest.approx(expected.logpdf(y[:, 0]), rel=1e-10)

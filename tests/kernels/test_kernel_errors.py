"""Misuse of layers and kernels gets an error that names the argument and says what helps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.nets import IMAGES, SEQUENCES, X2, X, around, conv, dense

from volform import kernels as k
from volform.errors import DataError, NetworkError

NET = around(k.Relu())


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
        NET.kernel(x)


def test_second_inputs():
    with pytest.raises(DataError, match=r"`x2` has examples of shape \(3,\).*\(4,\)"):
        NET.kernel(X, X2[:, :3])
    with pytest.raises(DataError, match=r"`x2` has shape \(4,\)"):
        NET.kernel(X, X2[0])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: k.Dense(0), "`width` of Dense is 0"),
        (lambda: k.Dense(2.5), "`width` of Dense is 2.5"),
        (lambda: k.Dense(2, w_std=0.0), "`w_std` is 0.0; it should be a positive"),
        (lambda: k.Dense(2, w_std=np.nan), "`w_std` is nan"),
        (lambda: k.Dense(2, b_std=-1.0), "`b_std` is -1.0.*or None"),
        (lambda: k.LayerNorm(0.0), "`eps` is 0.0"),
        (lambda: k.Rbf(-1.0), "`gamma` is -1.0"),
        (lambda: k.RectifiedMonomial(4), "`degree` of RectifiedMonomial is 4.*Elementwise"),
        (lambda: k.Conv(0, (3,)), "`width` of Conv is 0"),
        (lambda: k.Conv(8, 3), r"`filter_shape` of Conv is 3; .*\(3, 3\) for images"),
        (lambda: k.Conv(8, ()), r"`filter_shape` of Conv is \(\)"),
        (lambda: k.Conv(8, (3, 0)), r"`filter_shape` of Conv is \(3, 0\)"),
        (lambda: k.Conv(8, (3, 3), strides=(2,)), r"`strides` of Conv is \(2,\); .*each direction"),
        (lambda: k.Conv(8, (3,), strides=(0,)), r"`strides` of Conv is \(0,\)"),
        (lambda: k.Conv(8, (3,), padding="SAME"), "`padding` of Conv is 'SAME'.*`Padding.SAME`"),
        (lambda: k.AvgPool((-2,)), r"`window_shape` of AvgPool is \(-2,\)"),
        (lambda: k.Dropout(0.0), "`rate` of Dropout is 0.0; .* a unit is kept"),
        (lambda: k.Dropout(1.5), "`rate` of Dropout is 1.5"),
        (lambda: k.GlobalSelfAttention(8, 0, 4, 4), "`heads` of GlobalSelfAttention is 0"),
        (lambda: k.GlobalSelfAttention(8, 1, 4, 4, w_key_std=-1.0), "`w_std` is -1.0"),
        (lambda: k.Monomial(-1), "`degree` is -1"),
        (lambda: k.Polynomial(()), r"`coefficients` of Polynomial are \(\)"),
        (lambda: k.Elementwise(3.0), "`function` of Elementwise is 3.0"),
        (lambda: k.Elementwise(jnp.tanh, order=0), "`order` of Elementwise is 0"),
        (lambda: k.serial(), "`layers` holds nothing"),
        (lambda: k.serial(k.Dense(2), jnp.tanh), "`layers` holds .*Elementwise"),
        (lambda: k.multiplied(k.Identity(), k.Relu()), "`branches` Identity .* of multiplied"),
        (lambda: k.summed(k.Identity(), k.Relu()), "`branches` Identity and ABRelu.*correlated"),
    ],
)
def test_layers(make, match):
    with pytest.raises(NetworkError, match=match):
        make()


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (k.Relu(), r"`ABRelu\(\)` follows values that are not Gaussian.*Dense"),
        (k.serial(dense(), k.Relu(), k.Erf()), r"`Erf\(\)` follows values that are not Gaussian"),
        (
            k.serial(dense(), k.Relu(), k.LayerNorm()),
            r"`LayerNorm\(\)` follows values that are not",
        ),
        (k.summed(dense(2), dense(3)), r"`branches` of summed have outputs of shapes \(2,\)"),
    ],
)
def test_networks_without_a_kernel(net, match):
    with pytest.raises(NetworkError, match=match):
        net.kernel(X)


@pytest.mark.parametrize(
    ("x", "layers", "match"),
    [
        (X, (conv(),), r"`Conv\(8\)` with a window of \(3,\) got examples of shape \(4,\)"),
        (IMAGES, (conv(),), r"`Conv\(8\)` .* shape \(5, 5, 2\); it takes .*\(n, channels\)"),
        (SEQUENCES, (conv((2, 2)),), r"`Conv\(8\)` .*\(height, width, channels\)"),
        (IMAGES, (conv((3, 6), padding=k.Padding.VALID),), r"`Conv\(8\)` .*larger than .*\(5, 5\)"),
        (SEQUENCES, (k.AvgPool((7,)),), r"`AvgPool` has a window of \(7,\), larger"),
        (SEQUENCES, (conv(),), r"`net` ends in images of shape \(6, 8\).*GlobalAvgPool"),
        (SEQUENCES, (conv(), k.Flatten(), k.Relu()), "not Gaussian"),
        (X, (k.concatenated(dense(), dense()), k.Relu()), "not Gaussian"),
        (X, (dense(), k.Dropout(0.5), k.Relu()), "not Gaussian"),
        (X, (k.multiplied(dense(), dense()), k.Relu()), "not Gaussian"),
        (X, (k.GlobalSelfAttention(8, 1, 4, 4),), r"`GlobalSelfAttention\(8\)` got .*\(4,\)"),
        (SEQUENCES, (k.concatenated(conv(), k.AvgPool((2,))), k.Flatten()), "the same pixels"),
    ],
)  # fmt: skip
def test_images(x, layers, match):
    with pytest.raises(NetworkError, match=match):
        k.serial(*layers).kernel(x)


def test_shapes(key):
    with pytest.raises(NetworkError, match=r"`Dense\(8\)` got examples of shape \(2, 2\).*Flatten"):
        NET.kernel(X.reshape(6, 2, 2))
    with pytest.raises(NetworkError, match=r"`params` holds weights of shape \(8, 4\).*on 3 feat"):
        NET.apply(NET.init(key, (1, 4)), X[:, :3])
    net = k.serial(conv((2, 2)), k.Flatten(), dense())
    with pytest.raises(NetworkError, match=r"`params` holds .*\(8, 2, 2, 2\); .*\(8, 2, 2, 1\)"):
        net.apply(net.init(key, IMAGES.shape), IMAGES[..., :1])
    with pytest.raises(NetworkError, match=r"`branches` of summed have outputs of shapes"):
        k.summed(dense(2), dense(3)).init(key, (1, 4))


def test_parametrization():
    with pytest.raises(NetworkError, match=r"`parametrization` is 'standard'"):
        NET.kernel(X, parametrization="standard")


@pytest.mark.leaks
def test_traced_values_pass():
    assert np.isnan(jax.jit(lambda s: k.Dense(2, s).kernel(X).nngp)(jnp.nan)).all()

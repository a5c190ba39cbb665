"""Misuse of layers and kernels gets an error that names the argument and says what helps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.nets import X2, X, around, dense

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
        (lambda: k.Monomial(-1), "`degree` is -1"),
        (lambda: k.Polynomial(()), r"`coefficients` of Polynomial are \(\)"),
        (lambda: k.Elementwise(3.0), "`function` of Elementwise is 3.0"),
        (lambda: k.Elementwise(jnp.tanh, order=0), "`order` of Elementwise is 0"),
        (lambda: k.serial(), "`layers` holds nothing"),
        (lambda: k.serial(k.Dense(2), jnp.tanh), "`layers` holds .*Elementwise"),
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


def test_shapes(key):
    with pytest.raises(NetworkError, match=r"`Dense\(8\)` got examples of shape \(2, 2\).*Flatten"):
        NET.kernel(X.reshape(6, 2, 2))
    with pytest.raises(NetworkError, match=r"`params` holds weights of shape \(8, 4\).*on 3 feat"):
        NET.apply(NET.init(key, (1, 4)), X[:, :3])
    with pytest.raises(NetworkError, match=r"`branches` of summed have outputs of shapes"):
        k.summed(dense(2), dense(3)).init(key, (1, 4))


def test_parametrization():
    with pytest.raises(NetworkError, match=r"`parametrization` is 'standard'"):
        NET.kernel(X, parametrization="standard")


def test_traced_values_pass():
    assert np.isnan(jax.jit(lambda s: k.Dense(2, s).kernel(X).nngp)(jnp.nan)).all()

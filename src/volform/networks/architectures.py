"""Networks by name: a multi-layer perceptron and a convolutional network of LeNet's size."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from volform.errors import NetworkError
from volform.networks.activations import Activation, Elementwise
from volform.networks.composition import serial
from volform.networks.conv import Conv
from volform.networks.dense import Dense
from volform.networks.layer import Flatten
from volform.networks.network import Network
from volform.networks.parametrization import SP, Parametrization
from volform.networks.pooling import AvgPool
from volform.networks.window import Padding


def MLP(
    widths: tuple[int, ...] = (50,),
    outputs: int = 1,
    activation: Callable[[Array], Array] = jnp.tanh,
    parametrization: Parametrization | None = None,
    w_std: Any = 1.0,
    b_std: Any = None,
) -> Network:
    """A multi-layer perceptron, `z_l = W_l a(z_(l-1)) + b_l`, as a function and a NumPyro model.

    Args:
        widths: numbers of hidden units, one for each hidden layer.
        outputs: number of outputs.
        activation: acts elementwise on the hidden units: a layer such as `Erf()`, or any function.
        parametrization: `SP()`, `NTP()`, `MuP()`, ...: coordinates, prior and metric; `SP()` if
            left out.
        w_std: standard deviation of the weights; with `SP` that of a weight is
            `w_std / sqrt(fan_in)`. May itself be sampled, in a model that builds the network.
        b_std: standard deviation of the biases; None for a network without biases.

    Raises:
        NetworkError: when `widths` is empty or holds no positive integers, `w_std` or `b_std` is
            not positive, or `parametrization` is none.

    >>> import jax, jax.numpy as jnp, volform as vf
    >>> net = vf.networks.MLP(widths=(16, 16), outputs=2)
    >>> params = net.init(jax.random.key(0), inputs=3)
    >>> {name: value.shape for name, value in params.items()}
    {'layer0.w': (16, 3), 'layer1.w': (16, 16), 'layer2.w': (2, 16)}
    >>> net.apply(params, jnp.ones((5, 3))).shape
    (5, 2)
    """
    if not isinstance(widths, tuple) or not widths:
        raise NetworkError(
            f"`widths` is {widths!r}; it should be a tuple with the number of units of each hidden "
            "layer, such as `(50,)` for one."
        )
    for argument, units in (*(("widths", width) for width in widths), ("outputs", outputs)):
        _require_units(units, argument)
    follow = _as_layer(activation)
    hidden = [layer for width in widths for layer in (Dense(width, w_std, b_std), follow)]
    body = serial(*hidden, Dense(outputs, w_std, b_std))
    return Network(body, SP() if parametrization is None else parametrization)


def LeNet(
    outputs: int = 10,
    activation: Callable[[Array], Array] = jnp.tanh,
    parametrization: Parametrization | None = None,
    w_std: Any = 1.0,
    b_std: Any = 1.0,
) -> Network:
    """A convolutional network of LeNet's size: 61,706 parameters on 28 x 28 images with biases.

    Convolution to 6 channels (5 x 5, padded), averages over 2 x 2, convolution to 16 channels
    (5 x 5), averages over 2 x 2, then dense layers of 120, 84 and `outputs` units.

    Args:
        outputs: number of outputs.
        activation: acts elementwise after each layer but the last.
        parametrization: `SP()`, `NTP()`, `MuP()`, ...: coordinates, prior and metric; `SP()` if
            left out.
        w_std: standard deviation of the weights, as in `MLP`.
        b_std: standard deviation of the biases; None for a network without biases.

    Raises:
        NetworkError: when `outputs` is no positive integer, `w_std` or `b_std` is not positive, or
            `parametrization` is none.

    References:
        LeCun, Bottou, Bengio & Haffner (1998), Gradient-based learning applied to document
        recognition, section II-B.

    >>> import jax, volform as vf
    >>> net = vf.networks.LeNet()
    >>> sum(p.size for p in net.init(jax.random.key(0), (28, 28, 1)).values())
    61706
    """
    _require_units(outputs, "outputs")
    follow, std = _as_layer(activation), (w_std, b_std)
    return Network(
        serial(
            *(Conv(6, (5, 5), *std), follow, AvgPool((2, 2))),
            *(Conv(16, (5, 5), *std, padding=Padding.VALID), follow, AvgPool((2, 2)), Flatten()),
            *(Dense(120, *std), follow),
            *(Dense(84, *std), follow),
            Dense(outputs, *std),
        ),
        SP() if parametrization is None else parametrization,
    )


def _as_layer(activation: Any) -> Activation:
    if isinstance(activation, Activation):
        return activation
    if not callable(activation):
        raise NetworkError(
            f"`activation` is {activation!r}; it should be a function of arrays, such as "
            "`jnp.tanh` or `jax.nn.relu`."
        )
    return Elementwise(activation)


def _require_units(value: object, argument: str) -> None:
    if not isinstance(value, int) or value < 1:
        raise NetworkError(
            f"`{argument}` holds {value!r}; each number of units should be a positive integer, "
            "such as `widths=(50, 50)` for two hidden layers."
        )

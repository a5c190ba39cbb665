"""Networks by name: a multi-layer perceptron and a convolutional network of LeNet's size."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from volform.errors import DataError, NetworkError
from volform.networks.layers import (
    Conv,
    Dense,
    Stage,
    average_pool,
    copies_of,
    flatten,
    require_units,
)
from volform.networks.network import Network
from volform.networks.parametrization import SP, Parametrization


class MLP(Network):
    """A multi-layer perceptron, `z_l = W_l a(z_(l-1)) + b_l`, as a function and a NumPyro model.

    Args:
        widths: numbers of hidden units, one for each hidden layer.
        outputs: number of outputs.
        activation: acts elementwise on the hidden units.
        parametrization: `SP()`, `NTP()`, `MuP()`, ...: coordinates, prior and metric.
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

    widths: tuple[int, ...] = eqx.field(static=True, default=(50,))
    outputs: int = eqx.field(static=True, default=1)
    activation: Callable[[Array], Array] = eqx.field(static=True, default=jnp.tanh)
    parametrization: Parametrization = SP()
    w_std: Any = 1.0
    b_std: Any = None

    def __check_init__(self) -> None:
        _require_activation(self.activation)
        if not isinstance(self.widths, tuple) or not self.widths:
            raise NetworkError(
                f"`widths` is {self.widths!r}; it should be a tuple with the number of units of "
                "each hidden layer, such as `(50,)` for one."
            )
        for width in self.widths:
            require_units(width, "widths")
        require_units(self.outputs, "outputs")

    def stages(self) -> tuple[Stage, ...]:
        """Hidden layers and the outputs."""
        after = (self.activation,)
        hidden = [Stage(Dense(n), after, copies_of(self.activation, n)) for n in self.widths]
        return (*hidden, Stage(Dense(self.outputs)))

    def require_inputs(self, shape: tuple[int, ...]) -> None:
        """Raises DataError unless an input is a vector."""
        if len(shape) != 1 or shape[0] < 1:
            raise DataError(
                f"`x` holds inputs of shape {shape}; an MLP takes x of shape (n, features). Write "
                "a single feature as `x[:, None]`, an image as `x.reshape(len(x), -1)`."
            )


class LeNet(Network):
    """A convolutional network of LeNet's size: 61,706 parameters on 28 x 28 images with biases.

    Convolution to 6 channels (5 x 5, padded), averages over 2 x 2, convolution to 16 channels
    (5 x 5), averages over 2 x 2, then dense layers of 120, 84 and `outputs` units.

    Args:
        outputs: number of outputs.
        activation: acts elementwise after each layer but the last.
        parametrization: `SP()`, `NTP()`, `MuP()`, ...: coordinates, prior and metric.
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

    outputs: int = eqx.field(static=True, default=10)
    activation: Callable[[Array], Array] = eqx.field(static=True, default=jnp.tanh)
    parametrization: Parametrization = SP()
    w_std: Any = 1.0
    b_std: Any = 1.0

    def __check_init__(self) -> None:
        _require_activation(self.activation)
        require_units(self.outputs, "outputs")

    def stages(self) -> tuple[Stage, ...]:
        """Two convolutions, two dense layers and the outputs."""

        def hidden(linear: Any, *after: Callable) -> Stage:
            return Stage(
                linear, (self.activation, *after), copies_of(self.activation, linear.units)
            )

        return (
            hidden(Conv(6, pad=True), average_pool),
            hidden(Conv(16), average_pool, flatten),
            hidden(Dense(120)),
            hidden(Dense(84)),
            Stage(Dense(self.outputs)),
        )

    def require_inputs(self, shape: tuple[int, ...]) -> None:
        """Raises DataError unless an input is an image with something left after pooling."""
        if len(shape) != 3 or min(shape[:2]) < 12 or shape[2] < 1:
            raise DataError(
                f"`x` holds inputs of shape {shape}; a LeNet takes x of shape (n, height, width, "
                "channels) with at least 12 x 12 pixels. Write gray images as `x[..., None]`."
            )


def _require_activation(activation: Any) -> None:
    if not callable(activation):
        raise NetworkError(
            f"`activation` is {activation!r}; it should be a function of arrays, such as "
            "`jnp.tanh` or `jax.nn.relu`."
        )

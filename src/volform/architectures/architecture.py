"""A dense architecture as one value, of any width: the limit, and networks as NumPyro models."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx

from volform.errors import NetworkError
from volform.networks.activations import Activation
from volform.networks.composition import Serial, serial
from volform.networks.dense import Dense
from volform.networks.network import Network
from volform.networks.parametrization import NTP, Parametrization


class Architecture(eqx.Module):
    """A multi-layer perceptron with one output, whose width is left open.

    Its prior is that of `Dense` and of `vf.networks.MLP`: weights of variance `w_std^2 / fan_in`,
    biases of variance `b_std^2`, in the last layer too.

    Args:
        depth: number of hidden layers.
        activation: of the hidden units, such as `Relu()` or `Erf()`.
        w_std: standard deviation of `W sqrt(fan_in)`; a number or a traced value.
        b_std: standard deviation of the biases; no biases if None.

    Raises:
        NetworkError: when `depth` is no positive integer or `activation` no activation, or, once
            layers are made, when a standard deviation is not positive.

    >>> import volform as vf
    >>> from volform import networks as nn
    >>> deep = vf.architectures.Architecture(depth=2, activation=nn.Erf(), w_std=1.5)
    >>> len(deep.layers(64).layers)
    5
    >>> deep.network(64).parametrization
    NTP()
    """

    depth: int = eqx.field(static=True)
    activation: Activation
    w_std: Any = 1.0
    b_std: Any = None

    def __check_init__(self) -> None:
        if not isinstance(self.depth, int) or self.depth < 1:
            raise NetworkError(
                f"`depth` is {self.depth!r}; it should be a positive integer, the number of hidden "
                "layers."
            )
        if not isinstance(self.activation, Activation):
            raise NetworkError(
                f"`activation` is {self.activation!r}; it should be one of `vf.networks`, such "
                "as `Relu()`; a function becomes one as `Elementwise(jnp.tanh)`."
            )

    @property
    def values(self) -> dict[str, Any]:
        """Standard deviations by name, `b_std` where there are biases."""
        return {"w_std": self.w_std} | ({} if self.b_std is None else {"b_std": self.b_std})

    def replace(self, values: Mapping[str, Any]) -> "Architecture":
        """The architecture with other standard deviations, as `values` has them."""
        return Architecture(self.depth, self.activation, values["w_std"], values.get("b_std"))

    def at(self, values: Mapping[str, Any]) -> Serial:
        """Layers of the limit with other standard deviations, as `values` has them."""
        return self.replace(values).layers()

    def layers(self, width: int = 1) -> Serial:
        """Layers with kernels; the limit's do not depend on `width` in `NTP` nor, of NNGP, in `SP`.

        Args:
            width: number of units of each hidden layer.
        """
        hidden = Dense(width, self.w_std, self.b_std)
        last = Dense(1, self.w_std, self.b_std)
        return serial(*(hidden, self.activation) * self.depth, last)

    def network(self, width: int, parametrization: Parametrization | None = None) -> Network:
        """The network of finite width, a function and a NumPyro model.

        Args:
            width: number of units of each hidden layer.
            parametrization: `NTP()` if left out.
        """
        return Network(self.layers(width), NTP() if parametrization is None else parametrization)

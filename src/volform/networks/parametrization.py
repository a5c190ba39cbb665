"""Parametrizations of a network's layers as values: standard, neural tangent, maximal update.

A layer computes `z = multiplier * w x` from coordinates w with the prior `Normal(0, deviation^2)`.
The law of the function is that of the weights `W = multiplier * w`; the multiplier alone is a
choice of coordinates, hence of the metric that gradient descent and the neural tangent kernel
take for granted: `|dw|^2 = |dW|^2 / multiplier^2`.
"""

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx

from volform.errors import NetworkError
from volform.geometry.metric import Euclidean


class Fans(NamedTuple):
    """Sizes of a layer that a parametrization looks at.

    Attributes:
        fan_in: number of inputs of a unit (for a convolution, channels times window).
        fan_out: number of units (for a convolution, channels).
        is_first: whether the inputs are the network's, whose number does not grow with the width.
        is_last: whether the units are the network's outputs.
    """

    fan_in: int
    fan_out: int
    is_first: bool = False
    is_last: bool = False


class Scaling(eqx.Module):
    """Rule by which one array of parameters enters a layer.

    Attributes:
        multiplier: the function's weight is `W = multiplier * w`.
        deviation: the prior of the coordinate is `w ~ Normal(0, deviation^2)`.
    """

    multiplier: Any
    deviation: Any

    @property
    def weight_deviation(self) -> Any:
        """Standard deviation of the function's weight W: all that the law of outputs sees."""
        return self.multiplier * self.deviation

    @property
    def metric(self) -> Euclidean:
        """The flat metric of w, written for W: `|dw|^2 = |dW|^2 / multiplier^2`.

        On the neural tangent coordinates it is `(fan_in / w_std^2) I`.
        """
        return Euclidean(self.multiplier)


class Parametrization(eqx.Module):
    """Rule for multipliers and priors of a layer by its fans; the flat metric goes with them.

    Two parametrizations with one `weight_deviation` are one model in two systems of coordinates,
    and have one evidence. Standard deviations `std` (`w_std` and `b_std`) belong to the network.
    """

    @abc.abstractmethod
    def weight(self, fans: Fans, std: Any) -> Scaling:
        """Scaling of the weights of a layer."""

    @abc.abstractmethod
    def bias(self, fans: Fans, std: Any) -> Scaling:
        """Scaling of the biases of a layer."""


class SP(Parametrization):
    """Standard parametrization: `z = W x + b`, `W ~ Normal(0, w_std^2 / fan_in)`.

    Its flat metric is that of the weights themselves, under which the neural tangent kernel grows
    like the width.

    >>> from volform.networks import Fans, SP
    >>> SP().weight(Fans(fan_in=4, fan_out=1), std=1.0)
    Scaling(multiplier=1.0, deviation=0.5)
    """

    def weight(self, fans: Fans, std: Any) -> Scaling:
        """`W ~ Normal(0, std^2 / fan_in)`, multiplier 1."""
        return Scaling(1.0, std / math.sqrt(fans.fan_in))

    def bias(self, fans: Fans, std: Any) -> Scaling:
        """`b ~ Normal(0, std^2)`, multiplier 1."""
        return Scaling(1.0, std)


class NTP(Parametrization):
    """Neural tangent parametrization: `z = w_std / sqrt(fan_in) w x + b_std b`.

    The coordinates w and b are Normal(0, 1).
    The same law of functions as `SP`, in coordinates whose flat metric is `(fan_in / w_std^2) I` on
    the weights W of `SP`. Under that metric the neural tangent kernel has a limit.

    References:
        Jacot, Gabriel & Hongler (2018), Neural tangent kernel, section 2.

    >>> from volform.networks import Fans, NTP
    >>> NTP().weight(Fans(fan_in=4, fan_out=1), std=1.0)
    Scaling(multiplier=0.5, deviation=1.0)
    """

    def weight(self, fans: Fans, std: Any) -> Scaling:
        """`w ~ Normal(0, 1)`, multiplier `std / sqrt(fan_in)`."""
        return Scaling(std / math.sqrt(fans.fan_in), 1.0)

    def bias(self, fans: Fans, std: Any) -> Scaling:
        """`b ~ Normal(0, 1)`, multiplier `std`."""
        return Scaling(std, 1.0)


class MuP(Parametrization):
    """Maximal update parametrization, in the coordinates whose learning rate has no width in it.

    | weights of the | multiplier | variance of W |
    |---|---|---|
    | first layer | sqrt(fan_out) | w_std^2 / fan_in |
    | layers between | 1 | w_std^2 / fan_in |
    | last layer | 1 / sqrt(fan_in) | w_std^2 / fan_in^2 |

    Biases have variance b_std^2 and the multiplier sqrt(fan_out), in the last layer 1.

    Gradient descent at rate `eta` in these coordinates is descent at rate `eta * multiplier^2` on
    the weights W, the rates of the source. A different prior from `SP`: the last layer is smaller
    by `fan_in^(-1/2)`, so that prior outputs vanish as the width grows, and with them the Gaussian
    process that `SP` and `NTP` have for a limit.

    References:
        Yang & Hu (2021), Tensor programs IV; Yang et al. (2022), Tensor programs V, table 3 (SGD).

    >>> from volform.networks import Fans, MuP
    >>> MuP().weight(Fans(fan_in=4, fan_out=1, is_last=True), std=1.0)
    Scaling(multiplier=0.5, deviation=0.5)
    """

    def weight(self, fans: Fans, std: Any) -> Scaling:
        """The table's multiplier, and the prior that gives W its variance."""
        multiplier = _update_multiplier(fans)
        last = fans.is_last and not fans.is_first
        deviation = std / (fans.fan_in if last else math.sqrt(fans.fan_in))
        return Scaling(multiplier, deviation / multiplier)

    def bias(self, fans: Fans, std: Any) -> Scaling:
        """Multiplier sqrt(fan_out), 1 for the outputs; the bias itself has variance std^2."""
        multiplier = 1.0 if fans.is_last else math.sqrt(fans.fan_out)
        return Scaling(multiplier, std / multiplier)


class ImprovedSP(Parametrization):
    """Standard parametrization at a base width, beyond which the multiplier takes over.

    `z = s^(-1/2) w x + b`, `s = fan_in / base_width`, `w ~ Normal(0, w_std^2 / base_width)`; s = 1
    in the first layer. `SP` at the base width, with a neural tangent kernel that has a limit, and
    with the same law of functions as `SP` at any width.

    Args:
        base_width: width at which it is `SP`.

    Raises:
        NetworkError: when `base_width` is not positive.

    References:
        Sohl-Dickstein, Novak, Schoenholz & Lee (2020), On the infinite width limit of neural
        networks with a standard parameterization.

    >>> from volform.networks import Fans, ImprovedSP
    >>> ImprovedSP(base_width=4).weight(Fans(fan_in=16, fan_out=1), std=1.0)
    Scaling(multiplier=0.5, deviation=0.5)
    """

    base_width: int

    def __check_init__(self) -> None:
        if not self.base_width > 0:
            raise NetworkError(
                f"`base_width` of ImprovedSP is {self.base_width}; it should be a positive number, "
                "the width at which it agrees with SP."
            )

    def weight(self, fans: Fans, std: Any) -> Scaling:
        """`w ~ Normal(0, std^2 / base_width)`, multiplier `sqrt(base_width / fan_in)`."""
        base = fans.fan_in if fans.is_first else self.base_width
        return Scaling(math.sqrt(base / fans.fan_in), std / math.sqrt(base))

    def bias(self, fans: Fans, std: Any) -> Scaling:
        """`b ~ Normal(0, std^2)`, multiplier 1."""
        return Scaling(1.0, std)


class WithPrior(Parametrization):
    """The multipliers of one parametrization with the printed prior of another.

    A different model from either. `WithPrior(NTP(), SP())` gives neural tangent coordinates the
    prior that `SP` gives its own, which is how "two functional forms with the same prior" reads:
    its weights W have variance `w_std^4 / fan_in^2`. `WithPrior(SP(), NTP())` is a network with
    the unit prior `Normal(0, 1)` on its plain weights, if `w_std = b_std = 1`.

    Args:
        form: gives the multipliers, hence the flat metric.
        prior: gives the standard deviations of the coordinates.

    Raises:
        NetworkError: when one of them is no `Parametrization`.

    References:
        Kristiadi, Dangel & Hennig (2023), section 5.1, whose map between the two is reversed.

    >>> from volform.networks import Fans, NTP, SP, WithPrior
    >>> WithPrior(NTP(), SP()).weight(Fans(fan_in=4, fan_out=1), std=1.0).weight_deviation ** 2
    0.0625
    """

    form: Parametrization
    prior: Parametrization

    def __check_init__(self) -> None:
        require_parametrization(self.form, "form")
        require_parametrization(self.prior, "prior")

    def weight(self, fans: Fans, std: Any) -> Scaling:
        """Multiplier of `form`, deviation of `prior`."""
        return _crossed(self.form.weight(fans, std), self.prior.weight(fans, std))

    def bias(self, fans: Fans, std: Any) -> Scaling:
        """Multiplier of `form`, deviation of `prior`."""
        return _crossed(self.form.bias(fans, std), self.prior.bias(fans, std))


def require_parametrization(value: Any, argument: str) -> None:
    """Raises NetworkError when `value` is no `Parametrization`."""
    if not isinstance(value, Parametrization):
        raise NetworkError(
            f"`{argument}` is {value!r}, which is no parametrization; give a value such as `SP()`, "
            "`NTP()` or `MuP()`."
        )


def _crossed(form: Scaling, prior: Scaling) -> Scaling:
    return Scaling(form.multiplier, prior.deviation)


def _update_multiplier(fans: Fans) -> float:
    # Between two hidden layers both sides grow, and Tensor Programs V leaves the rate alone.
    if not (fans.is_first or fans.is_last):
        return 1.0
    inputs = 1 if fans.is_first else fans.fan_in
    units = 1 if fans.is_last else fans.fan_out
    return math.sqrt(units / inputs)

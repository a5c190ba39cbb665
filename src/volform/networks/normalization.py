"""Layers that scale units: layer normalization, softmax, and dropout as noise under the prior."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from volform.checks import require_positive
from volform.errors import NetworkError
from volform.networks.layer import Place, Pointwise


class LayerNorm(Pointwise):
    """Each example's units, centered and divided by `sqrt(variance + eps)`; no gain, no shift.

    Behind a dense layer of infinite width the mean is 0 and the variance E[u^2], so that both
    kernels are divided by `sqrt((E[u^2] + eps) (E[v^2] + eps))`; the part of the gradient that
    moves mean and variance is of order 1 / width.

    Args:
        eps: added to the variance.

    Raises:
        NetworkError: when `eps` is not positive.

    References:
        Ba, Kiros & Hinton (2016), Layer normalization.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.Dense(64), nn.LayerNorm(), nn.Relu(), nn.Dense(1))
    >>> round(float(k.kernel(net, jnp.array([[5.0]])).nngp[0, 0]), 6)
    0.5
    """

    eps: Any = 1e-12

    def __check_init__(self) -> None:
        require_positive(self.eps, "eps", "which is added to the variance")

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: Place) -> Array:
        """`(x - mean) / sqrt(variance + eps)` over the units."""
        centered = x - jnp.mean(x, -1, keepdims=True)
        return centered / jnp.sqrt(jnp.mean(centered**2, -1, keepdims=True) + self.eps)


class Softmax(Pointwise):
    """Each example's units (the channels of a pixel) as probabilities: `exp(x) / sum(exp(x))`.

    For gates and mixtures within a network; `classification` takes logits, and has it already. It
    has no kernel in the limit of infinite width, in which all probabilities go to zero.

    >>> import jax.numpy as jnp
    >>> from volform import networks as nn
    >>> nn.Softmax().apply((), jnp.array([[0.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: Place) -> Array:
        """Probabilities over the units."""
        return jax.nn.softmax(x, -1)


class Dropout(Pointwise):
    """Units kept with probability `rate` and then divided by it, else zero, for each input anew.

    Both kernels of an input with itself are divided by `rate`; those of two inputs, with masks of
    their own, stay. `kernel(x)` counts x as one list of inputs, each with one mask; in
    `kernel(x1, x2)` no input of one list shares its mask with one of the other.

    `apply` keeps all units, as networks do after training: the kernels are those of training.

    Args:
        rate: the probability with which a unit is kept (not that of dropping it).

    Raises:
        NetworkError: when `rate` is not in (0, 1].

    References:
        Schoenholz, Gilmer, Ganguli & Sohl-Dickstein (2017), Deep information propagation,
        section 4, of covariances.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.Dense(64), nn.Relu(), nn.Dropout(0.5), nn.Dense(1))
    >>> k.kernel(net, jnp.array([[1.0], [1.0]])).nngp.tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """

    rate: Any

    def __check_init__(self) -> None:
        rate = self.rate
        if not isinstance(rate, Tracer) and not np.all((np.asarray(rate) > 0) & (rate <= 1)):
            raise NetworkError(
                f"`rate` of Dropout is {rate}; it should be above 0 and at most 1, the probability "
                "with which a unit is kept."
            )

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: Place) -> Array:
        """The inputs."""
        return x

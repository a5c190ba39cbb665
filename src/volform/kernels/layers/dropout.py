"""Dropout, as noise that the prior of functions is taken over."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from volform.errors import NetworkError
from volform.kernels.layers.layer import Pointwise
from volform.kernels.propagation.moments import Moments, root
from volform.kernels.propagation.state import KernelState, LayerContext


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
    >>> from volform import kernels as k
    >>> net = k.serial(k.Dense(64), k.Relu(), k.Dropout(0.5), k.Dense(1))
    >>> net.kernel(jnp.array([[1.0], [1.0]])).nngp.tolist()
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

    def propagate(self, state: KernelState, place: LayerContext) -> KernelState:
        """Noise added to each unit, of variance `(1 / rate - 1)` times its square."""
        same = jnp.eye(*state.ntk.shape[:2], dtype=bool) & state.is_same
        pixels = state.ntk.shape[2:]
        same = same.reshape(*same.shape, *[1] * len(pixels))
        if state.self_moments:
            same &= jnp.eye(pixels[0], dtype=bool)[None, None]
        ntk = jnp.where(same, 1 / self.rate, 1) * state.ntk
        noisy = tuple(
            self._noisy(m, jnp.eye(pixels[0], dtype=bool)[None]) for m in state.self_moments
        )
        moments = self._noisy(state.moments, same)
        return state.replace(moments=moments, ntk=ntk, self_moments=noisy, is_gaussian=False)

    def _noisy(self, moments: Moments, same: Array) -> Moments:
        cross = jnp.where(same, moments.cross, 0)
        area = jnp.where(same, moments.area, root(moments.left) * root(moments.right))
        noise = Moments(moments.left, moments.right, cross, area)
        return moments.plus(noise.times(1 / self.rate - 1))

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: LayerContext) -> Array:
        """The inputs."""
        return x

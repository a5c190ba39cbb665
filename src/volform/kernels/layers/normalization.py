"""Layer normalization."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.checks import require_positive
from volform.errors import NetworkError
from volform.kernels.layers.layer import Pointwise
from volform.kernels.propagation.moments import Moments
from volform.kernels.propagation.state import KernelState, LayerContext


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
    >>> from volform import kernels as k
    >>> net = k.serial(k.Dense(64), k.LayerNorm(), k.Relu(), k.Dense(1))
    >>> round(float(net.kernel(jnp.array([[5.0]])).nngp[0, 0]), 6)
    0.5
    """

    eps: Any = 1e-12

    def __check_init__(self) -> None:
        require_positive(self.eps, "eps", "which is added to the variance")

    def propagate(self, state: KernelState, place: LayerContext) -> KernelState:
        """Both kernels divided by the standard deviations."""
        if not state.is_gaussian:
            raise NetworkError(
                "`LayerNorm()` follows values that are not Gaussian (the inputs, or an "
                "activation), whose mean does not vanish; put a `Dense(width)` before it."
            )
        ends = state.moments.left + self.eps, state.moments.right + self.eps
        ntk = state.ntk / (jnp.sqrt(ends[0]) * jnp.sqrt(ends[1]))
        return state.map(self._scaled).replace(ntk=ntk)

    def _scaled(self, moments: Moments) -> Moments:
        left, right = moments.left + self.eps, moments.right + self.eps
        size = jnp.sqrt(left) * jnp.sqrt(right)
        pairs = moments.cross / size, moments.area / size
        return Moments(moments.left / left, moments.right / right, *pairs)

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: LayerContext) -> Array:
        """`(x - mean) / sqrt(variance + eps)` over the units."""
        centered = x - jnp.mean(x, -1, keepdims=True)
        return centered / jnp.sqrt(jnp.mean(centered**2, -1, keepdims=True) + self.eps)

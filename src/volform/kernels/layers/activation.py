"""Activations in general: Gaussian inputs, and kernels by expectations."""

import abc

from jaxtyping import Array, Float

from volform.errors import NetworkError
from volform.kernels.layers.layer import Pointwise
from volform.kernels.propagation.moments import Moments, of_one, of_products
from volform.kernels.propagation.state import KernelState, LayerContext


class Activation(Pointwise):
    """A function f of each unit by itself.

    To define your own in closed form, write `__call__`, `covariance` and `slope_covariance`; the
    last is the derivative of the one before with respect to `E[u v]` (Price's theorem).
    `Elementwise` does the same for any function by quadrature.
    """

    @abc.abstractmethod
    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`f(u)`."""

    @abc.abstractmethod
    def covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`E[f(u) f(v)]` for centered Gaussian (u, v) of these moments."""

    @abc.abstractmethod
    def slope_covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`E[f'(u) f'(v)]` for centered Gaussian (u, v) of these moments."""

    def images(self, moments: Moments) -> Moments:
        """The moments of (f(u), f(v)).

        The area is a difference: an angle below 1e-7 (in float32, 1e-3) is known to that accuracy
        only, except that inputs which coincide exactly keep doing so, as do those that differ by a
        sign if f is odd or even.
        """
        left = self.covariance(of_one(moments.left))
        right = self.covariance(of_one(moments.right))
        return of_products(left, right, self.covariance(moments), moments.is_parallel)

    def propagate(self, state: KernelState, place: LayerContext) -> KernelState:
        """`(E[f(u) f(v)], T E[f'(u) f'(v)])`."""
        if not state.is_gaussian:
            raise NetworkError(
                f"`{type(self).__name__}()` follows values that are not Gaussian (the inputs, or "
                "another activation), of which there is no such kernel; put a `Dense(width)` "
                "or a `Conv` before it."
            )
        ntk = state.ntk * self.slope_covariance(state.moments)
        return state.map(self.images).replace(ntk=ntk, is_gaussian=False)

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: LayerContext) -> Array:
        """f of each entry."""
        return self(x)

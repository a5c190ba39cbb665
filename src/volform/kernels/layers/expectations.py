"""Kernels of activations: expectations over Gaussian inputs."""

from functools import singledispatch

from jaxtyping import Array, Float

from volform.errors import NetworkError
from volform.kernels.layers.rules import no_kernel, propagate
from volform.kernels.propagation.moments import Moments, of_one, of_products
from volform.kernels.propagation.state import KernelState, LayerContext
from volform.networks.activations import Activation


@singledispatch
def covariance(f: Activation, moments: Moments) -> Float[Array, "n1 n2"]:
    """Covariance `E[f(u) f(v)]` for centered Gaussian (u, v).

    To give an activation of your own its kernels, register this and `slope_covariance`, its
    derivative with respect to `E[u v]` (Price's theorem).

    Args:
        f: the activation.
        moments: second moments of (u, v).

    Raises:
        NetworkError: for an activation without a rule.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> class Double(nn.Activation):
    ...     def __call__(self, u):
    ...         return 2.0 * u
    >>> @k.covariance.register
    ... def _(f: Double, moments: k.Moments):
    ...     return 4.0 * moments.cross
    >>> @k.slope_covariance.register
    ... def _(f: Double, moments: k.Moments):
    ...     return 4.0 * jnp.ones_like(moments.cross)
    >>> k.kernel(nn.serial(nn.Dense(8), Double(), nn.Dense(1)), jnp.ones((1, 1))).nngp.tolist()
    [[4.0]]
    """
    raise no_kernel(f)


@singledispatch
def slope_covariance(f: Activation, moments: Moments) -> Float[Array, "n1 n2"]:
    """Covariance of slopes, `E[f'(u) f'(v)]`, for centered Gaussian (u, v).

    Args:
        f: the activation.
        moments: second moments of (u, v).

    Raises:
        NetworkError: for an activation without a rule.
    """
    raise no_kernel(f)


@singledispatch
def image_moments(f: Activation, moments: Moments) -> Moments:
    """The moments of (f(u), f(v)).

    The area is a difference: an angle below 1e-7 (in float32, 1e-3) is known to that accuracy
    only, except that inputs which coincide exactly keep doing so, as do those that differ by a
    sign if f is odd or even.
    """
    left = covariance(f, of_one(moments.left))
    right = covariance(f, of_one(moments.right))
    return of_products(left, right, covariance(f, moments), moments.is_parallel)


@propagate.register
def _(layer: Activation, state: KernelState, context: LayerContext) -> KernelState:
    if not state.is_gaussian:
        raise NetworkError(
            f"`{type(layer).__name__}()` follows values that are not Gaussian (the inputs, or "
            "another activation), of which there is no such kernel; put a `Dense(width)` "
            "or a `Conv` before it."
        )
    ntk = state.ntk * slope_covariance(layer, state.moments)
    moved = state.map(lambda moments: image_moments(layer, moments))
    return moved.replace(ntk=ntk, is_gaussian=False)

"""Kernels of smooth activations in closed form.

Throughout, (u, v) is centered Gaussian with E[u^2] = a, E[v^2] = b, E[u v] = c, A^2 = a b - c^2.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.kernels.layers.expectations import covariance, slope_covariance
from volform.kernels.propagation.moments import Moments
from volform.networks.activations import Erf, Exp, Gaussian, Gelu, Rbf, Wave


@covariance.register
def _(f: Erf, moments: Moments) -> Float[Array, "n1 n2"]:
    return 2 / jnp.pi * jnp.arctan2(2 * moments.cross, jnp.sqrt(_det(moments, 2.0)))


@slope_covariance.register
def _(f: Erf, moments: Moments) -> Float[Array, "n1 n2"]:
    return 4 / jnp.pi / jnp.sqrt(_det(moments, 2.0))


@covariance.register
def _(f: Gelu, moments: Moments) -> Float[Array, "n1 n2"]:
    both, density, spread, _ = _normal_terms(moments)
    c = moments.cross
    return c * both + density * (moments.area**2 + c**2 * spread)


@slope_covariance.register
def _(f: Gelu, moments: Moments) -> Float[Array, "n1 n2"]:
    both, density, spread, det = _normal_terms(moments)
    return both + moments.cross * density * (spread + 1 / det)


@covariance.register
def _(f: Wave, moments: Moments) -> Float[Array, "n1 n2"]:
    return _cosines(moments) if f.is_even else _sines(moments)


@slope_covariance.register
def _(f: Wave, moments: Moments) -> Float[Array, "n1 n2"]:
    return _sines(moments) if f.is_even else _cosines(moments)


@covariance.register
def _(f: Rbf, moments: Moments) -> Float[Array, "n1 n2"]:
    return jnp.exp(-f.gamma * moments.distance)


@slope_covariance.register
def _(f: Rbf, moments: Moments) -> Float[Array, "n1 n2"]:
    return 2 * f.gamma * covariance(f, moments)


@covariance.register
def _(f: Gaussian, moments: Moments) -> Float[Array, "n1 n2"]:
    return 1 / jnp.sqrt(_det(moments, 2.0))


@slope_covariance.register
def _(f: Gaussian, moments: Moments) -> Float[Array, "n1 n2"]:
    det = _det(moments, 2.0)
    return 4 * moments.cross / (det * jnp.sqrt(det))


@covariance.register
def _(f: Exp, moments: Moments) -> Float[Array, "n1 n2"]:
    return jnp.exp((moments.left + moments.right) / 2 + moments.cross)


@slope_covariance.register
def _(f: Exp, moments: Moments) -> Float[Array, "n1 n2"]:
    return covariance(f, moments)


def _det(moments: Moments, factor: float) -> Float[Array, "n1 n2"]:
    """`det(I + factor S)`, S the covariance of (u, v): a sum of nonnegative terms."""
    return 1 + factor * (moments.left + moments.right) + (factor * moments.area) ** 2


def _normal_terms(moments: Moments) -> tuple[Array, Array, Array, Array]:
    det = _det(moments, 1.0)
    both = 0.25 + jnp.arctan2(moments.cross, jnp.sqrt(det)) / (2 * jnp.pi)
    spread = 1 / (1 + moments.left) + 1 / (1 + moments.right)
    return both, 1 / (2 * jnp.pi * jnp.sqrt(det)), spread, det


def _sines(moments: Moments) -> Float[Array, "n1 n2"]:
    # With |c| in the exponent neither factor overflows; (a + b)/2 - |c| is half a distance.
    c = moments.cross
    is_positive = c >= 0
    near = jnp.where(is_positive, c, -c)
    close = moments._replace(cross=near).distance / 2
    size = -jnp.exp(-close) * jnp.expm1(-2 * near) / 2
    return jnp.where(is_positive, size, -size)


def _cosines(moments: Moments) -> Float[Array, "n1 n2"]:
    across = moments._replace(cross=-moments.cross)
    return (jnp.exp(-moments.distance / 2) + jnp.exp(-across.distance / 2)) / 2

"""Smooth activations with kernels in closed form.

Throughout, (u, v) is centered Gaussian with E[u^2] = a, E[v^2] = b, E[u v] = c, A^2 = a b - c^2.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.special import erf
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from volform.checks import require_positive
from volform.kernels.layers.activation import Activation
from volform.kernels.propagation.moments import Moments


class Erf(Activation):
    """The error function: `E[f f] = 2/pi atan(2 c / sqrt(1 + 2 a + 2 b + 4 A^2))`.

    `E[f' f'] = 4/pi / sqrt(1 + 2 a + 2 b + 4 A^2)`.

    References:
        Williams (1997), Computing with infinite networks, Eq. (11).

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> net = k.serial(k.Dense(64), k.Erf(), k.Dense(1))
    >>> round(float(net.kernel(jnp.ones((1, 1))).nngp[0, 0]), 6)
    0.464559
    """

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`erf(u)`."""
        return erf(u)

    def covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`2/pi atan(2 c / sqrt(1 + 2 a + 2 b + 4 A^2))`."""
        return 2 / jnp.pi * jnp.arctan2(2 * moments.cross, jnp.sqrt(_det(moments, 2.0)))

    def slope_covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`4/pi / sqrt(1 + 2 a + 2 b + 4 A^2)`."""
        return 4 / jnp.pi / jnp.sqrt(_det(moments, 2.0))


class Gelu(Activation):
    """`f(u) = u Phi(u)`, Phi the distribution function of Normal(0, 1).

    With `d = 1 + a + b + A^2`, `P = 1 / (2 pi sqrt(d))`, `s = 1/(1 + a) + 1/(1 + b)` and
    `F = 1/4 + atan(c / sqrt(d)) / (2 pi)`, which are `E[Phi'(u) Phi'(v)]` and `E[Phi(u) Phi(v)]`,
    integration by parts gives `E[f f] = c F + P (A^2 + c^2 s)` and
    `E[f' f'] = F + c P (s + 1/d)`.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> net = k.serial(k.Dense(64), k.Gelu(), k.Dense(1))
    >>> round(float(net.kernel(jnp.ones((1, 1))).nngp[0, 0]), 6)
    0.425222
    """

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`u Phi(u)`."""
        return u * norm.cdf(u)

    def covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`c F + P (A^2 + c^2 s)`."""
        both, density, spread, _ = _normal_terms(moments)
        c = moments.cross
        return c * both + density * (moments.area**2 + c**2 * spread)

    def slope_covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`F + c P (s + 1/d)`."""
        both, density, spread, det = _normal_terms(moments)
        return both + moments.cross * density * (spread + 1 / det)


class Wave(Activation):
    """The sine or the cosine; built by `Sin()` and `Cos()`."""

    is_even: bool = eqx.field(static=True)

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`sin(u)` or `cos(u)`."""
        return jnp.cos(u) if self.is_even else jnp.sin(u)

    def covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`exp(-(a + b)/2) sinh(c)` of the sine, cosh(c) of the cosine."""
        return _cosines(moments) if self.is_even else _sines(moments)

    def slope_covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`exp(-(a + b)/2) cosh(c)` of the sine, sinh(c) of the cosine."""
        return _sines(moments) if self.is_even else _cosines(moments)


class Rbf(Activation):
    """`f(u) = sqrt(2) sin(sqrt(2 gamma) u + pi/4)`: `E[f f] = exp(-gamma E[(u - v)^2])`.

    Behind a first dense layer this is the squared-exponential kernel of the inputs.

    Args:
        gamma: inverse square of a length; a number or a traced value.

    Raises:
        NetworkError: when `gamma` is not positive.

    References:
        Rahimi & Recht (2007), Random features for large-scale kernel machines.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> net = k.serial(k.Dense(64), k.Rbf(0.5), k.Dense(1))
    >>> round(float(net.kernel(jnp.zeros((1, 1)), jnp.ones((1, 1))).nngp[0, 0]), 6)
    0.606531
    """

    gamma: Any = 1.0

    def __check_init__(self) -> None:
        require_positive(self.gamma, "gamma", "the inverse square of a length")

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`sqrt(2) sin(sqrt(2 gamma) u + pi/4)`."""
        return jnp.sqrt(2) * jnp.sin((2 * self.gamma) ** 0.5 * u + jnp.pi / 4)

    def covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`exp(-gamma E[(u - v)^2])`."""
        return jnp.exp(-self.gamma * moments.distance)

    def slope_covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`2 gamma exp(-gamma E[(u - v)^2])`."""
        return 2 * self.gamma * self.covariance(moments)


class Gaussian(Activation):
    """`f(u) = exp(-u^2)`: with `d = 1 + 2 a + 2 b + 4 A^2`, `E[f f] = d^(-1/2)`.

    `E[f' f'] = 4 c d^(-3/2)`.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> k.Gaussian()(jnp.zeros(1)).tolist()
    [1.0]
    """

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`exp(-u^2)`."""
        return jnp.exp(-(u**2))

    def covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`d^(-1/2)`."""
        return 1 / jnp.sqrt(_det(moments, 2.0))

    def slope_covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`4 c d^(-3/2)`."""
        det = _det(moments, 2.0)
        return 4 * moments.cross / (det * jnp.sqrt(det))


class Exp(Activation):
    """The exponential: `E[f f] = E[f' f'] = exp((a + b)/2 + c)`.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> k.Exp()(jnp.zeros(1)).tolist()
    [1.0]
    """

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`exp(u)`."""
        return jnp.exp(u)

    def covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`exp((a + b)/2 + c)`."""
        return jnp.exp((moments.left + moments.right) / 2 + moments.cross)

    def slope_covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`exp((a + b)/2 + c)`."""
        return self.covariance(moments)


def Sin() -> Wave:
    """The sine: `E[f f] = exp(-(a + b)/2) sinh(c)`, `E[f' f'] = exp(-(a + b)/2) cosh(c)`.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> k.Sin()(jnp.zeros(1)).tolist()
    [0.0]
    """
    return Wave(is_even=False)


def Cos() -> Wave:
    """The cosine: `E[f f] = exp(-(a + b)/2) cosh(c)`, `E[f' f'] = exp(-(a + b)/2) sinh(c)`.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> k.Cos()(jnp.zeros(1)).tolist()
    [1.0]
    """
    return Wave(is_even=True)


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

"""Activations: functions of each unit by itself."""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.special import erf
from jax.scipy.stats import norm
from jaxtyping import Array, Float
from numpy.polynomial import hermite_e

from volform.checks import require_positive
from volform.errors import NetworkError
from volform.networks.layer import Place, Pointwise


class Activation(Pointwise):
    """A function f of each unit by itself: write `__call__`.

    To give one of your own its kernels in closed form, register them with
    `volform.kernels.covariance` and `volform.kernels.slope_covariance`; `Elementwise` has them by
    quadrature, of any function.
    """

    @abc.abstractmethod
    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`f(u)`."""

    def forward(self, params: tuple[()], x: Float[Array, "n ..."], place: Place) -> Array:
        """f of each entry."""
        return self(x)


class ABRelu(Activation):
    """`f(u) = a min(u, 0) + b max(u, 0)`.

    With t the angle, p = pi - t, A the area and c the cross-moment of (u, v),
    `E[f f] = ((b - a)^2 (A - t c) + (a^2 + b^2) pi c) / (2 pi)` and
    `E[f' f'] = ((a^2 + b^2) p + 2 a b t) / (2 pi)`: exact at parallel, antiparallel,
    orthogonal and zero inputs, where f'(0) counts as the mean of a and b.

    Args:
        a: slope for negative values.
        b: slope for positive values.

    References:
        Cho & Saul (2009), Kernel methods for deep learning, Eq. (6).

    >>> import jax.numpy as jnp
    >>> from volform import networks as nn
    >>> nn.ABRelu(-1.0, 1.0)(jnp.array([-2.0, 3.0])).tolist()
    [2.0, 3.0]
    """

    a: Any
    b: Any

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`a min(u, 0) + b max(u, 0)`."""
        return self.a * jnp.minimum(u, 0) + self.b * jnp.maximum(u, 0)


class Sign(Activation):
    """`f(u) = sign(u)`: `E[f f] = 1 - 2 t / pi`, t the angle of (u, v).

    Its derivative is zero almost everywhere, so that no gradient passes and the neural tangent
    kernel is that of the layers behind it.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.Dense(64), nn.Sign(), nn.Dense(1))
    >>> k.kernel(net, jnp.eye(2)).nngp.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`sign(u)`."""
        return jnp.sign(u)


class RectifiedMonomial(Activation):
    """`f(u) = u^degree` for u > 0, else 0; degree 0 is the step function, 1 is Relu.

    Args:
        degree: 0, 1, 2 or 3.

    Raises:
        NetworkError: for any other degree.

    References:
        Cho & Saul (2009), Eqs. (4) to (7).

    >>> import jax.numpy as jnp
    >>> from volform import networks as nn
    >>> nn.RectifiedMonomial(2)(jnp.array([-2.0, 3.0])).tolist()
    [0.0, 9.0]
    """

    degree: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if self.degree not in range(4):
            raise NetworkError(
                f"`degree` of RectifiedMonomial is {self.degree!r}; closed forms are here for 0, "
                "1, 2 and 3: write others as `Elementwise(lambda u: jnp.maximum(u, 0) ** degree)`."
            )

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`u^degree` for u > 0, else 0."""
        return jnp.where(u > 0, u**self.degree, 0)


def Relu() -> ABRelu:
    """`max(u, 0)`."""
    return ABRelu(0.0, 1.0)


def LeakyRelu(slope: Any = 0.01) -> ABRelu:
    """`max(u, 0) + slope min(u, 0)`."""
    return ABRelu(slope, 1.0)


def Abs() -> ABRelu:
    """`|u|`."""
    return ABRelu(-1.0, 1.0)


class Erf(Activation):
    """The error function: `E[f f] = 2/pi atan(2 c / sqrt(1 + 2 a + 2 b + 4 A^2))`.

    `E[f' f'] = 4/pi / sqrt(1 + 2 a + 2 b + 4 A^2)`.

    References:
        Williams (1997), Computing with infinite networks, Eq. (11).

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.Dense(64), nn.Erf(), nn.Dense(1))
    >>> round(float(k.kernel(net, jnp.ones((1, 1))).nngp[0, 0]), 6)
    0.464559
    """

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`erf(u)`."""
        return erf(u)


class Gelu(Activation):
    """`f(u) = u Phi(u)`, Phi the distribution function of Normal(0, 1).

    With `d = 1 + a + b + A^2`, `P = 1 / (2 pi sqrt(d))`, `s = 1/(1 + a) + 1/(1 + b)` and
    `F = 1/4 + atan(c / sqrt(d)) / (2 pi)`, which are `E[Phi'(u) Phi'(v)]` and `E[Phi(u) Phi(v)]`,
    integration by parts gives `E[f f] = c F + P (A^2 + c^2 s)` and
    `E[f' f'] = F + c P (s + 1/d)`.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.Dense(64), nn.Gelu(), nn.Dense(1))
    >>> round(float(k.kernel(net, jnp.ones((1, 1))).nngp[0, 0]), 6)
    0.425222
    """

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`u Phi(u)`."""
        return u * norm.cdf(u)


class Wave(Activation):
    """The sine or the cosine; built by `Sin()` and `Cos()`."""

    is_even: bool = eqx.field(static=True)

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`sin(u)` or `cos(u)`."""
        return jnp.cos(u) if self.is_even else jnp.sin(u)


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
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.Dense(64), nn.Rbf(0.5), nn.Dense(1))
    >>> round(float(k.kernel(net, jnp.zeros((1, 1)), jnp.ones((1, 1))).nngp[0, 0]), 6)
    0.606531
    """

    gamma: Any = 1.0

    def __check_init__(self) -> None:
        require_positive(self.gamma, "gamma", "the inverse square of a length")

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`sqrt(2) sin(sqrt(2 gamma) u + pi/4)`."""
        return jnp.sqrt(2) * jnp.sin((2 * self.gamma) ** 0.5 * u + jnp.pi / 4)


class Gaussian(Activation):
    """`f(u) = exp(-u^2)`: with `d = 1 + 2 a + 2 b + 4 A^2`, `E[f f] = d^(-1/2)`.

    `E[f' f'] = 4 c d^(-3/2)`.

    >>> import jax.numpy as jnp
    >>> from volform import networks as nn
    >>> nn.Gaussian()(jnp.zeros(1)).tolist()
    [1.0]
    """

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`exp(-u^2)`."""
        return jnp.exp(-(u**2))


class Exp(Activation):
    """The exponential: `E[f f] = E[f' f'] = exp((a + b)/2 + c)`.

    >>> import jax.numpy as jnp
    >>> from volform import networks as nn
    >>> nn.Exp()(jnp.zeros(1)).tolist()
    [1.0]
    """

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`exp(u)`."""
        return jnp.exp(u)


def Sin() -> Wave:
    """The sine: `E[f f] = exp(-(a + b)/2) sinh(c)`, `E[f' f'] = exp(-(a + b)/2) cosh(c)`.

    >>> import jax.numpy as jnp
    >>> from volform import networks as nn
    >>> nn.Sin()(jnp.zeros(1)).tolist()
    [0.0]
    """
    return Wave(is_even=False)


def Cos() -> Wave:
    """The cosine: `E[f f] = exp(-(a + b)/2) cosh(c)`, `E[f' f'] = exp(-(a + b)/2) sinh(c)`.

    >>> import jax.numpy as jnp
    >>> from volform import networks as nn
    >>> nn.Cos()(jnp.zeros(1)).tolist()
    [1.0]
    """
    return Wave(is_even=True)


class Polynomial(Activation):
    """`f(u) = sum_p coefficients[p] u^p`: `E[f f] = sum_k c^k / k! E[f^(k)(u)] E[f^(k)(v)]`.

    c is E[u v], and `E[u^2j] = (2j - 1)!! E[u^2]^j`. Exact.

    Args:
        coefficients: real numbers, constant term first.

    Raises:
        NetworkError: when there is none, or one is not finite.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.Dense(64), nn.Polynomial((0.0, 0.0, 1.0)), nn.Dense(1))
    >>> k.kernel(net, jnp.ones((1, 1))).nngp.tolist()
    [[3.0]]
    """

    coefficients: tuple[float, ...] = eqx.field(
        static=True, converter=lambda values: tuple(float(value) for value in values)
    )

    def __check_init__(self) -> None:
        if not self.coefficients or not all(math.isfinite(c) for c in self.coefficients):
            raise NetworkError(
                f"`coefficients` of Polynomial are {self.coefficients}; give finite real numbers, "
                "the constant term first: (0.0, 0.0, 1.0) is the square."
            )

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """The polynomial, by Horner's rule."""
        return jnp.polyval(jnp.asarray(self.coefficients[::-1], u.dtype), u)


class Elementwise(Activation):
    """Any function of one variable, its kernels by Gauss-Hermite quadrature.

    The Hermite coefficients of `f(sqrt(a) z)` and of f' below `order` come from 4 `order` nodes (at
    most 256). The kernels are positive semidefinite and symmetric whatever the order. The error
    falls geometrically in sqrt(order) for an analytic f (tanh, softplus, swish), the slower the
    larger the variance, and only like a power of the order for one with kinks. `error` estimates
    it.

    Cost: 4 order^2 for each input, order for each pair.

    Args:
        function: acts elementwise on arrays and is differentiable by JAX.
        order: number of Hermite coefficients.

    Raises:
        NetworkError: when `function` cannot be called, or `order` is not from 1 to 128.

    >>> import jax, jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.Dense(64), nn.Elementwise(jnp.tanh), nn.Dense(1))
    >>> round(float(k.kernel(net, jnp.ones((1, 1))).nngp[0, 0]), 6)
    0.394294
    """

    function: Callable[[Any], Any] = eqx.field(static=True)
    order: int = eqx.field(static=True, default=64)

    def __check_init__(self) -> None:
        if not callable(self.function):
            raise NetworkError(
                f"`function` of Elementwise is {self.function!r}; it should be a function of one "
                "array such as `jnp.tanh`."
            )
        if not isinstance(self.order, int) or not 1 <= self.order <= 128:
            raise NetworkError(
                f"`order` of Elementwise is {self.order!r}; it should be an integer from 1 to 128, "
                "beyond which the nodes of the quadrature are not exact."
            )

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`function(u)`."""
        return self.function(u)


def Monomial(degree: int) -> Polynomial:
    """`u^degree`."""
    _require_degree(degree)
    return Polynomial((0.0,) * degree + (1.0,))


def Hermite(degree: int) -> Polynomial:
    """The Hermite polynomial of this degree, of unit variance under Normal(0, 1)."""
    _require_degree(degree)
    basis = [0.0] * degree + [1.0]
    return Polynomial(hermite_e.herme2poly(basis) / math.sqrt(math.factorial(degree)))


def _require_degree(degree: int) -> None:
    if not isinstance(degree, int) or degree < 0:
        raise NetworkError(
            f"`degree` is {degree!r}; it should be an integer from 0 on, the power of the leading "
            "term."
        )

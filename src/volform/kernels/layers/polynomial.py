"""Activations by their Hermite coefficients: polynomials exactly, any function by quadrature.

For centered Gaussian (u, v) with correlation r, `E[f(u) f(v)] = sum_k f_k(a) f_k(b) r^k`, with
f_k(a) the coefficients of f(sqrt(a) z) in the orthonormal Hermite polynomials of z (Mehler). Each
term is positive semidefinite and symmetric, and so is every truncated sum.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import hermite_e, polynomial

from volform.errors import NetworkError
from volform.kernels.layers.activation import Activation
from volform.kernels.propagation.moments import Moments, ratio, root

MAX_NODES = 256  # numpy's weights overflow not far above


class Polynomial(Activation):
    """`f(u) = sum_p coefficients[p] u^p`: `E[f f] = sum_k c^k / k! E[f^(k)(u)] E[f^(k)(v)]`.

    c is E[u v], and `E[u^2j] = (2j - 1)!! E[u^2]^j`. Exact.

    Args:
        coefficients: real numbers, constant term first.

    Raises:
        NetworkError: when there is none, or one is not finite.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> net = k.serial(k.Dense(64), k.Polynomial((0.0, 0.0, 1.0)), k.Dense(1))
    >>> net.kernel(jnp.ones((1, 1))).nngp.tolist()
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

    def covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`sum_k c^k / k! E[f^(k)(u)] E[f^(k)(v)]`."""
        return _mean_product(np.array(self.coefficients), moments)

    def slope_covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """The same for the derivative."""
        return _mean_product(polynomial.polyder(self.coefficients), moments)


def Monomial(degree: int) -> Polynomial:
    """`u^degree`."""
    _require_degree(degree)
    return Polynomial((0.0,) * degree + (1.0,))


def Hermite(degree: int) -> Polynomial:
    """The Hermite polynomial of this degree, of unit variance under Normal(0, 1)."""
    _require_degree(degree)
    basis = [0.0] * degree + [1.0]
    return Polynomial(hermite_e.herme2poly(basis) / math.sqrt(math.factorial(degree)))


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
    >>> from volform import kernels as k
    >>> net = k.serial(k.Dense(64), k.Elementwise(jnp.tanh), k.Dense(1))
    >>> round(float(net.kernel(jnp.ones((1, 1))).nngp[0, 0]), 6)
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

    def covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`sum_k f_k(a) f_k(b) r^k` over k < order."""
        return self._series(self.function, moments)

    def slope_covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """The same for f'."""
        return self._series(self._slope, moments)

    def error(self, variance: Float[Array, "..."]) -> tuple[Array, Array]:
        """Estimated errors of E[f f] and E[f' f'] at inputs of this variance, absolute.

        The sum of f_k^2 over the order <= k < 2 order that are left out: by Cauchy's inequality it
        bounds what they would add at any correlation. What lies beyond 2 order is not seen, which
        counts where the estimate is not small.

        Args:
            variance: variances E[u^2] in front of the activation, any shape.

        Returns:
            Estimates for both kernels, in the shape of `variance`.

        >>> import jax.numpy as jnp
        >>> from volform import kernels as k
        >>> value, slope = k.Elementwise(jnp.tanh, order=8).error(jnp.array(1.0))
        >>> bool(1e-8 < value < 1e-3)
        True
        """
        tails = [
            jnp.sum(self._coefficients(f, variance, 2 * self.order)[..., self.order :] ** 2, -1)
            for f in (self.function, self._slope)
        ]
        return tails[0], tails[1]

    def _slope(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.jvp(self.function, (u,), (jnp.ones_like(u),))[1]

    def _series(self, f: Callable[[Any], Any], moments: Moments) -> Float[Array, "..."]:
        cosine = ratio(moments.cross, moments.scale)
        left = self._coefficients(f, moments.left, self.order)
        right = self._coefficients(f, moments.right, self.order)
        return _mehler(cosine, left, right)

    def _coefficients(
        self, f: Callable[[Any], Any], variance: Float[Array, "..."], terms: int
    ) -> Float[Array, "... terms"]:
        nodes, basis = _rule(min(4 * self.order, MAX_NODES))
        nodes = jnp.expand_dims(jnp.asarray(nodes, variance.dtype), range(variance.ndim))
        values = f(root(variance)[..., None] * nodes)
        return values @ jnp.asarray(basis[:, :terms], variance.dtype)


@jax.jit  # or the loop would be compiled anew in every call
def _mehler(
    cosine: Float[Array, "..."], left: Float[Array, "... terms"], right: Float[Array, "... terms"]
) -> Float[Array, "..."]:
    """`sum_k left[k] right[k] cosine^k`, by Horner's rule."""

    def horner(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        return total * cosine + pair[0] * pair[1], None

    pairs = jnp.moveaxis(left, -1, 0)[::-1], jnp.moveaxis(right, -1, 0)[::-1]
    return jax.lax.scan(horner, jnp.zeros_like(cosine), pairs)[0]


@lru_cache
def _rule(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes z of Gauss-Hermite quadrature, and weights times orthonormal polynomials, (z, k)."""
    nodes, weights = hermite_e.hermegauss(size)
    basis = [np.ones(size), nodes]
    for k in range(1, size):
        basis.append((nodes * basis[k] - math.sqrt(k) * basis[k - 1]) / math.sqrt(k + 1))
    return nodes, (weights / math.sqrt(2 * math.pi))[:, None] * np.stack(basis[:size], 1)


def _mean_product(coefficients: np.ndarray, moments: Moments) -> Float[Array, "n1 n2"]:
    total = jnp.zeros_like(moments.cross)
    for k in range(len(coefficients)):
        derivative = polynomial.polyder(coefficients, k)
        term = _gaussian_mean(derivative, moments.left) * _gaussian_mean(derivative, moments.right)
        total += moments.cross**k / math.factorial(k) * term
    return total


def _gaussian_mean(coefficients: np.ndarray, variance: Float[Array, "..."]) -> Float[Array, "..."]:
    factors = [math.prod(range(2 * j - 1, 0, -2)) for j in range(len(coefficients[::2]))]
    even = (np.asarray(coefficients[::2]) * np.array(factors, float))[::-1]
    return jnp.polyval(jnp.asarray(even, variance.dtype), variance)


def _require_degree(degree: int) -> None:
    if not isinstance(degree, int) or degree < 0:
        raise NetworkError(
            f"`degree` is {degree!r}; it should be an integer from 0 on, the power of the leading "
            "term."
        )

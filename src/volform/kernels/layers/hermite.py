"""Kernels by Hermite coefficients: of polynomials exactly, of any function by quadrature.

For centered Gaussian (u, v) with correlation r, `E[f(u) f(v)] = sum_k f_k(a) f_k(b) r^k`, with
f_k(a) the coefficients of f(sqrt(a) z) in the orthonormal Hermite polynomials of z (Mehler). Each
term is positive semidefinite and symmetric, and so is every truncated sum.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import hermite_e, polynomial

from volform.kernels.layers.expectations import covariance, slope_covariance
from volform.kernels.propagation.moments import Moments, ratio, root
from volform.networks.activations import Elementwise, Polynomial

MAX_NODES = 256  # numpy's weights overflow not far above


@covariance.register
def _(f: Polynomial, moments: Moments) -> Float[Array, "n1 n2"]:
    return _mean_product(np.array(f.coefficients), moments)


@slope_covariance.register
def _(f: Polynomial, moments: Moments) -> Float[Array, "n1 n2"]:
    return _mean_product(polynomial.polyder(f.coefficients), moments)


@covariance.register
def _(f: Elementwise, moments: Moments) -> Float[Array, "n1 n2"]:
    return _series(f.function, f.order, moments)


@slope_covariance.register
def _(f: Elementwise, moments: Moments) -> Float[Array, "n1 n2"]:
    return _series(partial(_slope, f.function), f.order, moments)


def quadrature_error(
    f: Elementwise, variance: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Estimated errors of E[f f] and E[f' f'] at inputs of this variance, absolute.

    The sum of f_k^2 over the order <= k < 2 order that are left out: by Cauchy's inequality it
    bounds what they would add at any correlation. What lies beyond 2 order is not seen, which
    counts where the estimate is not small.

    Args:
        f: the activation.
        variance: variances E[u^2] in front of it, any shape.

    Returns:
        Estimates for both kernels, in the shape of `variance`.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> value, slope = k.quadrature_error(nn.Elementwise(jnp.tanh, order=8), jnp.array(1.0))
    >>> bool(1e-8 < value < 1e-3)
    True
    """
    tails = [
        jnp.sum(_coefficients(g, f.order, variance, 2 * f.order)[..., f.order :] ** 2, -1)
        for g in (f.function, partial(_slope, f.function))
    ]
    return tails[0], tails[1]


def _slope(f: Callable[[Any], Any], u: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.jvp(f, (u,), (jnp.ones_like(u),))[1]


def _series(f: Callable[[Any], Any], order: int, moments: Moments) -> Float[Array, "..."]:
    cosine = ratio(moments.cross, moments.scale)
    left = _coefficients(f, order, moments.left, order)
    right = _coefficients(f, order, moments.right, order)
    return _mehler(cosine, left, right)


def _coefficients(
    f: Callable[[Any], Any], order: int, variance: Float[Array, "..."], terms: int
) -> Float[Array, "... terms"]:
    nodes, basis = _rule(min(4 * order, MAX_NODES))
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

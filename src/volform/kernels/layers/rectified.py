"""Kernels of activations that are powers on each side of zero, by the angle of two inputs."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.kernels.layers.expectations import covariance, image_moments, slope_covariance
from volform.kernels.propagation.moments import Moments, root
from volform.networks.activations import ABRelu, RectifiedMonomial, Sign


@covariance.register
def _(f: ABRelu, moments: Moments) -> Float[Array, "n1 n2"]:
    return _bent(f, moments, moments.area - moments.angle * moments.cross)


@slope_covariance.register
def _(f: ABRelu, moments: Moments) -> Float[Array, "n1 n2"]:
    t, p = moments.angles
    return ((f.a**2 + f.b**2) * p + 2 * f.a * f.b * t) / (2 * jnp.pi)


@image_moments.register
def _(f: ABRelu, moments: Moments) -> Moments:
    # The area too is exact at either end of the angle. Let r = (b - a)^2 / (a^2 + b^2), p = pi - t,
    # m be the scale and k the cosine of the images: m (1 - k) = (m - c) - r (A - t c) / pi, which
    # is (m + c) - (2 - r) c - r (A + p c) / pi as well: that is taken which has no large terms.
    half = (f.a**2 + f.b**2) / 2
    bend = (f.b - f.a) ** 2 / (2 * half)
    left, right = half * moments.left, half * moments.right
    (t, p), (shortfall, excess), c = moments.angles, moments.gaps, moments.cross
    lag, is_near = moments.area - t * c, c >= 0
    beside = jnp.where(is_near, shortfall, excess - (2 - bend) * c)
    short = beside - bend / jnp.pi * _lag(jnp.where(is_near, t, p), moments)
    over = excess + bend / jnp.pi * lag
    area = half * root(short) * root(over)
    return Moments(left, right, _bent(f, moments, lag), area)


@covariance.register
def _(f: Sign, moments: Moments) -> Float[Array, "n1 n2"]:
    return 1 - 2 * moments.angle / jnp.pi


@slope_covariance.register
def _(f: Sign, moments: Moments) -> Float[Array, "n1 n2"]:
    return jnp.zeros_like(moments.cross)


@covariance.register
def _(f: RectifiedMonomial, moments: Moments) -> Float[Array, "n1 n2"]:
    # m^n J_n(t) / (2 pi) of Cho & Saul (2009), written in area and cross-moment.
    return _arc_cosine(f.degree, moments)


@slope_covariance.register
def _(f: RectifiedMonomial, moments: Moments) -> Float[Array, "n1 n2"]:
    if f.degree == 0:
        return jnp.zeros_like(moments.cross)
    return f.degree**2 * _arc_cosine(f.degree - 1, moments)


def _bent(f: ABRelu, moments: Moments, lag: Float[Array, "n1 n2"]) -> Float[Array, "n1 n2"]:
    bent = (f.b - f.a) ** 2 * lag
    return bent / (2 * jnp.pi) + (f.a**2 + f.b**2) / 2 * moments.cross


def _lag(acute: Float[Array, "n1 n2"], moments: Moments) -> Float[Array, "n1 n2"]:
    """`A - t |c| = m (sin t - t cos t)` of an acute angle, of a small one by its series."""
    square = acute**2
    series = 1 / 3 - square * (1 / 30 - square * (1 / 840 - square * (1 / 45360)))
    difference = moments.area - acute * jnp.abs(moments.cross)
    return jnp.where(acute < 0.1, moments.scale * acute * square * series, difference)


def _arc_cosine(degree: int, moments: Moments) -> Float[Array, "n1 n2"]:
    A, c = moments.area, moments.cross
    away = moments.opposite_angle
    terms = (
        lambda: away,
        lambda: A + away * c,
        lambda: 3 * A * c + away * (A**2 + 3 * c**2),
        lambda: 4 * A**3 + 15 * A * c**2 + away * (9 * c * A**2 + 15 * c**3),
    )
    return terms[degree]() / (2 * jnp.pi)

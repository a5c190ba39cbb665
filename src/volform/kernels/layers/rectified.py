"""Activations that are powers on each side of zero: kernels by the angle of two inputs."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.errors import NetworkError
from volform.kernels.layers.activation import Activation
from volform.kernels.propagation.moments import Moments, root


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
    >>> from volform import kernels as k
    >>> k.ABRelu(-1.0, 1.0)(jnp.array([-2.0, 3.0])).tolist()
    [2.0, 3.0]
    """

    a: Any
    b: Any

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`a min(u, 0) + b max(u, 0)`."""
        return self.a * jnp.minimum(u, 0) + self.b * jnp.maximum(u, 0)

    def covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`((b - a)^2 (A - t c) + (a^2 + b^2) pi c) / (2 pi)`."""
        return self._bent(moments, moments.area - moments.angle * moments.cross)

    def slope_covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`((a^2 + b^2) p + 2 a b t) / (2 pi)`."""
        t, p = moments.angles
        return ((self.a**2 + self.b**2) * p + 2 * self.a * self.b * t) / (2 * jnp.pi)

    def images(self, moments: Moments) -> Moments:
        """The moments of (f(u), f(v)); the area too is exact at either end of the angle.

        With `r = (b - a)^2 / (a^2 + b^2)`, p = pi - t, m the scale and k the cosine of the images,
        `m (1 - k) = (m - c) - r (A - t c) / pi`, which is `(m + c) - (2 - r) c - r (A + p c) / pi`
        as well: of the two, that is taken which has no large terms.
        """
        half = (self.a**2 + self.b**2) / 2
        bend = (self.b - self.a) ** 2 / (2 * half)
        left, right = half * moments.left, half * moments.right
        (t, p), (shortfall, excess), c = moments.angles, moments.gaps, moments.cross
        lag, is_near = moments.area - t * c, c >= 0
        beside = jnp.where(is_near, shortfall, excess - (2 - bend) * c)
        short = beside - bend / jnp.pi * _lag(jnp.where(is_near, t, p), moments)
        over = excess + bend / jnp.pi * lag
        area = half * root(short) * root(over)
        return Moments(left, right, self._bent(moments, lag), area)

    def _bent(self, moments: Moments, lag: Float[Array, "n1 n2"]) -> Float[Array, "n1 n2"]:
        bent = (self.b - self.a) ** 2 * lag
        return bent / (2 * jnp.pi) + (self.a**2 + self.b**2) / 2 * moments.cross


class Sign(Activation):
    """`f(u) = sign(u)`: `E[f f] = 1 - 2 t / pi`, t the angle of (u, v).

    Its derivative is zero almost everywhere, so that no gradient passes and the neural tangent
    kernel is that of the layers behind it.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> net = k.serial(k.Dense(64), k.Sign(), k.Dense(1))
    >>> net.kernel(jnp.eye(2)).nngp.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    def __call__(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """`sign(u)`."""
        return jnp.sign(u)

    def covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`1 - 2 t / pi`."""
        return 1 - 2 * moments.angle / jnp.pi

    def slope_covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """Zero."""
        return jnp.zeros_like(moments.cross)


class RectifiedMonomial(Activation):
    """`f(u) = u^degree` for u > 0, else 0; degree 0 is the step function, 1 is Relu.

    Args:
        degree: 0, 1, 2 or 3.

    Raises:
        NetworkError: for any other degree.

    References:
        Cho & Saul (2009), Eqs. (4) to (7).

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> k.RectifiedMonomial(2)(jnp.array([-2.0, 3.0])).tolist()
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

    def covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`m^n J_n(t) / (2 pi)` of the reference, written in area and cross-moment."""
        return _arc_cosine(self.degree, moments)

    def slope_covariance(self, moments: Moments) -> Float[Array, "n1 n2"]:
        """`n^2` times that of degree n - 1; zero for the step function."""
        if self.degree == 0:
            return jnp.zeros_like(moments.cross)
        return self.degree**2 * _arc_cosine(self.degree - 1, moments)


def Relu() -> ABRelu:
    """`max(u, 0)`."""
    return ABRelu(0.0, 1.0)


def LeakyRelu(slope: Any = 0.01) -> ABRelu:
    """`max(u, 0) + slope min(u, 0)`."""
    return ABRelu(slope, 1.0)


def Abs() -> ABRelu:
    """`|u|`."""
    return ABRelu(-1.0, 1.0)


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

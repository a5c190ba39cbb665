"""The angle of two inputs: of what a kernel costs, this is most."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# arctan(sqrt(s)) / sqrt(s) as a quotient of polynomials, from the highest power: interpolated at
# Chebyshev nodes of [0, 1], to 5e-17 and to 3e-9.
_DOUBLE = (
    (
        7.270489172902097e-05,
        0.00867132230283124,
        0.1508585490078647,
        0.888660069119356,
        2.2349154765019423,
        2.481724209061851,
        1.0,
    ),
    (
        0.0007553339999876821,
        0.030888667775341615,
        0.33377659546456573,
        1.4595950336848558,
        2.9732679906346715,
        2.8150575423951674,
        1.0,
    ),
)
_SINGLE = (
    (0.0084145741, 0.277986629, 1.11626028, 0.999999997),
    (0.048381, 0.56118927, 1.44959334, 1.0),
)


@jax.jit  # or all of it would be traced anew in every use, of which a layer has several
def angles(
    area: Float[Array, "..."], cross: Float[Array, "..."], scale: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The angle t in [0, pi] with `area = scale sin t`, `cross = scale cos t`, and pi - t.

    Both to full precision at either end; pi/2 if area and cross are zero. The smaller of the two is
    `2 arctan(A / (m + |c|))`, by a quotient of polynomials: XLA calls the C library for each entry
    of an arctan2 on CPUs, which takes several times as long.
    """
    return _angles(area, cross, scale)


@jax.custom_jvp
def _angles(
    area: Float[Array, "..."], cross: Float[Array, "..."], scale: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    is_obtuse = cross < 0
    large = jnp.where(is_obtuse, scale - cross, scale + cross)
    acute = 2 * _arctan(area / jnp.where(large == 0, 1, large))
    acute = jnp.where((area == 0) & (cross == 0), jnp.pi / 2, acute)
    obtuse = jnp.pi - acute
    return jnp.where(is_obtuse, obtuse, acute), jnp.where(is_obtuse, acute, obtuse)


@_angles.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    (area, cross, scale), (darea, dcross, _) = primals, tangents
    size = jnp.maximum(area, jnp.abs(cross))
    size = jnp.where(size == 0, 1, size)
    # Divided by the larger of the two, so that no square leaves the range.
    sine, cosine = area / size, cross / size
    square = jnp.where((area == 0) & (cross == 0), 1, sine**2 + cosine**2)
    slope = (cosine * darea - sine * dcross) / square / size
    return _angles(area, cross, scale), (slope, -slope)


def _arctan(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`arctan x` of x in [0, 1], within three roundings.

    The division comes last: XLA computes it once, but all that is cheaper once for each use of it.
    """
    above, below = _DOUBLE if jnp.finfo(x.dtype).bits > 32 else _SINGLE
    return x * _at(above, x**2) / _at(below, x**2)


def _at(coefficients: tuple[float, ...], s: Float[Array, "..."]) -> Float[Array, "..."]:
    total = jnp.full_like(s, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * s + coefficient
    return total

"""The angle of two inputs: of what a kernel costs, this is most."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# arctan(sqrt(s)) / sqrt(s), interpolated at the Chebyshev nodes of [0, 1] and written in powers of s,
# from the highest: to 6e-18 by 21 of them, to 3e-9 by 10.
_DOUBLE = (
    1.2631178430477426e-05,
    -0.00014617088163625013,
    0.0008033604181626027,
    -0.0028047655531701315,
    0.007038646202989813,
    -0.013674139288399478,
    0.021740213830758134,
    -0.02970071773623423,
    0.03651081352721035,
    -0.042125723963855326,
    0.04719723992321112,
    -0.052527255573225747,
    0.05880342002401543,
    -0.06666371187721098,
    0.0769227555520563,
    -0.09090906605656898,
    0.11111110982087126,
    -0.14285714281592693,
    0.19999999999929946,
    -0.3333333333333286,
    1.0,
)
_SINGLE = (
    -0.00170117006,
    0.0104876493,
    -0.0303518648,
    0.0570895559,
    -0.0834972497,
    0.109323415,
    -0.142600161,
    0.199980753,
    -0.333332763,
    0.999999997,
)


@jax.custom_jvp
def angles(
    area: Float[Array, "..."], cross: Float[Array, "..."], scale: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The angle t in [0, pi] with `area = scale sin t`, `cross = scale cos t`, and pi - t.

    Both to full precision at either end; pi/2 if area and cross are zero. The smaller of the two is
    `2 arctan(A / (m + |c|))`, by a polynomial: XLA calls the C library for each entry of an arctan2
    on CPUs, which takes several times as long.
    """
    is_obtuse = cross < 0
    large = jnp.where(is_obtuse, scale - cross, scale + cross)
    acute = 2 * _arctan(area / jnp.where(large == 0, 1, large))
    acute = jnp.where((area == 0) & (cross == 0), jnp.pi / 2, acute)
    obtuse = jnp.pi - acute
    return jnp.where(is_obtuse, obtuse, acute), jnp.where(is_obtuse, acute, obtuse)


@angles.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    (area, cross, scale), (darea, dcross, _) = primals, tangents
    size = jnp.maximum(area, jnp.abs(cross))
    size = jnp.where(size == 0, 1, size)
    # Divided by the larger of the two, so that no square leaves the range.
    sine, cosine = area / size, cross / size
    square = jnp.where((area == 0) & (cross == 0), 1, sine**2 + cosine**2)
    slope = (cosine * darea - sine * dcross) / square / size
    return angles(area, cross, scale), (slope, -slope)


def _arctan(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`arctan x` of x in [0, 1], within one rounding."""
    square, total = x**2, jnp.zeros_like(x)
    for coefficient in _DOUBLE if jnp.finfo(x.dtype).bits > 32 else _SINGLE:
        total = total * square + coefficient
    return total * x

"""Second moments of pairs of units, kept so that nothing is lost where two inputs nearly agree.

The angle of u and v under E cannot be had from `E[u^2]`, `E[v^2]` and `E[u v]` where they are
parallel: rounding in the cosine becomes its square root in the angle. So the area
`m sin(angle)`, `m = sqrt(E[u^2] E[v^2])`, is carried along with `E[u v] = m cos(angle)`, through
sums of nonnegative terms only.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from volform.kernels.propagation.angle import angles


class Moments(NamedTuple):
    """Second moments of the pairs (u, v) of a unit's values at two lists of inputs.

    Attributes:
        left: E[u^2], shape (n1, 1).
        right: E[v^2], shape (1, n2).
        cross: E[u v], shape (n1, n2).
        area: `sqrt(E[u^2] E[v^2] - E[u v]^2)`, shape (n1, n2).
    """

    left: Float[Array, "n1 1"]
    right: Float[Array, "1 n2"]
    cross: Float[Array, "n1 n2"]
    area: Float[Array, "n1 n2"]

    @property
    def scale(self) -> Float[Array, "n1 n2"]:
        """`m = sqrt(E[u^2] E[v^2])`."""
        return root(self.left) * root(self.right)

    @property
    def angles(self) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
        """`angle` and `opposite_angle`."""
        return angles(self.area, self.cross, self.scale)

    @property
    def angle(self) -> Float[Array, "n1 n2"]:
        """The angle of u and v in [0, pi], to full precision at both ends; pi/2 for zero.

        Its derivative at either end, where the angle has a kink, is 0.
        """
        return self.angles[0]

    @property
    def opposite_angle(self) -> Float[Array, "n1 n2"]:
        """The angle of u and -v: `pi - angle`, without cancellation."""
        return self.angles[1]

    @property
    def gaps(self) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
        """`shortfall` and `excess`."""
        # The smaller of m - c and m + c is A^2 / larger.
        is_near, scale = self.cross > 0, self.scale
        large = jnp.where(is_near, scale + self.cross, scale - self.cross)
        small = self.area * (self.area / jnp.where(large == 0, 1, large))
        return jnp.where(is_near, small, large), jnp.where(is_near, large, small)

    @property
    def shortfall(self) -> Float[Array, "n1 n2"]:
        """`m - E[u v]`, without cancellation."""
        return self.gaps[0]

    @property
    def excess(self) -> Float[Array, "n1 n2"]:
        """`m + E[u v]`, without cancellation."""
        return self.gaps[1]

    @property
    def distance(self) -> Float[Array, "n1 n2"]:
        """`E[(u - v)^2]`, without cancellation."""
        return (root(self.left) - root(self.right)) ** 2 + 2 * self.shortfall

    @property
    def is_parallel(self) -> Bool[Array, "n1 n2"]:
        """Tell whether u = v or u = -v, exactly."""
        return (self.area == 0) & (self.left == self.right)

    def times(self, factor: Float[Array, ""] | float) -> "Moments":
        """The moments of `sqrt(factor) u` and `sqrt(factor) v`."""
        return Moments(*(factor * moment for moment in self))

    def plus(self, other: "Moments") -> "Moments":
        """The moments of sums of uncorrelated units.

        With (a, b, c) the moments of the two, the area is the root of
        `A^2 + A'^2 + (sqrt(a b') - sqrt(a' b))^2 + (m - c)(m' + c') + (m + c)(m' - c')`.
        """
        left, right = self.left + other.left, self.right + other.right
        # Parts are divided by the size of the result, so that no square leaves the range; a row and
        # a column at a time, since a division for each pair takes longer than all the rest.
        sizes = root(left), root(right)
        # From all squares but the chord's the size divides out again, and only there has it a
        # derivative: else a gradient would sum over rows and columns for every product below.
        fixed = jax.lax.stop_gradient(sizes)
        down, across = (ratio(jnp.ones_like(size), size) for size in fixed)
        rows, columns = 1 + (sizes[0] - fixed[0]) * down, 1 + (sizes[1] - fixed[1]) * across
        parts = [part * down * across for part in (self.area, other.area, *self.gaps)]
        short, over = (part * down * across for part in other.gaps)
        squares = parts[0] ** 2 + parts[1] ** 2 + parts[2] * over + parts[3] * short
        # The third square is D (4 - D) / 4, D that of the chord from (sqrt(a), sqrt(a')) to
        # (sqrt(b), sqrt(b')), both of length one. Of roots nothing is left where inputs agree; of
        # products a rounding, if the compiler leaves out that of one of them.
        chord = sum(
            (root(ratio(ends[0], left)) - root(ratio(ends[1], right))) ** 2
            for ends in (self[:2], other[:2])
        )
        squares += rows**2 * (columns**2 * (chord * (4 - chord) / 4))
        area = fixed[0] * fixed[1] * root(squares)
        return Moments(left, right, self.cross + other.cross, area)

    def product(self, other: "Moments") -> "Moments":
        """The moments of products of independent units: A^2 is `(A m')^2 + (c A')^2`."""
        left, right, cross = (a * b for a, b in zip(self[:3], other[:3], strict=True))
        size = jax.lax.stop_gradient(root(left) * root(right))
        size = jnp.where(size == 0, 1, size)
        squares = (self.area * other.scale / size) ** 2 + (self.cross * other.area / size) ** 2
        return Moments(left, right, cross, size * root(squares))


def constant(value: Float[Array, ""] | float, like: Moments) -> Moments:
    """Moments of a random unit that is the same at all inputs, with variance `value`."""
    one = jnp.ones((1,) * like.cross.ndim, like.cross.dtype) * value
    return Moments(one, one, one, jnp.zeros_like(one))


def of_products(
    left: Float[Array, "..."],
    right: Float[Array, "..."],
    cross: Float[Array, "..."],
    is_same: Bool[Array, "..."],
) -> Moments:
    """Moments of which the area is not known but as a difference.

    An angle below 1e-7 (in float32, 1e-3) is known to that accuracy only, except that it is 0 or pi
    where it is nearly so and `is_same` says so.
    """
    size = root(left) * root(right)
    cosine = ratio(cross, size)
    square = (1 - cosine) * (1 + cosine)
    is_same = is_same & (square < 32 * jnp.finfo(square.dtype).eps)
    return Moments(left, right, cross, size * root(jnp.where(is_same, 0, square)))


def of_one(variance: Float[Array, "..."]) -> Moments:
    """Moments of pairs (u, u): cross-moment and variance agree, the area is zero."""
    return Moments(variance, variance, variance, jnp.zeros_like(variance))


@jax.jit  # like `ratio`: or it would be traced anew in every use
def root(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root, with derivative 0 where x is 0; rounding below 0 counts as 0.

    Continuous in all that is computed: XLA may compute x twice, in two programs that round
    differently, and a branch that was chosen by the one must not be wrong for the other.
    """
    return _root(x)


@jax.custom_jvp
def _root(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.sqrt(jnp.maximum(x, 0))


@_root.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    result = _root(*primals)
    return result, ratio(tangents[0], 2 * result)


@jax.jit
def ratio(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x / y`, and 0 where y is 0."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))

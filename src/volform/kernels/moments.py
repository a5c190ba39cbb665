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

from volform.kernels.angle import angles

_FEW = 32  # features, up to which all chords are taken


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
    def angle(self) -> Float[Array, "n1 n2"]:
        """The angle of u and v in [0, pi], to full precision at both ends; pi/2 for zero.

        Its derivative at either end, where the angle has a kink, is 0.
        """
        return angles(self.area, self.cross, self.scale)[0]

    @property
    def opposite_angle(self) -> Float[Array, "n1 n2"]:
        """The angle of u and -v: `pi - angle`, without cancellation."""
        return angles(self.area, self.cross, self.scale)[1]

    @property
    def shortfall(self) -> Float[Array, "n1 n2"]:
        """`m - E[u v]`, without cancellation."""
        return self._gaps()[0]

    @property
    def excess(self) -> Float[Array, "n1 n2"]:
        """`m + E[u v]`, without cancellation."""
        return self._gaps()[1]

    @property
    def distance(self) -> Float[Array, "n1 n2"]:
        """`E[(u - v)^2]`, without cancellation."""
        return (root(self.left) - root(self.right)) ** 2 + 2 * self.shortfall

    @property
    def is_parallel(self) -> Bool[Array, "n1 n2"]:
        """Whether u = v or u = -v, exactly."""
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
        down, across = (ratio(jnp.ones_like(size), size) for size in sizes)
        parts = [part * down * across for part in (self.area, other.area, *self._gaps())]
        short, over = (part * down * across for part in other._gaps())
        squares = parts[0] ** 2 + parts[1] ** 2 + parts[2] * over + parts[3] * short
        # The third square is D (4 - D) / 4, D that of the chord from (sqrt(a), sqrt(a')) to
        # (sqrt(b), sqrt(b')), both of length one. Of roots nothing is left where inputs agree; of
        # products a rounding, if the compiler leaves out that of one of them.
        chord = sum(
            (root(ratio(ends[0], left)) - root(ratio(ends[1], right))) ** 2
            for ends in (self[:2], other[:2])
        )
        area = sizes[0] * sizes[1] * root(squares + chord * (4 - chord) / 4)
        return Moments(left, right, self.cross + other.cross, area)

    def product(self, other: "Moments") -> "Moments":
        """The moments of products of independent units: A^2 is `(A m')^2 + (c A')^2`."""
        left, right, cross = (a * b for a, b in zip(self[:3], other[:3], strict=True))
        size = jax.lax.stop_gradient(root(left) * root(right))
        size = jnp.where(size == 0, 1, size)
        squares = (self.area * other.scale / size) ** 2 + (self.cross * other.area / size) ** 2
        return Moments(left, right, cross, size * root(squares))

    def _gaps(self) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
        # The smaller of m - c and m + c is A^2 / larger.
        is_near = self.cross > 0
        large = jnp.where(is_near, self.scale + self.cross, self.scale - self.cross)
        small = self.area * (self.area / jnp.where(large == 0, 1, large))
        return jnp.where(is_near, small, large), jnp.where(is_near, large, small)


@jax.jit  # or the loop would be compiled anew in every call
def of_inputs(x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"]) -> Moments:
    """Moments of the inputs' features under their empirical mean: `x1 . x2 / d`.

    The area comes from the chords between the unit vectors, `m |e1 - e2| |e1 + e2| / 2`.
    O(n1 n2 d) operations, O((n1 + n2) d + n1 n2) memory.
    """
    left, right = jnp.mean(x1**2, 1)[:, None], jnp.mean(x2**2, 1)[None, :]
    scale = root(left) * root(right)
    if x1.shape[1] <= _FEW:
        cross = _products(x1, x2) / x1.shape[1]
        return Moments(left, right, cross, scale * _sine_by_chords(x1, x2))
    cross, sine = _turn(x1, x2)
    return Moments(left, right, cross, scale * sine)


def _products(x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"]) -> Float[Array, "n1 n2"]:
    return jnp.matmul(x1, x2.T, precision=jax.lax.Precision.HIGHEST)


def _sine_by_chords(x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"]) -> Float[Array, "n1 n2"]:
    """`|e1 - e2| |e1 + e2| / 2`, a row of x1 at a time."""
    ends = _unit(x2)
    return jax.lax.map(jax.checkpoint(lambda start: _chords(start, ends)), _unit(x1))


def _chords(e1: Float[Array, "*n d"], e2: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    return root(jnp.sum((e1 - e2) ** 2, -1)) * root(jnp.sum((e1 + e2) ** 2, -1)) / 2


@jax.custom_jvp
def _turn(
    x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"]
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
    """`x1 . x2 / d` and the sine of the angle, by one product of matrices.

    With c the mean of e2, `e1 . e2 = (e1 - c) . (e2 - c) + e1 . c + (e2 - c) . c`, and
    `|e1 - e2|^2 = |e1 - c|^2 + |e2 - c|^2 - 2 (e1 - c) . (e2 - c)`, `|e1 + e2|^2` being 4 minus it.
    Where one of those is a small difference of large terms the chords are taken.
    """
    e1, e2 = _unit(x1), _unit(x2)
    center = jnp.mean(e2, 0)
    around1, around2 = e1 - center, e2 - center
    inner = _products(around1, around2)
    spread = jnp.sum(around1**2, 1)[:, None] + jnp.sum(around2**2, 1)
    square = jnp.clip(spread - 2 * inner, 0, 4)
    is_known = jnp.any(e1 != 0, 1)[:, None] & jnp.any(e2 != 0, 1)
    is_lost = is_known & ((square < spread / 8) | (square > 3.75))

    def next_lost(after: Array) -> Array:
        """In each row the first column behind `after`; the number of columns if there is none."""
        columns = jnp.arange(len(e2), dtype=jnp.int32)
        return jnp.min(jnp.where(is_lost & (columns > after[:, None]), columns, len(e2)), 1)

    def mended(state: tuple[Array, Array]) -> tuple[Array, Array]:
        sine, column = state
        chords = _chords(e1, e2[jnp.minimum(column, len(e2) - 1)])
        sine = sine.at[jnp.arange(len(e1)), column].set(chords, mode="drop")
        return sine, next_lost(column)

    begin = jnp.sqrt(square * (4 - square)) / 2, next_lost(jnp.full(len(e1), -1, jnp.int32))
    sine = jax.lax.while_loop(lambda state: jnp.any(state[1] < len(e2)), mended, begin)[0]
    cosine = inner + (e1 @ center)[:, None] + around2 @ center
    scale = root(jnp.mean(x1**2, 1))[:, None] * root(jnp.mean(x2**2, 1))
    return scale * cosine, sine


@_turn.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    (x1, x2), (dx1, dx2) = primals, tangents
    dcross = (_products(dx1, x2) + _products(x1, dx2)) / x1.shape[1]
    return _turn(x1, x2), (dcross, jax.jvp(_sine_by_chords, primals, tangents)[1])


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


@jax.custom_jvp
def root(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root, with derivative 0 where x is 0; rounding below 0 counts as 0.

    Continuous in all that is computed: XLA may compute x twice, in two programs that round
    differently, and a branch that was chosen by the one must not be wrong for the other.
    """
    return jnp.sqrt(jnp.maximum(x, 0))


@root.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    result = root(*primals)
    return result, ratio(tangents[0], 2 * result)


def ratio(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x / y`, and 0 where y is 0."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


def _unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    # The largest entry is divided out first: squares of small float32 numbers are zero.
    size = jnp.max(jnp.abs(x), 1, keepdims=True)
    x = ratio(x, size)
    return ratio(x, root(jnp.sum(x**2, 1, keepdims=True)))

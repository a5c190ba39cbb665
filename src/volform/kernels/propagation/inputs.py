"""Second moments of given inputs, exact to rounding also where two of them nearly agree."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from volform.kernels.propagation.moments import Moments, ratio, root

_FEW = 32  # features, up to which all chords are taken


class Prepared(eqx.Module):
    """A list of examples, with what each of them adds to the products with all others.

    Attributes:
        unit: unit vectors e, shape (n, d).
        around: e less a center c that both lists have in common, shape (n, d).
        spread: `|e - c|^2`, shape (n,).
        along: `(e - c) . c + |c|^2 / 2`, shape (n,).
        square: mean square of the features, shape (n,).
        each: shape of an example.
    """

    unit: Float[Array, "n d"]
    around: Float[Array, "n d"]
    spread: Float[Array, " n"]
    along: Float[Array, " n"]
    square: Float[Array, " n"]
    each: tuple[int, ...] = eqx.field(static=True)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.unit)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the examples."""
        return (len(self), *self.each)


Examples = Any  # an array of shape (n, ...), or `Prepared`; both lists are of one kind


def prepared(x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."]) -> tuple[Examples, Examples]:
    """Two lists of examples for `of_inputs`, once for all tiles; themselves if of few features."""
    if math.prod(x1.shape[1:]) <= _FEW:
        return x1, x2
    ends = [_unit(_flat(x)) for x in (x1, x2)]
    center = jnp.mean(ends[1], 0)

    def one(x: Array, end: Array) -> Prepared:
        around = end - center[None]
        along = around @ center + jnp.sum(center**2) / 2
        spread, square = jnp.sum(around**2, 1), jnp.mean(_flat(x) ** 2, 1)
        return Prepared(end, around, spread, along, square, x.shape[1:])

    return one(x1, ends[0]), one(x2, ends[1])


@jax.jit  # or the loop would be compiled anew in every call
def of_inputs(x1: Examples, x2: Examples, is_same: Any = False) -> Moments:
    """Moments of the inputs' features under their empirical mean: `x1 . x2 / d`.

    Where both lists `is_same` no time is lost on the angles of the examples with themselves.

    The area comes from the chords between the unit vectors, `m |e1 - e2| |e1 + e2| / 2`.
    O(n1 n2 d) operations, O((n1 + n2) d + n1 n2) memory.
    """
    if not isinstance(x1, Prepared):
        x1, x2 = prepared(x1, x2)
    if isinstance(x1, Prepared):
        left, right = x1.square[:, None], x2.square[None, :]
        cosine, sine = _turn(x1, x2, is_same)
        scale = root(left) * root(right)
        return Moments(left, right, scale * cosine, scale * sine)
    x1, x2 = _flat(x1), _flat(x2)
    left, right = jnp.mean(x1**2, 1)[:, None], jnp.mean(x2**2, 1)[None, :]
    area = root(left) * root(right) * _sine_by_chords(_unit(x1), _unit(x2))
    return Moments(left, right, _products(x1, x2) / x1.shape[1], area)


@jax.custom_jvp
def _turn(
    x1: Prepared, x2: Prepared, is_same: Any
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
    """The cosine and the sine of the angle, by one product of matrices.

    `e1 . e2 = (e1 - c) . (e2 - c) + (e1 - c) . c + (e2 - c) . c + |c|^2`, and
    `|e1 - e2|^2 = |e1 - c|^2 + |e2 - c|^2 - 2 (e1 - c) . (e2 - c)`, `|e1 + e2|^2` being 4 minus it.
    Where one of those is a small difference of large terms the chords are taken.
    """
    inner = _products(x1.around, x2.around)
    spread = x1.spread[:, None] + x2.spread[None]
    square = jnp.clip(spread - 2 * inner, 0, 4)
    is_itself = is_same & jnp.eye(len(x1), len(x2), dtype=bool)
    is_known = (x1.square > 0)[:, None] & (x2.square > 0)[None] & ~is_itself
    is_lost = is_known & ((square < spread / 8) | (square > 3.75))
    sine = jnp.where(is_itself, 0, jnp.sqrt(square * (4 - square)) / 2)
    sine = jax.lax.cond(jnp.any(is_lost), _mended, lambda *given: given[-1], x1, x2, is_lost, sine)
    return inner + (x1.along[:, None] + x2.along[None]), sine


def _mended(
    x1: Prepared, x2: Prepared, is_lost: Bool[Array, "n1 n2"], sine: Float[Array, "n1 n2"]
) -> Float[Array, "n1 n2"]:
    """The sine, by chords where it is lost: one of each row at a time."""
    rows, columns = (jnp.arange(count, dtype=jnp.int32) for count in is_lost.shape)

    def next_lost(after: Array) -> Array:
        """In each row the first column behind `after`; the number of columns if there is none."""
        is_next = is_lost & (columns[None] > after[:, None])
        return jnp.min(jnp.where(is_next, columns[None], len(columns)), 1)

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        sine, column = state
        chords = _chords(x1.unit, x2.unit[jnp.minimum(column, len(columns) - 1)])
        return sine.at[rows, column].set(chords, mode="drop"), next_lost(column)

    begin = sine, next_lost(jnp.full_like(rows, -1))
    return jax.lax.while_loop(lambda state: jnp.any(state[1] < len(columns)), step, begin)[0]


@_turn.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    # Of unit vectors alone: no center makes a difference.
    units, changes = (tuple(end.unit for end in ends[:2]) for ends in (primals, tangents))
    return _turn(*primals), jax.jvp(_turn_by_chords, units, changes)[1]


def _turn_by_chords(
    e1: Float[Array, "n1 d"], e2: Float[Array, "n2 d"]
) -> tuple[Float[Array, "n1 n2"], Float[Array, "n1 n2"]]:
    return _products(e1, e2), _sine_by_chords(e1, e2)


def _sine_by_chords(e1: Float[Array, "n1 d"], e2: Float[Array, "n2 d"]) -> Float[Array, "n1 n2"]:
    """`|e1 - e2| |e1 + e2| / 2`, a row of e1 at a time."""
    return jax.lax.map(jax.checkpoint(lambda start: _chords(start[None], e2)), e1)


def _chords(e1: Float[Array, "*n d"], e2: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    return root(jnp.sum((e1 - e2) ** 2, -1)) * root(jnp.sum((e1 + e2) ** 2, -1)) / 2


def _products(x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"]) -> Float[Array, "n1 n2"]:
    return jnp.matmul(x1, x2.T, precision=jax.lax.Precision.HIGHEST)


def _flat(x: Float[Array, "n ..."]) -> Float[Array, "n d"]:
    return x.reshape(len(x), -1)


def _unit(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    # The largest entry is divided out first: squares of small float32 numbers are zero. It has no
    # derivative here; its own counts the entries that equal it, none if XLA rounds x in two ways.
    x = x * _inverse(jax.lax.stop_gradient(jnp.max(jnp.abs(x), 1, keepdims=True)))
    return x * _inverse(root(jnp.sum(x**2, 1, keepdims=True)))


def _inverse(size: Float[Array, "n 1"]) -> Float[Array, "n 1"]:
    return ratio(jnp.ones_like(size), size)

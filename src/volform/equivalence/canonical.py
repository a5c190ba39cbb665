"""One form of all copies of parameters, and the elements that leave parameters where they are."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree


@dataclass(frozen=True)
class Stabilizer:
    """Elements of a group that leave parameters where they are.

    Those that exchange alike units, or turn idle ones, and continuous ones; elements that move
    several sets of units at once are not looked for.

    Attributes:
        log_order: log of the number of exchanges and changes of sign.
        dimension: of the continuous ones.
        alike: sets of units that are the same up to signs: the name of the set, and their numbers.
        idle: units that a change of sign leaves as they are.
    """

    log_order: float
    dimension: int
    alike: tuple[tuple[str, tuple[int, ...]], ...]
    idle: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def order(self) -> int:
        """Number of exchanges and changes of sign."""
        sizes = [len(units) for _, units in self.alike]
        signs = self.log_order - sum(math.lgamma(size + 1) for size in sizes)
        # Of 200 units that are zero it is 10^435: no number of floating point.
        return math.prod(map(math.factorial, sizes)) << round(signs / math.log(2.0))


def element_to_canonical(group: Any, params: PyTree) -> Any:
    """The element that takes parameters to their canonical form.

    Set by set, from the inputs on: signs such that the largest entry of a unit is positive, units
    in ascending order of their entries, of those arrays whose other axes are in order already.
    """
    given, _ = group.leaves(params)
    leaves, found = [np.asarray(leaf) for leaf in given], group.identity
    left = set(range(len(group.units)))
    while left:
        number = next((n for n in sorted(left) if settled(group, n, left)), min(left))
        one = _ordered(group, number, leaves, settled(group, number, left))
        leaves = one.of_leaves(leaves)
        found = found.at(number, one.orders[number], one.signs[number], one.together[number])
        left.remove(number)
    return found


def _ordered(group: Any, number: int, leaves: Sequence[np.ndarray], settled: Sequence[int]) -> Any:
    """The element that puts one set of units in order."""
    units, parts = group.units[number], group.split(leaves)
    rows = [_rows(parts[leaf], place) for leaf, place in units.members]
    one = group.identity
    each, whole = one.signs[number].copy(), one.together[number].copy()
    taken = set[int]()
    for i, pattern in enumerate(units.together):
        for member in [m for m in settled if m in pattern][:1]:
            entries = rows[member].ravel()
            whole[i] = np.sign(entries[np.argmax(np.abs(entries))]) or 1.0
            taken.add(member)
            for turned in pattern:
                rows[turned] = whole[i] * rows[turned]
    for i, member in _pivots(units.signs, [m for m in settled if m not in taken]):
        largest = np.argmax(np.abs(rows[member]), axis=1)[:, None]
        signs = np.sign(np.take_along_axis(rows[member], largest, axis=1)[:, 0])
        each[i] = np.where(signs == 0.0, 1.0, signs)
        for turned in units.signs[i]:
            rows[turned] = each[i][:, None] * rows[turned]
    keys = [rows[m] for m in settled] or [np.sort(row**2, axis=1).sum(1)[:, None] for row in rows]
    table = np.concatenate(keys, axis=1).tolist()
    order = np.array(sorted(range(units.size), key=table.__getitem__))
    return one.at(number, order, each, whole)


def _pivots(patterns: Sequence[tuple[int, ...]], settled: Sequence[int]) -> list[tuple[int, int]]:
    """By change of sign a member that it turns, and no other one that comes after."""
    found, left = list[tuple[int, int]](), dict(enumerate(patterns))
    for member in settled:
        turning = [i for i, pattern in left.items() if member in pattern]
        if len(turning) == 1:
            found.append((turning[0], member))
            del left[turning[0]]
    return found


def _rows(part: np.ndarray, place: int) -> np.ndarray:
    """The entries of each unit."""
    return np.moveaxis(part, place, 0).reshape(part.shape[place], -1)


def stabilizer_of(group: Any, params: PyTree, within: float) -> Stabilizer:
    """The elements that leave parameters where they are."""
    parts, order = group.split([np.asarray(x) for x in group.leaves(params)[0]]), 0.0
    alike, idle = list[tuple[str, tuple[int, ...]]](), list[tuple[str, tuple[int, ...]]]()
    for units in group.units:
        rows = [_rows(parts[leaf], place) for leaf, place in units.members]
        size = max(float(np.max(np.abs(row), initial=0.0)) for row in rows) or 1.0
        still = [_largest(rows, pattern) <= within * size for pattern in units.signs]
        order += math.log(2.0) * int(np.sum(still))
        silent = np.flatnonzero(np.any(still, axis=0)) if still else []
        idle += [(units.name, tuple(map(int, silent)))] if len(silent) else []
        for same in _alike(rows, [turns for _, turns in _turnings(units)], within * size):
            order += math.lgamma(len(same) + 1)
            alike.append((units.name, tuple(same)))
    return Stabilizer(order, _still(group, params), tuple(alike), tuple(idle))


def _still(group: Any, params: PyTree) -> int:
    """Number of continuous symmetries that leave parameters where they are."""
    if not group.dimension:
        return 0
    fields = jax.vmap(lambda tree: ravel_pytree(tree)[0])(group.generators(params))
    return group.dimension - int(np.linalg.matrix_rank(np.asarray(fields)))


def nearest(group: Any, params: PyTree, most: int, beyond: float) -> list[PyTree]:
    """Copies by one exchange, or one change of sign, that move parameters least, but move them."""
    leaves, rest = group.leaves(params)
    parts = group.split([np.asarray(x) for x in leaves])
    found = list[tuple[float, tuple[int, int, int, tuple[int, ...]]]]()
    for number, units in enumerate(group.units):
        rows = [_rows(parts[leaf], place) for leaf, place in units.members]
        for turned, turns in _turnings(units):
            squares = sum(_squares(row, turn) for row, turn in zip(rows, turns, strict=True))
            squares = np.where(np.eye(units.size, dtype=bool), squares, 2.0 * squares)
            moving = squares > beyond**2 * max(float(np.max(row**2, initial=0.0)) for row in rows)
            i, j = np.nonzero(np.triu(moving, 0 if turned else 1))
            for k in np.argsort(squares[i, j])[:most]:
                move = number, int(i[k]), int(j[k]), turned
                found.append((float(squares[i[k], j[k]]), move))
    moved = [_one_move(group, *move).of_leaves(leaves) for _, move in sorted(found)[:most]]
    return [group.rebuilt(one, rest) for one in moved]


def _one_move(group: Any, number: int, i: int, j: int, turned: tuple[int, ...]) -> Any:
    """The element that exchanges two units of one set, or keeps one, and turns signs of both."""
    one = group.identity
    order, signs = one.orders[number].copy(), one.signs[number].copy()
    order[[i, j]] = order[[j, i]]
    signs[np.ix_([*turned], sorted({i, j}))] = -1.0
    return one.at(number, order, signs, one.together[number])


def _turnings(units: Any) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Each choice of the changes of sign of a unit, and the signs of its members by them."""
    every = range(len(units.signs))
    for turned in (
        c for k in range(len(units.signs) + 1) for c in itertools.combinations(every, k)
    ):
        times = [sum(m in units.signs[p] for p in turned) for m in range(len(units.members))]
        yield turned, [(-1) ** count for count in times]


def _squares(rows: np.ndarray, turn: int) -> np.ndarray:
    """Squared distances between rows and turned rows."""
    norms = np.sum(rows**2, axis=1)
    return norms[:, None] + norms - 2.0 * turn * (rows @ rows.T)


def _largest(rows: Sequence[np.ndarray], members: Sequence[int]) -> np.ndarray:
    """The largest entry of each unit, in absolute value."""
    return np.max([np.max(np.abs(rows[m]), axis=1, initial=0.0) for m in members], axis=0)


def _alike(
    rows: Sequence[np.ndarray], turnings: Sequence[Sequence[int]], within: float
) -> list[list[int]]:
    """Sets of units whose entries are the same, in one of the choices of signs."""
    norms = np.sqrt(sum(np.sum(row**2, axis=1) for row in rows))
    reach = within * math.sqrt(sum(row.shape[1] for row in rows))
    left, found = np.argsort(norms, kind="stable"), list[list[int]]()
    if np.all(np.diff(norms[left]) > reach):  # as nearly always
        return []
    while len(left):
        first = left[0]
        near = left[: np.searchsorted(norms[left], norms[first] + reach, side="right")]
        gaps = [
            [
                np.abs(r[near] - t * r[first]).max(1, initial=0.0)
                for r, t in zip(rows, turns, strict=True)
            ]
            for turns in turnings
        ]
        same = near[np.min(np.max(gaps, axis=1), axis=0) <= within]
        left = left[~np.isin(left, same)]
        found += [sorted(map(int, same))] if len(same) > 1 else []
    return sorted(found)


def settled(group: Any, number: int, left: set[int]) -> list[int]:
    """Members of a set of units whose other axes are fixed, or belong to no set in `left`."""
    axes = [m for n in left for m in group.units[n].members]
    return [
        i
        for i, member in enumerate(group.units[number].members)
        if all(m.leaf != member.leaf or m == member for m in axes)
    ]

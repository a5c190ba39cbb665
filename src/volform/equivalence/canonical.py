"""One form of all copies of parameters, and the elements that leave parameters where they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

_ALIKE = 1e-9  # relative difference of units that are one


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
        return round(math.exp(self.log_order))


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


def stabilizer_of(group: Any, params: PyTree) -> Stabilizer:
    """The elements that leave parameters where they are."""
    element = element_to_canonical(group, params)
    leaves = [np.asarray(x) for x in element.of_leaves(group.leaves(params)[0])]
    parts, order = group.split(leaves), 0.0
    alike, idle = list[tuple[str, tuple[int, ...]]](), list[tuple[str, tuple[int, ...]]]()
    for number, units in enumerate(group.units):
        rows = [_rows(parts[leaf], place) for leaf, place in units.members]
        old = element.orders[number]
        size = max(float(np.max(np.abs(row), initial=0.0)) for row in rows) or 1.0
        still = [_idle(rows, pattern, size) for pattern in units.signs]
        order += math.log(2.0) * int(np.sum(still))
        silent = np.flatnonzero(np.any(still, axis=0)) if still else []
        idle += [(units.name, tuple(sorted(int(old[i]) for i in silent)))] if len(silent) else []
        for same in _same(np.concatenate(rows, axis=1), size):
            order += math.lgamma(len(same) + 1)
            alike.append((units.name, tuple(sorted(int(old[i]) for i in same))))
    fields = jax.vmap(lambda tree: ravel_pytree(tree)[0])(group.generators(params))
    rank = int(np.linalg.matrix_rank(np.asarray(fields))) if group.dimension else 0
    return Stabilizer(order, group.dimension - rank, tuple(alike), tuple(idle))


def _idle(rows: Sequence[np.ndarray], pattern: Sequence[int], size: float) -> np.ndarray:
    largest = [np.max(np.abs(rows[member]), axis=1, initial=0.0) for member in pattern]
    return np.max(largest, axis=0) <= _ALIKE * size


def _same(rows: np.ndarray, size: float) -> list[list[int]]:
    left, found = list(range(len(rows))), []
    while left:
        gaps = np.max(np.abs(rows[left] - rows[left[0]]), axis=1, initial=0.0)
        same = [i for i, gap in zip(left, gaps, strict=True) if gap <= _ALIKE * size]
        left = [i for i in left if i not in same]
        found += [same] if len(same) > 1 else []
    return found


def settled(group: Any, number: int, left: set[int]) -> list[int]:
    """Members of a set of units whose other axes are fixed, or belong to no set in `left`."""
    axes = [m for n in left for m in group.units[n].members]
    return [
        i
        for i, member in enumerate(group.units[number].members)
        if all(m.leaf != member.leaf or m == member for m in axes)
    ]

"""Exchanges of units as a group, and their changes of sign, found by evaluation."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from volform.equivalence.axes import Factor
from volform.equivalence.group import Element, Group, Member, Units, independent

_MOST_MEMBERS = 8  # members of a set of units whose signs are tried in all combinations
_Values = Callable[[list[list[Any]]], np.ndarray]  # of points, each a list of arrays: (points, m)


def group_of(
    names: Sequence[str],
    leaves: Sequence[Any],
    treedef: Any,
    factors: Sequence[Sequence[Factor]],
    unknown: tuple[str, ...],
) -> Group:
    """The group of exchanges, of the factors of the axes of arrays."""
    members: dict[Factor, list[Member]] = {}
    for leaf, own in enumerate(factors):
        for place, factor in enumerate(own):
            if not factor.fixed:
                members.setdefault(factor, []).append(Member(leaf, place))
    titles: dict[str, int] = {}
    units = []
    for factor, places in members.items():
        title = names[places[0].leaf].rpartition(".")[0] or names[places[0].leaf]
        titles[title] = titles.get(title, 0) + 1
        shown = title if titles[title] == 1 else f"{title} ({titles[title]})"
        units.append(Units(shown, factor.size, tuple(places)))
    shapes = tuple(np.shape(leaf) for leaf in leaves)
    sizes = tuple(tuple(factor.size for factor in own) for own in factors)
    return Group(tuple(names), shapes, sizes, treedef, tuple(units), unknown=unknown)


def with_signs(group: Group, points: Sequence[list[Any]], values: _Values) -> Group:
    """The group with the changes of sign that leave `values` as they are.

    Of each set of units, and of arrays that a layer of one unit alone has: these are a set of
    their own, of one unit.

    Args:
        group: of exchanges; scalings are made use of.
        points: random points; at one alone a dead layer fakes symmetries.
        values: of points.
    """
    whole = _with_one_unit(group)
    found = tuple(_signed(whole, points, values))
    if len(found) > len(group.units) and not found[-1].signs:
        return replace(group, units=found[:-1])
    return replace(whole, units=found)


def _with_one_unit(group: Group) -> Group:
    """The group with a set of one unit, of all arrays with an axis of length one."""
    ones = [leaf for leaf, shape in enumerate(group.shapes) if not shape or 1 in shape]
    if not ones:
        return group
    members = tuple(Member(leaf, len(group.factors[leaf])) for leaf in ones)
    factors = tuple((*own, 1) if leaf in ones else own for leaf, own in enumerate(group.factors))
    title = group.names[ones[0]].rpartition(".")[0] or group.names[ones[0]]
    return replace(group, factors=factors, units=(*group.units, Units(title, 1, members)))


def _signed(group: Group, points: Sequence[list[Any]], values: _Values) -> Iterator[Units]:
    generator, kept = np.random.default_rng(0), list[_Turn]()
    for number, units in enumerate(group.units):
        some = np.where(generator.permutation(units.size) < (units.size + 1) // 2, -1.0, 1.0)
        for pattern in _patterns(group, number):
            kept += [
                _Turn(number, pattern, some),
                _Turn(number, pattern, np.full(units.size, -1.0)),
            ]
    for at in points if kept else ():
        turned = [_turned(group, turn).of_leaves(at) for turn in kept]
        before, *after = values([at, *turned])
        changes = defects(np.reshape(after, (len(kept), before.size)), before)
        kept = [t for t, change in zip(kept, changes, strict=True) if change <= rounding_of(at)]
    found_each = [
        independent([t.pattern for t in kept if t.units == number and not t.together])
        for number in range(len(group.units))
    ]
    # All units at once turn whole arrays, which those of another set may have turned already.
    span = [u.arrays(p) for u, own in zip(group.units, found_each, strict=True) for p in own]
    for number, (units, each) in enumerate(zip(group.units, found_each, strict=True)):
        together = list[tuple[int, ...]]()
        for turn in kept:
            if turn.units == number and turn.together:
                arrays = units.arrays(turn.pattern)
                if len(independent([*span, arrays])) > len(independent(span)):
                    together.append(turn.pattern)
                    span.append(arrays)
        # Of one unit alone these are its own signs.
        of_one = tuple(together) if units.size == 1 else ()
        yield replace(units, signs=of_one or each, together=() if of_one else tuple(together))


class _Turn(NamedTuple):
    """A change of sign: of which units, in which of their members, and the signs."""

    units: int
    pattern: tuple[int, ...]
    signs: np.ndarray

    @property
    def together(self) -> bool:
        """Tell whether all units turn."""
        return bool(np.all(self.signs < 0.0))


def _turned(group: Group, turn: _Turn) -> Element:
    units = tuple(
        replace(u, signs=(turn.pattern,) if n == turn.units else (), together=())
        for n, u in enumerate(group.units)
    )
    one = replace(group, units=units, flows=()).identity
    number = turn.units
    return one.at(number, one.orders[number], turn.signs[None], one.together[number])


def _patterns(group: Group, number: int) -> list[tuple[int, ...]]:
    """Sets of members whose signs may turn; of many members those that a network can have."""
    members = group.units[number].members
    count = len(members)
    sizes = range(1, count + 1) if count <= _MOST_MEMBERS else (1, 2, count - 1, count)
    found = [p for size in sizes for p in itertools.combinations(range(count), size)]
    for flow in group.flows if count > _MOST_MEMBERS else ():
        odd = {t.leaf for t, w in zip(flow.terms, flow.weights, strict=True) if w % 2.0 == 1.0}
        pattern = tuple(n for n, member in enumerate(members) if member.leaf in odd)
        found += [pattern] if flow.name == group.units[number].name and pattern else []
    return list(dict.fromkeys(found))


def rounding_of(leaves: Sequence[Any]) -> float:
    """Relative change of a function that is taken for rounding."""
    return 2000.0 * float(max(np.finfo(leaf.dtype).eps for leaf in leaves))


def defects(found: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Largest change of each row, relative to the size of the values before."""
    size = np.max(np.abs(before)) or 1.0
    return np.max(np.abs(found - before), axis=1) / size

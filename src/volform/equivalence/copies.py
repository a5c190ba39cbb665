"""Number of equivalent modes that the units of a network make of one."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from volform.equivalence.axes import Factor
from volform.equivalence.group import Group, Units, arrays_of, independent, named
from volform.equivalence.signs import defects, group_of, rounding_of, with_signs
from volform.equivalence.tracing import traced

_MOST_TRIED = 200  # exchanges of whole arrays
_ANGLE = 0.7  # of the rotation of two units by which a continuum is told


class Copies(NamedTuple):
    """Number of equivalent modes, whether that is all of them, and the symmetries by which."""

    modes: int
    is_all: bool
    group: Group


def copies(
    density: Callable[[Mapping[str, Any]], Array],
    densities: Callable[[list[dict[str, np.ndarray]]], Float[np.ndarray, " k"]],
    points: Sequence[Mapping[str, Any]],
) -> Copies:
    """Exchanges and changes of sign of units that leave a joint density as it is.

    What `infer={"equivalent_modes": copies}` of the sites of a network stands for: counted where
    an evidence asks, on the density as handlers and priors left it. Exchanges are read off its
    program. Units that may be rotated into each other, as of linear layers, have a continuum of
    equivalent modes, of which none counts.

    Args:
        density: log joint density, of values of the sites of networks.
        densities: the same at several points. Where it has an attribute `of_few`, that takes some
            of the data: copies are looked for on these, and what the whole does not bear out is
            counted anew.
        points: random points.

    Returns:
        The number, and False where a primitive was not understood, or a density is not finite.
    """
    few = getattr(densities, "of_few", None)
    if few is not None:
        group, arrays, is_known = _counted(density, few, points)
        values = _of_leaves(densities, points[0])
        # Nothing found is what data see that are all masked, or zero.
        if is_known and group.order > 1 and all(_keeps(group, at, values) for at in arrays):
            return Copies(group.order, is_all=True, group=group)
    group, arrays, is_known = _counted(density, densities, points)
    group = group if arrays else replace(group, units=())
    return Copies(group.order, is_known and bool(arrays), group)


_Densities = Callable[[list[dict[str, np.ndarray]]], Float[np.ndarray, " k"]]


def _of_leaves(densities: _Densities, point: Mapping[str, Any]) -> Any:
    """The densities of points that are lists of leaves, shape (k, 1)."""
    names, _ = named(dict(point))
    return lambda found: densities([dict(zip(names, at, strict=True)) for at in found])[:, None]


def _counted(
    density: Callable[[Mapping[str, Any]], Array],
    densities: _Densities,
    points: Sequence[Mapping[str, Any]],
) -> tuple[Group, list[list[np.ndarray]], bool]:
    """The discrete group, the points of finite density, and whether all was understood."""
    names, leaves = named(dict(points[0]))
    values = _of_leaves(densities, points[0])
    arrays = [[np.asarray(x) for x in named(dict(point))[1]] for point in points]
    factors, unknown = traced(jax.make_jaxpr(density)(dict(points[0])), len(leaves))
    group = group_of(names, leaves, arrays_of(dict(points[0]))[1], factors, unknown)
    found = values(arrays)
    arrays = [point for point, one in zip(arrays, found, strict=True) if np.isfinite(one[0])]
    group = with_signs(group, arrays, values) if arrays else group
    if not group.units or not arrays:
        return replace(group, units=()), arrays, not unknown
    many = [number for number, units in enumerate(group.units) if units.size > 1]
    if many:
        turned = [defects(values([*_rotated(group, at)]), values([at])[0]) for at in arrays]
        turns = np.max(turned, axis=0) <= rounding_of(arrays[0])
        group = _without(group, [n for n, one in zip(many, turns, strict=True) if one])
    if not _keeps(group, arrays[-1], values):
        each = [_keeps(replace(group, units=(u,)), arrays[-1], values) for u in group.units]
        group = _without(group, [number for number, one in enumerate(each) if not one])
    return group, arrays, not unknown and not _has_more(factors, arrays, values)


def _has_more(
    factors: Sequence[Sequence[Factor]], arrays: Sequence[list[np.ndarray]], values: Any
) -> bool:
    """Tell whether other exchanges leave the density as it is.

    Of slices along an axis that was taken for fixed, as of taps of a transposed convolution before
    a mean over pixels; and of whole arrays, as of branches that are summed or multiplied. Slices of
    which the density sees the mean alone, as those of pixels that are the same in all examples or
    two biases that are added, are no copies.
    """
    fixed = dict.fromkeys(f for own in factors for f in own if f.fixed and f.size > 1)
    tried = [
        functools.partial(_along, factors, f, part)
        for f in fixed
        for part in ([0, 1], [-2, -1], [*range(f.size)])
    ]
    tried += [
        functools.partial(_between, pairs) for pairs in _pairs_of([x.shape for x in arrays[0]])
    ]
    if not tried:
        return False
    at, other = arrays[-1], arrays[0]
    before, *after = values([at, *(move(_rolled, at) for move in tried)])
    changes = defects(np.reshape(after, (len(tried), -1)), before)
    same = [move for move, change in zip(tried, changes, strict=True) if change <= rounding_of(at)]
    for move in same:
        before, *after = values([other, move(_rolled, other), move(_reflected, other)])
        is_same = defects(np.reshape(after, (2, -1)), before) <= rounding_of(other)
        if is_same[0] and not is_same[1]:
            return True
    return False


def _pairs_of(shapes: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, int], ...]]:
    """Sets of pairs of arrays of one shape, no array in two."""
    both = itertools.combinations(range(len(shapes)), 2)
    pairs = [(i, j) for i, j in both if shapes[i] == shapes[j]]
    sets = (c for k in (1, 2, 3, 4) for c in itertools.combinations(pairs, k))
    return [c for c in itertools.islice(sets, _MOST_TRIED) if len({*sum(c, ())}) == 2 * len(c)]


_Move = Callable[[np.ndarray], np.ndarray]  # of slices, as rows


def _between(
    pairs: Sequence[tuple[int, int]], move: _Move, at: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The arrays with the first ones of pairs in a row, and the second ones, moved as slices."""
    found = list(at)
    sides = [np.concatenate([np.ravel(at[pair[side]]) for pair in pairs]) for side in (0, 1)]
    ends = np.cumsum([at[i].size for i, _ in pairs])[:-1]
    for side, row in enumerate(move(np.stack(sides))):
        for pair, part in zip(pairs, np.split(row, ends), strict=True):
            found[pair[side]] = part.reshape(at[pair[side]].shape)
    return found


def _along(
    factors: Sequence[Sequence[Factor]],
    factor: Factor,
    part: list[int],
    move: _Move,
    at: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """The arrays with some slices moved along a factor, of those that have it."""
    found = list[np.ndarray]()
    for x, own in zip(at, factors, strict=True):
        moved = x.reshape([f.size for f in own])
        for place in (p for p, f in enumerate(own) if f is factor):
            first = np.moveaxis(moved, place, 0).copy()
            first[part] = move(first[part].reshape(len(part), -1)).reshape(first[part].shape)
            moved = np.moveaxis(first, 0, place)
        found.append(moved.reshape(x.shape))
    return found


def _rolled(rows: np.ndarray) -> np.ndarray:
    return np.roll(rows, 1, axis=0)


def _reflected(rows: np.ndarray) -> np.ndarray:
    """Slices reflected about their mean, which keeps it, and the sum of squares."""
    normal = np.random.default_rng(5).normal(size=rows.shape[1])
    normal = (normal / np.linalg.norm(normal)).astype(rows.dtype)
    apart = rows - rows.mean(axis=0)
    return rows - (2.0 * np.outer(apart @ normal, normal)).astype(rows.dtype)


def _without(group: Group, numbers: Sequence[int]) -> Group:
    """The group without sets of units, and without the signs of others that are theirs too."""
    gone = [group.units[n] for n in numbers]
    span = independent(units.arrays(pattern) for units in gone for pattern in units.signs)
    kept = list[Units]()
    for number, units in enumerate(group.units):
        if number not in numbers:
            whole = [(p, [*span, units.arrays(p)]) for p in units.signs]
            signs = tuple(p for p, sets in whole if len(independent(sets)) > len(span))
            kept.append(replace(units, signs=signs))
    return replace(group, units=tuple(kept))


def _rotated(group: Group, at: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """By set of units the point with two of them rotated into each other, in all of its arrays."""
    for units in (units for units in group.units if units.size > 1):
        matrix = np.eye(units.size)
        cos, sin = math.cos(_ANGLE), math.sin(_ANGLE)
        matrix[:2, :2] = [[cos, -sin], [sin, cos]]
        parts = group.split(at)
        for leaf, place in units.members:
            turned = np.moveaxis(parts[leaf], place, -1) @ matrix.astype(parts[leaf].dtype)
            parts[leaf] = np.moveaxis(turned, -1, place)
        yield [x.reshape(shape) for x, shape in zip(parts, group.shapes, strict=True)]


def _keeps(group: Group, at: list[Any], values: Callable[[list[list[Any]]], np.ndarray]) -> bool:
    random = np.random.default_rng(4)
    # One may be the identity: of a group of 48 that of the first draw was.
    moved = [group.drawn(random).of_leaves(at) for _ in range(3)]
    before, *after = values([at, *moved])
    return bool(np.max(defects(np.stack(after), before)) <= rounding_of(at))

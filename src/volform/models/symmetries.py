"""Symmetries of a density: exchanges, changes of sign and rotations, found by evaluation."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.compilation import compiled
from volform.models.bound_model import BoundModel
from volform.models.prior_draws import prior_draws
from volform.models.rotations import Rotations

MOST_AXES = 6  # axes of one length that are tried together: 63 subsets
TRIALS = 3  # points at which the densities have to agree, to rounding
UNCHANGED = 1e-9
ROTATIONS_TRIED = 2  # random orthogonal matrices, each at every trial point
SAME = 1e-6  # of a mode's coordinates, relative: two images that agree so far are one

Values = dict[str, Any]
Part = tuple[str, int | None]  # a site, and an axis of it; None for the whole site


class Symmetry(NamedTuple):
    """A group of maps of the parameters that leave the joint density unchanged.

    Exchanges permute the slices along an axis, of several sites together; changes of sign are of
    one slice, or of whole sites. Both have |det| = 1 in the values, on a simplex too.

    Attributes:
        parts: the sites, each with its axis.
        exchanges: whether slices may be exchanged; else signs may be changed.
    """

    parts: tuple[Part, ...]
    exchanges: bool

    def __str__(self) -> str:
        verb = "exchange of" if self.exchanges else "change of sign of"
        return f"{verb} {', '.join(name for name, _ in self.parts)}"

    def generators(self, values: Values) -> list[Callable[[Values], Values]]:
        """Maps that generate the group, from the shapes of the values."""
        name, axis = self.parts[0]
        if axis is None:
            return [lambda values: self._flipped(values, None)]
        count = jnp.shape(values[name])[axis]
        if self.exchanges:
            return [lambda values, i=i: self._exchanged(values, i) for i in range(count - 1)]
        return [lambda values, i=i: self._flipped(values, i) for i in range(count)]

    def _exchanged(self, values: Values, i: int) -> Values:
        def swapped(value: Any, axis: int) -> Any:
            order = np.arange(value.shape[axis])
            order[[i, i + 1]] = i + 1, i
            return np.take(np.asarray(value), order, axis)

        return values | {name: swapped(values[name], axis or 0) for name, axis in self.parts}

    def _flipped(self, values: Values, i: int | None) -> Values:
        def turned(value: Array, axis: int | None) -> Array:
            if i is None or axis is None:
                return -value
            sign = np.where(np.arange(value.shape[axis]) == i, -1.0, 1.0)
            return value * sign.reshape([-1 if a == axis else 1 for a in range(value.ndim)])

        return values | {name: turned(values[name], axis) for name, axis in self.parts}


def find_symmetries(model: BoundModel, key: PRNGKeyArray) -> tuple[Symmetry, ...]:
    """The exchanges and changes of sign that leave the density unchanged at prior draws.

    The smallest sets of sites are tried first, and those that hold one that was found are left out.
    Signs are changed of sites on the whole line only. At most six axes of one length, and six
    sites, are tried together: 63 sets.

    Args:
        model: the model with its data.
        key: key of the prior draws.
    """
    points = _trial_points(model, key)
    found, signs = list[Symmetry](), list[int]()
    at = _densities(model, points)
    for candidate in _candidates(model):
        if any(_is_within(other, candidate) for other in found):
            continue
        turns = [] if candidate.exchanges else _turns(candidate, points[0])
        if turns and not any(_reduced(turn, signs) for turn in turns):  # by others together
            continue
        moves = candidate.generators(points[0])
        if all(_keeps_density(model, move, points, at) for move in moves):
            found.append(candidate)
            _extend(signs, turns)
    return tuple(found)


def _turns(symmetry: Symmetry, values: Values, of: Values | None = None) -> list[int]:
    """The entries that each change of sign turns, as bits; those of `of` that are zero left out."""
    ones = jax.tree.map(lambda value: np.ones(np.shape(value)), values)
    seen = np.concatenate([np.ravel(np.abs(np.asarray(x)) > SAME) for x in (of or ones).values()])
    moved = [move(ones) for move in symmetry.generators(values)]
    flat = [np.concatenate([np.ravel(np.asarray(x)) for x in one.values()]) for one in moved]
    return [int.from_bytes(np.packbits((one < 0.0) & seen).tobytes()) for one in flat]


def _reduced(turn: int, basis: Sequence[int]) -> int:
    """The rest of a set of entries that those of a basis leave; 0 where it is a sum of them."""
    for one in basis:
        turn = min(turn, turn ^ one)
    return turn


def _extend(basis: list[int], turns: Sequence[int]) -> None:
    for turn in turns:
        left = _reduced(turn, basis)
        if left:
            basis.append(left)
            basis.sort(reverse=True)


def _trial_points(model: BoundModel, key: PRNGKeyArray) -> list[Values]:
    """Values at which densities have to agree: a few draws of the prior."""
    draws = jax.tree.map(np.asarray, _trial_values(model, key))
    return [jax.tree.map(lambda value, i=i: value[i], draws) for i in range(TRIALS)]


@compiled
def _trial_values(model: BoundModel, key: PRNGKeyArray) -> Values:
    return jax.vmap(model.layout.constrain)(prior_draws(model, key, TRIALS))


@compiled
def _density_at(model: BoundModel, values: Values) -> Float[Array, ""]:
    return jnp.stack([jnp.sum(d) for d in model.program.site_densities(values).values()]).sum()


def _keeps_density(
    model: BoundModel, move: Any, points: list[Values], at: Sequence[float] | None = None
) -> bool:
    """Tell whether a map of the values leaves the density unchanged at all of the points.

    Args:
        model: the model with its data.
        move: the map.
        points: values of the latent sites.
        at: the log density at them, if it is known.
    """
    before = _densities(model, points) if at is None else at
    return all(
        abs(float(_density_at(model, move(values))) - density) < UNCHANGED * (1.0 + abs(density))
        for values, density in zip(points, before, strict=True)
    )


def find_rotations(model: BoundModel, key: PRNGKeyArray) -> tuple[Rotations, ...]:
    """The rotations that leave the density unchanged, of sites on the whole line.

    Tried where exchanges and changes of sign along the axes do so, at prior draws.

    Args:
        model: the model with its data.
        key: key of the draws and of the rotations.
    """
    symmetries = find_symmetries(model, key)
    exchanged = [set(s.parts) for s in symmetries if s.exchanges]
    points, found = _trial_points(model, key), list[Rotations]()
    random = np.random.default_rng(0)
    for symmetry in (s for s in symmetries if not s.exchanges):
        parts = tuple((name, axis) for name, axis in symmetry.parts if axis is not None)
        if set(parts) not in exchanged:  # which have axes, of length two and more
            continue
        size = points[0][parts[0][0]].shape[parts[0][1]]
        rotations = Rotations(parts, size)
        turns = [np.linalg.qr(random.normal(size=(size, size)))[0] for _ in range(ROTATIONS_TRIED)]
        moves = [_move(model, rotations, turn) for turn in turns]
        if all(_keeps_density(model, move, points) for move in moves):
            found.append(rotations)
    return tuple(found)


def _move(model: BoundModel, rotations: Rotations, turn: Any) -> Any:
    return lambda values: jax.tree.map(np.asarray, rotations.turned(values, jnp.asarray(turn)))


def _densities(model: BoundModel, points: list[Values]) -> list[float]:
    return [float(_density_at(model, values)) for values in points]


def _candidates(model: BoundModel) -> Iterator[Symmetry]:
    sites = model.layout.sites
    on_lines = {site.name for site in sites if site.is_line}
    lengths: dict[int, list[Part]] = {}
    for site in sites:
        for axis, length in enumerate(site.shape):
            lengths.setdefault(length, []).append((site.name, axis))
    whole: list[Part] = [(site.name, None) for site in sites if site.is_line]
    for length, parts in lengths.items():
        for subset in _subsets(parts[:MOST_AXES]):
            if length > 1:
                yield Symmetry(subset, exchanges=True)
            if all(name in on_lines for name, _ in subset):
                yield Symmetry(subset, exchanges=False)
    for subset in _subsets(whole[:MOST_AXES]):
        yield Symmetry(subset, exchanges=False)


def _subsets(parts: list[Part]) -> Iterator[tuple[Part, ...]]:
    for size in range(1, len(parts) + 1):
        for subset in itertools.combinations(parts, size):
            if len({name for name, _ in subset}) == size:
                yield subset


def _is_within(found: Symmetry, candidate: Symmetry) -> bool:
    """Tell whether a symmetry that was found is a smaller one of the candidate's kind."""
    if found.exchanges != candidate.exchanges:
        return False
    if candidate.parts[0][1] is None:  # signs of whole sites, where those of slices are known
        return {name for name, _ in found.parts} <= {name for name, _ in candidate.parts}
    return set(found.parts) <= set(candidate.parts)


def images(
    model: BoundModel, symmetries: tuple[Symmetry, ...], u: Float[Array, " d"], most: int
) -> list[Float[np.ndarray, " d"]]:
    """The distinct images of u under the symmetries, u first; no more than `most` + 1 of them."""
    generators = [g for s in symmetries for g in s.generators(model.values(u))]
    found = [np.asarray(u)]
    for point in found:  # grows while it is read: breadth first
        for move in generators:
            new = np.asarray(model.layout.unconstrain(move(model.values(jnp.asarray(point)))))
            if not any(_are_equal(new, old) for old in found):
                found.append(new)
            if len(found) > most:
                return found
    return found


def _are_equal(one: Any, other: Any) -> bool:
    return bool(np.max(np.abs(one - other)) < SAME * (1.0 + np.max(np.abs(other))))


def count_images(model: BoundModel, symmetries: tuple[Symmetry, ...], u: Float[Array, " d"]) -> int:
    """Number of distinct images of u: k! / (alike)! by exchanges, 2^n by signs.

    Of changes of sign those n count that are independent of each other on what is not zero. Sites
    that take part in several exchanges are counted by the first.
    """
    values, basis = model.values(u), list[int]()
    for symmetry in symmetries:
        _extend(basis, [] if symmetry.exchanges else _turns(symmetry, values, values))
    count = 2 ** len(basis)
    for symmetry in symmetries:
        signs = {n for s in symmetries if not s.exchanges for n, a in s.parts if a is not None}
        slices = _slices(values, symmetry)
        if not symmetry.exchanges:
            continue
        if {name for name, _ in symmetry.parts} <= signs:  # counted up to the sign of each
            slices = [s * np.sign(s[np.argmax(np.abs(s) > SAME)] or 1.0) for s in slices]
        left, alike = list(slices), 1
        while left:
            same = [s for s in left if _are_equal(s, left[0])]
            left = [s for s in left if not _are_equal(s, left[0])]
            alike *= math.factorial(len(same))
        count *= math.factorial(len(slices)) // alike
    return count


def _slices(values: Values, symmetry: Symmetry) -> list[Float[np.ndarray, " n"]]:
    if symmetry.parts[0][1] is None:
        return [np.concatenate([np.ravel(values[name]) for name, _ in symmetry.parts])]
    each = [np.moveaxis(np.asarray(values[name]), axis or 0, 0) for name, axis in symmetry.parts]
    rows = [part.reshape(len(part), -1) for part in each]
    return list(np.concatenate(rows, axis=1))


def is_fixed_point(model: BoundModel, symmetry: Symmetry, u: Float[Array, " d"]) -> bool:
    """Tell whether a change of sign of several sites together leaves u where it is.

    There products of the sites vanish: of abilities and discriminations, of loadings and factors.
    A site that the data say nothing of has such a symmetry alone, and its mode is where it should
    be.
    """
    if symmetry.exchanges or len(symmetry.parts) < 2:
        return False
    return all(bool(np.max(np.abs(s)) < SAME) for s in _slices(model.values(u), symmetry))

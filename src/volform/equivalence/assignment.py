"""Assignment of the units of points to those of another point, with signs."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from volform.equivalence.canonical import settled
from volform.equivalence.group import Group
from volform.errors import DataError

_SWEEPS = 50  # over the sets of units; a handful is enough
Arrays = list[np.ndarray]  # of a point; of several points with an axis of them in front


class Move(NamedTuple):
    """Exchanges and signs of one set of units, of each of several points."""

    number: int
    orders: Int[np.ndarray, "draws n"]
    signs: Float[np.ndarray, "draws k n"]
    together: Float[np.ndarray, "draws t"]


class Aligner:
    """Assignment of the units of several points, each array with an axis of them, to one point."""

    def __init__(self, group: Group, scales: Sequence[Any]):
        self._group, self._scales = group, scales

    def distances(self, target: Arrays, points: Arrays) -> Float[np.ndarray, " draws"]:
        """Distances in the deviations."""
        pairs = zip(target, points, self._scales, strict=True)
        parts = [np.square((x - y) / s).reshape(len(y), -1).sum(1) for x, y, s in pairs]
        return np.sqrt(np.sum(parts, axis=0))

    def moves(self, target: Arrays, points: Arrays, from_inputs: bool = False) -> Iterator[Move]:
        """Moves that bring the points nearer, a set of units at a time; in place.

        Args:
            target: the point.
            points: the points, which are moved.
            from_inputs: whether sets of units go first by those of their arrays that lie between
                inputs and sets that are in order.
        """
        numbers = range(len(self._group.units))
        left = {*numbers}
        for number in numbers if from_inputs and len(numbers) > 1 else ():
            members = settled(self._group, number, left)
            left.discard(number)
            if members:
                move = self._move(number, target, points, members)
                points[:] = self.moved(move, points)
                yield move
        before = self.distances(target, points)
        for _ in range(_SWEEPS):
            any_changed = False
            for number in numbers:
                move = self._move(number, target, points)
                moved = self.moved(move, points)
                after = self.distances(target, moved)
                better = after < before * (1.0 - 1e-12)
                if np.any(better):
                    for x, y in zip(points, moved, strict=True):
                        x[better] = y[better]
                    before, any_changed = np.where(better, after, before), True
                    yield move
            if not any_changed or len(numbers) == 1:
                return

    def _move(
        self, number: int, target: Arrays, points: Arrays, members: Sequence[int] | None = None
    ) -> Move:
        """The best move of one set of units."""
        from scipy.optimize import linear_sum_assignment  # noqa: PLC0415

        units, products = self._group.units[number], self.products(number, target, points)
        if members is not None:
            products[np.setdiff1d(np.arange(len(products)), members)] = 0.0
        each = _sign_choices(len(units.signs))
        whole = _sign_choices(len(units.together))
        found, totals = [], []
        for choice in whole:
            weights = self.weights(number) * _of_members(units.together, choice, len(products))
            sums = np.tensordot(weights, products, 1)
            best = np.max(sums, axis=0)
            orders = np.stack([linear_sum_assignment(one, maximize=True)[1] for one in best])
            index = np.arange(len(orders))[:, None], np.arange(units.size), orders
            chosen = np.array(each)[np.argmax(sums, axis=0)[index]]
            signs = np.ones((len(orders), len(units.signs), units.size))
            np.put_along_axis(signs, orders[:, None], chosen.transpose(0, 2, 1), axis=2)
            found.append((orders, signs))
            totals.append(best[index].sum(1))
        picked, draws = np.argmax(totals, axis=0), np.arange(len(products[0]))
        orders, signs = (np.stack(parts)[picked, draws] for parts in zip(*found, strict=True))
        return Move(number, orders, signs, np.array(whole)[picked])

    def moved(self, move: Move, points: Arrays) -> Arrays:
        """The points after a move."""
        units, found = self._group.units[move.number], list(points)
        factors, draws = self._group.factors, len(move.orders)
        signs = np.ones((len(units.members), draws, units.size))
        for i, pattern in enumerate(units.signs):
            signs[list(pattern)] *= move.signs[:, i]
        for i, pattern in enumerate(units.together):
            signs[list(pattern)] *= move.together[:, i, None]
        for (leaf, place), turned in zip(units.members, signs, strict=True):
            shape = [draws, *(units.size if p == place else 1 for p in range(len(factors[leaf])))]
            part = found[leaf].reshape(draws, *factors[leaf]) * turned.reshape(shape)
            part = np.take_along_axis(part, move.orders.reshape(shape), axis=place + 1)
            found[leaf] = part.reshape(points[leaf].shape)
        return found

    def products(
        self, number: int, target: Arrays, points: Arrays
    ) -> Float[np.ndarray, "members draws n n"]:
        """Scalar products of the units of the target and of the points, in each array."""
        found = []
        for leaf, place in self._group.units[number].members:
            scale, factors = self._scales[leaf], self._group.factors[leaf]
            one = np.moveaxis((target[leaf] / scale).reshape(factors), place, 0)
            own = (points[leaf] / scale).reshape(-1, *factors)
            other = np.moveaxis(own, place + 1, 1).reshape(len(own), factors[place], -1)
            found.append(one.reshape(len(one), -1) @ other.transpose(0, 2, 1))
        return np.stack(found)

    def weights(self, number: int) -> Float[np.ndarray, "choices members"]:
        """Signs of the members of a set of units, by choice of the signs of a unit."""
        units = self._group.units[number]
        choices = _sign_choices(len(units.signs))
        return np.stack([_of_members(units.signs, s, len(units.members)) for s in choices])


def _sign_choices(count: int) -> list[tuple[float, ...]]:
    """All combinations of changes of sign, none of them first."""
    return [tuple(1.0 - 2.0 * (n >> i & 1) for i in range(count)) for n in range(2**count)]


def _of_members(
    patterns: Sequence[tuple[int, ...]], signs: Sequence[float], count: int
) -> Float[np.ndarray, " members"]:
    found = np.ones(count)
    for pattern, sign in zip(patterns, signs, strict=True):
        found[list(pattern)] *= sign
    return found


def unit_lengths(group: Group, deviations: Any, draws: Sequence[np.ndarray]) -> list[Any]:
    """The unit of length of each array."""
    if deviations is None:
        return [float(np.sqrt(np.mean(np.square(x)))) or 1.0 for x in draws]
    if isinstance(deviations, float | int):
        return [float(deviations)] * len(draws)
    found = [np.asarray(x, float) for x in jax.tree.leaves(deviations)]
    fits = jax.tree.structure(deviations) == group.treedef and all(
        x.shape in ((), shape) and np.all(x > 0.0)
        for x, shape in zip(found, group.shapes, strict=True)
    )
    if not fits:
        raise DataError(
            f"`deviations` is {deviations!r}; it should be a positive number, or one for each of "
            f"the arrays {', '.join(group.names)}, laid out like them."
        )
    return found

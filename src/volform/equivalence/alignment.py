"""Copies of parameters brought together: draws to a moving mean, one network to another."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from volform.equivalence.assignment import Aligner, Arrays, unit_lengths
from volform.equivalence.group import Element, Group, arrays_in_words, arrays_of
from volform.errors import DataError

_AT_ONCE = 256  # draws that are assigned together; bounds the memory
_PASSES = 20  # over the draws
_STARTS = 4  # of a match, the later ones from random elements
_CLEAR = 1.0  # log likelihood ratio of two places for a unit below which it may have either
_RARELY = 0.05  # share of draws in which a unit of a clear place may be closer to another


class Match(NamedTuple):
    """Parameters of one network brought close to those of another.

    Attributes:
        params: the copy of the second network that is nearest to the first.
        element: what takes the second network there.
        distance: between them, in the deviations.
    """

    params: PyTree
    element: Element
    distance: float


@dataclass(frozen=True)
class Ambiguous:
    """A unit whose place among the copies the draws do not tell.

    Attributes:
        units: name of the set of units.
        unit: its number.
        other: the unit that it is like; None where its sign is open: it is idle.
        margin: log likelihood ratio of its place and the next best one, in 5 % of the draws less.
    """

    units: str
    unit: int
    other: int | None
    margin: float

    def __str__(self) -> str:
        state = "idle" if self.other is None else f"like unit {self.other}"
        return f"unit {self.unit} of {self.units} is {state}"


class Representatives(Mapping[str, np.ndarray]):
    """Draws of which each is the copy nearest to the mean of all; by name, as `dict` takes them.

    Attributes:
        draws: the draws, laid out as they were given.
        margins: by set of units, for each unit the log likelihood ratio of its place and the next
            best one, that 5 % of the draws are below.
        ambiguous: units of which the means say nothing: idle ones, and such that are alike.
    """

    def __init__(self, draws: PyTree, names: Mapping[str, Any], margins: dict[str, np.ndarray],
                 ambiguous: tuple[Ambiguous, ...]):  # fmt: skip
        self.draws, self.margins, self.ambiguous = draws, margins, ambiguous
        self._names = dict(names)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._names[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}{list(np.shape(v))}" for name, v in self.items())
        unclear = "; ".join(map(str, self.ambiguous)) or "every unit has its place"
        return f"Representatives of {shapes}: {unclear}"


def representatives(group: Group, draws: PyTree, deviations: Any = None) -> Representatives:
    """One representative of each draw's copies: the one nearest to the mean of all draws.

    Draws of a network visit its copies as chance has it, so that means, r-hat and effective sizes
    of single weights say nothing. Each draw is taken to the copy that is nearest to a moving mean,
    by assignment of its units and their signs, `min sum |w - mean|^2 / deviation^2`; then all
    again to the mean of all, until none changes. What is left of r-hat is there in the functions:
    a chain that is stuck in another mode stays so. Continuous symmetries are not used.

    Args:
        group: the symmetries of the network.
        draws: laid out like its parameters, with axes for chains and draws in front: `(chains,
            draws, ...)` or `(draws, ...)`. A dict may hold other sites, which stay as they are.
        deviations: the prior's standard deviations, a number for all or for each array; the root
            mean squares of the draws if left out.

    Returns:
        The draws, by name and as a whole, with margins.

    Raises:
        DataError: when the draws do not fit the group, are not finite, or `deviations` do not fit.

    Cost: an assignment of each set of units for each draw, some ten times; 0.5 s for 2,500 draws
    of a network of three units.
    """
    kept, others = _own(group, draws)
    leaves, treedef, rest = arrays_of(kept)
    lead = _leading(group, leaves, treedef)
    flat = [np.asarray(x, float).reshape(-1, *s) for x, s in zip(leaves, group.shapes, strict=True)]
    if not all(np.all(np.isfinite(x)) for x in flat):
        raise DataError(
            "`draws` of representatives are not finite; leave out the draws that are not."
        )
    scales = unit_lengths(group, deviations, flat)
    placed = _placed(Aligner(group, scales), flat)
    spread = [np.sqrt(np.mean(np.var(x, axis=0))) or 1.0 for x in placed]
    margins, ambiguous = _margins(Aligner(group, spread), group, placed)
    shaped = [
        x.reshape(*lead, *s).astype(leaf.dtype)
        for x, s, leaf in zip(placed, group.shapes, leaves, strict=True)
    ]
    tree = group.rebuilt(shaped, rest)
    names = {**others, **dict(zip(group.names, shaped, strict=True))}
    return Representatives({**tree, **others} if others else tree, names, margins, ambiguous)


def match(group: Group, a: PyTree, b: PyTree, deviations: Any = None) -> Match:
    """The copy of the network b that is nearest to the network a.

    Coordinate descent over the sets of units, each by assignment with signs, from several starts.
    The nearest copy is a hard problem in deep networks: what is found is a local minimum. Balance
    networks of ReLU units first (`balance`), since their scalings are no part of it.

    Args:
        group: symmetries of their common function.
        a: parameters.
        b: parameters, which are moved.
        deviations: unit of length of each array, as for `representatives`.

    Raises:
        NetworkError: when the parameters are not of this group's network.
        DataError: when `deviations` do not fit.

    >>> import jax, jax.numpy as jnp, volform as vf
    >>> from volform import equivalence as eq
    >>> net = vf.networks.MLP(widths=(4,))
    >>> a, b = (net.init(jax.random.key(i), inputs=2) for i in (0, 1))
    >>> group = eq.symmetry(net.apply, a, jnp.ones((5, 2)))
    >>> round(eq.match(group, a, group.draw(jax.random.key(2))(a)).distance, 6)
    0.0
    """
    target, moving = (
        [np.asarray(x, float) for x in group.leaves(tree, name)[0]]
        for tree, name in ((a, "a"), (b, "b"))
    )
    scales = unit_lengths(
        group, deviations, [np.stack(pair) for pair in zip(target, moving, strict=True)]
    )
    aligner, random = Aligner(group, scales), np.random.default_rng(0)
    discrete = replace(group, flows=())
    starts = [group.identity, *(discrete.drawn(random) for _ in range(_STARTS - 1))]
    found = []
    for start in starts:
        at, element = [x[None].copy() for x in start.of_leaves(moving)], start
        for move in aligner.moves(target, at, from_inputs=start is starts[0]):
            parts = move.orders[0], move.signs[0], move.together[0]
            step = group.identity.at(move.number, *parts)
            element = composed(element, step)
        found.append((float(aligner.distances(target, at)[0]), element))
    distance, element = min(found, key=lambda pair: pair[0])
    return Match(element(b), element, distance)


def composed(first: Element, second: Element) -> Element:
    """One exchange with signs after another."""
    orders, signs, together = [], [], []
    for n in range(len(first.group.units)):
        orders.append(first.orders[n][second.orders[n]])
        back = np.argsort(first.orders[n])
        signs.append(first.signs[n] * second.signs[n][:, back])
        together.append(first.together[n] * second.together[n])
    return Element(first.group, tuple(orders), tuple(signs), tuple(together))


def _placed(aligner: Aligner, draws: Arrays) -> Arrays:
    """The draws, each at the copy nearest to the mean of all."""
    placed = [x.copy() for x in draws]
    if not _place_all(aligner, placed, [x.mean(0) for x in draws]):
        return placed
    # A moving mean, of twice as many draws each time.
    placed, done = [x.copy() for x in draws], 1
    while done < len(draws[0]):
        mean = [x[:done].mean(0) for x in placed]
        _place_all(aligner, [x[done : 2 * done] for x in placed], mean, from_inputs=True)
        done *= 2
    for _ in range(_PASSES):
        if not _place_all(aligner, placed, [x.mean(0) for x in placed]):
            break
    return placed


def _place_all(aligner: Aligner, draws: Arrays, mean: Arrays, from_inputs: bool = False) -> bool:
    """Move draws next to a mean, in place; True if one moved."""
    changed = False
    for start in range(0, len(draws[0]), _AT_ONCE):
        chunk = [x[start : start + _AT_ONCE] for x in draws]
        for _ in aligner.moves(mean, chunk, from_inputs):
            changed = True
    return changed


def _margins(
    aligner: Aligner, group: Group, draws: Arrays
) -> tuple[dict[str, np.ndarray], tuple[Ambiguous, ...]]:
    """Log likelihood ratios of the units' places and the next best ones."""
    mean = [x.mean(0) for x in draws]
    margins, ambiguous = dict[str, np.ndarray](), list[Ambiguous]()
    for number, units in enumerate(group.units):
        exchanged, turned = [], []
        for start in range(0, len(draws[0]), _AT_ONCE):
            products = aligner.products(number, mean, [x[start : start + _AT_ONCE] for x in draws])
            sums = np.tensordot(aligner.weights(number), products, 1)
            own, best = np.diagonal(sums[0], axis1=1, axis2=2), np.max(sums, axis=0)
            swaps = own[:, :, None] + own[:, None] - best - best.transpose(0, 2, 1)
            exchanged.append(swaps + np.diag(np.full(units.size, np.inf)))
            others = np.diagonal(sums[1:], axis1=2, axis2=3)
            turned.append(own - np.max(others, axis=0, initial=-np.inf))
        swaps, signs = (
            np.quantile(np.concatenate(x), _RARELY, axis=0, method="lower")
            for x in (exchanged, turned)
        )
        margins[units.name] = np.minimum(np.min(swaps, axis=1), signs)
        for unit in np.flatnonzero(margins[units.name] < _CLEAR):
            other = None if signs[unit] < _CLEAR else int(np.argmin(swaps[unit]))
            margin = float(margins[units.name][unit])
            ambiguous.append(Ambiguous(units.name, int(unit), other, margin))
    return margins, tuple(ambiguous)


def _own(group: Group, draws: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """The draws of the group's arrays, and those of other sites."""
    arrays = jax.tree.unflatten(group.treedef, group.names)
    if isinstance(draws, Mapping) and isinstance(arrays, dict):
        others = {name: value for name, value in draws.items() if name not in arrays}
        return {name: value for name, value in draws.items() if name in arrays}, others
    return draws, {}


def _leading(group: Group, leaves: list[Any], treedef: Any) -> tuple[int, ...]:
    """Lengths of the axes of chains and draws."""
    shapes = [np.shape(leaf) for leaf in leaves]
    if treedef == group.treedef:
        pairs = list(zip(shapes, group.shapes, strict=True))
        leads = {shape[: len(shape) - len(own)] for shape, own in pairs}
        fits = all(shape[len(shape) - len(own) :] == own for shape, own in pairs)
        lead = leads.pop()
        if fits and not leads and len(lead) in (1, 2) and math.prod(lead):
            return lead
    raise DataError(
        f"`draws` has arrays of shapes {shapes}; they should be draws of the arrays of the group, "
        f"{arrays_in_words(group.names, group.shapes, 'chains, draws, ')}."
    )

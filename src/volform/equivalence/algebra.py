"""Continuous symmetries of a function: null vectors of affine fields, over random parameters."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from volform.equivalence.axes import Factor
from volform.equivalence.flows import FieldTerm, FlowFamily, Kind, typed
from volform.equivalence.group import Group
from volform.errors import NetworkError

_MOST_BLOCKS = 3  # axes that all members share, of which each subset is tried
_POINTS = 2  # and as many again where a symmetry is likely
_FEWEST_ROWS = 3  # times the number of candidates
LeafFactors = Sequence[Sequence[Factor]]
Weights = tuple[float, ...]


class Probe(Protocol):
    """Derivatives of a function at random parameters."""

    @property
    def tolerance(self) -> float:
        """Relative change that is taken for rounding."""
        ...

    def random(self) -> list[np.ndarray]:
        """Random arrays."""
        ...

    def along(self, at: list[Any], moves: list[list[Any]]) -> np.ndarray:
        """Derivatives along moves."""
        ...


class Candidates(NamedTuple):
    """Terms of affine fields of which some combination may be a symmetry.

    Attributes:
        kind: what a combination would be.
        terms: the terms.
        along: factors that the amounts run along; of mixtures the last one twice.
        units: number of the set of units; -1 of arrays as a whole.
    """

    kind: Kind
    terms: tuple[FieldTerm, ...]
    along: tuple[Factor, ...]
    units: int = -1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the amounts."""
        sizes = tuple(factor.size for factor in self.along)
        return (*sizes, sizes[-1]) if self.kind == "mixing" else sizes


def flows_of(group: Group, factors: LeafFactors, probe: Probe) -> tuple[FlowFamily, ...]:
    """Families of continuous symmetries, none of them a combination of others.

    Candidates act on all units of a set alike. A combination that leaves the function as it is at
    random parameters, with a random amount for each unit, does so everywhere.

    Args:
        group: the exchanges.
        factors: of the axes of each array.
        probe: of the function.

    Raises:
        NetworkError: when the function does not depend on its parameters.
    """
    # Amounts for each of several blocks, as of the heads, hold those that are one for all of them.
    sets = sorted(
        (*_of_units(group, factors), *_of_arrays(group, factors)),
        key=lambda one: (one.units < 0, one.kind != "mixing", -len(one.along)),
    )
    found = list[tuple[Candidates, FlowFamily]]()
    for one, nulls in zip(sets, _null_spaces(sets, group, probe), strict=True):
        for weights in _beyond(one, nulls, found, factors):
            flow = FlowFamily("", one.kind, one.shape, one.terms, weights)
            names = dict.fromkeys(group.names[term.leaf] for term in flow.used)
            title = group.units[one.units].name if one.units >= 0 else " and ".join(names)
            found.append((one, replace(flow, name=title, kind=_kind_of(one, flow.used))))
    return tuple(flow for _, flow in sorted(found, key=lambda pair: pair[0].units % 10**9))


def _kind_of(one: Candidates, used: Sequence[FieldTerm]) -> Kind:
    kinds = {term.kind for term in used}
    if one.kind == "mixing":
        leaves = [term.leaf for term in used]
        return "mixing" if len(set(leaves)) == len(leaves) else "rotation"
    return one.kind if "scale" in kinds else "translation"


def _of_units(group: Group, factors: LeafFactors) -> Iterator[Candidates]:
    """Scalings and mixtures of sets of units, in each block of what they share, and in all."""
    for number, units in enumerate(group.units):
        others = [
            [f for place, f in enumerate(factors[m.leaf]) if place != m.place]
            for m in units.members
        ]
        shared = tuple(f for f in dict.fromkeys(others[0]) if all(f in own for own in others))
        factor = factors[units.members[0].leaf][units.members[0].place]
        for blocks in _subsets(shared[:_MOST_BLOCKS]):
            scalings, mixtures = list[FieldTerm](), list[FieldTerm]()
            for (leaf, place), rest in zip(units.members, others, strict=True):
                own = factors[leaf]
                free = [p for p in range(len(own)) if p != place]
                places = (*(next(p for p in free if own[p] is b) for b in blocks), place)
                scalings.append(FieldTerm("scale", leaf, places))
                if len(own) == len(places):
                    scalings.append(FieldTerm("shift", leaf, places))
                scalings += [
                    FieldTerm("carry", other, places, leaf)
                    for other, target in enumerate(factors)
                    if other != leaf and list(target) == rest
                ]
                mixtures += [FieldTerm("mix", leaf, places), FieldTerm("unmix", leaf, places)]
            yield Candidates("scaling", tuple(scalings), (*blocks, factor), number)
            yield Candidates("mixing", tuple(mixtures), (*blocks, factor), number)


def _subsets(factors: tuple[Factor, ...]) -> Iterator[tuple[Factor, ...]]:
    for size in range(len(factors) + 1):
        yield from itertools.combinations(factors, size)


def _of_arrays(group: Group, factors: LeafFactors) -> Iterator[Candidates]:
    """Translations of entries, or of all along an axis, and scalings of whole arrays."""
    free = {m.leaf for u in group.units for m in u.members if len(factors[m.leaf]) == 1}
    sets: dict[tuple[bool, tuple[Factor, ...]], list[FieldTerm]] = {}
    for leaf, own in enumerate(factors):
        if leaf not in free:  # whose entries are translated as units
            every = FieldTerm("shift", leaf, tuple(range(len(own))))
            sets.setdefault((True, tuple(own)), []).append(every)
        for summed in range(len(own)):
            kept = tuple(p for p in range(len(own)) if p != summed)
            term = FieldTerm("shift", leaf, kept)
            sets.setdefault((False, tuple(own[p] for p in kept)), []).append(term)
    for (_, kept), terms in sets.items():
        yield Candidates("translation", tuple(terms), kept)
    yield Candidates("scaling", tuple(FieldTerm("scale", leaf) for leaf in range(len(factors))), ())


def _beyond(
    one: Candidates,
    nulls: Sequence[Weights],
    found: Sequence[tuple[Candidates, FlowFamily]],
    factors: LeafFactors,
) -> Iterator[Weights]:
    """Null vectors that are no sums, over units or blocks, of families that were found."""
    kinds = {term.kind for term in one.terms}
    span = [
        [
            sum(w for t, w in zip(f.terms, f.weights, strict=True) if t[:2] == term[:2])
            for term in one.terms
        ]
        for other, f in found
        if _holds(other, one) and {t.kind for t in f.used} <= kinds
    ]
    for weights in nulls:
        if _rank([*span, weights]) > _rank(span):
            span.append(list(weights))
            yield weights


def _holds(finer: Candidates, coarser: Candidates) -> bool:
    """Tell whether amounts of one set are sums of those of another."""
    return finer.kind == coarser.kind and set(coarser.along) <= set(finer.along)


def _null_spaces(sets: Sequence[Candidates], group: Group, probe: Probe) -> Iterator[list[Weights]]:
    """By set, combinations of its terms that leave the function as it is."""
    search = _Search(group, probe)
    rows = search.rows(sets)
    if not any(np.any(part) for part in rows):
        raise NetworkError(
            "`f` of symmetry does not change with its parameters at these `x`, so that nothing can "
            "be told; give more inputs, none of them zero."
        )
    likely = [i for i, part in enumerate(rows) if _null_vectors(part, probe.tolerance)]
    # At a few points a dead layer fakes symmetries.
    for i, more in zip(likely, search.rows([sets[i] for i in likely]), strict=True):
        rows[i] = np.concatenate([rows[i], more])
    for part in rows:
        yield _null_vectors(part, probe.tolerance)


class _Search:
    """Derivatives along candidates, at random points and with random amounts."""

    def __init__(self, group: Group, probe: Probe):
        self._group, self._probe, self._generator = group, probe, np.random.default_rng(3)

    def rows(self, sets: Sequence[Candidates]) -> list[Float[np.ndarray, "m n"]]:
        """By set a column for each term; as many points as there have to be to tell."""
        found, points = list[list[np.ndarray]](), _POINTS if sets else 0
        while len(found) < points:
            at = self._probe.random()
            parts = self._group.split(at)
            moves = list[list[np.ndarray]]()
            for one in sets:
                drawn = typed(self._generator.normal(size=one.shape), parts[0])
                amounts = np.triu(drawn, 1) if one.kind == "mixing" else drawn
                moves += [_move(term, at, parts, amounts) for term in one.terms]
            columns = self._probe.along(at, moves).T
            most = max(len(one.terms) for one in sets)
            points = max(_POINTS, math.ceil(_FEWEST_ROWS * most / len(columns)))
            ends = np.cumsum([len(one.terms) for one in sets])[:-1]
            found.append(np.split(columns, ends, axis=1))
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _move(
    term: FieldTerm, at: list[Any], parts: list[Any], amounts: np.ndarray
) -> list[np.ndarray]:
    move = [np.zeros_like(x) for x in at]
    move[term.leaf] = np.reshape(term.of(parts, amounts), at[term.leaf].shape)
    return move


def _null_vectors(matrix: Float[np.ndarray, "m n"], tolerance: float) -> list[Weights]:
    """A basis of the null space in echelon form, whose rational entries are exact."""
    sizes = np.linalg.norm(matrix, axis=0)
    sizes = np.where(sizes > tolerance * np.max(sizes), sizes, 0.0)
    units = np.where(sizes > 0.0, sizes, 1.0)
    _, values, rows = np.linalg.svd(np.where(sizes > 0.0, matrix / units, 0.0))
    rank = int(np.sum(values > math.sqrt(tolerance) * max(values[0], 1e-300)))
    basis = _echelon(rows[rank:] / units)
    nearest = np.round(60.0 * basis) / 60.0
    exact = np.where(np.abs(basis - nearest) < 1e3 * math.sqrt(tolerance), nearest, basis)
    return [tuple(map(float, row)) for row in exact]


def _echelon(rows: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "r n"]:
    """Reduced row echelon form of independent rows."""
    rows, done = rows / np.max(np.abs(rows), axis=1, keepdims=True, initial=1e-300), 0
    for column in range(rows.shape[1]):
        if done == len(rows):
            break
        best = done + int(np.argmax(np.abs(rows[done:, column])))
        if np.abs(rows[best, column]) < 1e-6 * np.max(np.abs(rows[done:])):
            continue
        rows[[done, best]] = rows[[best, done]]
        rows[done] /= rows[done, column]
        others = np.arange(len(rows)) != done
        rows[others] -= np.outer(rows[others, column], rows[done])
        done += 1
    return rows


def _rank(rows: Sequence[Sequence[float]]) -> int:
    return int(np.linalg.matrix_rank(np.array(rows))) if len(rows) else 0

"""Layers of a model, found in the program that maps its latent values to its likelihoods."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jaxtyping import Array, Int

from volform.inference.laplace.example_axes import MIXED, example_axes, input_axes, shape_of
from volform.inference.laplace.readings import (
    EntryReading,
    LayerReading,
    Reading,
    RowReading,
    reading_of,
)
from volform.networks.programs import evaluate, outputs_of, written_out


class Piece(NamedTuple):
    """Entries of an array of parameters that are read in one way, by one equation or several.

    Attributes:
        source: number of the array among the sources.
        entries: numbers of the entries of the array: (units, fan_in), both in ascending order, or
            (s,) where the array is added, or multiplied entry by entry.
        readings: the equations; for a matrix with the part of it that reads these entries, and
            the orders of units and features that bring them there.
    """

    source: int
    entries: Int[np.ndarray, "..."]
    readings: tuple[tuple[Any, ...], ...]

    @property
    def is_matrix(self) -> bool:
        """Tell whether it is the matrix of a layer."""
        return self.entries.ndim == 2

    @property
    def is_table(self) -> bool:
        """Tell whether nothing but rows of it are looked up."""
        return all(isinstance(reading, RowReading) for reading, *_ in self.readings)

    @property
    def is_transposed(self) -> bool:
        """Tell whether units follow each other in the array, and not the features of a unit."""
        is_both = self.is_matrix and min(self.entries.shape) > 1
        return is_both and bool(self.entries[1, 0] < self.entries[0, 1])

    @property
    def is_segment(self) -> bool:
        """Tell whether the entries follow each other in the array."""
        laid = self.entries.T if self.is_transposed else self.entries
        return bool((np.diff(laid.ravel()) == 1).all())


@dataclass(frozen=True)
class Layers:
    """A model's program, and the equations in it that read parameters beside the examples.

    Attributes:
        closed: from the latent values, by name in order, to the leaves of the outputs.
        structure: of the outputs.
        count: number of examples.
        names: latent sites, in order.
        sources: variables of the arrays of parameters.
        pieces: of the arrays, in the order in which they are first read.
        sites_of: sites that each source is made of; no other array is made of them.
        last: sites that the last layers are made of, in whatever way they are read.
    """

    closed: Any
    structure: Any
    count: int
    names: tuple[str, ...]
    sources: tuple[Any, ...]
    pieces: tuple[Piece, ...]
    sites_of: tuple[frozenset[str], ...]
    last: frozenset[str]

    @property
    def readings(self) -> list[Reading]:
        """The equations, each once."""
        found = {r.equation: r for piece in self.pieces for r, *_ in piece.readings}
        return [found[number] for number in sorted(found)]

    def run(
        self, values: Mapping[str, Array], added: Mapping[int, Array] | None = None
    ) -> tuple[Any, dict[Any, Any]]:
        """Parameters of the likelihoods, and the values of all variables.

        Args:
            values: of the latent sites.
            added: what to add to the result of an equation, by its number.
        """
        found = evaluate(self.closed, [values[name] for name in self.names], added)
        return self.structure.unflatten(outputs_of(self.closed, found)), found

    def arrays(self, values: Mapping[str, Array]) -> list[Array]:
        """The arrays of parameters."""
        _, found = self.run(values)
        return [found[source] for source in self.sources]


def layers_of(
    outputs_of_values: Callable[[dict[str, Array]], tuple[Any, list[int]]],
    values: dict[str, Array],
) -> Layers:
    """The layers of a model; traced, and not evaluated.

    Args:
        outputs_of_values: from values of the latent sites to the parameters of the observed sites'
            distributions, and the lengths of the data.
        values: of the latent sites.
    """
    structures, counts = [], []

    def leaves(values: dict[str, Array]) -> list[Array]:
        outputs, lengths = outputs_of_values(values)
        found, structure = jax.tree.flatten(outputs)
        structures.append(structure)
        counts.extend(lengths)
        return found

    closed = written_out(leaves, values)
    count = counts[0] if counts else 0
    flow = _Backpropagated(closed, tuple(sorted(values)), count)
    readings = flow.readings() if count else []
    sources, pieces = _pieces(readings, flow)
    of = tuple(flow.sites[source] for source in sources)
    return Layers(
        closed, structures[-1], count, flow.names, sources, pieces, of, flow.last(readings)
    )


class _Backpropagated:
    """The sites that each variable is made of, and the examples that flow through the program.

    Attributes:
        sites: by variable the names of the sites.
        carrying: variables that depend on the examples.
        apart: sites that are read in ways of which nothing is known, or before examples meet.
        needed: variables that the outputs depend on.
        behind: by variable the layers that it depends on, by the number of their equation.
    """

    def __init__(self, closed: ClosedJaxpr, names: tuple[str, ...], count: int):
        jaxpr = closed.jaxpr
        self.jaxpr, self.names, self.count = jaxpr, names, count
        marks = [0 if shape_of(v)[:1] == (count,) else None for v in jaxpr.outvars]
        self.axes = example_axes(jaxpr, marks, max(count, 1))
        self.carrying = {v for v in (*jaxpr.constvars, *jaxpr.invars) if v in self.axes}
        pairs = zip(jaxpr.invars, names, strict=True)
        self.sites: dict[Any, frozenset[str]] = {v: frozenset({name}) for v, name in pairs}
        self.made_by: dict[Any, Any] = {}
        self.behind: dict[Any, frozenset[int]] = {}
        self.apart: set[str] = set()
        self.needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
        for eqn in reversed(jaxpr.eqns):
            if self.needed.intersection(eqn.outvars):
                self.needed.update(v for v in eqn.invars if not isinstance(v, Literal))

    def readings(self) -> list[Reading]:
        """The equations that read parameters beside the examples, in ways that are known."""
        found = []
        for number, eqn in enumerate(self.jaxpr.eqns):
            inputs = [v for v in eqn.invars if not isinstance(v, Literal)]
            sites = frozenset[str]().union(*(self.sites.get(v, ()) for v in inputs))
            behind = frozenset[int]().union(*(self.behind.get(v, ()) for v in inputs))
            if any(v in self.carrying for v in inputs):
                self.carrying.update(eqn.outvars)
                self._note_coupling(eqn)
                for operand, variable in enumerate(eqn.invars):
                    if not self._is_parameter(variable):
                        continue
                    reading = reading_of(number, eqn, operand, self.axes, self.made_by, self.count)
                    if reading is None:
                        self.apart |= self.sites[variable]
                    else:
                        found.append(reading)
                        behind |= {number} if isinstance(reading, LayerReading) else set()
            elif sites:
                self.made_by.update(dict.fromkeys(eqn.outvars, eqn))
            self.sites.update(dict.fromkeys(eqn.outvars, sites))
            self.behind.update(dict.fromkeys(eqn.outvars, behind))
        for variable in self.jaxpr.outvars:
            if self._is_parameter(variable):
                self.apart |= self.sites[variable]
        for variable in self.jaxpr.invars:
            if variable in self.carrying:
                self.apart |= self.sites[variable]
        return found

    def _note_coupling(self, eqn: JaxprEqn) -> None:
        """Note sites before an equation in which examples see each other, as means over them."""
        if not self.needed.intersection(eqn.outvars):
            return
        axes = input_axes(eqn, [self.axes.get(v) for v in eqn.outvars], self.count)
        for variable, axis in zip(eqn.invars, axes, strict=True):
            is_carrying = not isinstance(variable, Literal) and variable in self.carrying
            if is_carrying and axis in (None, MIXED):
                self.apart |= self.sites.get(variable, frozenset())

    def _is_parameter(self, variable: Any) -> bool:
        if isinstance(variable, Literal) or variable in self.carrying:
            return False
        return bool(self.sites.get(variable))

    def last(self, readings: Sequence[Reading]) -> frozenset[str]:
        """The sites of the layers that no other follows, and of sums and products behind them."""
        layers = [r for r in readings if isinstance(r, LayerReading)]
        followed = frozenset[int]().union(*(self.behind.get(r.activations, ()) for r in layers))
        final = {r.equation for r in layers} - followed
        chosen = [
            r
            for r in readings
            if r.equation in final or self.behind.get(r.activations, frozenset()) & final
        ]
        return frozenset[str]().union(*(self.sites[r.source] for r in chosen))


def _pieces(
    readings: Sequence[Reading], flow: _Backpropagated
) -> tuple[tuple[Any, ...], tuple[Piece, ...]]:
    """The sources that are read in known ways only, and their pieces."""
    by_source: dict[Any, list[Reading]] = defaultdict(list)
    for reading in readings:
        by_source[reading.source].append(reading)
    found = {source: _pieces_of(own) for source, own in by_source.items()}
    apart = {*flow.apart}
    apart = apart.union(*(flow.sites[source] for source, own in found.items() if not own))
    while any(0 < len(flow.sites[s] & apart) < len(flow.sites[s]) for s in found):
        apart = apart.union(*(flow.sites[s] for s in found if flow.sites[s] & apart))
    sources = tuple(source for source in found if not flow.sites[source] & apart)
    return sources, tuple(
        Piece(number, *piece) for number, source in enumerate(sources) for piece in found[source]
    )


def _pieces_of(readings: list[Reading]) -> list[tuple[Any, ...]]:
    """Without the number of the source; empty where it is read in ways that do not go together."""
    size = math.prod(shape_of(readings[0].source))
    if all(isinstance(reading, EntryReading) for reading in readings):
        return [(np.arange(size), tuple((reading,) for reading in readings))]
    found: dict[Any, list[tuple[Any, ...]]] = defaultdict(list)
    laid: dict[Any, np.ndarray] = {}
    for reading in readings:
        if isinstance(reading, EntryReading):
            return []
        for part, entries in enumerate(reading.entries):
            orders = np.argsort(entries[:, 0]), np.argsort(entries[0])
            ordered = entries[np.ix_(*orders)]
            key = ordered.shape, ordered.tobytes()
            found[key].append((reading, part, *orders))
            laid[key] = ordered
    times = np.bincount(np.concatenate([ordered.ravel() for ordered in laid.values()]))
    if times.max() > 1 or not all(map(_is_grid, laid.values())):
        return []
    return [(laid[key], tuple(found[key])) for key in laid]


def _is_grid(entries: np.ndarray) -> bool:
    return bool((entries == entries[:, :1] + entries[:1] - entries[0, 0]).all())

"""Equations of a program that read a parameter beside the examples: products, sums, look-ups."""

import abc
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array, Float, Int

from volform.inference.laplace.example_axes import MIXED, shape_of
from volform.networks.programs import windows

_LAYOUT = {"transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "slice", "rev"}
_COPIES = {"convert_element_type", "copy", "copy_p"}


@dataclass(frozen=True)
class Reading(abc.ABC):
    """One equation that reads an array of parameters beside activations.

    Attributes:
        equation: its number in the program.
        eqn: the equation.
        count: number of the examples.
        source: variable of the array, before it was transposed, cut or repeated.
        entries: numbers of the entries of the source, flat, in the layout that the features have.
        axis: of the examples in what the equation gives.
        other: position of the activations among its inputs.
        own_axis: of the examples in the activations.
    """

    equation: int
    eqn: JaxprEqn
    count: int
    source: Any
    entries: Int[np.ndarray, "..."]
    axis: int
    other: int
    own_axis: int

    @property
    def activations(self) -> Any:
        """The variable of the activations."""
        return self.eqn.invars[self.other]

    @property
    def result(self) -> Any:
        """Shape and dtype of what the equation gives."""
        return self.eqn.outvars[0].aval


class LayerReading(Reading):
    """A product of a matrix with features, at every position; `entries` is (parts, units, fan_in).

    Products over common axes, as of each head with a matrix of its own, have several parts.
    """

    @abc.abstractmethod
    def features(self, h: Array) -> Float[Array, "parts n positions fan_in"]:
        """Factors of the rows of the matrix, of the activations h."""

    @abc.abstractmethod
    def slopes(self, delta: Array) -> Float[Array, "parts n positions units"]:
        """Derivatives in what the equation gives, laid out like the features."""


class ProductReading(LayerReading):
    """`dot_general`."""

    @property
    def _axes(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Of the activations: shared with the matrix, of the examples, of positions, summed."""
        contracted, batch = (pair[self.other] for pair in self.eqn.params["dimension_numbers"])
        gone = {*contracted, *batch, self.own_axis}
        free = [a for a in range(len(shape_of(self.activations))) if a not in gone]
        return list(batch), [self.own_axis], free, list(contracted)

    def features(self, h: Array) -> Float[Array, "parts n positions fan_in"]:
        """The activations."""
        axes = self._axes
        fan_in = math.prod(h.shape[a] for a in axes[3])
        parts = math.prod(h.shape[a] for a in axes[0])
        return h.transpose(list(itertools.chain(*axes))).reshape(parts, self.count, -1, fan_in)

    def slopes(self, delta: Array) -> Float[Array, "parts n positions units"]:
        """Axes in the order of the features, then those of the matrix alone."""
        batch, _, positions, _ = self._axes
        free = sorted([self.own_axis, *positions])
        own = [len(batch) + free.index(a) for a in (self.own_axis, *positions)]
        units = delta.ndim - len(batch) - len(free)
        if self.other == 1:  # the matrix comes first
            own = [a + units for a in own]
        start = len(batch) + (0 if self.other == 1 else len(free))
        order = [*range(len(batch)), *own, *range(start, start + units)]
        size = math.prod(delta.shape[start : start + units])
        parts = math.prod(delta.shape[: len(batch)])
        return delta.transpose(order).reshape(parts, self.count, -1, size)


class ConvolutionReading(LayerReading):
    """`conv_general_dilated` without groups."""

    def features(self, h: Array) -> Float[Array, "1 n positions fan_in"]:
        """The windows, channel by channel."""
        found = windows(self.eqn, h)
        return found.reshape(1, self.count, -1, found.shape[-1])

    def slopes(self, delta: Array) -> Float[Array, "1 n positions units"]:
        """The output channels last."""
        found = jnp.moveaxis(delta, self.eqn.params["dimension_numbers"].out_spec[1], -1)
        return found.reshape(1, self.count, -1, found.shape[-1])


class RowReading(LayerReading):
    """`gather` of rows by integers: the product with vectors that have a single one."""

    def features(self, h: Array) -> Float[Array, "1 n positions rows"]:
        """The vectors, which are large: `rows` says the same."""
        found = self.rows(h)[None]
        return jax.nn.one_hot(found, self.entries.shape[-1], dtype=self.result.dtype)

    def rows(self, h: Array) -> Int[Array, "n positions"]:
        """Numbers of the rows; of a row that is not there, as of padding, their count."""
        numbers = jnp.moveaxis(h[..., _place_of_row(self.eqn)], self.own_axis, 0)
        numbers, rows = numbers.reshape(self.count, -1), self.entries.shape[-1]
        if self.eqn.params["mode"] == jax.lax.GatherScatterMode.CLIP:
            return jnp.clip(numbers, 0, rows - 1)
        return jnp.where((numbers >= 0) & (numbers < rows), numbers, rows)

    def slopes(self, delta: Array) -> Float[Array, "1 n positions units"]:
        """The entries of a row last."""
        offset = self.eqn.params["dimension_numbers"].offset_dims
        batch = [a for a in range(delta.ndim) if a not in offset and a != self.axis]
        found = delta.transpose([self.axis, *batch, *offset])
        return found.reshape(1, self.count, -1, self.entries.shape[1])


class EntryReading(Reading):
    """A sum with the array, or a product entry by entry; `entries` is flat, of one example."""

    def gradients(self, h: Array, delta: Array) -> Float[Array, "n s"]:
        """Derivatives in the source for each example."""
        if self.eqn.primitive.name == "mul":
            delta = delta * h
        if self.eqn.primitive.name == "sub" and self.other == 0:
            delta = -delta
        found = jnp.moveaxis(delta, self.axis, 0).reshape(self.count, -1)
        size = math.prod(shape_of(self.source))
        times = found.shape[1] // size
        if np.array_equal(self.entries, np.tile(np.arange(size), times)):
            return found.reshape(self.count, times, size).sum(1)
        return jax.ops.segment_sum(found.T, jnp.asarray(self.entries), size).T


def reading_of(
    number: int, eqn: JaxprEqn, operand: int, axes: Mapping[Any, int], made_by: Mapping[Any, Any],
    count: int,
) -> Reading | None:  # fmt: skip
    """The reading of the input `operand` of an equation, None where it is none that is known."""
    if len(eqn.invars) != 2 or isinstance(eqn.invars[1 - operand], Literal):
        return None
    axis, own_axis = axes.get(eqn.outvars[0]), axes.get(eqn.invars[1 - operand])
    if axis is None or own_axis is None or MIXED in (axis, own_axis):
        return None
    source, places = _layout_of(eqn.invars[operand], made_by)
    kind, entries = _laid_out(eqn, operand, axis, places, count)
    if kind is None or (kind is not EntryReading and np.unique(entries).size < entries.size):
        return None
    return kind(number, eqn, count, source, entries, axis, 1 - operand, own_axis)


def _laid_out(
    eqn: JaxprEqn, operand: int, axis: int, places: np.ndarray, count: int
) -> tuple[type[Reading] | None, np.ndarray]:
    match eqn.primitive.name:
        case "dot_general":
            contracted, batch = (p[operand] for p in eqn.params["dimension_numbers"])
            free = [a for a in range(places.ndim) if a not in (*contracted, *batch)]
            parts, fan_in = (math.prod(places.shape[a] for a in own) for own in (batch, contracted))
            order = (*batch, *free, *contracted)
            return ProductReading, places.transpose(order).reshape(parts, -1, fan_in)
        case "conv_general_dilated" if operand == 1 and eqn.params["feature_group_count"] == 1:
            own = places.transpose(eqn.params["dimension_numbers"].rhs_spec)
            return ConvolutionReading, own.reshape(1, len(own), -1)
        case "gather" if operand == 0 and _place_of_row(eqn) is not None:
            row = eqn.params["dimension_numbers"].start_index_map[_place_of_row(eqn)]
            own = np.moveaxis(places, row, -1)
            return RowReading, own.reshape(1, -1, own.shape[-1])
        case "add" | "sub" | "mul" | "add_any":
            whole = np.broadcast_to(places, shape_of(eqn.outvars[0]))
            each = np.moveaxis(whole, axis, 0)
            if len(each) != count:
                each = each.reshape(count, -1)
            is_same = each.strides[0] == 0 or (each == each[:1]).all()
            return EntryReading if is_same else None, each[0].ravel()
    return None, places


def _place_of_row(eqn: JaxprEqn) -> int | None:
    """The place among the indices of the one that chooses a row; None for other cuts."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape = shape_of(eqn.invars[0])
    cut = [a for a, size in enumerate(sizes) if size != shape[a]]
    cut = cut or [a for a in numbers.collapsed_slice_dims if sizes[a] == 1]
    is_row = len(cut) == 1 and sizes[cut[0]] == 1 and not numbers.operand_batching_dims
    places: Sequence[int] = numbers.start_index_map
    return places.index(cut[0]) if is_row and cut[0] in places else None


def _layout_of(variable: Any, made_by: Mapping[Any, JaxprEqn]) -> tuple[Any, np.ndarray]:
    """The variable that another is a new layout of, and the numbers of its entries there."""
    steps = []
    while variable in made_by:
        eqn = made_by[variable]
        dtype: Any = getattr(eqn.invars[0].aval, "dtype", np.dtype(bool))
        is_real = jnp.issubdtype(dtype, jnp.floating)  # a cast to integers has no derivative
        if eqn.primitive.name not in _LAYOUT | _COPIES or not is_real:
            break
        steps.append(eqn)
        variable = eqn.invars[0]
    shape = shape_of(variable)
    entries = np.arange(math.prod(shape)).reshape(shape)
    for eqn in reversed(steps):
        entries = _moved(eqn, entries)
    return variable, entries


def _moved(eqn: JaxprEqn, entries: np.ndarray) -> np.ndarray:
    params, shape = eqn.params, shape_of(eqn.outvars[0])
    match eqn.primitive.name:
        case "transpose":
            return entries.transpose(params["permutation"])
        case "rev":
            return np.flip(entries, params["dimensions"])
        case "broadcast_in_dim":
            kept = dict(zip(params["broadcast_dimensions"], entries.shape, strict=True))
            aligned = entries.reshape([kept.get(axis, 1) for axis in range(len(shape))])
            return np.broadcast_to(aligned, shape)
        case "slice":
            steps = params["strides"] or (1,) * len(shape)
            cuts = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
            return entries[tuple(slice(*cut) for cut in cuts)]
    return entries.reshape(shape)

"""Second moments of what flows through the layers of a model, forth and back."""

import dataclasses
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from volform.compilation import steady
from volform.geometry.dependence import dependence
from volform.inference.laplace.gauss_newton import DataPriorSplit
from volform.inference.laplace.layers import Layers, Piece, layers_of
from volform.inference.laplace.observed_sites import SiteOutputs
from volform.inference.laplace.output_roots import output_roots, require_roots
from volform.inference.laplace.pieces import features_of, gradients_of, rows_of, slopes_of
from volform.inference.laplace.sums import (
    comes_in_batches,
    over_batches,
    over_chunks,
    without_data,
)
from volform.linalg.operator import mapped
from volform.networks.programs import read

_TOGETHER = 16  # columns of the root of L that are pulled back at once

CorrectedMoments = tuple[Float[Array, "i i"], Float[Array, "..."] | None, Float[Array, "..."]]
LayerMoments = tuple[Float[Array, "i i"], Float[Array, "..."] | None]
Bases = dict[int, tuple[Float[Array, "i i"], Float[Array, "..."]]]


def shaped(split: DataPriorSplit) -> Layers:
    """The layers, with nothing evaluated."""
    found: list[Layers] = []

    def look(split: DataPriorSplit) -> None:
        found.append(layers_of(split.of_values, split.posterior.values(split.u)))

    eqx.filter_eval_shape(look, without_data(split))
    return dataclasses.replace(found[-1], closed=None)  # whose constants are traced


def moments_of(split: DataPriorSplit, *, reduce: bool = False) -> list[LayerMoments]:
    """Second moments of the slopes and of the features of each piece, or of its gradients and None.

    The latter where an array is added, or multiplied entry by entry: its block, exact. Slopes are
    averaged over examples and positions, features summed; those of a table are diagonal, (rows,).

    Args:
        split: the model and where.
        reduce: whether slopes are summed, and features averaged, over the positions of an example
            before.

    Raises:
        StructureError: where the loss is no sum over examples, or not convex in the outputs.
    """
    sums, error = over_batches(split, lambda part: _summed(part, reduce), _added_and_worst)
    return _checked((_means(sums), error))


def corrected_moments_of(split: DataPriorSplit, *, reduce: bool = False) -> list[CorrectedMoments]:
    """Eigenvectors of the moments of each piece, and the diagonal of its block in them, exact.

    As `moments_of` where there is one moment only.

    Args:
        split: the model and where.
        reduce: as for `moments_of`; the diagonal is that of the block whatever it is.

    Raises:
        StructureError: as for `moments_of`.
    """
    if not comes_in_batches(split):
        return _checked(_corrected(split, reduce))
    moments = moments_of(split, reduce=reduce)
    bases = _bases_of(moments)
    return _with_squares(moments, bases, over_batches(split, lambda part: _in_bases(part, bases)))


def squares_of(split: DataPriorSplit) -> list[Float[Array, " s"]]:
    """The diagonal of `J^T L J` for the arrays of parameters, those of the layers.

    Raises:
        StructureError: as for `moments_of`.
    """
    return _checked(over_batches(split, _squares, _added_and_worst))


class Backpropagated(NamedTuple):
    """Derivatives that flow back through the layers.

    Attributes:
        layers: as they are in the program.
        activations: that are read beside parameters, by the number of the equation.
        deltas: from a column of the root of L at all examples to gradients at what the equations
            give that read parameters, by their number.
        roots: the columns, shape (o, n, o).
        factorization_error: minus the smallest eigenvalue of the L_n, how far L is from a sum
            over examples, and the largest eigenvalue, which the two are relative to.
    """

    layers: Layers
    activations: dict[int, Array]
    deltas: Any
    roots: Float[Array, "o n o"]
    factorization_error: Float[Array, " 3"]


def flow_of(split: DataPriorSplit) -> Backpropagated:
    """Activations and derivatives that flow through the layers of all examples of a split."""
    values = split.posterior.values(split.u)
    layers = layers_of(split.of_values, values)
    zero = {r.equation: jnp.zeros(r.result.shape, r.result.dtype) for r in layers.readings}

    def run(added: dict[int, Array]) -> tuple[SiteOutputs, dict[int, Array]]:
        z, found = layers.run(values, added)
        return z, {r.equation: read(found, r.activations) for r in layers.readings}

    z, pull, activations = jax.vjp(run, zero, has_aux=True)
    flags = dependence(lambda added: run(added)[0], zero)
    found = output_roots(split, z, flags, layers.count)

    def deltas(root: Float[Array, "n o"]) -> dict[int, Array]:
        return pull(found.laid_out(root))[0]

    return Backpropagated(layers, activations, deltas, found.roots, found.factorization_error)


@steady
def _corrected(
    split: DataPriorSplit, reduce: bool
) -> tuple[list[CorrectedMoments], Float[Array, " 3"]]:
    known = flow_of(split) if split.chunk is None else None  # which both sums need
    sums, error = _summed_in_chunks(split, reduce, known)
    moments = _means(sums)
    bases = _bases_of(moments)
    squares = over_chunks(split, lambda part: _squares_in(bases, known or flow_of(part)))
    return _with_squares(moments, bases, squares), error


@steady
def _bases_of(moments: list[LayerMoments]) -> Bases:
    return {
        number: (jnp.linalg.eigh(left)[1], _eigenvectors(right))
        for number, (left, right) in enumerate(moments)
        if right is not None
    }


@steady
def _in_bases(split: DataPriorSplit, bases: Bases) -> dict[int, Float[Array, "m n"]]:
    return over_chunks(split, lambda part: _squares_in(bases, flow_of(part)))


def _squares_in(bases: Bases, flow: Backpropagated) -> dict[int, Float[Array, "m n"]]:
    def of_root(root: Float[Array, "n o"]) -> dict[int, Float[Array, "m n"]]:
        deltas, pieces = flow.deltas(root), flow.layers.pieces
        return {
            number: _square_in(pieces[number], flow.activations, deltas, *basis)
            for number, basis in bases.items()
        }

    return {k: s.sum(0) for k, s in mapped(of_root, flow.roots, _TOGETHER).items()}


def _with_squares(
    moments: list[LayerMoments], bases: Bases, squares: dict[int, Float[Array, "m n"]]
) -> list[CorrectedMoments]:
    return [
        (*bases[number], squares[number]) if number in bases else (left, None, left)
        for number, (left, _) in enumerate(moments)
    ]


def _eigenvectors(moment: Float[Array, "..."]) -> Float[Array, "..."]:
    """Of a matrix; for the diagonal of one the ones of the identity."""
    return jnp.ones_like(moment) if moment.ndim == 1 else jnp.linalg.eigh(moment)[1]


def _square_in(
    piece: Piece,
    activations: dict[int, Array],
    deltas: dict[int, Array],
    left: Float[Array, "m m"],
    right: Float[Array, "..."],
) -> Float[Array, "m n"]:
    """Squares of the gradients of each example in bases of units and features, summed."""
    slopes = slopes_of(piece, deltas) @ left
    if right.ndim == 1:
        return _square_of_table(rows_of(piece, activations), slopes, piece.entries.shape[1])
    return _square(features_of(piece, activations) @ right, slopes)


@steady
def _summed(split: DataPriorSplit, reduce: bool) -> tuple[Any, Float[Array, " 3"]]:
    return _summed_in_chunks(split, reduce)


def _summed_in_chunks(
    split: DataPriorSplit, reduce: bool, known: Backpropagated | None = None
) -> tuple[Any, Float[Array, " 3"]]:
    """The sums over all examples, and the error of `Backpropagated`."""

    def part(split: DataPriorSplit) -> tuple[Any, Array]:
        flow = known or flow_of(split)
        return _sums(flow, reduce), flow.factorization_error

    return over_chunks(split, part, _added_and_worst)


@steady
def _means(sums: Any) -> list[LayerMoments]:
    return [
        (left, None) if right is None else (left / jnp.maximum(count, 1), right)
        for left, right, count in sums
    ]


def _added_and_worst(one: tuple[Any, Array], other: tuple[Any, Array]) -> tuple[Any, Array]:
    """Sums of two chunks, and the worse of their errors."""
    return jax.tree.map(jnp.add, one[0], other[0]), jnp.maximum(one[1], other[1])


def _sums(
    flow: Backpropagated, reduce: bool
) -> list[tuple[Float[Array, "i i"], Float[Array, "..."] | None, Array | None]]:
    """Sums of slopes and of features over examples and positions, and the number of these."""
    tables = {
        number: rows_of(piece, flow.activations)
        for number, piece in enumerate(flow.layers.pieces)
        if piece.is_table
    }

    def of_root(root: Float[Array, "n o"]) -> list[Float[Array, "i i"]]:
        deltas, found = flow.deltas(root), []
        for number, piece in enumerate(flow.layers.pieces):
            if piece.is_matrix:
                slopes = slopes_of(piece, deltas)
                if number in tables:
                    is_there = tables[number] < piece.entries.shape[1]
                    slopes = jnp.where(is_there[..., None], slopes, 0)
                slopes = slopes.sum(1, keepdims=True) if reduce else slopes
                found.append(jnp.einsum("npi,npj->ij", slopes, slopes))
            else:
                each = gradients_of(piece, flow.activations, deltas)
                found.append(each.T @ each)
        return found

    sums = []
    lefts = mapped(of_root, flow.roots, _TOGETHER)
    for number, (piece, left) in enumerate(zip(flow.layers.pieces, lefts, strict=True)):
        if not piece.is_matrix:
            sums.append((left.sum(0), None, None))
            continue
        if number in tables and not reduce:  # its vectors would be n times rows numbers
            counts = jnp.bincount(tables[number].ravel(), length=piece.entries.shape[1])
            counts = counts.astype(left.dtype)
            sums.append((left.sum(0), counts, counts.sum()))
            continue
        features = features_of(piece, flow.activations)
        features = features.mean(1, keepdims=True) if reduce else features
        n, positions, _ = features.shape
        right = jnp.einsum("npi,npj->ij", features, features)
        sums.append((left.sum(0), right, jnp.full((), n * positions, left.dtype)))
    return sums


@steady
def _squares(split: DataPriorSplit) -> tuple[list[Float[Array, " s"]], Float[Array, " 3"]]:
    return over_chunks(split, _squares_at_once, _added_and_worst)


def _squares_at_once(split: DataPriorSplit) -> tuple[list[Float[Array, " s"]], Float[Array, " 3"]]:
    flow = flow_of(split)

    def of_root(root: Float[Array, "n o"]) -> list[Array]:
        deltas, found = flow.deltas(root), []
        for piece in flow.layers.pieces:
            if piece.is_table:
                rows, size = rows_of(piece, flow.activations), piece.entries.shape[1]
                found.append(_square_of_table(rows, slopes_of(piece, deltas), size))
            elif piece.is_matrix:
                features = features_of(piece, flow.activations)
                found.append(_square(features, slopes_of(piece, deltas)))
            else:
                found.append(jnp.sum(gradients_of(piece, flow.activations, deltas) ** 2, 0))
        return found

    squares = mapped(of_root, flow.roots, _TOGETHER)
    sizes = [math.prod(source.aval.shape) for source in flow.layers.sources]
    totals = [jnp.zeros(size, flow.roots.dtype) for size in sizes]
    for piece, square in zip(flow.layers.pieces, squares, strict=True):
        own = square.sum(0).astype(flow.roots.dtype)
        totals[piece.source] = totals[piece.source].at[piece.entries].set(own)
    return totals, flow.factorization_error


def _square(
    features: Float[Array, "n p fan_in"], delta: Float[Array, "n p units"]
) -> Float[Array, "units fan_in"]:
    """`sum_n (sum_p delta_np a_np^T)^2`, entry by entry."""
    if features.shape[1] == 1:
        return (delta[:, 0] ** 2).T @ features[:, 0] ** 2
    each = lambda pair: (pair[1].T @ pair[0]) ** 2  # noqa: E731
    return jax.lax.map(each, (features, delta), batch_size=min(32, len(features))).sum(0)


def _square_of_table(
    rows: Int[Array, "n p"], delta: Float[Array, "n p units"], count: int
) -> Float[Array, "units rows"]:
    """The same, of vectors with a single one: the sums at the rows of each example."""

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        own, slopes = pair
        is_same = (own[:, None] == own[None]).astype(slopes.dtype)
        # of all positions at one row each adds its own part of the square of their sum
        return total.at[own].add(slopes * (is_same @ slopes)), None

    zero = jnp.zeros((count, delta.shape[2]), delta.dtype)
    return jax.lax.scan(add, zero, (rows, delta))[0].T


def _checked(result: tuple[Any, Float[Array, " 3"]]) -> Any:
    found, factorization_error = result
    require_roots(factorization_error)
    return found

"""Covariance of the outputs of a model that is linear in its parameters, in the form of factors."""

import abc
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float

from volform.compilation import steady
from volform.inference.laplace.layers import Layers, Piece, layers_of
from volform.inference.laplace.pieces import (
    ValuedOutputs,
    features_of,
    gradients_of,
    multipliers_of,
    rows_of,
    scattered,
    slopes_of,
)
from volform.linalg.operator import Operator
from volform.linalg.precision import KroneckerSum, RotatedDiagonal
from volform.linalg.structured import DenseOperator, FlatBlocks
from volform.linalg.under_metric import whitening_maps
from volform.models.layout import Site
from volform.networks.programs import read

_AT_ONCE = 2**22  # numbers of the gradients of one matrix that are held

Covariance = tuple[Float[Array, "n t k k"], Float[Array, "n t k"], Bool[Array, ""]]


class OutputPrecision(Operator):
    """A precision matrix that gives the covariance of outputs by itself."""

    @abc.abstractmethod
    def prepared(self) -> Any:
        """Whatever of it is the same for all outputs; None where there is nothing."""

    @abc.abstractmethod
    def covariance_of(self, outputs: ValuedOutputs, known: Any, group: int) -> "Covariance | None":
        """`J P^-1 J^T` as `covariance_by_factors` gives it.

        Args:
            outputs: of a batch of examples.
            known: `prepared`.
            group: number k of outputs whose covariance is asked for; t groups follow each other.
        """


@steady
def rotated_blocks(precision: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
    """The same operator with its Kronecker sums by their eigenvectors, found once."""
    if not isinstance(precision, FlatBlocks):
        return precision
    return FlatBlocks(
        tuple(
            block.rotated() if isinstance(block, KroneckerSum) else block
            for block in precision.blocks
        )
    )


class PiecePlan(NamedTuple):
    """Entries of a site that the precision has a block for.

    Attributes:
        source: number of the array.
        site: that the array is a multiple of.
        block: its number among the blocks.
        pieces: numbers of the pieces of the array.
        start: of the block in the site.
    """

    source: int
    site: Site
    block: int
    pieces: tuple[int, ...]
    start: int


def _plan_of(outputs: ValuedOutputs, layers: Layers, precision: Any) -> list[PiecePlan] | None:
    """The blocks that go with the layers, or None where they do not go together."""
    if not isinstance(precision, FlatBlocks | lx.DiagonalLinearOperator):
        return None
    names = [min(own) for own in layers.sites_of]
    if not layers.pieces or len(set(names)) < len(names):
        return None
    parts = list[PiecePlan]()
    for number, name in enumerate(names):
        site = outputs.posterior.layout.site(name)
        own = _parts_of(layers, number, site, _starts(precision))
        if own is None or len(layers.sites_of[number]) > 1:
            return None
        parts += own
    return parts


def _starts(precision: Any) -> list[tuple[int, Any]]:
    """The blocks, each with where it starts."""
    if not isinstance(precision, FlatBlocks):
        return [(0, precision)]
    sizes = [block.in_size() for block in precision.blocks]
    return list(zip(np.cumsum([0, *sizes[:-1]]).tolist(), precision.blocks, strict=True))


def _parts_of(
    layers: Layers, source: int, site: Site, blocks: list[tuple[int, Any]]
) -> list[PiecePlan] | None:
    """Of an array: a piece for each block of factors, or one block for several pieces."""
    own = [(n, piece) for n, piece in enumerate(layers.pieces) if piece.source == source]
    if sum(piece.entries.size for _, piece in own) != site.size:
        return None
    if isinstance(blocks[0][1], lx.DiagonalLinearOperator):
        return [PiecePlan(source, site, 0, (n,), 0) for n, _ in own]
    found, size = list[PiecePlan](), 0
    for number, (start, block) in enumerate(blocks):
        if not site.start <= start < site.start + site.size:
            continue
        first, end = start - site.start, start - site.start + block.in_size()
        inside = [(n, piece) for n, piece in own if first <= piece.entries.min() < end]
        if isinstance(block, RotatedDiagonal):
            if len(inside) != 1 or not _is_block(inside[0][1], block):
                return None
        elif not isinstance(block, DenseOperator):
            return None
        found.append(PiecePlan(source, site, number, tuple(n for n, _ in inside), first))
        size += block.in_size()
    return found if size == site.size else None


def _is_block(piece: Piece, block: RotatedDiagonal) -> bool:
    shape = piece.entries.T.shape if piece.is_transposed else piece.entries.shape
    return piece.is_matrix and piece.is_segment and shape == block.values.shape


class Backward(NamedTuple):
    """Activations and slopes of a batch of examples.

    Attributes:
        layers: of the program.
        multipliers: of the arrays, as of `multipliers_of`.
        activations: by the number of the equation.
        deltas: the same for slopes, with axes of groups of outputs and outputs before.
        values: the outputs, shape (n, groups, outputs).
    """

    layers: Layers
    multipliers: list[tuple[Array, Array] | None]
    activations: dict[int, Array]
    deltas: dict[int, Array]
    values: Float[Array, "n t k"]


def covariance_by_factors(
    outputs: ValuedOutputs,
    precision: lx.AbstractLinearOperator,
    group: int,
    known: Backward | None = None,
) -> Covariance | None:
    """`J P^-1 J^T` of groups of outputs of each example; the outputs; whether this is all of it.

    It is where the outputs move with the arrays of the layers alone, and those are multiples of
    their sites. None where layers and blocks do not go together.

    Args:
        outputs: of a batch of examples.
        precision: P, with `rotated_blocks`.
        group: number k of outputs whose covariance is asked for; t groups follow each other.
        known: what flows through the layers, where it is at hand.
    """
    flow = known or backward_of(outputs, group)
    layers, multipliers = flow.layers, flow.multipliers
    plan = _plan_of(outputs, layers, precision)
    if plan is None or any(found is None for found in multipliers):
        return None
    blocks = [block for _, block in _starts(precision)]
    parts = []
    for part in plan:
        block, piece = blocks[part.block], layers.pieces[part.pieces[0]]
        if isinstance(block, lx.DiagonalLinearOperator):
            found = _of_diagonal(flow, piece, block.diagonal[part.site.segment])
        elif isinstance(block, RotatedDiagonal):
            found = _of_factors(flow, piece, block)
        else:
            found = _of_rows(flow, part, block)
        multiplier, _ = multipliers[part.source] or (jnp.ones(()), None)
        parts.append(multiplier**2 * found)
    is_all = _slope_elsewhere(outputs, {part.site.name for part in plan}) == 0.0
    is_all &= jnp.all(jnp.stack([found[1] for found in multipliers if found]))
    return functools.reduce(jnp.add, parts), flow.values, is_all


def backward_of(outputs: ValuedOutputs, group: int) -> Backward:
    """Activations, and slopes that flow back from groups of outputs."""
    layers = layers_of(outputs.of_values, outputs.posterior.values(outputs.u))
    zero = {r.equation: jnp.zeros(r.result.shape, r.result.dtype) for r in layers.readings}
    values = outputs.posterior.values(outputs.u)

    def run(added: dict[int, Array]) -> tuple[Array, dict[int, Array]]:
        z, found = layers.run(values, added)
        flat = z.reshape(layers.count, -1, group)
        return flat, {r.equation: read(found, r.activations) for r in layers.readings}

    found, pull, activations = jax.vjp(run, zero, has_aux=True)
    n, t, k = found.shape
    units = jnp.eye(t * k, dtype=found.dtype).reshape(t, k, t, k)
    of_unit = lambda unit: pull(jnp.broadcast_to(unit[None], (n, t, k)))[0]  # noqa: E731
    multipliers = multipliers_of(outputs, layers)
    return Backward(layers, multipliers, activations, jax.vmap(jax.vmap(of_unit))(units), found)


def _slope_elsewhere(outputs: ValuedOutputs, names: set[str]) -> Float[Array, ""]:
    """Of the outputs along a random direction of the sites that are no arrays of layers."""
    posterior, u = outputs.posterior, outputs.u
    if names.issuperset(posterior.names):
        return jnp.zeros((), u.dtype)
    tangent = scattered(1, u.size, u.dtype)[0]
    for name in names:
        tangent = tangent.at[posterior.layout.site(name).segment].set(0.0)
    of_u = lambda u: outputs.of_values(posterior.values(u))[0]  # noqa: E731
    return jnp.max(jnp.abs(jax.jvp(of_u, (u,), (tangent,))[1]), initial=0.0)


def _slopes(flow: Backward, piece: Piece) -> Float[Array, "t k n p units"]:
    return jax.vmap(jax.vmap(functools.partial(slopes_of, piece)))(flow.deltas)


def _of_factors(flow: Backward, piece: Piece, block: RotatedDiagonal) -> Float[Array, "n t k k"]:
    left, right, values = block.left, block.right, block.values
    if piece.is_transposed:
        left, right, values = right, left, values.T
    return _turned(flow, piece, left, right, values)


def _turned(
    flow: Backward, piece: Piece, left: Array | None, right: Array | None, values: Array
) -> Float[Array, "n t k k"]:
    """`sum_ij X_ij Y_ij / E_ij`, with X and Y the gradients of two outputs in the eigenvectors.

    Args:
        flow: activations and slopes.
        piece: the entries of the matrix.
        left: eigenvectors of units, None or of one axis for the identity.
        right: the same of features.
        values: E, shape (units, fan_in).
    """
    slopes = _slopes(flow, piece)
    slopes = slopes if left is None or left.ndim == 1 else slopes @ left
    if piece.is_table and (right is None or right.ndim == 1):
        return _of_table(slopes, rows_of(piece, flow.activations), values)
    features = features_of(piece, flow.activations)
    features = features if right is None or right.ndim == 1 else features @ right
    if features.shape[1] == 1:
        weights = features[:, 0] ** 2 @ (1.0 / values).T
        own = slopes[:, :, :, 0]
        return jnp.einsum("tkni,tlni->ntkl", own * weights, own)

    def of_example(pair: tuple[Array, Array]) -> Float[Array, "t k k"]:
        gradient = jnp.einsum("tkpi,pj->tkij", *pair)
        return jnp.einsum("tkij,tlij->tkl", gradient / values, gradient)

    size = slopes.shape[0] * slopes.shape[1] * values.size
    batch = max(1, min(len(features), _AT_ONCE // size))
    return jax.lax.map(of_example, (jnp.moveaxis(slopes, 2, 0), features), batch_size=batch)


def _of_table(slopes: Array, rows: Array, values: Array) -> Float[Array, "n t k k"]:
    """The same of rows that are looked up: positions at one row are summed."""
    count = values.shape[1]
    slopes = jnp.where((rows < count)[..., None], slopes, 0.0)
    same = (rows[:, :, None] == rows[:, None]).astype(slopes.dtype)
    each = (1.0 / values).T.at[rows].get(mode="clip")  # [n, p, units]
    summed = jnp.einsum("npq,tknqi->tknpi", same, slopes)
    return jnp.einsum("tknpi,tlnpi->ntkl", slopes * each, summed)


def _of_diagonal(
    flow: Backward, piece: Piece, diagonal: Float[Array, " s"]
) -> Float[Array, "n t k k"]:
    values = diagonal[piece.entries]
    if piece.is_matrix:
        return _turned(flow, piece, None, None, values)
    gradients = _entry_gradients(flow, piece)
    return jnp.einsum("tkns,tlns->ntkl", gradients / values, gradients)


def _entry_gradients(flow: Backward, piece: Piece) -> Float[Array, "t k n s"]:
    own = functools.partial(gradients_of, piece, flow.activations)
    return jax.vmap(jax.vmap(own))(flow.deltas)


def _of_rows(flow: Backward, part: PiecePlan, block: Any) -> Float[Array, "n t k k"]:
    """By the gradients in all entries, for a block that has no factors."""
    t, k, n, _ = flow.values.transpose(1, 2, 0)[..., None].shape
    rows = jnp.zeros((t, k, n, block.in_size()), flow.values.dtype)
    for number in part.pieces:
        piece = flow.layers.pieces[number]
        if piece.is_matrix:
            features = features_of(piece, flow.activations)
            found = jnp.einsum("tknpi,npj->tknij", _slopes(flow, piece), features)
        else:
            found = _entry_gradients(flow, piece)
        rows = rows.at[..., piece.entries.ravel() - part.start].set(found.reshape(t, k, n, -1))
    down, _ = whitening_maps(block)
    flat = jax.vmap(down)(rows.reshape(math.prod((t, k, n)), -1)).reshape(t, k, n, -1)
    return jnp.einsum("tkns,tlns->ntkl", flat, flat)

"""The kernel `J W J^T` of outputs of a model by what flows through its layers, W diagonal."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from volform.geometry.dependence import dependence
from volform.inference.laplace.gauss_newton import DataPriorSplit
from volform.inference.laplace.kronecker_factors import holders
from volform.inference.laplace.layer_moments import flow_of, shaped
from volform.inference.laplace.layers import Layers, Piece
from volform.inference.laplace.output_roots import picked
from volform.inference.laplace.pieces import (
    features_of,
    gradients_of,
    multipliers_of,
    rows_of,
    slopes_of,
)
from volform.inference.laplace.sums import without_data
from volform.models.layout import Layout

_AT_ONCE = 2**22  # numbers of the gradients of one array that are held


class PieceFlow(NamedTuple):
    """Features and slopes of the layers for some gradients of each example.

    Attributes:
        layers: of the program.
        activations: by the number of the equation.
        deltas: the same for slopes, with an axis of the gradients before.
        multipliers: numbers that the arrays are of their sites.
    """

    layers: Layers
    activations: dict[int, Array]
    deltas: dict[int, Array]
    multipliers: list[Array]

    def parts(self) -> dict[tuple[str, bytes], Piece]:
        """The pieces by their site and entries, which are the same for other examples."""
        found = {}
        for piece in self.layers.pieces:
            name = min(self.layers.sites_of[piece.source])
            found[name, piece.entries.tobytes()] = piece
        return found

    def slopes(self, piece: Piece) -> Float[Array, "q n p units"]:
        """Slopes at the units of a matrix."""
        return jax.vmap(functools.partial(slopes_of, piece))(self.deltas)

    def features(self, piece: Piece) -> Float[Array, "n p fan_in"]:
        """Features of a matrix."""
        return features_of(piece, self.activations)

    def rows(self, piece: Piece) -> Int[Array, "n p"]:
        """Rows of a table."""
        return rows_of(piece, self.activations)

    def gradients(self, piece: Piece) -> Float[Array, "q n s"]:
        """Gradients in an array that is added, or multiplied entry by entry."""
        return jax.vmap(functools.partial(gradients_of, piece, self.activations))(self.deltas)


def uniform_sites(split: DataPriorSplit, rest: Float[Array, " d"]) -> frozenset[str] | None:
    """Sites in which the rest is a number, of a model that is made of layers; None of another.

    It is made of them where its outputs move with the arrays of layers alone, each a multiple of a
    site of its own.
    """
    layers = shaped(split)
    held = holders(split, layers) if layers.pieces else []
    sizes = np.zeros(len(held), int)
    for piece in layers.pieces:
        sizes[piece.source] += piece.entries.size
    found = [h.site for h, size in zip(held, sizes, strict=True) if h and h.site.size == size]
    names = {site.name for site in found}
    if not held or len(names) < len(held) or _moves_with_others(split, names):
        return None
    parts = [(site.name, np.asarray(rest[site.segment])) for site in found]
    return frozenset(name for name, own in parts if (own == own[0]).all())


def _moves_with_others(split: DataPriorSplit, names: set[str]) -> bool:
    values = split.posterior.values(split.u)
    others = {name: value for name, value in values.items() if name not in names}
    own = {name: value for name, value in values.items() if name in names}
    flags = dependence(lambda others: without_data(split).of_values({**own, **others})[0], others)
    return bool(others) and any(jax.tree.leaves(flags))


def root_flow(split: DataPriorSplit, columns: Int[Array, " n"] | None) -> PieceFlow:
    """Features, and slopes from the columns of a root of L, or from one of each example."""
    flow = flow_of(split)
    deltas = jax.vmap(flow.deltas)(picked(flow.roots, columns))
    found = multipliers_of(split, flow.layers)
    return PieceFlow(flow.layers, flow.activations, deltas, [pair[0] for pair in found if pair])


def layer_kernel(
    left: PieceFlow,
    right: PieceFlow,
    layout: Layout,
    weights: Float[Array, " d"],
    uniform: frozenset[str],
) -> Float[Array, "n q m r"] | None:
    """`J W J'^T`, a sum over the layers; None where those are not the same.

    For a matrix, features a and slopes delta it is `(a a') (delta delta')`, at a cost of its units
    and its fan-in and not of their product, and else by the gradients of some examples at a time.

    Args:
        left: examples n and gradients q.
        right: examples m and gradients r.
        layout: of the sites.
        weights: W.
        uniform: sites in which W is a number.
    """
    ours, theirs = left.parts(), right.parts()
    if ours.keys() != theirs.keys():
        return None
    total = jnp.zeros((), weights.dtype)
    for (name, _), piece in ours.items():
        own = theirs[name, piece.entries.tobytes()]
        weight = weights[layout.site(name).segment]
        weight = weight[0] if name in uniform else weight[piece.entries]
        pair = left.multipliers[piece.source], right.multipliers[own.source]
        total = total + pair[0] * pair[1] * _of_piece(left, right, piece, own, weight)
    return total


def layer_squares(
    flow: PieceFlow, layout: Layout, weights: Float[Array, " d"], uniform: frozenset[str]
) -> Float[Array, "n q"]:
    """The diagonal of `layer_kernel`, of examples with themselves."""
    total = jnp.zeros((), weights.dtype)
    for (name, _), piece in flow.parts().items():
        weight = weights[layout.site(name).segment]
        weight = weight[0] if name in uniform else weight[piece.entries]
        total = total + flow.multipliers[piece.source] ** 2 * _squares_of(flow, piece, weight)
    return total


def _squares_of(flow: PieceFlow, piece: Piece, weight: Float[Array, "..."]) -> Float[Array, "n q"]:
    if not piece.is_matrix:
        return jnp.sum(flow.gradients(piece) ** 2 * weight, -1).T
    features, slopes = flow.features(piece), flow.slopes(piece)
    if weight.ndim == 0 and features.shape[1] == 1:
        alike = jnp.sum(features[:, 0] ** 2, -1)
        return weight * alike[:, None] * jnp.sum(slopes[:, :, 0] ** 2, -1).T
    flat = jnp.broadcast_to(weight, piece.entries.shape).ravel()
    square = lambda one: _gradient(one) ** 2 @ flat  # noqa: E731
    sides = features, jnp.moveaxis(slopes, 1, 0)
    return jax.lax.map(square, sides, batch_size=_batch(*sides))


def _of_piece(
    left: PieceFlow, right: PieceFlow, piece: Piece, own: Piece, weight: Float[Array, "..."]
) -> Float[Array, "n q m r"]:
    if not piece.is_matrix:
        ours, theirs = left.gradients(piece) * weight, right.gradients(own)
        return jnp.einsum("qns,rms->nqmr", ours, theirs)
    ours, theirs = left.slopes(piece), right.slopes(own)
    if weight.ndim == 0 and piece.is_table:
        return weight * _of_rows(left.rows(piece), ours, right.rows(own), theirs, piece)
    features = left.features(piece), right.features(own)
    if weight.ndim == 0 and features[0].shape[1] == features[1].shape[1] == 1:
        alike = features[0][:, 0] @ features[1][:, 0].T
        products = jnp.einsum("qni,rmi->nqmr", ours[:, :, 0], theirs[:, :, 0])
        return weight * products * alike[:, None, :, None]
    return _of_gradients((features[0], ours), (features[1], theirs), weight)


def _of_rows(
    rows: Int[Array, "n p"],
    slopes: Float[Array, "q n p units"],
    other_rows: Int[Array, "m p"],
    other_slopes: Float[Array, "r m p units"],
    piece: Piece,
) -> Float[Array, "n q m r"]:
    """Of a table: pairs of positions that look up the same row."""
    count = piece.entries.shape[1]
    other_slopes = jnp.where((other_rows < count)[..., None], other_slopes, 0)

    def of_example(one: tuple[Array, Array]) -> Float[Array, "q m r"]:
        own, ours = one
        same = (own[:, None, None] == other_rows[None]).astype(ours.dtype)  # [p, m, p']
        met = jnp.einsum("pmx,qpi->qmxi", same, ours)
        return jnp.einsum("qmxi,rmxi->qmr", met, other_slopes)

    return jax.lax.map(of_example, (rows, jnp.moveaxis(slopes, 1, 0)))


def _of_gradients(
    left: tuple[Array, Array], right: tuple[Array, Array], weight: Float[Array, "..."]
) -> Float[Array, "n q m r"]:
    """By the gradients in the entries of a matrix, of as many examples at once as have room."""
    sides = [(features, jnp.moveaxis(slopes, 1, 0)) for features, slopes in (left, right)]
    flat = weight if weight.ndim == 0 else weight.ravel()

    def of_example(one: tuple[Array, Array]) -> Float[Array, "m q r"]:
        own = _gradient(one) * flat
        other = lambda one: own @ _gradient(one).T  # noqa: E731
        return jax.lax.map(other, sides[1], batch_size=_batch(*sides[1]))

    found = jax.lax.map(of_example, sides[0], batch_size=_batch(*sides[0]))  # [n, m, q, r]
    return jnp.swapaxes(found, 1, 2)


def _gradient(one: tuple[Float[Array, "p j"], Float[Array, "q p i"]]) -> Float[Array, "q ij"]:
    features, slopes = one
    found = jnp.einsum("qpi,pj->qij", slopes, features)
    return found.reshape(len(found), -1)


def _batch(features: Float[Array, "n p j"], slopes: Float[Array, "n q p i"]) -> int:
    """Number of examples whose gradients are held at once."""
    size = slopes.shape[1] * slopes.shape[3] * features.shape[2]
    return max(1, min(len(features), _AT_ONCE // size))

"""Curvature of the layers of networks, from what flows through them: factors and squares."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from volform.compilation import steady
from volform.errors import SizeError
from volform.inference.laplace.gauss_newton import (
    DataPriorSplit,
    blocks_of_data,
    columns_of,
)
from volform.inference.laplace.layers import Layers, Piece, layers_of
from volform.inference.laplace.pieces import multipliers_of
from volform.inference.laplace.sums import without_data
from volform.linalg.operator import fits, gib_of
from volform.linalg.precision import KroneckerSum, RotatedDiagonal
from volform.linalg.structured import DenseOperator
from volform.models.layout import Site


class PieceCurvature(eqx.Module):
    """Curvature in a piece of an array of parameters."""

    @abc.abstractmethod
    def beside(
        self, rest: Float[Array, " s"], multiplier: Any, piece: Piece
    ) -> lx.AbstractLinearOperator | None:
        """The block of entries that follow each other, beside a diagonal; None where none fits.

        Args:
            rest: the diagonal.
            multiplier: of the coordinates in the array.
            piece: the entries.
        """

    @abc.abstractmethod
    def pulled_back(self, jacobian: Float[Array, "d s"], piece: Piece) -> Float[Array, "d d"]:
        """`T F T^T` with the rows of T the derivatives of the array."""


class KroneckerFactors(PieceCurvature):
    """The Kronecker product of two factors, in the matrix that multiplies the features.

    Attributes:
        left: second moments of the gradients at the outputs, summed over the columns of a root of
            L and averaged over examples and positions, shape (units, units).
        right: second moments of the features, summed, shape (fan_in, fan_in), or (fan_in,) where
            they are diagonal.
    """

    left: Float[Array, "m m"]
    right: Float[Array, "..."]

    def beside(
        self, rest: Float[Array, " mn"], multiplier: Any, piece: Piece
    ) -> lx.AbstractLinearOperator | None:
        """Both Kronecker products, where the rest is a multiple of the identity."""
        if not piece.is_segment or not bool(jnp.all(rest == rest[0])):
            return None
        left, right = multiplier**2 * self.left, self.right
        if piece.is_transposed:
            left, right = right, left
        m, n = (
            jnp.eye(len(factor), dtype=rest.dtype) if factor.ndim == 2 else jnp.ones_like(factor)
            for factor in (left, right)
        )
        return KroneckerSum(left, right, rest[0] * m, n)

    def pulled_back(self, jacobian: Float[Array, "d s"], piece: Piece) -> Float[Array, "d d"]:
        """`T (B x A) T^T`."""
        rows = jacobian[:, piece.entries.ravel()]
        parts = rows.reshape(-1, len(self.left), len(self.right))
        right = jnp.diag(self.right) if self.right.ndim == 1 else self.right
        weighed = jnp.einsum("ipq,pm,qn->imn", parts, self.left, right)
        return rows @ weighed.reshape(rows.shape).T


class CorrectedFactors(PieceCurvature):
    """The diagonal in the eigenvectors of the two factors of a matrix.

    Attributes:
        left: eigenvectors of the factor of the units, shape (units, units).
        right: of the features, shape (fan_in, fan_in), or ones of shape (fan_in,) for the identity.
        values: the diagonal, shape (units, fan_in).
    """

    left: Float[Array, "m m"]
    right: Float[Array, "..."]
    values: Float[Array, "m n"]

    def beside(
        self, rest: Float[Array, " mn"], multiplier: Any, piece: Piece
    ) -> lx.AbstractLinearOperator | None:
        """The same with the rest on the diagonal, where that is a multiple of the identity."""
        if not piece.is_segment or not bool(jnp.all(rest == rest[0])):
            return None
        left, right, values = self.left, self.right, multiplier**2 * self.values + rest[0]
        if piece.is_transposed:
            left, right, values = right, left, values.T
        return RotatedDiagonal(left, right, values)

    def pulled_back(self, jacobian: Float[Array, "d s"], piece: Piece) -> Float[Array, "d d"]:
        """`T Q diag Q^T T^T`."""
        rows = jacobian[:, piece.entries.ravel()].reshape(-1, *self.values.shape)
        right = jnp.eye(len(self.right), dtype=rows.dtype) if self.right.ndim == 1 else self.right
        turned = jnp.einsum("ipq,pm,qn->imn", rows, self.left, right)
        flat = turned.reshape(len(rows), -1)
        return (flat * self.values.ravel()[None]) @ flat.T


class ExactBlock(PieceCurvature):
    """The block of an array that is added, or multiplied entry by entry, exact.

    Attributes:
        matrix: shape (s, s).
    """

    matrix: Float[Array, "s s"]

    def beside(
        self, rest: Float[Array, " s"], multiplier: Any, piece: Piece
    ) -> lx.AbstractLinearOperator | None:
        """The sum."""
        return DenseOperator(multiplier**2 * self.matrix + jnp.diag(rest), rest)

    def pulled_back(self, jacobian: Float[Array, "d s"], piece: Piece) -> Float[Array, "d d"]:
        """`T F T^T`."""
        return jacobian @ self.matrix @ jacobian.T


class SiteMultiple(NamedTuple):
    """The site that an array of parameters is a multiple of."""

    site: Site
    multiplier: Float[Array, ""]


class Forms(NamedTuple):
    """Layers and the curvature of their pieces."""

    layers: Layers
    curvatures: list[PieceCurvature]

    def of_source(self, source: int) -> list[tuple[Piece, PieceCurvature]]:
        """The pieces of an array, in the order of their entries, each with its curvature."""
        pairs = zip(self.layers.pieces, self.curvatures, strict=True)
        own = [(piece, curvature) for piece, curvature in pairs if piece.source == source]
        return sorted(own, key=lambda pair: int(pair[0].entries.flat[0]))


def kronecker_blocks(
    split: DataPriorSplit, forms: Forms, rest: Float[Array, " d"] | None
) -> list[lx.AbstractLinearOperator] | None:
    """The blocks of all sites in the order of u, or None where they do not keep apart.

    They do where every array of parameters is a multiple of a site of its own, and where the rest
    is diagonal.
    """
    held = holders(split, forms.layers)
    if rest is None or any(h is None for h in held):
        return None
    by_name = {h.site.name: (number, h) for number, h in enumerate(held) if h}
    if len(by_name) < len(held):
        return None
    others = iter(_exact(split, [s for s in split.posterior.layout.sites if s.name not in by_name]))
    blocks = list[lx.AbstractLinearOperator]()
    for site in split.posterior.layout.sites:
        own = rest[site.segment]
        if site.name in by_name:
            number, holder = by_name[site.name]
            blocks += _blocks_of_site(forms.of_source(number), own, holder)
        else:
            blocks.append(DenseOperator(next(others) + jnp.diag(own), own))
    return blocks


def _blocks_of_site(
    pairs: list[tuple[Piece, PieceCurvature]], rest: Float[Array, " s"], holder: SiteMultiple
) -> list[lx.AbstractLinearOperator]:
    """One for each piece, or the whole where they do not follow each other."""
    blocks, start = list[lx.AbstractLinearOperator](), 0
    for piece, curvature in pairs:
        own = rest[start : start + piece.entries.size]
        starts_here = piece.entries.min() == start
        block = curvature.beside(own, holder.multiplier, piece) if starts_here else None
        if block is None:
            break
        blocks.append(block)
        start += piece.entries.size
    if start == rest.size:
        return blocks
    _require_room(holder.site, rest.dtype)
    total = jnp.diag(rest)
    axes = holder.multiplier * jnp.eye(rest.size, dtype=rest.dtype)
    for piece, curvature in pairs:
        total += curvature.pulled_back(axes, piece)
    return [DenseOperator(total, rest)]


def kronecker_matrix(split: DataPriorSplit, forms: Forms) -> Float[Array, "d d"]:
    """The blocks of all layers, pulled back from their arrays to u, and blocks of other sites."""
    total = jnp.zeros((split.u.size, split.u.size), split.u.dtype)
    for number, jacobian in enumerate(_jacobians(without_data(split))):
        for piece, curvature in forms.of_source(number):
            total += curvature.pulled_back(jacobian, piece)
    moved = frozenset[str]().union(*forms.layers.sites_of)
    others = [site for site in split.posterior.layout.sites if site.name not in moved]
    for site, block in zip(others, _exact(split, others), strict=True):
        total = total.at[site.segment, site.segment].add(block)
    return total


def _exact(split: DataPriorSplit, sites: list[Site]) -> list[Float[Array, "s s"]]:
    """The blocks of sites that are read in ways of which nothing is known, by products."""
    for site in sites:
        _require_room(site, split.u.dtype)
    return blocks_of_data(split, tuple(sites))


def _require_room(site: Site, dtype: Any) -> None:
    if not fits(site.size, site.size, dtype):
        raise SizeError(
            f"`structure=Kronecker()` has no factors for the site `{site.name}` of {site.size:,} "
            "parameters, which the model reads otherwise than as a matrix, a filter or a table of "
            "rows that it multiplies into activations, or in two such ways, or before examples see "
            "each other, as in batch norm during training; a block of its own "
            f"takes {gib_of(site.size, site.size, dtype):.3g} GiB. Hold it fixed, "
            "`Subset(sites, Kronecker())`, or use `Diagonal()`."
        )


def holders(split: DataPriorSplit, layers: Layers) -> list[SiteMultiple | None]:
    """For each array of parameters the site that it is a multiple of, None where there is none."""
    sites = {site.name: site for site in split.posterior.layout.sites}
    held: list[SiteMultiple | None] = []
    for names, found in zip(layers.sites_of, _multipliers(without_data(split)), strict=True):
        multiplier = found[0] if found is not None and bool(found[1]) else None
        held.append(None if multiplier is None else SiteMultiple(sites[min(names)], multiplier))
    return held


@steady
def _multipliers(split: DataPriorSplit) -> list[tuple[Array, Array] | None]:
    return multipliers_of(split, layers_of(split.of_values, split.posterior.values(split.u)))


@steady
def _jacobians(split: DataPriorSplit) -> list[Float[Array, "d s"]]:
    layers = layers_of(split.of_values, split.posterior.values(split.u))
    arrays, push = jax.linearize(lambda u: layers.arrays(split.posterior.values(u)), split.u)
    rows = columns_of(
        lambda v: jnp.concatenate([a.ravel() for a in push(v)]), split.u, 0, split.u.size
    )
    return jnp.split(rows, np.cumsum([a.size for a in arrays])[:-1], axis=1)

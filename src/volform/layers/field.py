"""A metric at every example and every layer, with what it says of the network."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from volform.compilation import safe
from volform.errors import NetworkError, SingularMetricError, TrustWarning
from volform.geometry.metric import Metric, pullback
from volform.geometry.riemann import scalar_curvature

# Of the largest singular value and the larger side: rounding of a sweep through ten layers leaves
# some 3 of these where a singular value is zero.
SINGULAR = 32


@dataclass(frozen=True)
class LayerField:
    """The metric of the outputs pulled back to every layer; built by `LayerSequence.pull_back`.

    Layer 0 is the input. `G_l = R_l^T R_l` on the d_l entries of the activations, flat.

    Attributes:
        layers: the maps.
        metric: of the outputs.
        points: activations, for each layer of shape (n, ...).
        rows: R_l, for each layer of shape (n, k, d_l).
    """

    layers: Any
    metric: Metric
    points: tuple[Array, ...]
    rows: tuple[Float[Array, "n k d"], ...]

    @property
    def gram(self) -> tuple[Float[np.ndarray, "n d d"], ...]:
        """The matrices G_l, for each layer of shape (n, d_l, d_l)."""
        return tuple(np.einsum("nki,nkj->nij", rows, rows) for rows in map(np.asarray, self.rows))

    @cached_property
    def _factors(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Singular values of R_l in descending order, zero where rounding decides; and vectors."""
        found = []
        for rows in map(np.asarray, self.rows):
            values, vectors = _singular(rows)
            floor = SINGULAR * max(rows.shape[1:]) * np.finfo(rows.dtype).eps
            found.append((np.where(values > floor * values[:, :1], values, 0.0), vectors))
        return tuple(found)

    @property
    def eigenvalues(self) -> tuple[Float[np.ndarray, "n d"], ...]:
        """Eigenvalues of G_l in descending order, for each layer of shape (n, d_l)."""
        pairs = zip(self.rows, self._factors, strict=True)
        return tuple(_padded(values**2, rows.shape[2]) for rows, (values, _) in pairs)

    @property
    def eigenvectors(self) -> tuple[Float[np.ndarray, "n r d"], ...]:
        """Unit vectors to the first eigenvalues, for each layer of shape (n, min(k, d_l), d_l)."""
        return tuple(vectors for _, vectors in self._factors)

    @property
    def rank(self) -> Int[np.ndarray, "layers n"]:
        """Rank of G_l, shape (layers + 1, n)."""
        return np.array([np.sum(values > 0.0, 1) for values, _ in self._factors])

    @property
    def log_volume(self) -> Float[np.ndarray, "layers n"]:
        """`1/2 log det G_l`, shape (layers + 1, n); where rank is lost, of the eigenvalues left."""
        halves = []
        for values, _ in self._factors:
            halves.append(np.sum(np.log(np.where(values > 0.0, values, 1.0)), 1))
        return np.array(halves)

    @property
    def condition(self) -> Float[np.ndarray, "layers n"]:
        """Largest over smallest eigenvalue, shape (layers + 1, n); infinite where rank is lost."""
        ends = [(each[:, 0], each[:, -1]) for each in self.eigenvalues]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.array([np.where(low > 0.0, high / low, np.inf) for high, low in ends])

    def inverse(self, layer: int) -> Float[np.ndarray, "n d d"]:
        """The inverse of G_l at a layer.

        Raises:
            SingularMetricError: where rank is lost.
        """
        width, least = self.rows[layer].shape[2], int(self.rank[layer].min())
        if least < width:
            raise SingularMetricError(
                f"`layer` {layer} has {width} coordinates, and what is pulled back to it has rank "
                f"{least} at one example at least: no metric, and no inverse. `log_volume` and "
                "`eigenvectors` are of what is left."
            )
        values, vectors = self._factors[layer]
        return np.einsum("nri,nr,nrj->nij", vectors, values**-2.0, vectors)

    def curvature(self, layer: int = 0) -> Float[np.ndarray, " n"]:
        """Scalar curvature of G_l at the examples, of a layer of few coordinates.

        Twice the Gaussian curvature of a surface; O(d_l^5).

        Warns:
            TrustWarning: NaN where rank is lost, at some examples.

        Raises:
            NetworkError: when the activations are no vectors.
            SingularMetricError: when rank is lost at all examples.
        """
        points = self.points[layer]
        if points.ndim != 2:
            raise NetworkError(
                f"`layer` {layer} has activations of shape {points.shape[1:]}; curvature is of "
                "layers that are vectors. Restrict the inputs to a plane: `layers.behind(l)` after "
                "a map of two coordinates."
            )
        width, lost = points.shape[1], self.rank[layer] < points.shape[1]
        if np.all(lost):
            raise SingularMetricError(
                f"`layer` {layer} has {width} coordinates, and what is pulled back to it has rank "
                f"{self.rank[layer].max()} at most: no metric, and no curvature. `eigenvectors` "
                "are of the directions that are left."
            )
        found = np.asarray(_curvatures(self.layers.behind(layer), self.metric, points))
        if np.any(lost):
            warnings.warn(
                f"`curvature` of layer {layer} is NaN at {np.sum(lost)} of {len(lost)} examples: "
                "rank is lost there, and what is pulled back is no metric.",
                TrustWarning,
                stacklevel=2,
            )
        return np.where(lost, np.nan, found)

    def __repr__(self) -> str:
        widths = [rows.shape[2] for rows in self.rows]
        ranks = ["-".join(map(str, sorted({row.min(), row.max()}))) for row in self.rank]
        return (
            f"{self.metric!r} pulled back to {len(widths)} layers, "
            f"{len(self.points[0])} examples\n"
            f"  coordinates {', '.join(map(str, widths))}\n"
            f"  rank        {', '.join(ranks)}"
        )


@safe
def _curvatures(rest: Any, metric: Metric, points: Float[Array, "n d"]) -> Float[Array, " n"]:
    pulled = pullback(metric, rest)
    return jax.lax.map(lambda point: scalar_curvature(pulled, point), points, batch_size=64)


def _singular(
    rows: Float[np.ndarray, "n k d"],
) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, "n r d"]]:
    """Singular values in descending order, and right singular vectors as rows.

    Of two columns by Jacobi's rotation (Demmel & Veselić 1992), for all examples at once: LAPACK
    takes 2 µs a matrix, ten times as long as the sweep of a network with two neurons a layer.
    """
    if rows.shape[2] != 2 or rows.shape[1] < 2:
        _, values, vectors = np.linalg.svd(rows, full_matrices=False)
        return values, vectors
    first, second = rows[:, :, 0], rows[:, :, 1]
    cosine, sine = np.ones_like(first[:, 0]), np.zeros_like(first[:, 0])
    for _ in range(2):  # the second for the rounding of the first
        a, b, dot = (np.einsum("nk,nk->n", u, v) for u, v in _pairs(first, second))
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = (b - a) / (2.0 * dot)
            tangent = np.copysign(1.0, slope) / (np.abs(slope) + np.hypot(1.0, slope))
        tangent = np.where(dot == 0.0, 0.0, tangent)
        c = 1.0 / np.hypot(1.0, tangent)
        s = tangent * c
        first, second = (
            c[:, None] * first - s[:, None] * second,
            s[:, None] * first + c[:, None] * second,
        )
        cosine, sine = cosine * c - sine * s, cosine * s + sine * c
    values = np.stack([np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)], 1)
    vectors = np.stack([cosine, -sine, sine, cosine], 1).reshape(-1, 2, 2)
    is_turned = values[:, 0] < values[:, 1]
    values = np.where(is_turned[:, None], values[:, ::-1], values)
    return values, np.where(is_turned[:, None, None], vectors[:, ::-1], vectors)


def _pairs(first: np.ndarray, second: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    return (first, first), (second, second), (first, second)


def _padded(values: Float[np.ndarray, "n r"], width: int) -> Float[np.ndarray, "n d"]:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))

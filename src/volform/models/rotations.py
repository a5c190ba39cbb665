"""Rotations of parameters: the orthogonal group on an axis of several sites."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.models.bound_model import BoundModel

RANK_GAP = 1e-6  # of singular values, relative: below it a slice is a sum of others

_Values = dict[str, Any]


class Rotations(NamedTuple):
    """The orthogonal group O(r) on one axis of length r of several sites together.

    Attributes:
        parts: the sites, each with its axis.
        size: r.
    """

    parts: tuple[tuple[str, int], ...]
    size: int

    def __str__(self) -> str:
        return f"rotations of {', '.join(name for name, _ in self.parts)}"

    def turned(self, values: _Values, matrix: Float[Array, "r r"]) -> _Values:
        """The values with the matrix applied along each part's axis."""
        moved = {
            name: jnp.moveaxis(jnp.tensordot(matrix, jnp.asarray(values[name]), (1, axis)), 0, axis)
            for name, axis in self.parts
        }
        return values | moved

    def stacked(self, values: _Values) -> Float[np.ndarray, "n r"]:
        """All slices as one matrix, on the columns of which the group acts."""
        rows = [np.moveaxis(np.asarray(values[name], float), axis, -1) for name, axis in self.parts]
        return np.concatenate([row.reshape(-1, self.size) for row in rows])

    def rank(self, values: _Values) -> int:
        """Number s of directions in which the slices extend: O(r - s) leaves the values alone."""
        singular = np.linalg.svd(self.stacked(values), compute_uv=False)
        return int(np.sum(singular > RANK_GAP * max(singular[0], 1e-300)))

    def log_quotient(self, values: _Values) -> float:
        """`log Vol O(r) - log Vol O(r - s)`, in the measure in which turns by an angle are unit."""
        return _log_volume(self.size) - _log_volume(self.size - self.rank(values))

    def generators(self) -> Float[np.ndarray, "k r r"]:
        """Antisymmetric matrices, one for each plane, that turn it with unit speed."""
        r = self.size
        found = np.zeros((r * (r - 1) // 2, r, r))
        for k, (i, j) in enumerate(zip(*np.triu_indices(r, 1), strict=True)):
            found[k, i, j], found[k, j, i] = -1.0, 1.0
        return found

    def tangents(self, model: BoundModel, u: Float[Array, " d"]) -> Float[Array, "k d"]:
        """Velocities in u of the values, as each plane turns."""
        values = model.values(u)

        def moved(matrix: Float[Array, "r r"]) -> Float[Array, " d"]:
            def at(t: Float[Array, ""]) -> Float[Array, " d"]:
                turn = jnp.eye(self.size, dtype=u.dtype) + t * matrix
                return model.layout.unconstrain(self.turned(values, turn))

            return jax.jvp(at, (jnp.zeros((), u.dtype),), (jnp.ones((), u.dtype),))[1]

        return jax.vmap(moved)(jnp.asarray(self.generators(), u.dtype))


def _log_volume(n: int) -> float:
    """`log Vol O(n)`: two components, each a product of spheres of dimensions 1 to n - 1."""
    if n == 0:
        return 0.0
    spheres = [
        math.log(2.0) + 0.5 * k * math.log(math.pi) - math.lgamma(0.5 * k) for k in range(2, n + 1)
    ]
    return math.log(2.0) + sum(spheres)

"""Planes in the space of parameters, to draw in."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.equivalence.paths import Barrier, ends_of
from volform.equivalence.walking import Walk
from volform.errors import NetworkError

STRAIGHT = 1e-6  # of the distance of the ends, below which a path has no side


class Slice(eqx.Module):
    """A plane of parameters, as a map of two coordinates; built by `through`.

    Attributes:
        origin: the flat parameters at (0, 0).
        frame: two orthonormal directions, shape (2, d).
        ends: coordinates of the two parameters that it goes through.
        path: coordinates of the points of the plane nearest to the path, shape (n, 2).
        unravel: from flat parameters to the pytree.
    """

    origin: Float[Array, " d"]
    frame: Float[Array, "2 d"]
    ends: Float[np.ndarray, "2 2"]
    path: Float[np.ndarray, "n 2"]
    unravel: Callable[[Array], Any] = eqx.field(static=True)

    def __call__(self, point: Float[Array, " 2"]) -> Any:
        """The parameters at two coordinates."""
        return self.unravel(self.flat(point))

    def flat(self, point: Float[Array, " 2"]) -> Float[Array, " d"]:
        """The same as one vector."""
        return self.origin + point @ self.frame


def through(a: Any, b: Any, path: Any) -> Slice:
    """The plane through two parameters and the point of a path that is farthest from their line.

    A plane through two parameters and any third direction hides that they are connected: the path
    between them leaves it. This one holds the middle of the path.

    Args:
        a: parameters, a pytree of floating-point arrays.
        b: others of the same shapes.
        path: a `Barrier` or a `Walk`, or a pytree with a leading axis; or one third point.

    Raises:
        NetworkError: points that are equal, on one line, or of different shapes.

    >>> import jax.numpy as jnp
    >>> from volform import equivalence
    >>> found = equivalence.through(jnp.array([-2.0, 0.0]), jnp.array([2.0, 0.0]), jnp.ones(2))
    >>> found.ends.tolist()
    [[-2.0, 0.0], [2.0, 0.0]]
    """
    (first, unravel), second = ends_of(a, b, "through")
    given = path.points if isinstance(path, Barrier) else path
    given = given.params if isinstance(given, Walk) else given
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(given)]
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(a)]
    if [leaf.shape for leaf in leaves] == shapes:
        leaves = [leaf[None] for leaf in leaves]
    if [leaf.shape[1:] for leaf in leaves] != shapes:
        raise NetworkError(
            f"`path` of through has arrays of shapes {[leaf.shape for leaf in leaves]}; it should "
            f"hold points with the shapes of `a`, {shapes}, along a leading axis."
        )
    points = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], 1)
    origin = np.asarray(0.5 * (first + second))
    length = float(jnp.linalg.norm(second - first))
    along = np.asarray(second - first) / length
    away = points - origin
    away = away - (away @ along)[:, None] * along
    heights = np.linalg.norm(away, axis=1)
    third = int(np.argmax(heights))
    if not heights[third] > STRAIGHT * length:
        raise NetworkError(
            "`path` of through lies on the line from `a` to `b`, which is in no plane of its own; "
            "give a third point beside it, such as `a` moved along a null direction."
        )
    frame = np.stack([along, away[third] / heights[third]])
    ends = np.array([[-0.5 * length, 0.0], [0.5 * length, 0.0]])
    return Slice(
        jnp.asarray(origin), jnp.asarray(frame), ends, (points - origin) @ frame.T, unravel
    )

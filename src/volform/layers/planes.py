"""Planes in the space of inputs, to draw in."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.errors import DataError
from volform.networks.inputs import require_inputs


class Plane(eqx.Module):
    """A plane of inputs, as a map of two coordinates; built by `plane` and `principal`.

    Attributes:
        origin: the input at (0, 0), of the shape of an example.
        frame: two orthonormal inputs, shape (2, ...).
    """

    origin: Float[Array, "..."]
    frame: Float[Array, "2 ..."]

    def __call__(self, point: Float[Array, " 2"]) -> Array:
        """The input at two coordinates."""
        return self.origin + jnp.tensordot(point, self.frame, 1)

    def coordinates(self, x: Float[Array, "n ..."]) -> Float[np.ndarray, "n 2"]:
        """Coordinates of the points of the plane that are nearest to inputs."""
        moved = (np.asarray(x) - np.asarray(self.origin)).reshape(len(x), -1)
        return moved @ np.asarray(self.frame).reshape(2, -1).T


def plane(a: Any, b: Any, c: Any) -> Plane:
    """The plane through three inputs: a at (0, 0), b on the first axis.

    Raises:
        DataError: when they lie on a line, or differ in shape.

    >>> import jax.numpy as jnp, volform as vf
    >>> found = vf.layers.plane(jnp.zeros(3), jnp.array([2.0, 0.0, 0.0]), jnp.ones(3))
    >>> found.coordinates(jnp.ones((1, 3))).round(3).tolist()
    [[1.0, 1.414]]
    """
    points = [np.asarray(point, float) for point in (a, b, c)]
    shapes = {point.shape for point in points}
    if len(shapes) > 1:
        raise DataError(f"`a`, `b` and `c` have shapes {[p.shape for p in points]}, not one.")
    first, second = (np.ravel(point - points[0]) for point in points[1:])
    length = np.linalg.norm(first)
    along = first / length if length else first
    across = second - (second @ along) * along
    height = np.linalg.norm(across)
    if not height > 1e-12 * max(length, np.linalg.norm(second)) or not length:
        raise DataError(
            "`a`, `b` and `c` lie on one line, or two of them are the same: they span no plane. "
            "Take three inputs that differ, or `vf.layers.principal(data)`."
        )
    return _plane(points[0], np.stack([along, across / height]))


def principal(data: Any) -> Plane:
    """The plane of the first two principal directions of data, through their mean.

    Args:
        data: examples, shape (n, ...).

    Raises:
        DataError: when the data are not finite, or lie on one line.
    """
    points = np.asarray(require_inputs(data, "data"))
    mean = points.mean(0)
    _, values, vectors = np.linalg.svd(
        (points - mean).reshape(len(points), -1), full_matrices=False
    )
    if len(values) < 2 or not values[1] > 1e-12 * values[0]:
        raise DataError(
            f"`data` of shape {points.shape} lie on one line: they have no second principal "
            "direction. Give more examples, or three points to `vf.layers.plane`."
        )
    return _plane(mean, vectors[:2])


def _plane(origin: np.ndarray, frame: Float[np.ndarray, "2 d"]) -> Plane:
    return Plane(jnp.asarray(origin), jnp.asarray(frame.reshape(2, *origin.shape)))

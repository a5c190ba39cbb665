"""Jacobi fields: how a geodesic moves with its initial velocity, and the volume that it spans."""

import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.compilation import STEADY, Compiled, is_traced
from volform.errors import SingularMetricError
from volform.geometry.geodesic_motion import framed, spread
from volform.geometry.geodesics import Geodesic, as_floats, require_laid_out, shown
from volform.geometry.metric import Metric, log_volume
from volform.geometry.tensors import space_of
from volform.linalg.structured import Point


def jacobi_field(metric: Metric, path: Geodesic, vector: PyTree) -> PyTree:
    """The Jacobi field J along a geodesic with `J(0) = 0` and `J'(0) = w`, at its end.

    `J(1) = D exp_a(v) w`: by what the end moves if the velocity v at the start a does by w. It
    solves `J'' + R(J, gamma') gamma' = 0`, and is integrated beside the geodesic as the derivative
    of its equations, which needs no curvature tensor.

    Args:
        metric: a metric, that of the path.
        path: from `exp` or `geodesic`.
        vector: tangent vector w at `path.start`, laid out like it.

    Returns:
        Tangent vector at `path.end`.

    Raises:
        GeodesicError: a vector that is not finite, or of another layout.
        SingularMetricError: when the metric is not positive definite on the way.

    References:
        do Carmo (1992), Riemannian Geometry, chapter 5.

    >>> import jax.numpy as jnp, volform as vf
    >>> sphere = vf.geometry.DiagonalField(lambda x: jnp.array([1.0, jnp.sin(x[0]) ** 2]))
    >>> path = vf.geometry.exp(sphere, jnp.array([jnp.pi / 2, 0.0]), jnp.array([0.0, 1.0]))
    >>> field = jacobi_field(sphere, path, jnp.array([1.0, 0.0]))
    >>> round(float(field[0]), 6)  # sin 1, where it would be 1 in the plane
    0.841471
    """
    if (space := space_of(path.start, vector)) is not None:
        moved = jacobi_field(metric, path, space.vector(vector).components)
        return type(space)(path.end, space.chart).vector(moved)
    vector = as_floats(vector)
    require_laid_out(path.start, vector, "vector", "jacobi_field")
    found, time = _field(metric, path.start, path.velocity, vector)
    _require_reached(path.start, time)
    return found


def exp_determinant(metric: Metric, start: Point, velocity: PyTree) -> Float[Array, ""]:
    """Determinant of `D exp_a(v)` between orthonormal frames: what exp stretches volumes by.

    `sqrt(det G(b) / det G(a)) det(db/dv)`, with `b = exp_a(v)`: the volume `dV_G` at b of a unit
    of volume of tangent vectors at v, and `sqrt det G` in normal coordinates. In a space of
    constant curvature 1 it is `(sin r / r)^(d-1)` with `r = |v|`. It is zero at a conjugate point,
    and negative past an odd number of them. Differentiable in all arguments.

    Args:
        metric: a metric.
        start: a point a.
        velocity: a tangent vector v there, laid out like it.

    Returns:
        A scalar, the same in all coordinates; 1 for `v = 0`. Cost: that of `exp`, times the number
        of coordinates.

    Raises:
        GeodesicError: a point or a vector that is not finite, or of another layout.
        SingularMetricError: when the metric is not positive definite on the way.

    References:
        Besse (1978), Manifolds all of whose Geodesics are Closed, section 6.A.

    >>> import numpyro.distributions as dist, volform as vf
    >>> normal = vf.Fisher(dist.Normal)  # of curvature -1/2
    >>> round(float(exp_determinant(normal, (0.0, 1.0), (0.0, 1.0))), 6)  # sinh 1, of length sqrt 2
    1.175201
    """
    if (space := space_of(start, velocity)) is not None:
        start, velocity = space.point, space.vector(velocity).components
    start, velocity = as_floats(start), as_floats(velocity)
    require_laid_out(start, velocity, "velocity", "exp_determinant")
    found, time = _determinant(metric, start, velocity)
    _require_reached(start, time)
    return found


def _spread(
    metric: Metric, start: Point, velocity: PyTree, turns: Float[Array, "k n"]
) -> tuple[Point, Float[Array, "k n"], Array]:
    """End, Jacobi fields there, and when the geodesic stopped; NaN if before."""
    frame = framed(metric, start, velocity)
    s, v = (ravel_pytree(tree)[0] / frame.scale for tree in (start, velocity))
    end, fields, time = spread(frame, s, v, turns / frame.scale[None])
    end, fields = (
        jnp.where(time >= 1.0, found, jnp.nan)
        for found in (frame.scale * end, frame.scale[None] * fields)
    )
    return frame.unravel(end), fields, time


def _field_of(metric: Metric, start: Point, velocity: PyTree, vector: PyTree) -> tuple:
    flat, unravel = ravel_pytree(vector)
    _, fields, time = _spread(metric, start, velocity, flat[None])
    return unravel(fields[0]), time


def _determinant_of(metric: Metric, start: Point, velocity: PyTree) -> tuple[Array, Array]:
    flat = ravel_pytree(start)[0]
    end, fields, time = _spread(metric, start, velocity, jnp.eye(flat.size, dtype=flat.dtype))
    stretch = jnp.exp(log_volume(metric, end) - log_volume(metric, start))
    return stretch * jnp.linalg.det(fields), time


_field = Compiled(_field_of, STEADY)
_determinant = Compiled(_determinant_of, STEADY)


def _require_reached(start: Point, time: Float[Array, ""]) -> None:
    """Check that a geodesic came to its end.

    Raises:
        SingularMetricError: when it did not.
    """
    if not is_traced(time) and not np.all(np.asarray(time) >= 1.0):
        raise SingularMetricError(
            f"The geodesic from {shown(start)} stops after {float(time):.3g} of its length: there "
            "`metric` becomes singular, indefinite or not finite, as at an edge of the support or "
            "of the chart. Take a shorter vector, or another chart; `exp` says where it stops."
        )

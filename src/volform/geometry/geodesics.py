"""Geodesics of a metric: exponential map, logarithm, distance and parallel transport.

Points, tangent vectors and covectors are pytrees laid out alike, as in `volform.geometry.tensors`.
All functions go under `jax.jit`, `jax.vmap` and derivatives of both modes; there, where no number
can be looked at, what fails is NaN and no error.
"""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from volform.compilation import STEADY, Compiled, is_traced
from volform.errors import ConvergenceError, GeodesicError, SingularMetricError, TrustWarning
from volform.geometry.geodesic_motion import REACHED, SINGLE_REACHED, Flow, flow
from volform.geometry.metric import Metric
from volform.geometry.shooting import shoot
from volform.geometry.tensors import Typed, space_of
from volform.linalg.structured import Point

SEEN_SHORTER = 0.99  # of the length: of a path of straight pieces that one must be beside
ONE_WAY = 1e-6  # relative to the length of the path, by how much two of them may differ


class Geodesic(eqx.Module):
    """A geodesic `gamma`, parametrized over [0, 1] at constant speed. Call it: `path(t)`.

    Attributes:
        metric: the metric.
        start: `gamma(0)`.
        end: `gamma(1)`.
        velocity: the tangent vector `gamma'(0)`.
        length: `|gamma'(0)|`, that of the path between 0 and 1.
        residual: a length, by how much the path fails: the distance from its end to the point that
            it should reach, and the change of its speed, which is constant on a geodesic.
    """

    metric: Metric
    start: Point
    end: Point
    velocity: PyTree
    length: Float[Array, ""]
    residual: Float[Array, ""]

    def __call__(self, t: Any) -> Point:
        """Point `gamma(t)`: `exp(t gamma'(0))`.

        Args:
            t: a number or an array of them, also outside of [0, 1]. Each is integrated for itself.

        Returns:
            A point; with the axes of `t` in front.

        >>> import numpyro.distributions as dist, volform as vf
        >>> path = exp(vf.Fisher(dist.Normal), (0.0, 1.0), (0.0, 1.0))
        >>> [round(float(part), 6) for part in path(0.5)]  # sigma = e^t
        [0.0, 1.648721]
        """
        times = jnp.asarray(t, jnp.result_type(self.length))

        def at(time: Float[Array, ""]) -> Flow:
            return _flow(self.metric, self.start, jax.tree.map(lambda v: time * v, self.velocity))

        for _ in range(times.ndim):
            at = jax.vmap(at)
        found = at(times)
        _require_finished(self.metric, found)
        return found.end

    def __repr__(self) -> str:
        if is_traced(self.length):
            return "Geodesic(traced)"
        return (
            f"Geodesic from {shown(self.start)} to {shown(self.end)}: length "
            f"{float(self.length):.6g}, residual {float(self.residual):.1e}"
        )


def exp(metric: Metric, start: Point, velocity: PyTree) -> Geodesic:
    """Exponential map: the geodesic `gamma` with `gamma(0) = start` and `gamma'(0) = velocity`.

    Integrated in momentum form, `x' = G^-1 p`, `p' = 1/2 d(v^T G v)` at `v = G^-1 p` held, by
    Dormand and Prince's method of order 8 to 1e-12 of the length (1e-5 in single precision): of
    each stage one metric and one gradient, and no Christoffel symbols.

    Args:
        metric: a metric.
        start: a point.
        velocity: a tangent vector there, laid out like it.

    Returns:
        A `Geodesic`; its `.end` is `exp_start(velocity)`.

    Raises:
        GeodesicError: a point or a vector that is not finite, or of another layout.
        SingularMetricError: when the metric is not positive definite at the start or on the way,
            or ends there, as at an edge of the support.

    References:
        do Carmo (1992), Riemannian Geometry, chapter 3.

    >>> import numpyro.distributions as dist, volform as vf
    >>> normal = vf.Fisher(dist.Normal)  # lines of constant mean are geodesics
    >>> path = exp(normal, (0.0, 1.0), (0.0, 1.0))
    >>> round(float(path.end[1]), 9), round(float(path.length) ** 2, 9)
    (2.718281828, 2.0)
    """
    if (space := space_of(start, velocity)) is not None:
        start, velocity = space.point, space.vector(velocity).components
    start, velocity = as_floats(start), as_floats(velocity)
    require_laid_out(start, velocity, "velocity", "exp")
    found = _flow(metric, start, velocity)
    _require_finished(metric, found)
    return Geodesic(metric, start, found.end, velocity, found.length, found.drift)


def geodesic(metric: Metric, start: Point, end: Point) -> Geodesic:
    """The geodesic from one point to another: `exp(metric, start, log(metric, start, end))`.

    A path of 16 segments is relaxed to the least energy, by Levenberg and Marquardt's method from
    a straight line and, in more than one dimension, from two paths on a lattice that is laid
    through both points, 17 x 17 nodes in each of up to four planes: the shortest, and the shortest
    on its other side. So it goes round what is high and wide, though not round what is thinner than
    an eighth of the way. Then Newton's method solves `exp_start(v) = end` by multiple shooting. Of
    the geodesics that are found the shortest is taken.

    Args:
        metric: a metric.
        start: a point.
        end: another, laid out like it. All between them has to be in one chart.

    Returns:
        A `Geodesic`.

    Raises:
        GeodesicError: points that are not finite, laid out differently, or the same.
        SingularMetricError: when the metric is not positive definite at one of them.
        ConvergenceError: when no path was found that reaches the end.

    Warns:
        TrustWarning: when several geodesics were found, as beyond a cut locus: there may be a
            shorter one; or when a path was seen that is shorter than all of them.

    >>> import numpyro.distributions as dist, volform as vf
    >>> normal = vf.Fisher(dist.Normal)
    >>> path = geodesic(normal, (-1.0, 1.0), (1.0, 1.0))
    >>> [round(float(part), 6) for part in path(0.5)]  # a Normal between two is wider
    [0.0, 1.224745]
    """
    start, end = as_floats(start), as_floats(end)
    require_laid_out(start, end, "end", "geodesic")
    if not is_traced(start, end):
        pairs = zip(jax.tree.leaves(start), jax.tree.leaves(end), strict=True)
        if all(np.array_equal(a, b) for a, b in pairs):
            raise GeodesicError(
                f"`start` and `end` of geodesic are the same point, {shown(start)}, and no "
                "direction leads from it to itself. Their `distance` is 0 and their `log` the zero "
                "vector; give two points."
            )
    velocity, found, miss = _joined(metric, start, end)
    return Geodesic(metric, start, end, velocity, found.length, found.drift + miss)


def log(metric: Metric, start: Point, end: Point) -> PyTree:
    """Logarithm: the tangent vector `v` at `start` with `exp_start(v) = end`.

    The inverse of `exp` where it has one, and else of the shortest path that was found; see
    `geodesic`, which raises and warns alike.

    Args:
        metric: a metric.
        start: a point.
        end: another, laid out like it.

    Returns:
        A tangent vector at `start`; zero where the points are one.

    >>> import numpyro.distributions as dist, volform as vf
    >>> v = log(vf.Fisher(dist.Normal), (0.0, 1.0), (0.0, 2.0))
    >>> round(float(v[1]), 6)  # log 2
    0.693147
    """
    start, end = as_floats(start), as_floats(end)
    require_laid_out(start, end, "end", "log")
    return _joined(metric, start, end)[0]


def distance(metric: Metric, start: Point, end: Point) -> Float[Array, ""]:
    """Distance of two points: the length of the geodesic from one to the other.

    Between two distributions of a family it is Rao's distance, under `Fisher(family)`.

    Args:
        metric: a metric.
        start: a point.
        end: another, laid out like it. `geodesic` tells what it raises and when it warns.

    Returns:
        A scalar, the same in all coordinates.

    References:
        Rao (1945), Information and the accuracy attainable in the estimation of statistical
        parameters.

    >>> import numpyro.distributions as dist, volform as vf
    >>> round(float(distance(vf.Fisher(dist.Normal), (0.0, 1.0), (0.0, 2.0))), 6)  # sqrt(2) log 2
    0.980258
    """
    start, end = as_floats(start), as_floats(end)
    require_laid_out(start, end, "end", "distance")
    return _joined(metric, start, end)[1].length


def transport(metric: Metric, path: Geodesic, vector: PyTree) -> PyTree:
    """Parallel transport of a tangent vector along a geodesic, from its start to its end.

    `w' = -Gamma(v, w)` for the covector `W = G w`, again without Christoffel symbols:
    `W' = 1/2 [(v . d) G w - (w . d) G v + d(v^T G w)]` with v and w held. Inner products are kept.

    Args:
        metric: the metric whose transport it is, usually that of the path.
        path: from `exp` or `geodesic`.
        vector: tangent vector at `path.start`, laid out like it.

    Returns:
        Tangent vector at `path.end`.

    Raises:
        GeodesicError: a vector that is not finite, or of another layout.
        SingularMetricError: when the metric is not positive definite on the way.

    References:
        do Carmo (1992), Riemannian Geometry, chapter 2.

    >>> import numpyro.distributions as dist, volform as vf
    >>> normal = vf.Fisher(dist.Normal)
    >>> path = exp(normal, (0.0, 1.0), (0.0, 1.0))
    >>> along = transport(normal, path, (1.0, 0.0))
    >>> round(float(along[0]), 6)  # as long as before: sigma is e times what it was
    2.718282
    """
    if (space := space_of(path.start, vector)) is not None:
        moved = transport(metric, path, space.vector(vector).components)
        return type(space)(path.end, space.chart).vector(moved)
    vector = as_floats(vector)
    require_laid_out(path.start, vector, "vector", "transport")
    found = _flow(path.metric, path.start, path.velocity, (metric, vector))
    _require_finished(metric, found)
    return found.vector


# Under filter_jit a metric of the user's is compiled once, and again for other shapes of points.
_flow = Compiled(flow, STEADY)
_shoot = Compiled(shoot, STEADY)


def _joined(metric: Metric, start: Point, end: Point) -> tuple[PyTree, Flow, Float[Array, ""]]:
    """The velocity of the shortest geodesic that was found, its flow, and by how much it misses."""
    found = _shoot(metric, start, end)
    if is_traced(found):
        return found.velocity, found.flow, found.miss
    reached = REACHED if found.miss.dtype == jnp.float64 else SINGLE_REACHED
    if not float(found.miss) <= reached * float(found.flow.length):
        for point in (start, end):
            _require_positive(metric, point)
        raise ConvergenceError(
            f"No geodesic was found from {shown(start)} to {shown(end)}: {_outcome(found.miss)}. "
            "Go by points between the two, and look whether `metric` is positive definite there "
            "and the way inside of one chart: angles are not taken for equal beyond a turn."
        )
    if float(found.apart) > ONE_WAY:
        lengths = ", ".join(f"{float(each):.6g}" for each in found.lengths if np.isfinite(each))
        warnings.warn(
            f"Several geodesics lead from {shown(start)} to {shown(end)}, of the lengths {lengths}:"
            " the points are beyond a cut locus, where there may be a shorter one still. The "
            "shortest of these is taken; points that are nearer have one.",
            TrustWarning,
            stacklevel=3,
        )
    elif float(found.seen) < SEEN_SHORTER * float(found.flow.length):
        warnings.warn(
            f"The geodesic from {shown(start)} to {shown(end)} has the length "
            f"{float(found.flow.length):.6g}, and a path of {float(found.seen):.6g} was seen, "
            "along which no geodesic was found, as where many are of one length. Move one of the "
            "points a little, or go by points between.",
            TrustWarning,
            stacklevel=3,
        )
    return found.velocity, found.flow, found.miss


def _outcome(miss: Any) -> str:
    if np.isfinite(miss):
        return f"the best path misses it by {float(miss):.1e}"
    return "no path stays where the metric is positive definite, as beside a pole of its chart"


def as_floats(tree: PyTree) -> PyTree:
    """The leaves as arrays of floating-point numbers."""
    return jax.tree.map(lambda x: jnp.asarray(x) if eqx.is_array(x) else jnp.asarray(1.0 * x), tree)


def require_laid_out(point: Point, other: PyTree, argument: str, function: str) -> None:
    """Check that two pytrees have the same leaves, of real numbers that are finite.

    Raises:
        GeodesicError: when they have not.
    """
    if isinstance(point, Typed) or isinstance(other, Typed):
        raise GeodesicError(
            f"`{argument}` of {function}, or the point that it begins at, is typed; give plain "
            "points, `space.point`. Only `exp` and `transport` take vectors that are typed."
        )
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (point, other)]
    if jax.tree.structure(point) != jax.tree.structure(other) or shapes[0] != shapes[1]:
        raise GeodesicError(
            f"`{argument}` of {function} has the layout {shapes[1]}, and the point {shapes[0]}; a "
            "point and its tangent vectors are laid out alike."
        )
    for name, tree in (("start", point), (argument, other)):
        leaves = jax.tree.leaves(tree)
        if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
            kinds = sorted({str(leaf.dtype) for leaf in leaves})
            raise GeodesicError(
                f"`{name}` of {function} has entries of the types {kinds}; give floating-point "
                "numbers, as `jnp.asarray(x, float)`."
            )
        if not is_traced(tree) and not all(np.isfinite(leaf).all() for leaf in leaves):
            raise GeodesicError(
                f"`{name}` of {function} is {shown(tree)}, which is not finite; give a point "
                "inside of the chart, and vectors of finite length."
            )


def _require_positive(metric: Metric, point: Point) -> None:
    """Check that a metric is positive definite at a point.

    Raises:
        SingularMetricError: when it is not.
    """
    matrix = np.asarray(metric(point).as_matrix())
    if not np.isfinite(matrix).all():
        raise SingularMetricError(
            f"`metric` is not finite at {shown(point)}, so that no geodesic goes there; give "
            "points inside of its support."
        )
    half = np.sqrt(np.abs(np.diagonal(matrix)))
    units = np.outer(half, half)
    smallest = np.linalg.eigvalsh(matrix / np.where(units > 0.0, units, 1.0))[0]
    if smallest <= len(matrix) * np.finfo(matrix.dtype).eps:  # singular to rounding
        raise SingularMetricError(
            f"`metric` is not positive definite at {shown(point)}: relative to its diagonal its "
            f"smallest eigenvalue is {smallest:.1e}, so that no geodesic goes through. Leave out "
            "what it does not measure, add a multiple of `Euclidean()`, or take another chart."
        )


def _require_finished(metric: Metric, found: Flow) -> None:
    """Check that a flow came to its end.

    Raises:
        SingularMetricError: when it did not, with the point where it stopped.
    """
    if is_traced(found) or np.all(np.asarray(found.time) >= 1.0):
        return
    time, stopped = np.asarray(found.time), found.stopped
    while time.ndim:  # the first of an array of times that did not
        first = int(np.argmin(np.min(time.reshape(time.shape[0], -1), axis=1)))
        time, stopped = time[first], jax.tree.map(lambda leaf, i=first: leaf[i], stopped)
    if time == 0.0:
        _require_positive(metric, stopped)
    raise SingularMetricError(
        f"The geodesic stops at {shown(stopped)}, after {float(time):.3g} of its length: there "
        "`metric` becomes singular, indefinite or not finite, as at an edge of the support or of "
        "the chart. Take a shorter vector, a metric that is complete, or another chart."
    )


def shown(point: Point) -> str:
    """A point in words: its entries to four digits, with their names if it has any."""
    if isinstance(point, dict):
        return ", ".join(f"{name} = {shown(value)}" for name, value in point.items())
    if isinstance(point, tuple):
        return "(" + ", ".join(shown(value) for value in point) + ")"
    leaves = [np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(point)]
    flat = np.concatenate(leaves) if leaves else np.zeros(0)  # by NumPy: JAX's are traced in `jit`
    text = np.array2string(flat, precision=4, threshold=8, separator=", ")
    return text[1:-1].strip() if flat.size == 1 else text

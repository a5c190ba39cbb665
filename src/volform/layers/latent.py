"""Shortest paths and means in the space that a decoder maps from, by its outputs alone."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.errors import ConvergenceError, DataError
from volform.geometry.metric import Metric, pullback
from volform.models import require_metric

PATH_SEGMENTS = 32
MOST_TRIES = 500  # some 20 are usual
SETTLED, SINGLE_SETTLED = 1e-10, 1e-4  # the last step, relative to the length
MOST_MEANS = 200  # of which outputs in flat space take some 5, and a decoder of digits 30
STILL = 1e-7  # relative to the spread, the last step of a mean: its value is right to the square


class LatentPath(eqx.Module):
    """A path of least energy between two points; built by `shortest_path`.

    Attributes:
        points: along it, equally far apart, shape (segments + 1, d).
        length: of the path, extrapolated from all segments and from half of them.
        straight: length of the straight line with the same number of segments.
        residual: error of the length by that extrapolation.
        condition: largest condition number of the pulled-back metric on the path. Where it is
            beyond some 1e6, decoded points hardly differ and the path is not determined.
    """

    points: Float[Array, "m d"]
    length: Float[Array, ""]
    straight: Float[Array, ""]
    residual: Float[Array, ""]
    condition: Float[Array, ""]

    def __repr__(self) -> str:
        return (
            f"LatentPath of {len(self.points) - 1} segments: length {float(self.length):.6g} ± "
            f"{float(self.residual):.1e}, straight {float(self.straight):.6g}, condition "
            f"{float(self.condition):.2g}"
        )


def shortest_path(
    metric: Metric,
    f: Callable[[Array], Array],
    start: Any,
    end: Any,
    *,
    segments: int = PATH_SEGMENTS,
) -> LatentPath:
    """Path of least energy between two points under a metric of the outputs of f.

    Least `sum_i d_i^T G(y_i) d_i`, `d_i = f(x_{i+1}) - f(x_i)`, y_i between the two outputs, by
    Levenberg and Marquardt's method from the straight line. Only f is evaluated and no derivative
    of a metric, so that long paths through networks cost little; of exact geodesics, with their
    velocities, see `vf.geometry.geodesic`. The same in all coordinates of the points.

    Args:
        metric: of the outputs: `Fisher` of the decoder's likelihood, or `Euclidean()`.
        f: of a single point; its outputs as one vector.
        start: a point, shape (d,).
        end: another.
        segments: an even number; the error of the length falls with its fourth power.

    Returns:
        A `LatentPath`. Decoded, `jax.vmap(f)(path.points)`, it interpolates between the two.

    Raises:
        DataError: for points that are no finite vectors of one length, or the same.
        ConvergenceError: when the energy does not settle.

    References:
        Arvanitidis, González-Duque, Pouplin, Kalatzis & Hauberg (2022), Pulling back information
        geometry.

    >>> import jax.numpy as jnp, volform as vf
    >>> circle = lambda x: jnp.array([jnp.cos(x[0]), jnp.sin(x[0]), x[1]])
    >>> path = shortest_path(vf.Euclidean(), circle, jnp.zeros(2), jnp.array([3.0, 4.0]))
    >>> round(float(path.length), 4)
    5.0
    """
    require_metric(metric, "`metric` of shortest_path")
    ends = _vectors(jnp.stack(_alike(start, end)), "start` and `end")
    if np.array_equal(ends[0], ends[1]):
        raise DataError("`start` and `end` of shortest_path are the same point; give two.")
    if segments < 2 or segments % 2:
        raise DataError(f"`segments` is {segments}; it should be an even number, at least 2.")
    points, has_settled, condition = _solved(metric, f, ends[0], ends[1], segments)
    if not bool(has_settled):
        raise ConvergenceError(
            f"No shortest path settled between {ends[0]} and {ends[1]} in {MOST_TRIES} steps. Go "
            "by points between the two, or add a multiple of `Euclidean()` to a metric that is "
            "nearly singular there."
        )
    length, coarse = _length(metric, f, points), _length(metric, f, points[::2])
    line = _length(metric, f, _line(ends[0], ends[1], segments))
    error = (length - coarse) / 3.0
    return LatentPath(points, length + error, line, jnp.abs(error), condition)


def frechet_mean(
    metric: Metric,
    f: Callable[[Array], Array],
    points: Any,
    weights: Any = None,
    *,
    segments: int = 16,
) -> Float[Array, " d"]:
    """Fréchet mean of points: least weighted sum of squared distances, measured at outputs of f.

    Distances are lengths of shortest paths as in `shortest_path`. The mean follows the mean of
    their first tangents, in steps that are halved where the sum does not fall. It is the same in
    all coordinates; where outputs curve strongly it is a local one, near the mean of coordinates.

    Args:
        metric: of the outputs of f.
        f: of a single point.
        points: shape (n, d).
        weights: not negative, shape (n,); equal by default.
        segments: of each path.

    Returns:
        The mean, shape (d,).

    Raises:
        DataError: for points or weights that are not finite, or of other shapes.
        ConvergenceError: when the steps do not end.

    References:
        Karcher (1977), Riemannian center of mass and mollifier smoothing.

    >>> import jax.numpy as jnp, volform as vf
    >>> found = frechet_mean(vf.Euclidean(), jnp.exp, jnp.log(jnp.array([[1.0], [2.0], [6.0]])))
    >>> [round(float(x), 4) for x in jnp.exp(found)]  # the mean of the outputs
    [3.0]
    """
    require_metric(metric, "`metric` of frechet_mean")
    points = _vectors(points, "points")
    count = len(points)
    share = jnp.ones(count, points.dtype) if weights is None else jnp.asarray(weights, points.dtype)
    if share.shape != (count,) or not np.all(np.asarray(share) >= 0.0) or not share.sum() > 0.0:
        raise DataError(
            f"`weights` is {weights}; it should be {count} numbers, not negative and not all zero."
        )
    share = share / share.sum()
    mean, step = share @ points, 1.0
    value, toward, size = _spread(metric, f, mean, points, share, segments)
    for _ in range(MOST_MEANS):
        if not size > STILL * jnp.sqrt(value):
            break
        next_mean = mean + step * toward
        found = _spread(metric, f, next_mean, points, share, segments)
        if found[0] <= value - 0.5 * step * size**2:
            mean, (value, toward, size), step = next_mean, found, min(1.0, 2.0 * step)
        elif step * size < STILL * jnp.sqrt(value):  # what is left is rounding of the sum
            break
        else:
            step = 0.5 * step
    else:
        size = jnp.nan
    if not np.isfinite(size):
        raise ConvergenceError(
            f"The Fréchet mean of `points` has not settled in {MOST_MEANS} steps at {mean}. Give "
            "points that are nearer to each other, or add a multiple of `Euclidean()` to a metric "
            "that is nearly singular there."
        )
    return mean


def _alike(start: Any, end: Any) -> tuple[Array, Array]:
    start, end = jnp.asarray(start), jnp.asarray(end)
    if start.shape != end.shape:
        raise DataError(f"`start` has shape {start.shape} and `end` {end.shape}, not one.")
    return start, end


def _vectors(points: Any, name: str) -> Float[Array, "n d"]:
    points = jnp.asarray(points)
    if points.ndim != 2 or not points.size or not jnp.issubdtype(points.dtype, jnp.floating):
        raise DataError(
            f"`{name}` has shape {points.shape} and dtype {points.dtype}; it should be vectors of "
            "floating-point numbers."
        )
    if not np.isfinite(points).all():
        raise DataError(f"`{name}` should be finite numbers: some are NaN or infinite.")
    return points


def _line(start: Array, end: Array, segments: int) -> Float[Array, "m d"]:
    t = jnp.arange(segments + 1, dtype=start.dtype) / segments
    return start[None] + jnp.outer(t, end - start)


def _squares(metric: Metric, f: Callable, path: Float[Array, "m d"]) -> Float[Array, " s"]:
    """Squared lengths of the segments, `d^T G d`."""
    outputs = jax.vmap(lambda x: jnp.ravel(f(x)))(path)

    def one(a: Array, b: Array) -> Array:
        return (b - a) @ metric(0.5 * (a + b)).mv(b - a)

    return jax.vmap(one)(outputs[:-1], outputs[1:])


@eqx.filter_jit
def _length(metric: Metric, f: Callable, path: Float[Array, "m d"]) -> Float[Array, ""]:
    return jnp.sum(jnp.sqrt(_squares(metric, f, path)))


def _relaxed(
    metric: Metric, f: Callable, start: Array, end: Array, segments: int
) -> tuple[Float[Array, "m d"], Array]:
    """The path of least energy, and whether it was found.

    The slope is exact. In the curvature G is held, so that no derivative of it is ever a matrix:
    with a Fisher metric of 64 outputs those take minutes.
    """
    flat = lambda x: jnp.ravel(f(x))  # noqa: E731

    def with_ends(inner: Array) -> Array:
        return jnp.concatenate([start[None], inner, end[None]])

    def energy(inner: Array) -> Array:
        return 0.5 * jnp.sum(_squares(metric, f, with_ends(inner)))

    def curvature(inner: Array) -> Array:
        path = with_ends(inner)
        outputs, slopes = jax.vmap(flat)(path), jax.vmap(jax.jacfwd(flat))(inner)
        gram = jax.vmap(lambda y: metric(y).as_matrix())(0.5 * (outputs[1:] + outputs[:-1]))
        own = jnp.einsum("ska,skl,slb->sab", slopes, gram[1:] + gram[:-1], slopes)
        next_to = -jnp.einsum("ska,skl,slb->sab", slopes[:-1], gram[1:-1], slopes[1:])
        count, width = inner.shape
        at = jnp.arange(count)
        blocks = jnp.zeros((count, count, width, width), inner.dtype).at[at, at].set(own)
        blocks = blocks.at[at[:-1], at[1:]].set(next_to)
        blocks = blocks.at[at[1:], at[:-1]].set(next_to.swapaxes(1, 2))
        return blocks.swapaxes(1, 2).reshape(inner.size, inner.size)

    single = jnp.finfo(start.dtype).eps > 1e-10
    tolerance = SINGLE_SETTLED if single else SETTLED

    def step(state: tuple) -> tuple:
        inner, value, damping, _, tries = state
        slope, matrix = jax.grad(energy)(inner).ravel(), curvature(inner)
        damped = matrix + damping * jnp.diag(jnp.diagonal(matrix))
        moved = -jax.scipy.linalg.solve(damped, slope, assume_a="pos")
        tried = inner + moved.reshape(inner.shape)
        found = energy(tried)
        falls = found <= value * (1.0 + 8.0 * jnp.finfo(value.dtype).eps)
        change = jnp.sqrt(jnp.abs(moved @ matrix @ moved) / value)
        return (
            jnp.where(falls, tried, inner),
            jnp.where(falls, found, value),
            jnp.where(falls, 0.2 * damping, jnp.maximum(5.0 * damping, 1e-3)),
            change,  # small by damping too: what cannot fall further is rounding
            tries + 1,
        )

    first = _line(start, end, segments)[1:-1]
    small, large = jnp.full((2,), jnp.array([1e-2, jnp.inf]), start.dtype)
    state = (first, energy(first), small, large, 0)
    goes_on = lambda state: (state[3] > tolerance) & (state[4] < MOST_TRIES)  # noqa: E731
    inner, _, _, change, _ = jax.lax.while_loop(goes_on, step, state)
    return with_ends(inner), change <= tolerance


@eqx.filter_jit
def _solved(
    metric: Metric, f: Callable, start: Array, end: Array, segments: int
) -> tuple[Float[Array, "m d"], Array, Array]:
    path, has_settled = _relaxed(metric, f, start, end, segments)
    pulled = pullback(metric, lambda x: jnp.ravel(f(x)))
    values = jax.vmap(lambda x: jnp.linalg.eigvalsh(pulled(x).as_matrix()))(path)
    low = jnp.maximum(values[:, 0], 0.0)
    return path, has_settled, jnp.max(values[:, -1] / low)


@eqx.filter_jit
def _spread(
    metric: Metric, f: Callable, mean: Array, points: Array, share: Array, segments: int
) -> tuple[Array, Array, Array]:
    """Mean of the squared distances, the mean first tangent, and its length."""

    def energy(mean: Array, inner: Array, point: Array) -> Array:
        path = jnp.concatenate([mean[None], inner, point[None]])
        return segments * jnp.sum(_squares(metric, f, path))

    def one(point: Array) -> tuple[Array, Array]:
        path, has_settled = _relaxed(metric, f, mean, point, segments)
        # Inner points are at their minimum, so that the slope is that with them held.
        value, slope = jax.value_and_grad(energy)(mean, path[1:-1], point)
        return jnp.where(has_settled, value, jnp.nan), slope

    values, slopes = jax.lax.map(one, points, batch_size=8)
    covector = -0.5 * share @ slopes
    gram = pullback(metric, lambda x: jnp.ravel(f(x)))(mean).as_matrix()
    toward = jnp.linalg.solve(gram, covector)
    return share @ values, toward, jnp.sqrt(jnp.maximum(covector @ toward, 0.0))

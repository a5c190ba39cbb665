"""Shortest paths and means in the space that a decoder maps from, by its outputs alone."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.compilation import steady
from volform.errors import ConvergenceError, DataError
from volform.geometry.metric import Metric, pullback
from volform.models import require_metric

PATH_SEGMENTS = 32
MOST_TRIES = 500  # some 20 are usual
FLATTEST = 1e-9  # of the diagonal, added to a curvature that may be singular
SHORTEST = 1e-8  # part of a step
NEAR_WHOLE = 0.1  # step: where the first trial of a search is taken as it is
ASIDE = 1e-3  # of the distance, by which a search begins beside the straight line
SETTLED, SINGLE_SETTLED = 1e-10, 1e-4  # the last step, relative to the length
PATHS_AT_ONCE = 8
MOST_MEANS = 200  # of which outputs in flat space take some 5, and a decoder of digits 30
# Relative to the spread, the last step of a mean: its value is right to the square.
STILL, SINGLE_STILL = 1e-7, 1e-3


class LatentPath(eqx.Module):
    """A path of least energy between two points; built by `shortest_path`.

    Attributes:
        points: along it, equally far apart, shape (segments + 1, d).
        length: of the path, extrapolated from all segments and from half of them.
        straight: length of the straight line, extrapolated likewise.
        residual: error of the length, by that extrapolation and by the decoded midpoints of the
            segments, whichever says more.
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
    conjugate gradients from beside the straight line. Only f is evaluated and no derivative
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
        DataError: for points that are no finite vectors of one length, or the same; for an f
            whose outputs there are no array of finite numbers.
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
    ends = _ends(start, end)
    _check_outputs(f, ends)
    _check_segments(segments, 2)
    points, has_settled, condition = _solved(metric, f, ends[0], ends[1], segments)
    if not bool(has_settled):
        raise ConvergenceError(
            f"No shortest path settled between {ends[0]} and {ends[1]} in {MOST_TRIES} steps. Go "
            "by points between the two, or add a multiple of `Euclidean()` to a metric that is "
            "nearly singular there."
        )
    length, error = _length(metric, f, points)
    straight, _ = _length(metric, f, _line(ends[0], ends[1], segments))
    return LatentPath(points, length, straight, error, condition)


def frechet_mean(
    metric: Metric,
    f: Callable[[Array], Array],
    points: Any,
    weights: Any = None,
    *,
    segments: int = 16,
) -> Float[Array, " d"]:
    """Fréchet mean of points: least weighted sum of squared distances, measured at outputs of f.

    Distances are lengths of shortest paths as in `shortest_path`, their squares extrapolated from
    all segments and from half of them. The mean follows the mean of
    their first tangents, in steps that are halved where the sum does not fall. It is the same in
    all coordinates; where outputs curve strongly it is a local one, near the mean of coordinates.

    Args:
        metric: of the outputs of f.
        f: of a single point.
        points: shape (n, d).
        weights: not negative, shape (n,); equal by default.
        segments: of each path, an even number.

    Returns:
        The mean, shape (d,).

    Raises:
        DataError: for points, weights or outputs that are not finite, or of other shapes.
        ConvergenceError: when the steps do not end.

    References:
        Karcher (1977), Riemannian center of mass and mollifier smoothing.

    >>> import jax.numpy as jnp, volform as vf
    >>> found = frechet_mean(vf.Euclidean(), jnp.exp, jnp.log(jnp.array([[1.0], [2.0], [6.0]])))
    >>> [round(float(x), 4) for x in jnp.exp(found)]  # the mean of the outputs
    [3.0]
    """
    require_metric(metric, "`metric` of frechet_mean")
    points = _numbers(points, "points", 2)
    _check_outputs(f, points)
    _check_segments(segments, 4)
    share = _shares(weights, points)
    mean, step, still = share @ points, 1.0, SINGLE_STILL if _is_single(points) else STILL
    value, toward, size = _spread(metric, f, mean, points, share, segments)
    for _ in range(MOST_MEANS):
        if not np.isfinite(value):
            break
        if size <= still * jnp.sqrt(value):
            return mean
        next_mean = mean + step * toward
        found = _spread(metric, f, next_mean, points, share, segments)
        if found[0] <= value - 0.5 * step * size**2:
            mean, (value, toward, size), step = next_mean, found, min(1.0, 2.0 * step)
        elif np.isfinite(found[0]) and step * size < still * jnp.sqrt(value):
            return mean  # what is left is rounding of the sum
        else:
            step = 0.5 * step
    raise ConvergenceError(
        f"The Fréchet mean of `points` has not settled in {MOST_MEANS} steps at {mean}. Give "
        "points that are nearer to each other, or add a multiple of `Euclidean()` to a metric "
        "that is nearly singular there."
    )


def _ends(start: Any, end: Any) -> Float[Array, "2 d"]:
    start, end = _numbers(start, "start", 1), _numbers(end, "end", 1)
    if start.shape != end.shape:
        raise DataError(f"`start` has shape {start.shape} and `end` {end.shape}, not one.")
    if np.array_equal(start, end):
        raise DataError("`start` and `end` of shortest_path are the same point; give two.")
    return jnp.stack([start, end])


def _numbers(points: Any, name: str, axes: int) -> Array:
    points = jnp.asarray(points)
    if points.ndim != axes or not points.size or not jnp.issubdtype(points.dtype, jnp.floating):
        raise DataError(
            f"`{name}` has shape {points.shape} and dtype {points.dtype}; it should be "
            f"{'a vector' if axes == 1 else 'vectors'} of floating-point numbers."
        )
    if not np.isfinite(points).all():
        raise DataError(f"`{name}` should be finite numbers: some are NaN or infinite.")
    return points


def _shares(weights: Any, points: Float[Array, "n d"]) -> Float[Array, " n"]:
    given = jnp.ones(len(points)) if weights is None else weights
    given = np.asarray(given, points.dtype)
    if given.shape != points.shape[:1] or not np.isfinite(given).all() or given.min() < 0.0:
        raise DataError(
            f"`weights` is {weights}; it should be {len(points)} finite numbers, not negative."
        )
    if not given.max() > 0.0:
        raise DataError(f"`weights` is {weights}; it should have a positive number at least.")
    given = given / given.max()  # whose sum may be beyond all floating-point numbers
    return jnp.asarray(given / given.sum())


def _check_outputs(f: Callable[[Array], Array], points: Float[Array, "n d"]) -> None:
    outputs = jax.vmap(f)(points)
    if not isinstance(outputs, jax.Array):
        raise DataError(
            f"`f` returns {type(outputs).__name__}; it should return its outputs as one array."
        )
    if not np.isfinite(outputs).all():
        bad = points[~np.isfinite(outputs.reshape(len(points), -1)).all(1)][0]
        raise DataError(f"`f` gives NaN or infinite outputs at {bad}; they should be finite there.")


def _check_segments(segments: int, least: int) -> None:
    if segments < least or segments % 2:
        raise DataError(f"`segments` is {segments}; it should be an even number, at least {least}.")


def _line(start: Array, end: Array, segments: int) -> Float[Array, "m d"]:
    t = jnp.arange(segments + 1, dtype=start.dtype) / segments
    return start[None] + jnp.outer(t, end - start)


def _squares(metric: Metric, f: Callable, path: Float[Array, "m d"]) -> Float[Array, " s"]:
    """Squared lengths of the segments, `d^T G d`."""
    outputs = jax.vmap(lambda x: jnp.ravel(f(x)))(path)

    def one(a: Array, b: Array) -> Array:
        return (b - a) @ metric(0.5 * (a + b)).mv(b - a)

    # A metric may be of another precision.
    return jax.vmap(one)(outputs[:-1], outputs[1:]).astype(path.dtype)


@steady
def _length(metric: Metric, f: Callable, path: Float[Array, "m d"]) -> tuple[Array, Array]:
    """The extrapolated length of a path, and its error."""

    def measured(path: Array) -> Array:
        return jnp.sum(jnp.sqrt(_squares(metric, f, path)))

    length = measured(path)
    change = (length - measured(path[::2])) / 3.0
    # Outputs that come back between two points, as those on a circle, show only there.
    middles = 0.5 * (path[1:] + path[:-1])
    halved = jnp.stack([path[:-1], middles], axis=1).reshape(-1, path.shape[1])
    missed = measured(jnp.concatenate([halved, path[-1:]])) - length
    return length + change, jnp.maximum(jnp.abs(change), jnp.abs(missed) / 3.0)


def _relaxed(
    metric: Metric, f: Callable, start: Array, end: Array, segments: int
) -> tuple[Float[Array, "m d"], Array, Array]:
    """The path of least energy, that energy (NaN if it was not found), and its slope at the start.

    By conjugate gradients, preconditioned with the curvature in which G is held, so that no
    derivative of it is ever a matrix: with a Fisher metric of 64 outputs those take minutes. The
    energy stands in the program once, in the search along a line, so that it is compiled in half
    the time.
    """
    shape = (segments - 1, start.size)

    def path_of(inner: Array) -> Array:
        return jnp.concatenate([start[None], inner.reshape(shape), end[None]])

    energy = jax.value_and_grad(lambda path: 0.5 * jnp.sum(_squares(metric, f, path)))
    tolerance = SINGLE_SETTLED if _is_single(start) else SETTLED

    def along_line(inner: Array, value: Array, slope: Array, along: Array) -> tuple:
        """The lower point, its energy and slope there, by the secant and by halving."""
        down = along @ slope[1:-1].ravel()
        rounding = 8.0 * jnp.finfo(value.dtype).eps * value

        def tried(search: tuple) -> tuple:
            length, tries, _, _ = search
            found = energy(path_of(inner + length * along))
            after = along @ found[1][1:-1].ravel()
            # The curvature is off by the derivatives of G, the slopes are not.
            secant = jnp.where(after > down, jnp.minimum(down / (down - after), 2.0), 2.0)
            secant = jnp.where(jnp.isfinite(after), secant, 0.5)
            falls = found[0] <= value + rounding
            ends = falls & ((tries > 0) | (jnp.abs(secant - 1.0) < NEAR_WHOLE))
            shorter = jnp.where(tries > 0, 0.5 * length, secant)
            return jnp.where(ends, length, shorter), tries + 1, ends, found

        should_continue = lambda search: ~search[2] & (search[0] > SHORTEST)  # noqa: E731
        one = jnp.ones_like(value)
        first = (one, 0, False, (one, jnp.zeros_like(slope)))
        length, _, is_low, found = jax.lax.while_loop(should_continue, tried, first)
        lower = (inner + length * along, *found)
        return jax.tree.map(
            lambda new, old: jnp.where(is_low, new, old), lower, (inner, value, slope)
        )

    def step(state: tuple) -> tuple:
        inner, value, whole_slope, before, along, _, tries = state
        slope = whole_slope[1:-1].ravel()
        matrix = _curvature(metric, f, path_of(inner))
        matrix += FLATTEST * jnp.diag(jnp.diagonal(matrix))
        newton = jax.scipy.linalg.solve(matrix, slope, assume_a="pos")
        size = slope @ newton
        # Polak and Ribiere's, which is steepest descent again where the steps stop to be conjugate.
        turned = jnp.maximum(0.0, newton @ (slope - before[0]) / before[1])
        along = turned * along - newton
        along = jnp.where(along @ slope < 0.0, along, -newton)
        change = jnp.where(value > 0.0, jnp.sqrt(jnp.abs(size) / value), 0.0)  # 0: no distance
        lower = along_line(inner, value, whole_slope, along)
        return *lower, (slope, size), along, jnp.where(tries > 0, change, jnp.inf), tries + 1

    inner = _line(start, end, segments)[1:-1]
    # Off the straight line, which may be a saddle by symmetry.
    bent = jnp.sin(jnp.pi * jnp.arange(1, segments, dtype=start.dtype) / segments)
    aside = jax.random.normal(jax.random.key(0), start.shape, start.dtype)
    inner = (inner + ASIDE * jnp.linalg.norm(end - start) * jnp.outer(bent, aside)).ravel()
    zero, infinite = jnp.zeros_like(inner), jnp.full((), jnp.inf, start.dtype)
    slope, one = jnp.zeros((segments + 1, start.size), start.dtype), jnp.ones((), start.dtype)
    state = (inner, infinite, slope, (zero, one), zero, infinite, 0)  # the first step has no length
    should_continue = lambda state: (state[5] > tolerance) & (state[6] < MOST_TRIES)  # noqa: E731
    inner, value, slope, _, _, change, _ = jax.lax.while_loop(should_continue, step, state)
    return path_of(inner), jnp.where(change <= tolerance, value, jnp.nan), slope[0]


def _curvature(metric: Metric, f: Callable, path: Float[Array, "m d"]) -> Float[Array, "k k"]:
    """Of the energy, by the inner points of the path, with G held."""
    flat = lambda x: jnp.ravel(f(x))  # noqa: E731
    outputs, slopes = jax.vmap(flat)(path), jax.vmap(jax.jacfwd(flat))(path[1:-1])
    gram = jax.vmap(lambda y: metric(y).as_matrix())(0.5 * (outputs[1:] + outputs[:-1]))
    gram = gram.astype(path.dtype)
    own = jnp.einsum("ska,skl,slb->sab", slopes, gram[1:] + gram[:-1], slopes)
    next_to = -jnp.einsum("ska,skl,slb->sab", slopes[:-1], gram[1:-1], slopes[1:])
    count, width = len(path) - 2, path.shape[1]
    at = jnp.arange(count)
    blocks = jnp.zeros((count, count, width, width), path.dtype).at[at, at].set(own)
    blocks = blocks.at[at[:-1], at[1:]].set(next_to)
    blocks = blocks.at[at[1:], at[:-1]].set(next_to.swapaxes(1, 2))
    return blocks.swapaxes(1, 2).reshape(count * width, count * width)


def _is_single(x: Array) -> bool:
    return float(jnp.finfo(x.dtype).eps) > 1e-10


@steady
def _solved(
    metric: Metric, f: Callable, start: Array, end: Array, segments: int
) -> tuple[Float[Array, "m d"], Array, Array]:
    path, value, _ = _relaxed(metric, f, start, end, segments)
    pulled = pullback(metric, lambda x: jnp.ravel(f(x)))
    values = jax.vmap(lambda x: jnp.linalg.eigvalsh(pulled(x).as_matrix()))(path)
    low, high = jnp.maximum(values[:, 0], 0.0), values[:, -1]
    return path, jnp.isfinite(value), jnp.max(jnp.where(low > 0.0, high / low, jnp.inf))


@steady
def _spread(
    metric: Metric, f: Callable, mean: Array, points: Array, share: Array, segments: int
) -> tuple[Array, Array, Array]:
    """Mean of the squared distances, the mean first tangent, and its length."""

    def square(point: Array, segments: int) -> Array:
        # Inner points are at their minimum, so that the slope is that with them held.
        _, value, slope = _relaxed(metric, f, mean, point, segments)
        return 2.0 * segments * jnp.append(slope, value)

    def one(point: Array) -> tuple[Array, Array]:
        found = (4.0 * square(point, segments) - square(point, segments // 2)) / 3.0
        return found[-1], found[:-1]

    # Filled up, since a rest of another size would be compiled once more.
    count = min(len(points), PATHS_AT_ONCE)
    filled = jnp.pad(points, ((0, -len(points) % count), (0, 0)), mode="edge")
    values, slopes = jax.lax.map(jax.vmap(one), filled.reshape(-1, count, points.shape[1]))
    values, slopes = values.ravel()[: len(points)], slopes.reshape(filled.shape)[: len(points)]
    covector = -0.5 * share @ slopes
    gram = pullback(metric, lambda x: jnp.ravel(f(x)))(mean).as_matrix()
    toward = jnp.linalg.solve(gram, covector)
    return share @ values, toward, jnp.sqrt(jnp.maximum(covector @ toward, 0.0))

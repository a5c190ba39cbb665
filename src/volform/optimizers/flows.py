"""Gradient flows under a metric, and their comparison across coordinates."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.compilation import STEADY, Compiled, is_traced
from volform.errors import ConvergenceError, OptimizerError
from volform.geometry import (
    Metric,
    call_at,
    name_of,
    norm,
    sharp,
)
from volform.linalg import Point
from volform.optimizers.update_checks import (
    GivenLoss,
    Loss,
    as_params,
    is_finite,
    operator_at,
    require_definite_at,
    require_finite_leaves,
    require_metric_function,
)

_MOST_STEPS = 4096
# Tolerances of the integration, in double and in single precision.
_FINE, _COARSE = 1e-11, 1e-6


class FlowPath(eqx.Module):
    """A path of steepest descent; made by `gradient_flow`.

    Attributes:
        metric: the metric in which it is steepest.
        times: shape (t,).
        path: points laid out like the parameters, with the axis of times in front.
        values: the loss along it, shape (t,).
        speeds: length of the gradient in the metric, shape (t,); the loss falls by its square.
    """

    metric: Metric
    times: Float[Array, " t"]
    path: PyTree
    values: Float[Array, " t"]
    speeds: Float[Array, " t"]

    @property
    def end(self) -> Point:
        """The point at the last time."""
        return jax.tree.map(lambda leaf: leaf[-1], self.path)

    def __repr__(self) -> str:
        if is_traced(self.values):
            return "FlowPath(traced)"
        first, last = float(self.times[0]), float(self.times[-1])
        return (
            f"FlowPath under {name_of(self.metric)} from t = {first:.4g} to {last:.4g}: loss "
            f"{float(self.values[0]):.6g} to {float(self.values[-1]):.6g}, gradient of length "
            f"{float(self.speeds[-1]):.2g} at the end"
        )


def gradient_flow(loss: Loss, metric: Metric, params: Point, times: Any) -> FlowPath:
    """Flow of steepest descent, `theta' = -G(theta)^-1 dL(theta)`.

    The limit of the natural gradient at small learning rates. If the metric is carried along, it
    is the same path in all coordinates, at the same times. Integrated by Dormand and Prince's
    method of order 8 to 1e-11 (1e-6 in single precision).

    Args:
        loss: from a pytree like `params` to a number.
        metric: a metric.
        params: where it starts, at the first of the times.
        times: increasing, at least two.

    Returns:
        A `FlowPath`.

    Raises:
        OptimizerError: for times that do not increase, parameters that are not finite, and a loss
            that is no number.
        MetricError: for a metric that is none, or on vectors unlike the parameters.
        SingularMetricError: where it is not positive definite at the start.
        ConvergenceError: when the flow cannot be followed to the end: the loss or the metric is not
            finite on the way, or the problem is stiff beyond 4,096 steps.

    References:
        Amari (1998), Natural gradient works efficiently in learning; Kristiadi, Dangel & Hennig
        (2023), section 3.2.

    >>> import jax.numpy as jnp, volform as vf
    >>> loss = lambda x: 0.5 * x**2
    >>> flow = gradient_flow(loss, vf.Euclidean(), jnp.array(1.0), [0.0, 1.0])
    >>> round(float(flow.end), 9)  # 1 / e
    0.367879441
    """
    require_metric_function(metric, "metric", "gradient_flow")
    params = as_params(params, "params", "gradient_flow")
    require_finite_leaves(params, "params", "gradient_flow", "start from finite numbers")
    require_definite_at(metric, params, "metric", "gradient_flow")
    operator_at(metric, params, "metric", "gradient_flow")
    jax.eval_shape(lambda at: GivenLoss(loss, "gradient_flow")(at), params)
    try:
        times = jnp.asarray(times, ravel_pytree(params)[0].dtype)
    except (TypeError, ValueError) as error:
        raise OptimizerError(
            f"`times` of gradient_flow is {times!r}; it should be an increasing row of numbers."
        ) from error
    known = not is_traced(times)
    if times.ndim != 1 or times.size < 2 or (known and not np.all(np.diff(times) > 0.0)):
        raise OptimizerError(
            f"`times` of gradient_flow is {np.asarray(times) if known else times}; it should be an "
            "increasing row of at least two times, the first that of the start."
        )
    flow, finished, reached = _flow(loss, metric, params, times)
    if not is_traced(flow) and not (bool(finished) and is_finite(flow.path)):
        raise ConvergenceError(
            f"The flow of gradient_flow from `params` was followed to t = {float(reached):.4g}, "
            f"the last of `times` that it came to, and not to {float(times[-1]):.4g}: the loss or "
            "the metric is not finite beyond, or the problem is stiff. End `times` before, or take "
            "a metric in which it is less so."
        )
    return flow


def _integrated(
    loss: Loss, metric: Metric, params: Point, times: Float[Array, " t"]
) -> tuple[FlowPath, Array, Array]:
    """The flow, whether it came to its end, and the last time that it reached."""
    import diffrax  # noqa: PLC0415  .4 s

    def field(t: Any, point: Point, args: Any) -> PyTree:
        return jax.tree.map(jnp.negative, sharp(metric, point, jax.grad(loss)(point)))

    tolerance = _FINE if jnp.finfo(times.dtype).eps < 1e-10 else _COARSE
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri8(),
        times[0],
        times[-1],
        None,
        params,
        # Steps end at the times: between them the interpolation is of a lower order.
        stepsize_controller=diffrax.ClipStepSizeController(
            diffrax.PIDController(rtol=tolerance, atol=tolerance), step_ts=times
        ),
        saveat=diffrax.SaveAt(ts=times),
        max_steps=_MOST_STEPS,
        throw=False,
    )
    path: Any = solution.ys

    def speed(point: Point) -> Float[Array, ""]:
        return norm(metric, point, field(None, point, None))

    finished = solution.result == diffrax.RESULTS.successful
    reached = jnp.max(jnp.where(jnp.isfinite(ravel_rows(path)[:, 0]), times, times[0]))
    flow = FlowPath(metric, times, path, jax.vmap(loss)(path), jax.vmap(speed)(path))
    return flow, finished, reached


_flow = Compiled(_integrated, STEADY)


def ravel_rows(path: PyTree) -> Float[Array, "t n"]:
    """The points of a path as rows."""
    return jax.vmap(lambda point: ravel_pytree(point)[0])(path)


class PathComparison(eqx.Module):
    """Distances of two paths at equal times; made by `compare_paths`.

    Attributes:
        times: shape (t,).
        distances: at each time, in the metric of the first; shape (t,).
        length: of the first path, point by point, to compare with.
    """

    times: Float[Array, " t"]
    distances: Float[Array, " t"]
    length: Float[Array, ""]

    @property
    def largest(self) -> Float[Array, ""]:
        """The largest distance over all times."""
        return jnp.max(self.distances)

    def __repr__(self) -> str:
        if is_traced(self.distances):
            return "PathComparison(traced)"
        worst = int(np.argmax(self.distances))
        return (
            f"PathComparison: at most {float(self.largest):.2g} apart, at t = "
            f"{float(self.times[worst]):.4g}, on a way of {float(self.length):.3g}"
        )


def compare_paths(
    flow: FlowPath, other: FlowPath, *, through: Callable[..., Any] | None = None
) -> PathComparison:
    """Distances of two flows at equal times, across coordinates, in the metric of the first.

    The points of the other are brought into the coordinates of the first by Newton's method on
    `through(theta) = psi`, from the first's own points; no inverse is needed.

    Args:
        flow: a path of points theta.
        other: a path of points `psi = through(theta)`, at the same times.
        through: the diffeomorphism phi from theta to psi, called as by `volform.pullback`; None
            where both are in the same coordinates.

    Returns:
        A `PathComparison`. Its distances are exact where the metric is constant, and elsewhere to
        the second order: lengths of straight lines by the metric in their middles.

    Raises:
        OptimizerError: for flows at different times or with different layouts.
        ConvergenceError: where a point of the other has no place in the coordinates of the first.

    References:
        Kristiadi, Dangel & Hennig (2023), section 3.2: a flow is invariant if the paths are.

    >>> import jax.numpy as jnp, volform as vf
    >>> loss, t = (lambda x: jnp.log(x) ** 2), jnp.linspace(0.0, 1.0, 3)
    >>> flow = gradient_flow(loss, vf.Euclidean(), jnp.array(2.0), t)
    >>> there = lambda y: loss(jnp.exp(y))
    >>> naive = gradient_flow(there, vf.Euclidean(), jnp.log(2.0), t)
    >>> carried = gradient_flow(there, vf.pullback(vf.Euclidean(), jnp.exp), jnp.log(2.0), t)
    >>> bool(compare_paths(flow, carried, through=jnp.log).largest < 1e-8)
    True
    >>> compare_paths(flow, naive, through=jnp.log)
    PathComparison: at most 0.38 apart, at t = 0.5, on a way of 0.605
    """
    for each, argument in ((flow, "flow"), (other, "other")):
        if not isinstance(each, FlowPath):
            raise OptimizerError(
                f"`{argument}` of compare_paths is {type(each).__name__}; it should be a flow by "
                "`gradient_flow`."
            )
    if flow.times.shape != other.times.shape or not np.array_equal(flow.times, other.times):
        raise OptimizerError(
            "`flow` and `other` of compare_paths are at different times; give both the same "
            "`times`, since paths are compared point by point."
        )
    map_to = (lambda point: point) if through is None else (lambda point: call_at(through, point))
    mapped = jax.eval_shape(map_to, flow.end)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (mapped, other.end)]
    if jax.tree.structure(mapped) != jax.tree.structure(other.end) or shapes[0] != shapes[1]:
        raise OptimizerError(
            f"`other` of compare_paths has points of the layout {shapes[1]}, and `through` gives "
            f"{shapes[0]}; it should map points of `flow` to those of `other`."
        )
    there = other.path if through is None else _brought(map_to, flow.path, other.path)
    if not is_finite(there):
        raise ConvergenceError(
            "A point of `other` has no place in the coordinates of `flow` that Newton's method on "
            "`through` found from compare_paths; give a diffeomorphism, and paths that are nearer."
        )
    distances = _chords(flow.metric, flow.path, there)
    before, after = (jax.tree.map(lambda leaf, s=s: leaf[s], flow.path) for s in _ENDS)
    return PathComparison(flow.times, distances, jnp.sum(_chords(flow.metric, before, after)))


_ENDS = (slice(None, -1), slice(1, None))


@eqx.filter_jit
def _brought(map_to: Callable[[Any], Any], path: PyTree, other: PyTree) -> PyTree:
    """The points theta with `map_to(theta) = psi`, from theta of the other path; NaN if none."""

    def one(point: Point, wanted: Point) -> Point:
        start, unravel = ravel_pytree(point)
        tolerance = _FINE if jnp.finfo(start.dtype).eps < 1e-10 else _COARSE

        def missed(x: Float[Array, " n"], _: Any) -> Float[Array, " n"]:
            return ravel_pytree(map_to(unravel(x)))[0] - ravel_pytree(wanted)[0]

        method = optx.Newton(tolerance, tolerance)
        found = optx.root_find(missed, method, start, max_steps=64, throw=False)
        return unravel(jnp.where(found.result == optx.RESULTS.successful, found.value, jnp.nan))

    return jax.vmap(one)(path, other)


@eqx.filter_jit
def _chords(metric: Metric, path: PyTree, other: PyTree) -> Float[Array, " t"]:
    """Lengths of the straight lines from point to point, by the metric in their middles.

    Equal to the distance up to the third order. Its geodesics take 30 s to compile in a batch.
    """

    def one(a: Point, b: Point) -> Float[Array, ""]:
        middle = jax.tree.map(lambda a, b: 0.5 * (a + b), a, b)
        return norm(metric, middle, jax.tree.map(jnp.subtract, b, a))

    return jax.vmap(one)(path, other)

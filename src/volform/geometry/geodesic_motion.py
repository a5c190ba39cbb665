"""The differential equations of geodesics, integrated, with Jacobi fields along them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.geometry.jacobians import held
from volform.geometry.metric import Metric
from volform.linalg.structured import Point, whiten

# Relative to the length of the path: by how much it may miss its end.
REACHED = 1e-8
SINGLE_REACHED = 1e-5  # in single precision
MOST_STEPS = 4096  # a geodesic of length 8 of the hyperbolic plane takes 30, of ten layers 600


class Flow(eqx.Module):
    """A geodesic that was followed; NaN in `end` and `vector` where it did not come to its end.

    Attributes:
        end: where it ended.
        vector: the transported vector; None without.
        length: the length of the initial velocity.
        drift: change of the speed, as a length.
        time: 1, or when the integration stopped.
        stopped: the point where it did.
    """

    end: Point
    vector: PyTree
    length: Float[Array, ""]
    drift: Float[Array, ""]
    time: Float[Array, ""]
    stopped: Point


class Frame(eqx.Module):
    """A metric in flat coordinates `s = x / scale`, in which the path has about unit length.

    Tolerances are in them, and so mean the same in all units.
    """

    metric: Metric
    scale: Float[Array, " n"]
    unravel: Callable[[Array], Any] = eqx.field(static=True)

    def operator(self, s: Float[Array, " n"]) -> lx.AbstractLinearOperator:
        """G, on tangent vectors laid out like the point."""
        return self.metric(self.unravel(self.scale * s))

    def lower(self, s: Float[Array, " n"], v: Float[Array, " n"]) -> Float[Array, " n"]:
        """Lowers a tangent vector: `G v`."""
        return self.scale * ravel_pytree(self.operator(s).mv(self.unravel(self.scale * v)))[0]

    def lift(self, s: Float[Array, " n"], p: Float[Array, " n"]) -> Float[Array, " n"]:
        """Raises a covector: `G^-1 p`."""
        operator = self.operator(s)
        half = jax.grad(lambda p: 0.5 * jnp.sum(whiten(operator, self.unravel(p)) ** 2))
        return half(p / self.scale) / self.scale

    def gram(self, s: Float[Array, " n"], vectors: Float[Array, "k n"]) -> Float[Array, "k k"]:
        """Inner products of tangent vectors."""
        operator = self.operator(s)

        def lowered(v: Float[Array, " n"]) -> Float[Array, " n"]:
            return self.scale * ravel_pytree(operator.mv(self.unravel(self.scale * v)))[0]

        return vectors @ jax.vmap(lowered)(vectors).T

    def conorm(self, s: Float[Array, " n"], p: Float[Array, " n"]) -> Float[Array, ""]:
        """Length of a covector."""
        return jnp.sqrt(jnp.sum(whiten(self.operator(s), self.unravel(p / self.scale)) ** 2))

    def norm(self, s: Float[Array, " n"], v: Float[Array, " n"]) -> Float[Array, ""]:
        """Length of a tangent vector, with a derivative of zero at zero."""
        square = v @ self.lower(s, v)
        return jnp.where(square == 0.0, 0.0, jnp.sqrt(jnp.where(square == 0.0, 1.0, square)))


def framed(metric: Metric, point: Point, vector: PyTree) -> Frame:
    """The frame at a point for a path as long as a tangent vector."""
    x, unravel = ravel_pytree(held(point))
    v = ravel_pytree(held(vector))[0]
    operator = held(metric(unravel(x)))
    size = jnp.sqrt(v @ ravel_pytree(operator.mv(unravel(v)))[0])
    scale = size / jnp.sqrt(lx.diagonal(operator))
    usable = jnp.isfinite(scale) & (scale > 0.0)
    return Frame(metric, jnp.where(usable, scale, jnp.ones_like(x)), unravel)


def flow(
    metric: Metric, start: Point, velocity: PyTree, carried: tuple[Metric, PyTree] | None = None
) -> Flow:
    """Follow the geodesic of an initial velocity over unit time.

    Args:
        metric: a metric.
        start: a point.
        velocity: a tangent vector there.
        carried: a metric and a vector to transport by its connection.
    """
    frame = framed(metric, start, velocity)
    s, v = (ravel_pytree(tree)[0] / frame.scale for tree in (start, velocity))
    if carried is None:
        size, moved = 1.0, None
    else:
        other, vector = Frame(carried[0], frame.scale, frame.unravel), carried[1]
        w = ravel_pytree(vector)[0] / frame.scale
        size = other.norm(s, w)
        size = jnp.where(size > 0.0, size, 1.0)
        moved = (other, w / size)
    end, last, vector, length, time = _integrated_path(frame, s, v, moved)
    drift = jnp.abs(frame.norm(end, last) - length)
    finished = time >= 1.0

    def if_finished(x: Float[Array, " n"]) -> PyTree:
        return frame.unravel(jnp.where(finished, frame.scale * x, jnp.nan))

    return Flow(
        if_finished(end),
        None if vector is None else if_finished(size * vector),
        length,
        drift,
        time,
        frame.unravel(frame.scale * end),
    )


def _integrated_path(
    frame: Frame,
    s: Float[Array, " n"],
    v: Float[Array, " n"],
    carried: tuple[Frame, Float[Array, " n"]] | None,
) -> tuple[Array, Array, Array | None, Array, Array]:
    """End, its velocity, the transported vector, length and the time when it stopped."""

    def field(state: tuple, frames: tuple[Frame, Frame | None]) -> tuple:
        s, p, *rest = state
        frame, other = frames
        changes = turned((s, p), frame)
        if other is None:
            return changes
        v, w = changes[0], other.lift(s, rest[0])
        along = jax.jvp(lambda s: other.lower(s, w), (s,), (v,))[1]
        across = jax.jvp(lambda s: other.lower(s, v), (s,), (w,))[1]
        both = jax.grad(lambda s: v @ other.lower(s, w))(s)
        return *changes, 0.5 * (along - across + both)

    state = (s, frame.lower(s, v))
    other = None
    if carried is not None:
        other, w = carried
        state = (*state, other.lower(s, w))
    (end, p, *rest), stopped = integrated(field, state, (frame, other), 1.0)
    vector = other.lift(end, rest[0]) if other is not None else None
    return end, frame.lift(end, p), vector, frame.norm(s, v), stopped


def turned(state: tuple[Array, Array], frame: Frame) -> tuple[Array, Array]:
    """The changes of a point and its momentum along a geodesic."""
    s, p = state
    v = frame.lift(s, p)
    return v, 0.5 * jax.grad(lambda s: v @ frame.lower(s, v))(s)


def integrated(
    field: Callable[[Any, Any], Any],
    state: Any,
    frames: Any,
    time: float,
    derivatives: bool = True,
    stops: int = 1,
    tolerance: float | None = None,
    most: int = MOST_STEPS,
) -> tuple[Any, Array]:
    """The state after a time, or at several of equal distances, and when it stopped.

    With `derivatives` of both modes, else forwards only, which is compiled in half of the time.
    """
    import diffrax  # noqa: PLC0415  .4 s

    dtype = state[0].dtype
    tolerance = tolerance_of(state[0]) if tolerance is None else tolerance
    times = time * jnp.arange(1, stops + 1, dtype=dtype) / stops
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, state, frames: field(state, frames)),
        diffrax.Dopri8(),
        jnp.zeros((), dtype),
        jnp.asarray(time, dtype),
        None,
        state,
        frames,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        saveat=diffrax.SaveAt(t1=True) if stops == 1 else diffrax.SaveAt(ts=times),
        adjoint=diffrax.DirectAdjoint() if derivatives else diffrax.ForwardMode(),
        max_steps=most,
        throw=False,
    )
    assert solution.ys is not None
    assert solution.ts is not None
    # The state where it stopped is what was last accepted, and its time is counted by the solver.
    stopped = jnp.where(solution.result == diffrax.RESULTS.successful, time, solution.ts[0])
    if stops > 1:
        return solution.ys, stopped
    return jax.tree.map(lambda leaf: leaf[0], solution.ys), stopped


def spread(
    frame: Frame,
    s: Float[Array, " n"],
    v: Float[Array, " n"],
    turns: Float[Array, "k n"],
    derivatives: bool = True,
    stops: int = 1,
    tolerance: float | None = None,
    most: int = MOST_STEPS,
) -> tuple[Array, Array, Array]:
    """Ends of a geodesic and of Jacobi fields from zero along it, and when it stopped.

    Args:
        frame: the metric.
        s: where it begins.
        v: its velocity there.
        turns: changes of the velocity, of which the fields are the changes of the end.
        derivatives: whether those of both modes are needed.
        stops: at how many times, if not at the end only, which is the last.
        tolerance: of the integration, relative to the length.
        most: steps of it, after which it stops.
    """

    def field(state: tuple, frame: Frame) -> tuple:
        s, p, points, momenta = state
        change, push = jax.linearize(lambda s, p: turned((s, p), frame), s, p)
        return *change, *jax.vmap(push)(points, momenta)

    lower = lambda v: frame.lower(s, v)  # noqa: E731
    state = (s, lower(v), jnp.zeros_like(turns), jax.vmap(lower)(turns))
    (end, _, points, _), time = integrated(
        field, state, frame, 1.0, derivatives, stops, tolerance, most
    )
    return end, points, time


def tolerance_of(x: Float[Array, " n"]) -> float:
    """Tolerance of an integration in the precision of `x`."""
    return 1e-12 if jnp.finfo(x.dtype).eps < 1e-10 else 1e-5

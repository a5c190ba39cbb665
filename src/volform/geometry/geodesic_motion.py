"""The differential equations of geodesics, integrated; and the shooting from point to point."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.geometry.jacobians import held
from volform.geometry.metric import Metric, Pullback, call_at
from volform.linalg.structured import Point, whiten

SEGMENTS = 16
MOST_STEPS = 4096  # a geodesic of length 8 of the hyperbolic plane takes 30, of ten layers 600
MOST_CORRECTIONS = 32  # 3 to 5 are usual
BOWS = (0.0, 0.5, -0.5)  # of the paths that are relaxed, as a share of the straight line


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


class Shot(eqx.Module):
    """The shortest geodesic between two points that was found.

    Attributes:
        velocity: its initial velocity.
        flow: what it followed.
        miss: length from where it ended to where it should.
        lengths: of each start; not finite where it did not get there.
        apart: the largest distance between velocities that were found, relative to the shortest.
    """

    velocity: PyTree
    flow: Flow
    miss: Float[Array, ""]
    lengths: Float[Array, " starts"]
    apart: Float[Array, ""]


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
    end, last, vector, length, time = _integrated(frame, s, v, moved)
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


def _integrated(
    frame: Frame,
    s: Float[Array, " n"],
    v: Float[Array, " n"],
    carried: tuple[Frame, Float[Array, " n"]] | None,
    derivatives: bool = True,
) -> tuple[Array, Array, Array | None, Array, Array]:
    """End, its velocity, the transported vector, length and the time when it stopped.

    With `derivatives` of both modes, else forwards only, which is compiled in half of the time.
    """
    import diffrax  # noqa: PLC0415  .4 s

    def field(t: Any, state: tuple, frames: tuple[Frame, Frame | None]) -> tuple:
        s, p, *rest = state
        frame, other = frames
        v = frame.lift(s, p)
        changes = v, 0.5 * jax.grad(lambda s: v @ frame.lower(s, v))(s)
        if other is None:
            return changes
        w = other.lift(s, rest[0])
        along = jax.jvp(lambda s: other.lower(s, w), (s,), (v,))[1]
        across = jax.jvp(lambda s: other.lower(s, v), (s,), (w,))[1]
        both = jax.grad(lambda s: v @ other.lower(s, w))(s)
        return *changes, 0.5 * (along - across + both)

    state = (s, frame.lower(s, v))
    other = None
    if carried is not None:
        other, w = carried
        state = (*state, other.lower(s, w))
    tolerance = tolerance_of(s)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri8(),
        jnp.zeros((), s.dtype),
        jnp.ones((), s.dtype),
        None,
        state,
        (frame, other),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        saveat=diffrax.SaveAt(t1=True),
        adjoint=diffrax.DirectAdjoint() if derivatives else diffrax.ForwardMode(),
        max_steps=MOST_STEPS,
        throw=False,
    )
    assert solution.ys is not None
    assert solution.ts is not None
    end, p, *rest = (leaf[0] for leaf in solution.ys)
    # The state where it stopped is what was last accepted, and its time is counted by the solver.
    stopped = jnp.where(solution.result == diffrax.RESULTS.successful, 1.0, solution.ts[0])
    vector = other.lift(end, rest[0]) if other is not None else None
    return end, frame.lift(end, p), vector, frame.norm(s, v), stopped


def tolerance_of(x: Float[Array, " n"]) -> float:
    """Tolerance of an integration in the precision of `x`."""
    return 1e-12 if jnp.finfo(x.dtype).eps < 1e-10 else 1e-5


def shoot(metric: Metric, start: Point, end: Point) -> Shot:
    """Find the shortest of the geodesics from one point to another that several starts lead to."""
    straight = jax.tree.map(jnp.subtract, end, start)
    frame = framed(metric, start, straight)
    a, b = (ravel_pytree(point)[0] / frame.scale for point in (start, end))
    held_frame: Any
    held_frame, c, d = held((frame, a, b))  # the search; derivatives come by the step below

    bows = jnp.asarray(BOWS if a.size > 1 else BOWS[:1], a.dtype)
    guesses = jax.lax.map(lambda bow: relaxed(held_frame, c, d, bow), bows)
    if isinstance(metric, Pullback):
        guesses = jnp.concatenate([guesses, _straight_in_image(metric, held_frame, c, d)[None]])
    velocities, jacobians, found = jax.lax.map(lambda v: _aimed(held_frame, c, d, v), guesses)
    lengths = jax.vmap(lambda v: held_frame.norm(c, v))(velocities)
    lengths = jnp.where(found, lengths, jnp.inf)
    best = jnp.argmin(lengths)
    apart = jax.vmap(lambda v: held_frame.norm(c, v - velocities[best]))(velocities)
    apart = jnp.max(jnp.where(found, apart, 0.0)) / lengths[best]
    followed = flow(metric, start, frame.unravel(frame.scale * velocities[best]))
    # One more step of Newton's method: its derivative is that of the implicit function.
    missed = ravel_pytree(followed.end)[0] / frame.scale - b
    velocity = velocities[best] - jnp.linalg.solve(jacobians[best], missed)
    return Shot(
        frame.unravel(frame.scale * velocity),
        eqx.tree_at(lambda flow: flow.length, followed, frame.norm(a, velocity)),
        frame.norm(b, missed),
        lengths,
        apart,
    )


def _straight_in_image(
    metric: Pullback, frame: Frame, a: Float[Array, " n"], b: Float[Array, " n"]
) -> Float[Array, " n"]:
    """The initial velocity of the path whose image is straight: the geodesic of a flat metric.

    Paths that are relaxed may end far from it, where the map squeezes: a network of ten layers.
    """

    def image(s: Float[Array, " n"]) -> Array:
        return ravel_pytree(call_at(metric.map, frame.unravel(frame.scale * s)))[0]

    return jnp.linalg.lstsq(jax.jacfwd(image)(a), image(b) - image(a))[0]


def _aimed(
    frame: Frame, a: Float[Array, " n"], b: Float[Array, " n"], v: Float[Array, " n"]
) -> tuple[Array, Array, Array]:
    """Newton's method on `exp_a(v) = b`: v, the Jacobian there, and whether it converged.

    With end and Jacobian of one integration, which optimistix's takes two for: a quarter of the
    time of compilation.
    """
    tolerance = 10.0 * tolerance_of(a)

    def end_of(v: Float[Array, " n"]) -> tuple[Array, Array]:
        end, *_, time = _integrated(frame, a, v, None, derivatives=False)
        return end, jnp.where(time >= 1.0, end, jnp.nan)  # a change of NaN ends the search

    def step(state: tuple) -> tuple:
        v, _, _, tries = state
        jacobian, end = jax.jacfwd(end_of, has_aux=True)(v)
        moved = jnp.linalg.solve(jacobian, b - end)
        return v + moved, jacobian, frame.norm(a, moved) / frame.norm(a, v), tries + 1

    def goes_on(state: tuple) -> Array:
        _, _, change, tries = state
        return (change > tolerance) & (tries < MOST_CORRECTIONS)

    start = (v, jnp.eye(v.size, dtype=v.dtype), jnp.full((), jnp.inf, v.dtype), 0)
    v, jacobian, change, _ = jax.lax.while_loop(goes_on, step, start)
    return v, jacobian, change <= tolerance


def relaxed(
    frame: Frame, a: Float[Array, " n"], b: Float[Array, " n"], bow: Float[Array, ""]
) -> Float[Array, " n"]:
    """The initial velocity of a path of segments with the least energy `1/2 sum |d|^2 / h`.

    Each segment is measured in the middle. Read off the momentum `-dE/da`, which is right to the
    second order in h, as the segments themselves are not.

    Args:
        frame: the metric.
        a: where the path begins.
        b: where it ends.
        bow: how far the path that is begun with is from a straight line.
    """
    import optimistix as optx  # noqa: PLC0415

    h = 1.0 / SEGMENTS
    t = jnp.arange(1, SEGMENTS, dtype=a.dtype)[:, None] * h
    along = (b - a)[None]
    # Sideways: the axis that is nearly at right angles to the line, made so.
    axis = jnp.zeros_like(a).at[jnp.argmin(jnp.abs(b - a))].set(1.0)
    square = jnp.maximum((b - a) @ (b - a), jnp.finfo(a.dtype).tiny)
    aside = (axis - (axis @ (b - a)) / square * (b - a))[None] * jnp.sqrt(square)
    first = a[None] + t * along + bow * jnp.sin(jnp.pi * t) * aside

    def lengths(inner: Float[Array, "m n"], ends: tuple) -> Float[Array, "m n"]:
        frame, a, b = ends
        path = jnp.concatenate([a[None], inner, b[None]])

        def one(x: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, " n"]:
            d = frame.unravel(frame.scale * (y - x))
            operator = frame.operator(0.5 * (x + y))
            return whiten(operator, operator.mv(d))  # L^T d, whose square is d^T G d

        return jax.vmap(one)(path[:-1], path[1:]) / jnp.sqrt(jnp.asarray(h, a.dtype))

    method = optx.LevenbergMarquardt(rtol=1e-4, atol=1e-4)
    found = optx.least_squares(lengths, method, first, (frame, a, b), max_steps=100, throw=False)
    p = -jax.grad(lambda a: 0.5 * jnp.sum(lengths(found.value, (frame, a, b)) ** 2))(a)
    return frame.lift(a, p)

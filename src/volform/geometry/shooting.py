"""The shooting of geodesics from point to point, from paths of least energy."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.geometry.geodesic_motion import (
    Flow,
    Frame,
    flow,
    framed,
    integrated,
    tolerance_of,
    turned,
)
from volform.geometry.jacobians import held
from volform.geometry.lattice_paths import lattice_paths
from volform.geometry.metric import Metric, Pullback, call_at
from volform.linalg.structured import Point, whiten

SEGMENTS = 16
PIECES = 8  # which multiple shooting follows at once
MOST_PIECE_STEPS = 512  # of each: where it takes more, no geodesic is near
MOST_CORRECTIONS = 16  # 3 to 5 are usual
FREE_CORRECTIONS, STRAYING = 2, 1e-3  # of which all may grow, and changes that are rounding


class Shot(eqx.Module):
    """The shortest geodesic between two points that was found.

    Attributes:
        velocity: its initial velocity.
        flow: what it followed.
        miss: length from where it ended to where it should.
        lengths: of each start; not finite where it did not get there.
        apart: the largest distance between velocities that were found, relative to the shortest.
        seen: the length of the shortest path, which need not be a geodesic.
    """

    velocity: PyTree
    flow: Flow
    miss: Float[Array, ""]
    lengths: Float[Array, " starts"]
    apart: Float[Array, ""]
    seen: Float[Array, ""]


def shoot(metric: Metric, start: Point, end: Point) -> Shot:
    """Find the shortest of the geodesics from one point to another that several starts lead to."""
    straight = jax.tree.map(jnp.subtract, end, start)
    frame = framed(metric, start, straight)
    a, b = (ravel_pytree(point)[0] / frame.scale for point in (start, end))
    held_frame: Any
    held_frame, c, d = held((frame, a, b))  # the search; derivatives come by the step below

    firsts = straight_path(c, d)[None]
    if a.size > 1:
        paths = lattice_paths(held_frame.gram, c, d, SEGMENTS)
        firsts = jnp.concatenate([firsts, paths])
    guesses, seen = jax.lax.map(lambda first: relaxed(held_frame, c, d, first), firsts)
    if isinstance(metric, Pullback):
        guesses = jnp.concatenate([guesses, _straight_in_image(metric, held_frame, c, d)[None]])
    velocities, jacobians, found = jax.lax.map(lambda nodes: _aimed(held_frame, d, nodes), guesses)
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
        jnp.nanmin(seen),
    )


def _straight_in_image(
    metric: Pullback, frame: Frame, a: Float[Array, " n"], b: Float[Array, " n"]
) -> Float[Array, "k m"]:
    """Nodes of the geodesic of the velocity whose image points straight at that of b.

    Of a flat metric it is the geodesic sought. Paths that are relaxed may end far from it, where
    the map squeezes: a network of ten layers.
    """

    def image(s: Float[Array, " n"]) -> Array:
        return ravel_pytree(call_at(metric.map, frame.unravel(frame.scale * s)))[0]

    v = jnp.linalg.lstsq(jax.jacfwd(image)(a), image(b) - image(a))[0]

    def follow(node: Array, _: None) -> tuple[Array, Array]:
        (x, p), time = integrated(
            turned, tuple(jnp.split(node, 2)), frame, 1.0 / PIECES, False, most=MOST_PIECE_STEPS
        )
        return jnp.where(time >= 1.0 / PIECES, jnp.concatenate([x, p]), jnp.nan), node

    return jax.lax.scan(follow, jnp.concatenate([a, frame.lower(a, v)]), None, PIECES)[1]


def _pushed(
    frame: Frame, nodes: Float[Array, "k m"]
) -> tuple[Float[Array, "k m"], Float[Array, "k m m"]]:
    """Points and momenta after a piece of time, NaN where they do not get there, and slopes.

    The slopes are integrated as Jacobi fields. As derivatives of the solver they would be compiled
    in twice the time.
    """

    def moved(nodes: Float[Array, "k m"], frame: Frame) -> Array:
        changes = jax.vmap(lambda *node: turned(node, frame))(*jnp.split(nodes, 2, axis=1))
        return jnp.concatenate(changes, 1)

    def field(state: tuple, frame: Frame) -> tuple:
        nodes, columns = state
        change, push = jax.linearize(lambda nodes: moved(nodes, frame), nodes)
        return change, jax.vmap(push)(columns)

    k, m = nodes.shape
    columns = jnp.broadcast_to(jnp.eye(m, dtype=nodes.dtype)[:, None], (m, k, m))
    time = 1.0 / PIECES
    (nodes, columns), reached = integrated(
        field, (nodes, columns), frame, time, False, most=MOST_PIECE_STEPS
    )
    return jnp.where(reached >= time, nodes, jnp.nan), jnp.moveaxis(columns, 0, -1)


def _aimed(
    frame: Frame, b: Float[Array, " n"], nodes: Float[Array, "k m"]
) -> tuple[Array, Array, Array]:
    """Newton's method on `exp_a(v) = b`: v, the Jacobian there, and whether it converged.

    By multiple shooting: of the whole path at once the end depends too strongly on the start
    where paths diverge, as beside a wall.
    """
    n = b.size
    a, tolerance = nodes[0, :n], 10.0 * tolerance_of(b)
    zero, eye = jnp.zeros((n, n), b.dtype), jnp.eye(n, dtype=b.dtype)

    def step(state: tuple) -> tuple:
        nodes, _, before_change, tries = state
        ends, slopes = _pushed(frame, nodes)
        gaps = ends - jnp.concatenate([nodes[1:], jnp.concatenate([b, b])[None]])

        def carry(found: tuple, piece: tuple) -> tuple:
            matrix, offset = found
            slope, gap = piece
            return (slope @ matrix, slope @ offset + gap), found

        # How the nodes depend on the momentum at the start if the gaps are closed.
        first = jnp.concatenate([zero, eye]), jnp.zeros_like(nodes[0])
        (matrix, offset), before = jax.lax.scan(carry, first, (slopes, gaps))
        turn = -jnp.linalg.solve(matrix[:n], offset[:n])
        nodes = nodes + before[0] @ turn + before[1]
        change = frame.conorm(a, turn) / frame.conorm(a, nodes[0, n:])
        # Away from a geodesic the pieces grow long and slow, and seldom come back.
        strays = (tries >= FREE_CORRECTIONS) & (change > jnp.maximum(before_change, STRAYING))
        return nodes, matrix[:n], jnp.where(strays, jnp.nan, change), tries + 1

    def should_continue(state: tuple) -> Array:
        _, _, change, tries = state
        return (change > tolerance) & (tries < MOST_CORRECTIONS)

    start = (nodes, eye, jnp.full((), jnp.inf, b.dtype), 0)
    nodes, jacobian, change, _ = jax.lax.while_loop(should_continue, step, start)
    lowered = jax.vmap(lambda v: frame.lower(a, v), out_axes=1)(eye)
    return frame.lift(a, nodes[0, n:]), jacobian @ lowered, change <= tolerance


def relaxed(
    frame: Frame, a: Float[Array, " n"], b: Float[Array, " n"], first: Float[Array, "m n"]
) -> tuple[Float[Array, "k m2"], Float[Array, ""]]:
    """Nodes, points and momenta, of a path with the least energy `1/2 sum |d|^2 / h`; its length.

    Each segment is measured in the middle. The momentum is read off the energy, `-dE/dx` of what
    follows x, which is right to the second order in h, as the segments themselves are not.

    Args:
        frame: the metric.
        a: where the path begins.
        b: where it ends.
        first: inner points of the path that is begun with.
    """
    import optimistix as optx  # noqa: PLC0415

    h = 1.0 / SEGMENTS

    def whitened(frame: Frame, x: Float[Array, " n"], y: Float[Array, " n"]) -> Array:
        d = frame.unravel(frame.scale * (y - x))
        operator = frame.operator(0.5 * (x + y))
        return whiten(operator, operator.mv(d))  # L^T d, whose square is d^T G d

    def lengths(inner: Float[Array, "m n"], ends: tuple) -> Float[Array, "m n"]:
        frame, a, b = ends
        path = jnp.concatenate([a[None], inner, b[None]])
        each = jax.vmap(lambda x, y: whitened(frame, x, y))(path[:-1], path[1:])
        return each / jnp.sqrt(jnp.asarray(h, a.dtype))

    method = optx.LevenbergMarquardt(rtol=1e-4, atol=1e-4)
    found = optx.least_squares(lengths, method, first, (frame, a, b), max_steps=100, throw=False)
    path = jnp.concatenate([a[None], found.value, b[None]])
    points, after = path[: -1 : SEGMENTS // PIECES], path[1 :: SEGMENTS // PIECES]

    def momentum(x: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, " n"]:
        return -jax.grad(lambda x: 0.5 * jnp.sum(whitened(frame, x, y) ** 2) / h)(x)

    # An upper bound of the distance: every path is one.
    fine = _refined(path)
    each = jax.vmap(lambda x, y: whitened(frame, x, y))(fine[:-1], fine[1:])
    length = jnp.sum(jnp.sqrt(jnp.sum(each**2, 1)))
    return jnp.concatenate([points, jax.vmap(momentum)(points, after)], 1), length


def _refined(path: Float[Array, "m n"]) -> Float[Array, "k n"]:
    """A path of straight pieces, each divided in eight."""
    t = jnp.arange(8, dtype=path.dtype)[None, :, None] / 8.0
    within = path[:-1, None] + t * (path[1:] - path[:-1])[:, None]
    return jnp.concatenate([within.reshape(-1, path.shape[1]), path[-1:]])


def straight_path(a: Float[Array, " n"], b: Float[Array, " n"]) -> Float[Array, "m n"]:
    """Points inside of the straight line between two points."""
    t = jnp.arange(1, SEGMENTS, dtype=a.dtype)[:, None] / SEGMENTS
    return a[None] + t * (b - a)[None]

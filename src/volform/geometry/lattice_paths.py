"""Shortest paths on coarse lattices, from which the search for geodesics goes round walls."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Coordinates of nodes in a plane where the points are (0, 0) and (1, 0): equally far apart in
# between, and farther at the sides, where a path goes round what is as wide as the points are far.
NODES_ALONG = np.arange(-4, 13) / 8.0
NODES_BESIDE = np.array([0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0])
NODES_ASIDE = np.concatenate([-NODES_BESIDE[::-1], [0.0], NODES_BESIDE])
START, END = (i * len(NODES_ASIDE) + len(NODES_BESIDE) for i in (4, 12))
# To the 16 neighbors that kings and knights reach: in the flat plane paths are 3 % too long.
MOVES = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if np.gcd(i, j) == 1]
MOST_PLANES = 4  # through both points: in more dimensions the way round is near to one of them
MOST_MOVES = 64  # of a path; those round a wall take 20


def _neighbors() -> Int[np.ndarray, "m k"]:
    """Numbers of the nodes that the moves lead to, beyond the last where there are none."""
    shape = len(NODES_ALONG), len(NODES_ASIDE)
    i, j = np.indices(shape).reshape(2, -1, 1) + np.array(MOVES).T[:, None]
    inside = (i >= 0) & (i < shape[0]) & (j >= 0) & (j < shape[1])
    return np.where(inside, i * shape[1] + j, shape[0] * shape[1])


NODES = np.stack(np.meshgrid(NODES_ALONG, NODES_ASIDE, indexing="ij"), -1).reshape(-1, 2)
NEIGHBORS = _neighbors()


def lattice_paths(
    gram: Callable[[Array, Array], Array],
    a: Float[Array, " n"],
    b: Float[Array, " n"],
    segments: int,
) -> Float[Array, "2 m n"]:
    """Inner points of two paths between two points: the shortest, and that on its other side.

    On lattices in planes through both, by the metric at 289 nodes of each. Those in the best plane
    are taken.

    Args:
        gram: inner products of vectors at a point, shape (k, k).
        a: where the paths begin.
        b: where they end.
        segments: the number of pieces, of equal lengths on the lattice.
    """
    size = jnp.sqrt((b - a) @ (b - a))
    # The axes that are most at right angles to the line, made so.
    axes = jnp.eye(a.size, dtype=a.dtype)[jnp.argsort(jnp.abs(b - a))[: a.size - 1][:MOST_PLANES]]
    sides = jnp.linalg.qr(jnp.concatenate([(b - a)[None], axes]).T)[0].T[1:]

    def in_plane(side: Float[Array, " n"]) -> tuple[Array, Array]:
        return _in_plane(gram, a, jnp.stack([b - a, size * side]), segments)

    paths, lengths = jax.lax.map(in_plane, sides)
    return paths[jnp.argmin(lengths)]


def _in_plane(
    gram: Callable[[Array, Array], Array],
    a: Float[Array, " n"],
    basis: Float[Array, "2 n"],
    segments: int,
) -> tuple[Float[Array, "2 m n"], Float[Array, ""]]:
    """The two paths in one plane, and the length of the shortest."""
    nodes = jnp.asarray(NODES, a.dtype)
    costs = _costs(nodes, jax.vmap(lambda x: gram(x, basis))(a[None] + nodes @ basis))
    side = nodes[:, 1]
    halves = jnp.stack([jnp.isfinite(side), side >= 0.0, side <= 0.0])

    def found(allowed: Array) -> tuple[Array, Array]:
        within = jnp.where(allowed[:, None], costs, jnp.inf)
        left = _left(within)
        return _followed(within, left, nodes, segments), left[START]

    ways, lengths = jax.vmap(found)(halves)
    is_above = jnp.sum(ways[0, :, 1]) > 0.0
    chosen = jnp.stack([ways[0], jnp.where(is_above, ways[2], ways[1])])
    return a[None, None] + chosen @ basis, lengths[0]


def _at_neighbors(values: Float[Array, "m ..."]) -> Float[Array, "m k ..."]:
    """Values at the neighbors of each node, infinite where there are none."""
    return values.at[NEIGHBORS].get(mode="fill", fill_value=jnp.inf)


def _costs(nodes: Float[Array, "m 2"], gram: Float[Array, "m 2 2"]) -> Float[Array, "m k"]:
    """Lengths of the moves, by the metric at both ends; infinite where it is none."""
    moves = nodes[np.minimum(NEIGHBORS, len(NODES) - 1)] - nodes[:, None]
    ends = jnp.stack([jnp.broadcast_to(gram[:, None], (*moves.shape, 2)), _at_neighbors(gram)])
    squares = jnp.einsum("mki,emkij,mkj->emk", moves, ends, moves)
    lengths = jnp.mean(jnp.sqrt(jnp.maximum(squares, 0.0)), 0)
    return jnp.where(jnp.all(squares >= 0.0, 0), lengths, jnp.inf)


def _left(costs: Float[Array, "m k"]) -> Float[Array, " m"]:
    """Length of the shortest way from each node to the end, by Bellman's and Ford's method."""

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, _ = state
        shorter = jnp.minimum(left, jnp.min(costs + _at_neighbors(left), 1))
        return shorter, jnp.any(shorter < left)

    first = jnp.full(costs.shape[:1], jnp.inf, costs.dtype).at[END].set(0.0)
    return jax.lax.while_loop(lambda state: state[1], step, (first, jnp.array(True)))[0]


def _followed(
    costs: Float[Array, "m k"], left: Float[Array, " m"], nodes: Float[Array, "m 2"], segments: int
) -> Float[Array, "s 2"]:
    """Inner points of the way from the start, at equal lengths."""
    best = jnp.argmin(costs + _at_neighbors(left), 1)
    onward = jnp.asarray(NEIGHBORS)[jnp.arange(len(NODES)), best].at[END].set(END)
    _, way = jax.lax.scan(lambda at, _: (onward[at], at), jnp.asarray(START), None, MOST_MOVES)
    done = 1.0 - left[way] / left[START]
    times = jnp.arange(1, segments, dtype=nodes.dtype) / segments
    return jax.vmap(lambda x: jnp.interp(times, done, x), 1, 1)(nodes[way])

"""Matrices of two lists of examples in tiles: in blocks, symmetric ones by half."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from volform.errors import KernelError
from volform.kernels.propagation.inputs import Examples

_AT_ONCE = 2**17  # pairs of vectors in a tile that nobody asked for: it stays in the cache

Block = Callable[[Examples, Examples, Any], PyTree]  # (rows, columns, is_same) -> matrices


class Spread(NamedTuple):
    """The devices among which rows are shared out, and the mesh's axis of examples."""

    mesh: Mesh
    axis: Any


class Tile(NamedTuple):
    """Position of a tile. The last one of a row is moved back so that all have one size.

    Attributes:
        row: first row.
        column: first column.
        seen_rows: of its rows, how many those before it hold already.
        seen_columns: the same of its columns.
        group: the device that holds the examples of its columns.
        is_diagonal: whether it is on the diagonal of its group.
    """

    row: Any
    column: Any
    seen_rows: Any
    seen_columns: Any
    group: Any
    is_diagonal: Any


def require_tile(tile: int | None, per_pair: int) -> int:
    """The side of a tile, by default the one that fits, for examples of so many pairs of pixels.

    Raises:
        KernelError: when it is no positive whole number.
    """
    if tile is None:
        return max(1, math.isqrt(_AT_ONCE // per_pair))
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
        raise KernelError(
            f"`tile` is {tile!r}; it should be a whole number of at least one, the examples along "
            "each side of what is computed at once."
        )
    return tile


def spread_of(x: Any) -> Spread | None:
    """Layout of examples over devices; None for one device, or under `jit`."""
    if isinstance(x, Tracer) or not isinstance(x, jax.Array):
        return None
    if not isinstance(x.sharding, NamedSharding):
        return None
    mesh, spec = x.sharding.mesh, x.sharding.spec
    if not isinstance(mesh, Mesh) or mesh.size == 1 or not spec or spec[0] is None:
        return None
    return Spread(mesh, spec[0])


def matrices(
    block: Block,
    x1: Examples,
    x2: Examples,
    tile: int,
    *,
    is_same: bool,
    spread: Spread | None = None,
) -> PyTree[Float[Array, "n1 n2"]]:
    """All tiles of the matrices that `block` gives of blocks of rows and columns.

    If the examples are the same, tiles below the diagonal are copied from those above it; among
    several devices all are computed, each by the device that holds the rows.
    """

    def local(x1: Examples, x2: Examples, own: Any) -> PyTree:
        half = is_same and spread is None
        groups = _groups(spread) if is_same else 1  # a second list lies on each device as a whole
        sides = _sides(len(x1), len(x2), tile, groups)
        first = _cut(x1, 0, sides[0]), _cut(x2, 0, sides[1])
        shapes = jax.eval_shape(block, *first, True)
        empty = jax.tree.map(lambda s: jnp.zeros((len(x1), len(x2)), s.dtype), shapes)
        if spread is not None:
            varying = partial(jax.lax.pcast, axis_name=spread.axis, to="varying")
            empty = jax.tree.map(varying, empty)

        def step(found: PyTree, at: Tile) -> tuple[PyTree, None]:
            part = _part(block, x1, x2, sides, at, own)
            put = jax.lax.dynamic_update_slice
            return jax.tree.map(lambda f, p: put(f, p, (at.row, at.column)), found, part), None

        def mirrored(found: Array, at: Tile) -> tuple[Array, None]:
            part = jax.lax.dynamic_slice(found, (at.row, at.column), sides)
            part = jnp.where(at.is_diagonal, (part + part.T) / 2, part.T)
            return jax.lax.dynamic_update_slice(found, part, (at.column, at.row)), None

        tiles = _tiles(len(x1), len(x2), sides, groups, half=half)
        found = jax.lax.scan(step, empty, tiles)[0]
        if not half:
            return found
        # In a loop of its own: XLA would compute each tile once more for its transpose.
        return jax.tree.map(lambda matrix: jax.lax.scan(mirrored, matrix, tiles)[0], found)

    found = _on_devices(local, spread, x1, x2, own=0 if is_same else -1)
    if not is_same or spread is None:
        return found
    return jax.tree.map(lambda matrix: (matrix + matrix.T) / 2, found)


def product(
    block: Block,
    x1: Examples,
    x2: Examples,
    vector: Float[Array, " n"],
    tile: int,
    spread: Spread | None = None,
) -> Float[Array, " n"]:
    """The symmetric matrix of `block` times a vector, a tile at a time; none of it is kept.

    Both lists of examples are the same.
    """

    def local(x1: Examples, x2: Examples, vector: Array, own: Any) -> Array:
        half, groups = spread is None, _groups(spread)
        sides = _sides(len(x1), len(x2), tile, groups)
        total = jnp.zeros(len(x1), vector.dtype)
        if spread is not None:
            total = jax.lax.pcast(total, spread.axis, to="varying")

        def entries(of: Array, start: Any, size: int, seen: Any) -> Array:
            found = jax.lax.dynamic_slice(of, (start,), (size,))
            return jnp.where(jnp.arange(size, dtype=jnp.int32) < seen, 0, found)

        def added(total: Array, more: Array, start: Any, seen: Any) -> Array:
            more = jnp.where(jnp.arange(more.size, dtype=jnp.int32) < seen, 0, more)
            before = jax.lax.dynamic_slice(total, (start,), more.shape)
            return jax.lax.dynamic_update_slice(total, before + more, (start,))

        def step(total: Array, at: Tile) -> tuple[Array, None]:
            matrix = _part(block, x1, x2, sides, at, own)
            right = entries(vector, at.column, sides[1], at.seen_columns)
            total = added(total, _times(matrix, right), at.row, at.seen_rows)
            if half:
                left = entries(vector, at.row, sides[0], at.seen_rows)
                left = jnp.where(at.is_diagonal, 0, left)
                total = added(total, _times(left, matrix), at.column, at.seen_columns)
            return total, None

        return jax.lax.scan(step, total, _tiles(len(x1), len(x2), sides, groups, half=half))[0]

    return gathered(_on_devices(local, spread, x1, x2, vector, own=0), spread)


def rows_times(
    matrix: Float[Array, "n n"], vector: Float[Array, " n"], spread: Spread
) -> Float[Array, " n"]:
    """The product with a matrix whose rows are shared out."""

    def local(rows: Array, vector: Array, own: Any) -> Array:
        return _times(rows, vector)

    return gathered(_on_devices(local, spread, matrix, vector, own=0), spread)


def gathered(array: Array, spread: Spread | None) -> Array:
    """The array with all of it on each device."""
    if spread is None:
        return array
    return _copied(array, NamedSharding(spread.mesh, PartitionSpec()))


@partial(jax.jit, static_argnums=1)
def _copied(array: Array, sharding: NamedSharding) -> Array:
    return jax.lax.with_sharding_constraint(array, sharding)


def _on_devices(local: Callable, spread: Spread | None, x1: Any, *rest: Any, own: int) -> Any:
    """`local(x1, *rest, own)`, on each device for its rows; `own` is the group of their number."""
    if spread is None:
        return local(x1, *rest, own)
    axis = PartitionSpec(spread.axis)

    def on_one(*arrays: Any) -> Any:
        return local(*arrays, jax.lax.axis_index(spread.axis) if own == 0 else own)

    specs = (axis, *[PartitionSpec()] * len(rest))
    return jax.shard_map(on_one, mesh=spread.mesh, in_specs=specs, out_specs=axis)(x1, *rest)


def _part(
    block: Block, x1: Examples, x2: Examples, sides: tuple[int, int], at: Tile, own: Any
) -> PyTree:
    rows, columns = _cut(x1, at.row, sides[0]), _cut(x2, at.column, sides[1])
    # For a gradient the tile is computed again: otherwise all layers of all tiles would be kept.
    again = jax.checkpoint(lambda *given: block(*given))  # it hashes what it gets, a method may not
    return again(rows, columns, at.is_diagonal & (at.group == own))


def _cut(x: Examples, start: Any, size: int) -> Examples:
    return jax.tree.map(lambda part: jax.lax.dynamic_slice_in_dim(part, start, size), x)


def _times(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _groups(spread: Spread | None) -> int:
    return 1 if spread is None else spread.mesh.size


def _sides(rows: int, columns: int, tile: int, groups: int) -> tuple[int, int]:
    sizes = rows, columns // groups
    # No larger than needed for as many tiles, so that the last one repeats little.
    return math.ceil(sizes[0] / math.ceil(sizes[0] / tile)), math.ceil(
        sizes[1] / math.ceil(sizes[1] / tile)
    )


def _tiles(rows: int, columns: int, sides: tuple[int, int], groups: int, *, half: bool) -> Tile:
    """All tiles in order: those that hold entries of an earlier one as well overwrite them."""
    size = columns // groups
    down, across = math.ceil(rows / sides[0]), math.ceil(size / sides[1])
    group, i, j = np.indices((groups, down, across), dtype=np.int32).reshape(3, -1)
    if half:
        group, i, j = (index[j >= i] for index in (group, i, j))
    row = np.minimum(i * sides[0], rows - sides[0])
    column = np.minimum(j * sides[1], size - sides[1])
    seen = i * sides[0] - row, j * sides[1] - column
    return Tile(row, column + group * size, *seen, group, i == j)

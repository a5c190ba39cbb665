"""Empirical kernels block by block, in bounded memory."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from volform.compilation import QUICK, QUICK_UP_TO, Compiled
from volform.errors import NetworkError
from volform.kernels.gradients import (
    Differentiated,
    Gradients,
    OutputPairs,
    differentiate,
    inner_products,
)

CHUNK_ENTRIES = 2**25  # of what a chunk of examples takes while it is worked on
KEPT_ENTRIES = 2**27  # of gradients that are computed once, and kept
_TILE = 512  # examples: below, halves of a symmetric matrix are not worth a loop


def kernel_matrix(data: Any, function: Any, metric: Any, **options: Any) -> Any:
    """The kernel of two lists of examples, or of one where the second is None.

    Args:
        data: the parameters and the lists.
        function: of the parameters and a batch.
        metric: as of `Differentiated`.
        options: `outputs` and `chunk`.
    """
    return _chosen(_KERNEL, data)(data, function, metric, **options)


def kernel_diagonal(data: Any, function: Any, metric: Any, **options: Any) -> Any:
    """The kernel of each example with itself; arguments as of `kernel_matrix`, with one list."""
    return _chosen(_DIAGONAL, data)(data, function, metric, **options)


def _chosen(programs: tuple[Compiled, Compiled], data: Any) -> Compiled:
    """Compiled quickly where few numbers are read, and else to run fast."""
    numbers = sum(leaf.size for leaf in jax.tree.leaves(data))
    return programs[numbers > QUICK_UP_TO]


def _kernel(
    data: Any, function: Any, metric: Any, *, outputs: OutputPairs, chunk: int | None
) -> Any:
    params, x1, x2 = data
    shapes = require_outputs(function, params, x1)
    partners = len(x1) / 2 if x2 is None else len(x2)
    found = differentiate(function, params, x1[0], metric, outputs, partners)
    if x2 is None:
        return _laid_out(_symmetric(found, x1, outputs, chunk), shapes, outputs, 2)
    side = chunk or math.isqrt(CHUNK_ENTRIES // found.block(outputs)) or 1
    left, right = (_source(found, x, chunk, side) for x in (x1, x2))

    def row(i: Any) -> Array:
        own = left.of(i)
        return _mapped(lambda j: inner_products(outputs, own, right.of(j)), right.chunks)

    whole = _matrix(_mapped(row, left.chunks))[: len(x1), : len(x2)]
    return _laid_out(whole, shapes, outputs, 2)


def _symmetric(
    found: Differentiated, x: Array, outputs: OutputPairs, chunk: int | None
) -> Float[Array, "n n ..."]:
    """Of c chunks each with itself and with the c // 2 that follow it in a circle."""
    side = chunk or min(_TILE, math.isqrt(CHUNK_ENTRIES // found.block(outputs))) or 1
    if chunk is None and len(x) > side:
        side = -(-len(x) // (-(-len(x) // side) | 1))  # no pair twice where c is odd
    source = _source(found, x, chunk, side)
    count, steps = source.chunks, source.chunks // 2 + 1

    def row(i: Any) -> Array:
        own = source.of(i)
        return _mapped(
            lambda step: inner_products(outputs, own, source.of((i + step) % count)), steps
        )

    half = _mapped(row, count)
    first, step = np.indices((count, steps))
    second = (first + step) % count
    whole = jnp.zeros((count, count, *half.shape[2:]), half.dtype)
    whole = whole.at[second, first].set(_transposed(half, 2)).at[first, second].set(half)
    whole = _matrix(whole)[: len(x), : len(x)]
    return (whole + _transposed(whole, 0)) / 2


def _transposed(kernel: Array, axis: int) -> Array:
    """The examples of the pairs exchanged, and with them the outputs."""
    kernel = jnp.swapaxes(kernel, axis, axis + 1)
    return jnp.swapaxes(kernel, -1, -2) if kernel.ndim == axis + 4 else kernel


class _Source(NamedTuple):
    """Chunks of a list of examples, by their number."""

    of: Callable[[Any], Gradients]
    chunks: int


def _source(found: Differentiated, x: Array, chunk: int | None, side: int) -> _Source:
    at_once = _at_once(found, x, chunk)
    if len(x) * found.kept > KEPT_ENTRIES:
        parts = chunks_of(x, min(side, at_once))
        return _Source(lambda index: found.gradients(parts[index]), len(parts))
    parts = chunks_of(x, at_once)
    held = _mapped(lambda index: found.gradients(parts[index]), len(parts))
    held = jax.tree.map(lambda leaf: chunks_of(joined(leaf)[: len(x)], min(side, len(x))), held)
    count = len(jax.tree.leaves(held)[0])
    return _Source(lambda index: jax.tree.map(lambda leaf: leaf[index], held), count)


def _at_once(found: Differentiated, x: Array, chunk: int | None) -> int:
    """Number of examples whose gradients are computed at once."""
    if chunk is not None or len(x) * found.worked <= KEPT_ENTRIES:
        return min(len(x), chunk or len(x))
    count = -(-len(x) * found.worked // CHUNK_ENTRIES)
    return max(1, len(x) // count)


def _diagonal(
    data: Any, function: Any, metric: Any, *, outputs: OutputPairs, chunk: int | None
) -> Any:
    params, x = data
    shapes = require_outputs(function, params, x)
    found = differentiate(function, params, x[0], metric, outputs, 1)

    def own(gradients: Gradients) -> Array:
        one = jax.tree.map(lambda leaf: leaf[None], gradients)
        return inner_products(outputs, one, one)[0, 0]

    parts = chunks_of(x, _at_once(found, x, chunk))
    found_of = _mapped(lambda index: jax.vmap(own)(found.gradients(parts[index])), len(parts))
    return _laid_out(joined(found_of)[: len(x)], shapes, outputs, 1)


# A scan over time runs in two thirds of the time by the emitters that `STEADY` leaves out.
_KERNEL = Compiled(_kernel, QUICK), Compiled(_kernel, {})
_DIAGONAL = Compiled(_diagonal, QUICK), Compiled(_diagonal, {})


def require_outputs(function: Any, params: Any, x: Array) -> Any:
    """Structure of the outputs of one example."""
    try:
        shapes = jax.eval_shape(function, params, x)
    except (TypeError, ValueError) as error:
        raise NetworkError(
            f"`function` could not be run as `function(params, x)` with x of shape {x.shape}: "
            f"{error}. Arguments are the function, its parameters, and then the examples."
        ) from error
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        if leaf.shape[:1] != x.shape[:1]:
            raise NetworkError(
                f"`function` returned shape {leaf.shape}{_at(path)} for {len(x)} examples; it "
                f"should return ({len(x)},) or ({len(x)}, ...), one row for each example."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise NetworkError(
                f"`function` returned dtype {leaf.dtype}{_at(path)}; it should return "
                "floating-point numbers, as only those have derivatives."
            )
    if not jax.tree.leaves(shapes):
        raise NetworkError(f"`function` returned {shapes!r}; it should return an array.")
    return shapes


def _at(path: Any) -> str:
    return f" at `{jax.tree_util.keystr(path)}`" if path else ""


def _laid_out(kernel: Array, shapes: PyTree, outputs: OutputPairs, axis: int) -> PyTree[Array]:
    """The axes of outputs, from `axis` on, in the shape and structure of the outputs."""
    leaves, structure = jax.tree.flatten(shapes)
    sizes = [leaf.shape[1:] for leaf in leaves]

    bounds = np.cumsum([math.prod(shape) for shape in sizes])[:-1]

    def split(array: Array, axis: int) -> list[Array]:
        parts = zip(jnp.split(array, bounds, axis), sizes, strict=True)
        return [p.reshape(*p.shape[:axis], *s, *p.shape[axis + 1 :]) for p, s in parts]

    match outputs:
        case OutputPairs.EACH:
            return jax.tree.unflatten(structure, split(kernel, axis))
        case OutputPairs.ALL:
            rows = zip(split(kernel, axis), sizes, strict=True)
            parts = [split(row, axis + len(shape)) for row, shape in rows]
            return jax.tree.unflatten(structure, [jax.tree.unflatten(structure, p) for p in parts])
        case _:
            return kernel


def _mapped(fn: Callable[[Any], Any], count: int) -> Any:
    """`fn` of each number, stacked; without a loop if there is one."""
    if count == 1:
        return jax.tree.map(lambda leaf: leaf[None], fn(0))
    return jax.lax.map(fn, jnp.arange(count))


def _matrix(blocks: Float[Array, "c1 c2 n1 n2 ..."]) -> Float[Array, "m1 m2 ..."]:
    c1, c2, n1, n2, *rest = blocks.shape
    return jnp.swapaxes(blocks, 1, 2).reshape(c1 * n1, c2 * n2, *rest)


def chunks_of(x: Float[Array, "n ..."], side: int) -> Float[Array, "chunks side ..."]:
    """Chunks of examples, the last one filled up with copies of its last."""
    missing = -len(x) % side
    x = x if missing == 0 else jnp.concatenate([x, jnp.repeat(x[-1:], missing, 0)])
    return x.reshape(len(x) // side, side, *x.shape[1:])


def joined(x: Float[Array, "chunks side ..."]) -> Float[Array, "n ..."]:
    """One list of chunks of one size."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])

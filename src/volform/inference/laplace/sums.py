"""Sums over the examples of a model: of all at once, in chunks, in batches."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.compilation import is_traced, steady
from volform.errors import StructureError
from volform.models.model_with_batches import first_of, joined_batches
from volform.models.model_with_data import ModelWithData
from volform.models.some_examples import with_examples

Split = Any  # a `DataPriorSplit`, which is made of these sums
Combine = Callable[[Any, Any], Any]


def plus(one: Any, other: Any) -> Any:
    """The sum of two trees of arrays."""
    return jax.tree.map(jnp.add, one, other)


def comes_in_batches(split: Split) -> bool:
    """Tell whether the data are not at hand as a whole."""
    return split.posterior.in_batches


def without_data(split: Split) -> Split:
    """The split that priors, volume and factors are read off: of data in batches the first."""
    return _of(split, first_of(split.posterior.program)) if comes_in_batches(split) else split


def over_batches(split: Split, part: Callable[[Split], Any], combine: Combine = plus) -> Any:
    """`part` of all examples out of that of each batch; not under `jit` where there are several.

    Args:
        split: the model and where.
        part: what is summed, compiled.
        combine: two of them to one.
    """
    if not comes_in_batches(split):
        return part(split)
    total: Any = None
    for number, program in enumerate(split.posterior.program.each()):
        # The next batch was read while this was computed; not the one after it, too.
        jax.block_until_ready(jax.tree.leaves(total))
        found = part(_of(split, program, number))
        total = found if total is None else combine(total, found)
    return total


def over_chunks(split: Split, part: Callable[[Split], Any], combine: Combine = plus) -> Any:
    """`part` of all examples out of that of each chunk."""
    chunk, count = split.chunk, split.count if split.chunk is not None else 0
    if chunk is None or count <= chunk:
        return part(dataclasses.replace(split, chunk=None))
    whole, left = divmod(count, chunk)

    def joined(total: Any, start: Any, size: int, number: Any) -> Any:
        return combine(total, part(_cut(split, start, size, number)))

    def step(total: Any, number: Array) -> tuple[Any, None]:
        return joined(total, number * chunk, chunk, number), None

    shapes = eqx.filter_eval_shape(lambda split: part(_cut(split, 0, chunk, 0)), split)
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(step, total, jnp.arange(whole))
    return joined(total, whole * chunk, left, whole) if left else total


def require_independent(split: Split) -> None:
    """Check that examples may be taken in chunks or batches; under `jit` they are taken without.

    Raises:
        ModelError: when the model is another than it was at `condition`, since it is run again.
        StructureError: when the loss of two neighbors is not the sum of theirs, or the model does
            not take them.
    """
    if is_traced(split):
        return
    in_batches = comes_in_batches(split)
    if not in_batches and (split.chunk is None or split.count <= split.chunk):
        return
    if in_batches and split.chunk is not None:
        require_independent(without_data(split))
    split.posterior.program.require_unchanged()
    gap, reason = math.nan, ""
    try:
        gap = _gap_of_batches(split) if in_batches else float(_gap(split))
    except Exception as error:  # whatever a model raises that insists on its number of rows
        reason = f" ({type(error).__name__}: {error})"
    if gap <= float(jnp.finfo(split.u.dtype).eps) ** 0.75:
        return
    if in_batches:
        raise StructureError(
            "`Batches` need independent examples along the first axis of the arrays of a batch, "
            "and priors, factors and a metric that do not depend on the batch; here those of the "
            "first two batches together are not the sum, as with batch normalization in training, "
            "a likelihood scaled to the size of all data, or a metric that is read off the data"
            f"{reason}."
        )
    raise StructureError(
        f"`chunk={split.chunk}` needs {split.count} independent examples along the first axis "
        "of those arguments of the model that have as many rows; here the log likelihood of "
        "two chunks is not the sum of theirs, as with batch normalization, other statistics of "
        f"all data, or data that are no arguments{reason}. Leave `chunk` out."
    )


def _of(split: Split, program: ModelWithData, number: int = 0) -> Split:
    own = dataclasses.replace(split.posterior, program=program)
    curvature = None if split.curvature is None else split.curvature.of_chunk(number)
    return dataclasses.replace(split, posterior=own, curvature=curvature)


def _cut(split: Split, start: Any, size: int, number: Any) -> Split:
    """Some of the examples, from `start` on."""
    cut = lambda rows: jax.lax.dynamic_slice_in_dim(rows, start, size)  # noqa: E731
    program = with_examples(split.posterior.program, split.count, cut)
    return dataclasses.replace(_of(split, program, number), chunk=None)


@steady
def _gap(split: Split) -> Float[Array, ""]:
    """Largest distance of the loss of two neighboring chunks from the sum of theirs, an example.

    At a random point: what couples examples may be multiplied by a parameter that is zero at u.
    """
    chunk, count, u = split.chunk or split.count, split.count, _elsewhere(split)

    def loss(start: Any, size: int) -> Float[Array, ""]:
        return _cut(split, start, size, 0).loss(u)

    def gap(start: Any, size: int) -> Float[Array, ""]:
        both = loss(start, chunk + size)
        apart = loss(start, chunk) + loss(start + chunk, size)
        return jnp.abs(both - apart) / (chunk + size + jnp.abs(both))

    pairs, left = count // chunk - 1, count % chunk
    gaps = [jax.lax.map(lambda k: gap(k * chunk, chunk), jnp.arange(pairs))] if pairs else []
    gaps += [gap(count - left - chunk, left)[None]] if left else []
    return jnp.max(jnp.concatenate(gaps))


def _gap_of_batches(split: Split) -> float:
    """The same of the first two batches, and how far the rest differs from one to the other."""
    programs = joined_batches(split.posterior.program)
    if programs is None:
        return 0.0
    losses, rests, counts = zip(*(map(float, _sides(_of(split, p))) for p in programs), strict=True)
    gap = abs(losses[2] - losses[0] - losses[1]) / (counts[2] + abs(losses[2]))
    return max(gap, max(abs(rest - rests[2]) for rest in rests) / (1.0 + abs(rests[2])))


@steady
def _sides(split: Split) -> tuple[Array, Array, int]:
    """The loss of the data, the rest, and the number of the examples."""
    split = dataclasses.replace(split, chunk=None)
    u = _elsewhere(split)
    return split.loss(u), split.rest()(u), split.count


def _elsewhere(split: Split) -> Float[Array, " d"]:
    u = split.u
    return u + 0.1 * jax.random.normal(jax.random.key(0), u.shape, u.dtype)

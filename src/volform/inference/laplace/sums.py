"""Sums over the examples of a model: of all at once, in chunks, in batches."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.compilation import is_traced, steady
from volform.errors import DataError, StructureError
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
    """`part` of all examples out of that of each batch.

    Args:
        split: the model and where.
        part: what is summed, compiled.
        combine: two of them to one.

    Raises:
        StructureError: of several batches under `jit`, whose data would be those of its trace.
    """
    if not comes_in_batches(split):
        return part(split)
    total: Any = None
    for own in batches_of(split):
        # This batch was read while the last was computed; the next is not, before that is done.
        jax.block_until_ready(jax.tree.leaves(total))
        found = part(own)
        total = found if total is None else combine(total, found)
    return total


def batches_of(split: Split) -> Iterator[Split]:
    """The split of one batch after the other.

    Raises:
        StructureError: under `jit`, where the data would be those of its trace.
    """
    if is_traced(split):
        raise StructureError(
            "`Batches` are read on the host, one after the other, and not under `jit`, `vmap` or "
            "`grad`; call it outside of them, or condition on the data whole."
        )
    for number, program in enumerate(split.posterior.program.each()):
        yield _of(split, program, number)


def over_chunks(split: Split, part: Callable[[Split], Any], combine: Combine = plus) -> Any:
    """`part` of all examples out of that of each chunk."""
    return over_rows(split, lambda own, _: part(own), combine)


def over_rows(
    split: Split, part: Callable[[Split, Callable[[Array], Array]], Any], combine: Combine = plus
) -> Any:
    """The same of a part that is told how to take the rows of its examples from an array of all."""
    chunk, count = split.chunk, split.count if split.chunk is not None else 0
    if chunk is None or count <= chunk:
        return part(dataclasses.replace(split, chunk=None), lambda rows: rows)
    whole, left = divmod(count, chunk)

    def of_chunk(start: Any, size: int, number: Any) -> Any:
        cut = lambda rows: jax.lax.dynamic_slice_in_dim(rows, start, size)  # noqa: E731
        return part(_cut(split, start, size, number), cut)

    def step(total: Any, number: Array) -> tuple[Any, None]:
        return combine(total, of_chunk(number * chunk, chunk, number)), None

    shapes = eqx.filter_eval_shape(
        lambda split: part(_cut(split, 0, chunk, 0), _first(chunk)), split
    )
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(step, total, jnp.arange(whole))
    return combine(total, of_chunk(whole * chunk, left, whole)) if left else total


def stacked_chunks(split: Split, part: Callable[[Split], Array]) -> Array:
    """An array with the examples along its first axis, out of that of each chunk."""
    chunk, count = split.chunk, split.count if split.chunk is not None else 0
    if chunk is None or count <= chunk:
        return part(dataclasses.replace(split, chunk=None))
    whole, left = divmod(count, chunk)
    found = jax.lax.map(lambda k: part(_cut(split, k * chunk, chunk, k)), jnp.arange(whole))
    found = found.reshape(whole * chunk, *found.shape[2:])
    if not left:
        return found
    return jnp.concatenate([found, part(_cut(split, whole * chunk, left, whole))])


def some_of(split: Split, numbers: Array) -> Split:
    """The split of some examples, which may come twice."""
    program = with_examples(split.posterior.program, split.count, lambda rows: rows[numbers])
    return dataclasses.replace(_of(split, program), chunk=None)


def require_independent(split: Split) -> None:
    """Check that examples may be taken in chunks or batches; under `jit` they are taken without.

    Raises:
        ModelError: when the model is another than it was at `condition`, since it is run again.
        StructureError: when the loss of two neighbors is not the sum of theirs, or the model does
            not take them; for chunks of batches.
        DataError: when the log likelihood of a batch is not finite.
    """
    if is_traced(split):
        return
    if comes_in_batches(split):
        if split.chunk is not None:
            raise StructureError(
                f"`chunk={split.chunk}` cuts data that are given whole, and here they come in "
                "`Batches`; make the batches smaller, and leave `chunk` out."
            )
        _require_batches_to_add(split)
    elif split.chunk is not None and split.count > split.chunk:
        _require_chunks_to_add(split)


def require_batch(split: Split, loss: float, rest: float, first: float) -> None:
    """Check one batch: that its likelihood is finite, and the rest that of the first batch.

    Raises:
        DataError: when it is not finite.
        StructureError: when priors, factors or the metric depend on the batch.
    """
    if not math.isfinite(loss):
        raise DataError(
            f"The log likelihood of a batch of `Batches` is {-loss} at the values in `at`, "
            f"{split.posterior.program.data_in_words()}. Check the batch, and the values."
        )
    if not abs(rest - first) <= _bound(split) * (1.0 + abs(first)):
        raise StructureError(_NO_SUM.format("."))


_NO_SUM = (
    "`Batches` need independent examples along the first axis of the arrays of a batch, and "
    "priors, factors and a metric that do not depend on the batch; here those of two batches "
    "together are not the sum, as with batch normalization in training, a likelihood scaled to the "
    "size of all data, or a metric that is read off the data{} Arrays that all batches have in "
    "common go by keyword, `vf.condition(model, batches, name=array)`."
)


def _bound(split: Split) -> float:
    return float(jnp.finfo(split.u.dtype).eps) ** 0.75


def _require_chunks_to_add(split: Split) -> None:
    split.posterior.program.require_unchanged()
    gap, reason = math.nan, ""
    try:
        gap = float(_gap(split))
    except Exception as error:  # whatever a model raises that insists on its number of rows
        reason = f" ({type(error).__name__}: {error})"
    if not gap <= _bound(split):
        raise StructureError(
            f"`chunk={split.chunk}` needs {split.count} independent examples along the first axis "
            "of those arguments of the model that have as many rows; here the log likelihood of "
            "two chunks is not the sum of theirs, as with batch normalization, other statistics of "
            f"all data, or data that are no arguments{reason}. Leave `chunk` out."
        )


def _require_batches_to_add(split: Split) -> None:
    program = split.posterior.program
    program.require_unchanged()
    programs, sides, reason = joined_batches(program), [], "."
    if programs is None:
        return
    try:
        for one in programs:
            sides.append(tuple(map(float, _sides(_of(split, one)))))
    except Exception as error:  # whatever a model raises that insists on its number of rows
        reason = f" ({type(error).__name__}: {error})."
    for (loss, rest), one in zip(sides, programs, strict=False):
        require_batch(_of(split, one), loss, rest, sides[0][1])
    if len(sides) == 3:
        first, second, both = (loss for loss, _ in sides)
        if abs(both - first - second) <= _bound(split) * (_rows(programs[2]) + abs(both)):
            return
    raise StructureError(_NO_SUM.format(reason))


def _rows(program: ModelWithData) -> int:
    shapes = [leaf.shape for leaf in jax.tree.leaves(program.data) if eqx.is_array(leaf)]
    return max((shape[0] for shape in shapes if shape), default=1)


def _of(split: Split, program: ModelWithData, number: int = 0) -> Split:
    own = dataclasses.replace(split.posterior, program=program)
    curvature = None if split.curvature is None else split.curvature.of_chunk(number)
    return dataclasses.replace(split, posterior=own, curvature=curvature)


def _cut(split: Split, start: Any, size: int, number: Any) -> Split:
    """Some of the examples, from `start` on."""
    cut = lambda rows: jax.lax.dynamic_slice_in_dim(rows, start, size)  # noqa: E731
    program = with_examples(split.posterior.program, split.count, cut)
    return dataclasses.replace(_of(split, program, number), chunk=None)


def _first(size: int) -> Callable[[Array], Array]:
    return lambda rows: rows[:size]


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


@steady
def _sides(split: Split) -> tuple[Array, Array]:
    """The loss of the data and the rest."""
    u = _elsewhere(split)
    return split.loss(u), split.rest()(u)


def _elsewhere(split: Split) -> Float[Array, " d"]:
    u = split.u
    return u + 0.1 * jax.random.normal(jax.random.key(0), u.shape, u.dtype)

"""Models whose data come in batches: one program for each, and sums on the host."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import Unit

from volform.compilation import steady
from volform.errors import DataError, ModelError
from volform.models.batches import Arguments, Batches, no_batch
from volform.models.data_checks import (
    advice_on,
    all_inside,
    core_of,
    require_complete,
    require_equal_lengths,
    require_whole_labels,
    used_entries,
)
from volform.models.layout import Layout
from volform.models.model_with_data import (
    ById,
    Findings,
    ModelWithData,
    Source,
    make_program,
)
from volform.models.observed_facts import ObservedFacts
from volform.progress import waiting


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """The batches that `condition` was given, which no compiled program reads: all are equal.

    Attributes:
        batches: the batches.
        shared: keyword arguments that all have in common.
        facts: what was seen of the data.
    """

    batches: Batches
    shared: dict[str, Any]
    facts: ObservedFacts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given)

    def __hash__(self) -> int:
        return hash(Given)


class ModelWithBatches(ModelWithData):
    """A model whose data come in batches; where one is run, it is with the first of them.

    Attributes:
        given: the batches, and what was seen of them.
    """

    given: Given = eqx.field(static=True)

    def __init__(self, first: ModelWithData, given: Given):
        super().__init__(first.source, first.data)
        self.given = given

    @property
    def first(self) -> ModelWithData:
        """The model with the first batch alone."""
        return ModelWithData(self.source, self.data)

    def arguments(self) -> Arguments:
        """None that hold all data.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"The data of `{self.name}` come in batches, and this needs arguments of the model: "
            "pass them, such as the inputs to predict at, or condition on the data whole."
        )

    def site_densities(self, values: dict[str, Any]) -> dict[str, Array]:
        """None of all data.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            f"The data of `{self.name}` come in batches, so that the posterior has no density as "
            "one function, which this needs. `vf.laplace(posterior, at=values, "
            "curvature=vf.GGN())` sums over the batches; for a search, draws by NUTS or "
            "importance sampling condition on the data whole."
        )

    def outputs(self, values: dict[str, Any], select: Callable[[Findings], Any]) -> Any:
        """`select` of what a trace with the first batch finds."""
        return self.first.outputs(values, select)

    def prior_draw(self, key: Any) -> dict[str, Any]:
        """Values of the latent sites drawn from the prior."""
        return self.first.prior_draw(key)

    def require_unchanged(self) -> None:
        """Check that the model computes what it did when it was recorded.

        Raises:
            ModelError: when it does not.
        """
        self.first.require_unchanged()

    def data_in_words(self) -> str:
        """The number of the batches and of the examples."""
        return f"with {self.given.facts.in_words()}"

    def each(self) -> Iterator[ModelWithData]:
        """The model with one batch after the other.

        Raises:
            DataError: when they are others than they were when they were read first.
        """
        numbers, rows, seen = 0, 0, self.given.facts
        with waiting("batches", show=True) as phase:
            for program, own in _programs(self):
                phase(self.name, numbers, seen.batches)
                yield program
                numbers, rows = numbers + 1, rows + own
        if (numbers, rows) != (seen.batches, seen.rows):
            raise DataError(
                f"`Batches` gave {numbers} batches with {rows:,} rows now, where there were "
                f"{seen.in_words()} before; each time it is iterated over it should give all data, "
                "in any order."
            )


def in_batches(
    first: ModelWithData,
    batches: Batches,
    shared: dict[str, Any],
    layout: Layout,
    names: tuple[str, ...],
) -> ModelWithBatches:
    """The model with all batches, each of which is checked.

    Args:
        first: the model with the first batch.
        batches: the batches.
        shared: keyword arguments that all have in common.
        layout: the latent sites.
        names: the observed sites.

    Raises:
        ModelError: when the model reads its data in Python.
        DataError: as `condition` does for data that are whole, with the number of the batch.
    """
    if isinstance(first.data, ById):
        raise ModelError(
            f"`{first.name}` reads values of its data in Python, by `if`, `float()` or NumPy, so "
            "that it would be compiled for every batch; use `jnp.where` and `jax.numpy`, or pass "
            "the data whole."
        )
    facts = batches.seen
    if facts is None or facts.names != names:
        unseen = ModelWithBatches(first, Given(batches, shared, ObservedFacts(names)))
        facts = _facts_of(unseen, names, layout.constrain(jnp.zeros(layout.dim)))
    return ModelWithBatches(first, Given(batches, shared, facts))


def first_of(program: ModelWithData) -> ModelWithData:
    """The model with the first of its batches, or itself."""
    return program.first if isinstance(program, ModelWithBatches) else program


def given_arguments(program: ModelWithData) -> Arguments:
    """Arguments of `condition` that give a posterior of the same data again.

    Batches know what was found in them, and need not be read through once more.
    """
    if not isinstance(program, ModelWithBatches):
        return program.arguments()
    given = program.given
    return (dataclasses.replace(given.batches, seen=given.facts),), given.shared


def joined_batches(program: ModelWithBatches) -> tuple[ModelWithData, ...] | None:
    """The first two batches, and the two as one; None where there are no two."""
    both = [batch for _, batch in zip(range(2), program.given.batches, strict=False)]
    if len(both) < 2:
        return None
    rows = tuple(map(_rows, both))

    def join(one: Any, other: Any) -> Any:
        is_own = (np.shape(one)[:1], np.shape(other)[:1]) == ((rows[0],), (rows[1],))
        return np.concatenate([np.asarray(one), np.asarray(other)]) if is_own else one

    one, other = (_program(program, batch) for batch in both)
    return one, other, _program(program, jax.tree.map(join, *both))


def _program(program: ModelWithBatches, batch: Arguments) -> ModelWithData:
    # Not by the recording, which is of the shapes of the first batch.
    source, (args, kwargs) = Source(program.model, bounded=program.source.bounded), batch
    data = make_program(program.model, args, {**program.given.shared, **kwargs}).data
    return ModelWithData(source, data)


def _programs(program: ModelWithBatches) -> Iterator[tuple[ModelWithData, int]]:
    """The model with each of the batches, and their numbers of rows."""
    expected = _form(program.data)
    for number, batch in enumerate(program.given.batches):
        own = _program(program, batch)
        if _form(own.data) != expected or _rows(batch) == 0:
            raise DataError(
                f"Batch {number} of `Batches` is {own.data_in_words()}, and the first "
                f"{program.first.data_in_words()}; all should have arrays of the same types, and "
                "differ in the number of their rows at most, of which there is at least one."
            )
        yield own, _rows(batch)


def _form(data: Any) -> Any:
    leaves, treedef = jax.tree.flatten(data)
    return treedef, [(x.dtype, x.shape[1:]) if eqx.is_array(x) else x for x in leaves]


def _rows(batch: Arguments) -> int:
    """Rows of the first array, that of the examples."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    return next((shape[0] for shape in shapes if shape), 1)


def _facts_of(
    program: ModelWithBatches, names: tuple[str, ...], values: dict[str, Any]
) -> ObservedFacts:
    count, facts = program.given.batches.count, ObservedFacts(names)
    with waiting("condition", show=True) as phase:
        for number, (own, rows) in enumerate(_programs(program)):
            phase(f"batch {number + 1} of the data", *([] if count is None else [number, count]))
            try:
                for name, site in _observed(own, values, names).items():
                    _add(facts, name, site)
            except (DataError, TypeError, ValueError, IndexError) as error:
                reason = str(error) if isinstance(error, DataError) else _why(own, error)
                raise DataError(f"Batch {number} of `Batches` cannot be used: {reason}") from error
            facts.end_batch(rows)
    if not facts.batches:
        raise no_batch()
    return facts


def _add(facts: ObservedFacts, name: str, site: "_Site") -> None:
    value, used, powers = map(np.asarray, (site.value, site.used, site.powers))
    require_complete(name, value, used)
    if not bool(site.inside):
        raise DataError(
            f"The observed site `{name}` holds values outside the support of its distribution. "
            "Check the data, and the family of the likelihood."
        )
    facts.add(name, value, used, powers, site.events)


def _why(program: ModelWithData, error: Exception) -> str:
    args, kwargs = program.arguments()
    return (
        f"`{program.name}` could not be run {program.data_in_words()}. {type(error).__name__}: "
        f"{error}. {advice_on(str(error), program.model, args, kwargs)}"
    )


class _Site(NamedTuple):
    """Values of an observed site, which of them enter the density, and their powers.

    With whether all lie in the support, and the number of the axes of a single datum.
    """

    value: Array
    used: Array
    powers: Array
    inside: Array
    events: int


@steady
def _observed(
    program: ModelWithData, values: dict[str, Any], names: tuple[str, ...]
) -> dict[str, _Site]:
    trace, found = program.run(values), {}
    for name in names:
        fn, scale, value = (trace[name][part] for part in ("fn", "scale", "value"))
        if isinstance(core_of(fn), Unit):
            continue
        value = jnp.asarray(value)
        require_whole_labels(name, fn, value)
        require_equal_lengths(name, fn, value.shape)
        scale = jnp.asarray(1.0 if scale is None else scale)
        scale = scale.reshape((*scale.shape, *(1,) * len(fn.event_shape)))
        powers = jnp.broadcast_to(scale, value.shape)
        used, inside = jnp.asarray(used_entries(fn, value)), all_inside(fn, value)
        found[name] = _Site(value, used, powers, inside, len(fn.event_shape))
    return found

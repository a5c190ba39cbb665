"""Models whose data come in batches: one program for each, and sums on the host."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import Unit

from volform.compilation import is_traced, steady
from volform.errors import DataError, ModelError
from volform.models.batches import Arguments, Batches, no_batch
from volform.models.constant import ById
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
    Findings,
    ModelWithData,
    make_program,
)
from volform.models.observed_facts import RowDigest, SiteFacts
from volform.progress import waiting

SOME = 512  # examples on which copies of a network are counted
_FROM_EACH = 16  # of them, of one batch at most


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """The batches that `condition` was given, which no compiled program reads: all are equal.

    Attributes:
        batches: the batches.
        shared: keyword arguments that all have in common.
        count: how many batches there are.
        rows: how many examples.
        sites: facts of the data of each observed site.
        digest: of all arrays in the batches.
        some: examples out of many batches.
        values: of the latent sites, anywhere.
    """

    batches: Batches
    shared: dict[str, Any]
    count: int
    rows: int
    sites: dict[str, SiteFacts]
    digest: RowDigest
    some: Arguments
    values: dict[str, Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given)

    def __hash__(self) -> int:
        return hash(Given)

    def in_words(self) -> str:
        """The number of the batches and of the examples."""
        return f"data in {self.count:,} batches, {self.rows:,} examples"


class ModelWithBatches(ModelWithData):
    """A model whose data come in batches; `first` is that with the first of them.

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

    @property
    def some(self) -> ModelWithData:
        """The model with some examples of many batches."""
        return _program(self.first, self.given.shared, self.given.some)

    def arguments(self) -> Arguments:
        """None that hold all data.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"The data of `{self.name}` come in batches, and this needs arguments of the model: "
            "pass them, such as the inputs to predict at, or condition on the data whole."
        )

    def outputs(self, values: dict[str, Any], select: Callable[[Findings], Any]) -> Any:
        """None of all data.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            f"The data of `{self.name}` come in batches, so that the posterior has no density as "
            "one function, and no site that is read off all data, which this needs. "
            "`vf.laplace(posterior, at=values, curvature=vf.GGN())` sums over the batches; for a "
            "search, draws by NUTS or importance sampling condition on the data whole."
        )

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
        return f"with {self.given.in_words()}"

    def each(self) -> Iterator[ModelWithData]:
        """The model with one batch after the other.

        Raises:
            DataError: when they hold other data than they did when they were read first.
            ModelError: when the model is another one now.
        """
        self.require_unchanged()
        given, number, digest = self.given, 0, RowDigest()
        with waiting("batches", show=True) as phase:
            for batch in _copied(given.batches):
                phase(self.name, number, given.count)
                yield _checked(self.first, given.shared, batch, number)
                digest.add(_arrays(batch))
                number += 1
        if digest != given.digest:
            raise DataError(
                f"`Batches` gave other data than before, {number} batches where there were "
                f"{given.in_words()}, or other rows in as many. Each time it is iterated over it "
                "should give all of the same examples, in any order: a loader that shuffles should "
                "drop none."
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
        ModelError: when the model reads its data in Python, or has a circular site.
        DataError: as `condition` does for data that are whole, with the number of the batch.
    """
    if isinstance(first.data, ById):
        raise ModelError(
            f"`{first.name}` reads values of its data in Python, by `if`, `float()` or NumPy, so "
            "that it would be compiled for every batch; use `jnp.where` and `jax.numpy`, or pass "
            "the data whole."
        )
    if circular := [site.name for site in layout.sites if site.circular]:
        raise ModelError(
            f"The sites {circular} are angles, whose chart is centered where all data say; with "
            "`Batches` that is not known. Condition on the data whole."
        )
    values = layout.constrain(jnp.zeros(layout.dim))
    sites: dict[str, SiteFacts] = {}
    digest, some, number, rows = RowDigest(), list[_Some](), 0, 0
    with waiting("condition", show=True) as phase:
        for number, batch in enumerate(_copied(batches), start=1):
            count = [] if batches.count is None else [number - 1, batches.count]
            phase(f"batch {number} of the data", *count)
            own = _checked(first, shared, batch, number - 1)
            found = _sites_of(own, values, names, number - 1)
            for name, site in found.items():
                value, used, powers = map(np.asarray, (site.value, site.used, site.powers))
                sites.setdefault(name, SiteFacts()).add(value, used, powers, site.events)
            digest.add(_arrays(batch))
            part = _Some(batch, tuple(map(_length, found.values())))
            rows += max(part.lengths, default=0)
            if sum(max(one.lengths, default=1) for one in some) < SOME:
                some.append(part.cut(_FROM_EACH))
    if not number:
        raise no_batch()
    together = functools.reduce(_Some.joined, some).batch
    given = Given(batches, shared, number, rows, sites, digest, together, values)
    return ModelWithBatches(first, given)


def first_of(program: ModelWithData) -> ModelWithData:
    """The model with the first of its batches, or itself."""
    return program.first if isinstance(program, ModelWithBatches) else program


def given_arguments(program: ModelWithData) -> Arguments:
    """Arguments of `condition` that give a posterior of the same data again."""
    if not isinstance(program, ModelWithBatches):
        return program.arguments()
    return (program.given.batches,), program.given.shared


def joined_batches(program: ModelWithBatches) -> tuple[ModelWithData, ...] | None:
    """The first two batches, and the two as one; None where there are no two."""
    given, parts = program.given, list[_Some]()
    for _, batch in zip(range(2), _copied(given.batches), strict=False):
        own = _program(program.first, given.shared, batch)
        found = eqx.filter_eval_shape(_sites, own, given.values, tuple(given.sites))
        parts.append(_Some(batch, tuple(map(_length, found.values()))))
    if len(parts) < 2:
        return None
    batches = *parts, parts[0].joined(parts[1])
    return tuple(_program(program.first, given.shared, part.batch) for part in batches)


class _Some(NamedTuple):
    """A batch, and the numbers of the rows of each observed site."""

    batch: Arguments
    lengths: tuple[int, ...]

    def cut(self, most: int) -> "_Some":
        """The first rows of what has as many as the data of a site."""

        def some(leaf: Any) -> Any:
            is_own = isinstance(leaf, np.ndarray) and leaf.ndim and len(leaf) in self.lengths
            return leaf[:most] if is_own else leaf

        lengths = tuple(min(length, most) for length in self.lengths)
        return _Some(jax.tree.map(some, self.batch), lengths)

    def joined(self, other: "_Some") -> "_Some":
        """Rows of both."""
        pairs = list(zip(self.lengths, other.lengths, strict=True))

        def join(one: Any, more: Any) -> Any:
            is_own = isinstance(one, np.ndarray) and one.ndim and (len(one), len(more)) in pairs
            return np.concatenate([one, more]) if is_own else one

        batch = jax.tree.map(join, self.batch, other.batch)
        return _Some(batch, tuple(a + b for a, b in pairs))


def _length(site: "_Site") -> int:
    shape = site.value.shape
    return shape[0] if shape else 1


def _copied(batches: Batches) -> Iterator[Arguments]:
    """The batches as arrays of their own: a loader may fill the same ones again."""
    for batch in batches:
        if is_traced(batch):
            raise DataError(
                "`Batches` are read on the host, and have traced arrays, under `jit` or `grad`; "
                "take them out of it, or condition on the data whole."
            )
        yield jax.tree.map(_copy, batch)


def _copy(leaf: Any) -> Any:
    return np.array(leaf) if hasattr(leaf, "__array__") and not hasattr(leaf, "columns") else leaf


def _arrays(batch: Arguments) -> list[np.ndarray]:
    return [leaf for leaf in jax.tree.leaves(batch) if isinstance(leaf, np.ndarray) and leaf.ndim]


def _program(first: ModelWithData, shared: dict[str, Any], batch: Arguments) -> ModelWithData:
    args, kwargs = batch
    data = make_program(first.model, args, {**shared, **kwargs}).data
    return ModelWithData(first.source, data)  # whose recording serves all batches of one shape


def _checked(
    first: ModelWithData, shared: dict[str, Any], batch: Arguments, number: int
) -> ModelWithData:
    own = _program(first, shared, batch)
    if _form(own.data) != _form(first.data) or any(len(a) == 0 for a in _arrays(batch)):
        kinds = [[str(leaf.dtype) for leaf in _array_leaves(p.data)] for p in (own, first)]
        raise DataError(
            f"Batch {number} of `Batches` is {own.data_in_words()} of types {kinds[0]}, and the "
            f"first {first.data_in_words()} of types {kinds[1]}; all should have arrays of the "
            "same types, and differ in the number of their rows at most, of which there is at "
            "least one."
        )
    return own


def _array_leaves(data: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(data) if eqx.is_array(leaf)]


def _form(data: Any) -> Any:
    leaves, treedef = jax.tree.flatten(data)
    return treedef, [(x.dtype, x.shape[1:]) if eqx.is_array(x) else x for x in leaves]


class _Site(NamedTuple):
    """Values of an observed site, which of them enter the density, and their powers.

    With whether all lie in the support, and the number of the axes of a single datum.
    """

    value: Array
    used: Array
    powers: Array
    inside: Array
    events: int


def _sites_of(
    own: ModelWithData, values: dict[str, Any], names: tuple[str, ...], number: int
) -> dict[str, _Site]:
    try:
        found = _observed(own, values, names)
        for name, site in found.items():
            require_complete(name, np.asarray(site.value), np.asarray(site.used))
            if not bool(site.inside):
                raise DataError(
                    f"The observed site `{name}` holds values outside the support of its "
                    "distribution. Check the data, and the family of the likelihood."
                )
    except (DataError, TypeError, ValueError, IndexError) as error:
        reason = str(error) if isinstance(error, DataError) else _why(own, error)
        raise DataError(f"Batch {number} of `Batches` cannot be used: {reason}") from error
    return found


def _why(program: ModelWithData, error: Exception) -> str:
    args, kwargs = program.arguments()
    return (
        f"`{program.name}` could not be run {program.data_in_words()}. {type(error).__name__}: "
        f"{error}. {advice_on(str(error), program.model, args, kwargs)}"
    )


def _sites(
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
        # A support that moves is that of no data before the parameters are known.
        inside = jnp.ones((), bool) if name in program.source.bounded else all_inside(fn, value)
        used = jnp.asarray(used_entries(fn, value))
        found[name] = _Site(value, used, powers, inside, len(fn.event_shape))
    return found


_observed = steady(_sites)

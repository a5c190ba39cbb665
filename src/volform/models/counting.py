"""Equivalent modes that a network leaves to be counted on the joint density."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.primitives import Messenger

from volform.compilation import compiled
from volform.models.layout import Layout, named_values
from volform.models.model_with_data import ModelWithData, Source
from volform.models.some_examples import with_examples

_MANY, _FEW = 512, 128  # examples: of more than many, few are counted on
_SIZES = 1.0, 3.0, 10.0, 30.0  # of the points at which copies are counted: clipping is seen far out
_ALIKE = 1e-5  # of the largest entry of a set of units: searches end within 1e-8 of a mode
_NEAREST = 8  # copies that are looked at
_Values = dict[str, Any]


class Counted(NamedTuple):
    """Equivalent modes that were counted, of which sites, whether these are all, and by what."""

    modes: int
    names: tuple[str, ...]
    is_all: bool
    group: Any = None

    def fixing(self, values: _Values) -> int:
        """Number of its exchanges and changes of sign that leave values where they are."""
        return 1 if self.group is None else self.group.stabilizer(values, _ALIKE).order

    def nearest(self, values: _Values) -> list[_Values]:
        """The copies by one exchange or change of sign that are nearest to values."""
        return [] if self.group is None else self.group.nearest(values, _NEAREST, _ALIKE)


def counted(
    program: ModelWithData, layout: Layout, counters: Mapping[str, Callable[..., Any]]
) -> Counted | None:
    """The number that sites leave to a function, which sees the joint density; None without any.

    Sites that `handlers.reparam` around the model rewrote are counted in the model as it was
    written; of one inside of it they are not counted.

    Args:
        program: the model with its data.
        layout: its latent sites.
        counters: by site what `infer={"equivalent_modes": ...}` said, a function such as
            `equivalence.copies`; all sites of one model together are one network's, or several.
    """
    names = tuple(counters)
    if not names:
        return None
    random, sites = np.random.default_rng(0), layout.sites
    if set(names) <= set(layout.names):
        scales = [np.full(site.size, _scale(site.size, len(site.shape))) for site in sites]
        drawn = [f * np.concatenate(scales) * random.normal(size=layout.dim) for f in _SIZES]
        points = [layout.constrain(jnp.asarray(u)) for u in drawn]
    else:
        start = named_values(layout, program, jnp.zeros(layout.dim), names)
        points = [{n: _drawn(value, f, random) for n, value in start.items()} for f in _SIZES]
        program = ModelWithData(Source(_as_written(program.model)), program.data)
        if not set(names) <= _samples(program, points[0]):  # `reparam` inside of the model
            return Counted(1, names, is_all=False)
    rest = {name: value for name, value in points[0].items() if name not in names}

    def density(values: Mapping[str, Any]) -> Array:
        return program.log_density({**rest, **values})

    own = [{name: point[name] for name in names} for point in points]
    few = _with_few_examples(program, points[0])
    of_few = None if few is None else _Densities(few, rest)
    modes, is_all, group = counters[names[0]](density, _Densities(program, rest, of_few), own)
    return Counted(modes, names, is_all, group)


class _Densities(NamedTuple):
    """The joint density at several points: of all data, and of some where they are many."""

    program: ModelWithData
    rest: _Values
    of_few: Any = None

    def __call__(self, several: list[_Values]) -> Float[np.ndarray, " k"]:
        found = [_density(self.program, self.rest, values) for values in several]
        return np.array([np.asarray(one) for one in found])


def _with_few_examples(program: ModelWithData, values: _Values) -> ModelWithData | None:
    """The model with some of many examples; None where there are not many, or it takes all or none.

    Counting takes some hundred densities, of a LeNet with 4,000 images ten times as long as its
    Laplace approximation.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(program.arguments())]
    if all(shape[:1] <= (_MANY,) for shape in shapes):  # nothing to trace
        return None
    lengths: set[int] = set()

    def look(program: ModelWithData, values: _Values) -> None:
        shapes = [
            jnp.shape(site["value"])
            for site in program.run(values).values()
            if site.get("is_observed")
        ]
        lengths.update(shape[0] for shape in shapes if shape)

    eqx.filter_eval_shape(look, program, values)
    count = max(lengths, default=0)
    if len(lengths) != 1 or count <= _MANY:
        return None
    # At random: of doses that are given in turn, every tenth is the same.
    rows = np.sort(np.random.default_rng(0).choice(count, _FEW, replace=False))
    few = with_examples(program, count, lambda leaf: leaf[rows])
    try:
        program.require_unchanged()
        eqx.filter_eval_shape(lambda few, values: few.log_density(values), few, values)
    except Exception:  # whatever a model raises that insists on its number of rows
        return None
    return few


@compiled
def _density(program: ModelWithData, rest: _Values, values: _Values) -> Float[Array, ""]:
    return program.log_density({**rest, **values})


def _scale(size: int, ndim: int) -> float:
    """A size of entries at which activations are not flat: of matrices that of weights."""
    return max(size, 1) ** (-0.25 if ndim > 1 else 0.0)


def _drawn(like: Any, factor: float, random: np.random.Generator) -> np.ndarray:
    scale = factor * _scale(like.size, like.ndim)
    return (scale * random.normal(size=like.shape)).astype(like.dtype)


def _as_written(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model without the `handlers.reparam` around it, among other handlers."""
    if not isinstance(model, Messenger) or model.fn is None:
        return model
    inner = _as_written(model.fn)
    if isinstance(model, handlers.reparam):
        return inner
    kept = copy.copy(model)
    kept.fn = inner
    return kept


def _samples(program: ModelWithData, values: _Values) -> set[str]:
    """Names of the latent sites that the model samples itself."""
    trace = program.run(values)
    return {
        name
        for name, site in trace.items()
        if site["type"] == "sample" and not site.get("is_observed")
    }

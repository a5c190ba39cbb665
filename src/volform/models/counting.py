"""Equivalent modes that a network leaves to be counted on the joint density."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.primitives import Messenger

from volform.compilation import compiled
from volform.models.layout import Layout, named_values
from volform.models.model_with_data import ModelWithData, Source

_SIZES = 1.0, 3.0, 10.0, 30.0  # of the points at which copies are counted: clipping is seen far out
_Values = dict[str, Any]


class Counted(NamedTuple):
    """Equivalent modes that were counted, of which sites, and whether these are all."""

    modes: int
    names: tuple[str, ...]
    is_all: bool


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

    def densities(several: list[_Values]) -> Float[np.ndarray, " k"]:
        return np.array([np.asarray(_density(program, rest, values)) for values in several])

    own = [{name: point[name] for name in names} for point in points]
    modes, is_all = counters[names[0]](density, densities, own)
    return Counted(modes, names, is_all)


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

"""Predictions averaged over compared models."""

from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from volform.checks import require_key, require_whole
from volform.errors import ModelError
from volform.generators import generator
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.laplace.draws import predicted
from volform.models.posterior import Posterior
from volform.results import Evidence

CHOICE = 11  # of a key, whose other streams are those of draws


class Ranked(Protocol):
    """One model of a comparison, as far as predictions need it."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def evidence(self) -> Evidence:
        """Its evidence, whose draws are taken."""
        ...

    @property
    def probability(self) -> float:
        """Its probability."""
        ...

    @property
    def approx(self) -> LaplaceApproximation | None:
        """Its Laplace approximation, of which draws are taken else."""
        ...


def averaged_predictive(
    rows: Sequence[Ranked], key: PRNGKeyArray, args: tuple, kwargs: dict[str, Any], draws: int
) -> dict[str, Any]:
    """Draws of the sites that all models observe, as `Comparison.predictive` says."""
    require_key(key, "key", "predictive", ModelError)
    require_whole(draws, "draws", "predictive", ModelError)
    posteriors = {row.name: _posterior(row) for row in rows}
    common = set.intersection(*(set(p.observed) for p in posteriors.values()))
    if not common:
        sites = "; ".join(f"{name}: {', '.join(p.observed)}" for name, p in posteriors.items())
        raise ModelError(
            f"`predictive` averages sites that all models observe, and these have none in common "
            f"({sites}); name the site of the data alike in all."
        )
    random = generator(key, CHOICE)
    # Those without a probability, as by an evidence of NaN, are never drawn.
    shares = np.array([row.probability for row in rows])
    chosen = random.choice(len(rows), size=draws, p=shares / shares.sum())
    places, parts = [], []
    for number, row in enumerate(rows):
        own = np.flatnonzero(chosen == number)
        if own.size:
            places.append(own)
            now = jax.random.fold_in(key, number)
            parts.append(_of_one(row, posteriors[row.name], now, len(own), args, kwargs))
    found = {}
    for name in sorted(common):
        shapes = {part[name].shape[1:] for part in parts}
        if len(shapes) > 1:
            raise ModelError(
                f"`{name}` has the shapes {sorted(shapes)} in these models; `predictive` averages "
                "sites of one shape."
            )
        mixed = np.empty((draws, *shapes.pop()), np.result_type(*(p[name].dtype for p in parts)))
        for own, part in zip(places, parts, strict=True):
            mixed[own] = part[name]
        found[name] = mixed
    return found


def _of_one(
    row: Ranked,
    posterior: Posterior,
    key: PRNGKeyArray,
    draws: int,
    args: tuple,
    kwargs: dict[str, Any],
) -> dict[str, np.ndarray]:
    inner, outer = jax.random.split(key)
    if row.evidence.draws is not None:
        values = row.evidence.draws.resampled(inner, draws).values
    else:
        assert row.approx is not None  # `_posterior` has looked
        values = row.approx.sample(inner, draws).values
    if not args and not kwargs:
        args, kwargs = posterior.program.arguments()
    found = predicted(posterior, values, outer, args, kwargs)
    return {name: np.asarray(x) for name, x in found.items()}


def _posterior(row: Ranked) -> Posterior:
    source = row.approx if row.evidence.draws is None else row.evidence.draws
    posterior = None if source is None else source.posterior
    if posterior is None:
        raise ModelError(
            f"The model {row.name!r} of this comparison has an evidence by {row.evidence.method} "
            "without a posterior to draw from, as one in closed form, given as an `Evidence` "
            "without draws, or read from a file; `predictive` needs `vf.compare` of posteriors."
        )
    return posterior

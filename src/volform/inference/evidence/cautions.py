"""Cautions that stand between a table of evidences and a conclusion."""

import math
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from volform.inference.evidence.loo import Loo
from volform.results import Evidence, Level


def cautions_on(found: dict[str, Evidence]) -> list[str]:
    """Cautions on data, metrics, errors and trust; the first of all on data that differ."""
    cautions = []
    if have_other_data(found):
        cautions.append(
            "the models have different data, so that their evidences cannot be compared: "
            + "; ".join(f"{name} {_shapes(e)}" for name, e in found.items())
        )
    written = [f"{n}: {', '.join(f)}" for n, e in found.items() if (f := e.provenance.by_factor)]
    if written and len(found) > 1:
        cautions.append(
            "whether the models have the same data cannot be told of likelihoods by "
            f"`numpyro.factor` ({'; '.join(written)})"
        )
    used = {name: e for name, e in found.items() if e.metric is not None}
    if any(not _are_equal(e.metric, other.metric) for e, other in pairwise(used.values())):
        metrics = ", ".join(f"{name}: {e.metric_name}" for name, e in used.items())
        where = "" if len({e.metric_name for e in used.values()}) > 1 else " in their numbers"
        cautions.append(
            f"the metrics differ{where} ({metrics}); Laplace evidence depends on the metric at "
            "order 1/n"
        )
    ranked = sorted(found, key=lambda name: -rankable(found[name].log_z))
    best = found[ranked[0]]
    for name in ranked[1:]:
        gap = float(best.log_z) - float(found[name].log_z)
        if gap < 2.0 * math.hypot(float(best.error), float(found[name].error)):
            cautions.append(f"{ranked[0]} and {name} differ by less than two standard errors")
    for name in ranked:
        trust = found[name].trust
        if trust.level in {Level.POOR, Level.UNCHECKED}:
            cautions.append(f"{name} is not to be trusted ({trust})")
        cautions += [f"{name}: {note}" for note in found[name].provenance.notes()]
    return cautions


def cautions_on_loo(scores: dict[str, Loo | str]) -> list[str]:
    """Cautions on leave-one-out scores, and the reasons where there is none."""
    cautions = [
        f"{name} has no LOO: {score}" for name, score in scores.items() if isinstance(score, str)
    ]
    had = {name: score for name, score in scores.items() if isinstance(score, Loo)}
    rough = ", ".join(name for name, score in had.items() if not score.good)
    if rough:
        cautions.append(
            f"LOO of {rough} is rough: some data have a Pareto k-hat above its threshold"
        )
    if len({score.data for score in had.values()}) > 1:
        counts = ", ".join(f"{name} {score.data:,}" for name, score in had.items())
        cautions.append(f"LOO is of different numbers of data, which do not compare ({counts})")
    return cautions


def have_other_data(found: dict[str, Evidence]) -> bool:
    """True if models have different data; of values made of parameters nothing can be said."""
    known = {e.provenance.data for e in found.values() if e.provenance.is_of_known_data}
    return len(known) > 1


def rankable(log_z: Any) -> float:
    """Log Z as a number to rank by; minus infinity for NaN."""
    value = float(log_z)
    return -math.inf if math.isnan(value) else value


def _are_equal(one: Any, other: Any) -> bool:
    """True if two metrics read the same and hold the same numbers; functions go by their names."""
    return repr(one) == repr(other) and bool(eqx.tree_equal(_numbers(one), _numbers(other)))


def _numbers(metric: Any) -> list[Any]:
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(metric) if eqx.is_array_like(leaf)]


def _shapes(found: Evidence) -> str:
    return (
        " ".join(f"{list(shape)} {digest[:6]}" for shape, digest in found.provenance.data) or "none"
    )

"""Comparison of models by evidence."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from volform.checks import key_of, require_names
from volform.errors import ModelError, TrustWarning, VolformError
from volform.inference.evidence.automatic import Automatic
from volform.inference.evidence.estimator import Estimator, Problem, estimator_of, problem_of
from volform.inference.evidence.importance import K_HAT_LIMIT, Importance
from volform.inference.evidence.loo import Loo, loo_of
from volform.progress import waiting
from volform.results import Evidence, Level, html_table

# Kass & Raftery (1995), section 3.2: bounds on log Bayes factors, half of theirs on 2 log B.
WORDS = ((1.0, "barely worth a mention"), (3.0, "positive"), (5.0, "strong"))


@dataclasses.dataclass(frozen=True)
class Row:
    """One model of a comparison.

    Attributes:
        name: its name.
        evidence: its evidence.
        probability: its posterior probability among the models compared.
        probability_error: standard error of that, from the errors of the evidences.
        log_bayes_factor: log evidence of the best model less this one's.
        log_bayes_factor_error: standard error of that.
        loo: expected log predictive density by leave-one-out, where it could be had.
    """

    name: str
    evidence: Evidence
    probability: float
    probability_error: float
    log_bayes_factor: float
    log_bayes_factor_error: float
    loo: Loo | None

    @property
    def words(self) -> str:
        """The evidence against this model and for the best, in the words of Kass & Raftery."""
        if self.log_bayes_factor == 0.0:
            return "best"
        return next((w for bound, w in WORDS if self.log_bayes_factor < bound), "very strong")

    @property
    def cells(self) -> dict[str, str]:
        """The row as a reader sees it: a text for each column's title."""
        found, k_hat = self.evidence, self.evidence.diagnostics.get("k_hat")
        share = f"{self.probability:.3f}"
        if not self.probability_error < 0.0005:
            share += f" ± {_or_unknown(self.probability_error)}"
        return {
            "model": self.name,
            "log Z": f"{float(found.log_z):z.3f}",
            "error": _or_unknown(float(found.error)),
            "probability": share,
            "log BF": f"{self.log_bayes_factor:.2f}",
            "against it": self.words,
            "trust": found.trust.level.value,
            "k-hat": "" if k_hat is None else f"{k_hat:.2f}",
            "LOO": "" if self.loo is None else f"{self.loo.elpd:.1f} ± {self.loo.error:.1f}",
            "method": found.method,
            "metric": found.metric_name.replace("()", ""),
        }


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models ranked by evidence; built by `compare`.

    Attributes:
        rows: the models, the best first.
        cautions: what stands between these numbers and a conclusion.
    """

    rows: tuple[Row, ...]
    cautions: tuple[str, ...]

    def __getitem__(self, name: str) -> Row:
        """The row of the model called `name`."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ModelError(
            f"`name` {name!r} is no model of this comparison, which has "
            f"{[row.name for row in self.rows]}."
        )

    def to_dataframe(self) -> Any:
        """A pandas DataFrame, one row a model, the best first."""
        import pandas as pd  # noqa: PLC0415 - comes with arviz, and takes long to import

        records = [
            {
                "model": row.name,
                "log_z": float(row.evidence.log_z),
                "error": float(row.evidence.error),
                "method": row.evidence.method,
                "k_hat": row.evidence.diagnostics.get("k_hat", math.nan),
                "probability": row.probability,
                "probability_error": row.probability_error,
                "log_bayes_factor": row.log_bayes_factor,
                "log_bayes_factor_error": row.log_bayes_factor_error,
                "against": row.words,
                "trust": row.evidence.trust.level.value,
                "reason": row.evidence.trust.reason,
                "metric": row.evidence.metric_name,
                "parameters": row.evidence.dim,
                "elpd_loo": math.nan if row.loo is None else row.loo.elpd,
                "elpd_loo_error": math.nan if row.loo is None else row.loo.error,
                "densities": row.evidence.cost.densities,
                "gradients": row.evidence.cost.gradients,
            }
            for row in self.rows
        ]
        return pd.DataFrame(records).set_index("model")

    def __repr__(self) -> str:
        cells = [row.cells for row in self.rows]
        table = [list(cells[0]), *(list(row.values()) for row in cells)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        return "\n".join([*lines, *(f"caution: {text}" for text in self.cautions)])

    def _repr_html_(self) -> str:
        cells = [row.cells for row in self.rows]
        rows = [list(cells[0]), *(list(row.values()) for row in cells)]
        return html_table(rows, [f"caution: {text}" for text in self.cautions])


def _or_unknown(error: float) -> str:
    return "?" if math.isnan(error) else f"{error:.3f}"


def compare(
    models: Mapping[str, Any],
    *,
    key: PRNGKeyArray | None = None,
    by: Estimator | None = None,
    loo: bool = True,
) -> Comparison:
    """Rank models by evidence.

    The probability of a model is `Z_i / sum_j Z_j`: all are taken as equally probable before the
    data. Its standard error carries those of the log evidences, by the delta method.

    Args:
        models: a `Posterior`, `MAP`, Laplace approximation or `Evidence` for each name.
        key: key of searches and draws; `jax.random.key(0)` by default.
        by: the estimator; by default the cheapest that can be trusted, tried in the order
            Laplace, importance sampling, bridge sampling.
        loo: whether to give the leave-one-out predictive density beside the evidence, by ArviZ on
            weighted draws around the modes; left out where those weights cannot be trusted.

    Returns:
        A `Comparison`: a table, with cautions where data or metrics differ, where errors are
        larger than differences, or where an evidence cannot be trusted.

    Raises:
        ModelError: no models, a value of another type, an improper prior, or no evidence at all
            that is a number.
        VolformError: whatever the estimator raises, with the name of the model.

    References:
        Kass & Raftery (1995), Bayes factors, JASA 90, 773.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y, scale):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> y = jnp.array([0.5, 1.5, 0.2])
    >>> narrow, wide = (vf.condition(model, y, scale) for scale in (1.0, 100.0))
    >>> table = vf.compare({"narrow": narrow, "wide": wide}, by=vf.Laplace(), loo=False)
    >>> {row.name: row.words for row in table.rows}
    {'narrow': 'best', 'wide': 'strong'}
    """
    if not isinstance(models, Mapping) or not models:
        raise ModelError(
            "`models` of compare should be a dict of a posterior or an evidence for each name; "
            f"got {type(models).__name__} {models!r}."
        )
    require_names(models, "models", "compare", ModelError)
    estimator = estimator_of(by, Automatic())
    key = key_of(key, "compare", ModelError)
    found: dict[str, Evidence] = {}
    scores: dict[str, Loo | str] = {}
    with waiting("compare", show=True) as phase:
        for index, (name, model) in enumerate(models.items()):
            phase(name, index + 1, len(models))
            try:
                if isinstance(model, Evidence):
                    model.provenance.require_proper(allow_improper=False)
                    found[name] = model
                    continue
                problem = problem_of(model, jax.random.fold_in(key, index))
                found[name] = estimator.estimate(problem)
                if loo:
                    scores[name] = _loo(problem)
            except VolformError as error:
                message = f"The model {name!r} of `models` cannot be compared: {error}"
                raise type(error)(message) from error
    if not any(math.isfinite(float(e.log_z)) for e in found.values()):
        reasons = "; ".join(f"{name}: {e.trust}" for name, e in found.items())
        raise ModelError(f"No evidence in `models` is a finite number to be ranked by ({reasons}).")
    cautions = [*_cautions(found), *_cautions_of_loo(scores)]
    if _have_other_data(found):
        warnings.warn(cautions[0], TrustWarning, stacklevel=2)
    return Comparison(_rows(found, scores), tuple(cautions))


def _loo(problem: Problem) -> Loo | str:
    """LOO on the draws of `Importance()`; a reason where there is none."""
    try:
        drawn = Importance().weighted(problem)
    except VolformError:
        return "no mode to draw around"
    if not drawn.k_hat <= K_HAT_LIMIT:
        return f"k-hat {drawn.k_hat:.2f} of draws around the modes"
    return loo_of(problem, drawn.w, drawn.log_weights)


def _rows(found: dict[str, Evidence], scores: dict[str, Loo | str]) -> tuple[Row, ...]:
    names = sorted(found, key=lambda name: -_finite(found[name].log_z))
    log_z = np.array([_finite(found[name].log_z) for name in names])
    errors = np.array([float(found[name].error) for name in names])
    shares = np.exp(log_z - np.logaddexp.reduce(log_z))
    share_errors = _delta(shares, errors)
    gaps = np.hypot(errors, errors[0])
    return tuple(
        Row(
            name,
            found[name],
            float(shares[i]),
            float(share_errors[i]),
            float(log_z[0] - log_z[i]),
            float(gaps[i]) if i else 0.0,
            score if isinstance(score := scores.get(name), Loo) else None,
        )
        for i, name in enumerate(names)
    )


def _finite(log_z: Any) -> float:
    value = float(log_z)
    return -math.inf if math.isnan(value) else value


def _delta(shares: Float[np.ndarray, " k"], errors: Float[np.ndarray, " k"]) -> Any:
    """Standard errors of softmax: d p_i = p_i sum_j (delta_ij - p_j) d log Z_j."""
    jacobian = shares[:, None] * (np.eye(len(shares)) - shares)
    # An unknown error, NaN, is of no account where nothing depends on it.
    return np.linalg.norm(np.where(jacobian == 0.0, 0.0, jacobian * errors), axis=1)


def _cautions(found: dict[str, Evidence]) -> list[str]:
    cautions = []
    if _have_other_data(found):
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
    ranked = sorted(found, key=lambda name: -_finite(found[name].log_z))
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


def _cautions_of_loo(scores: dict[str, Loo | str]) -> list[str]:
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


def _have_other_data(found: dict[str, Evidence]) -> bool:
    """True if models have different data; of values made of parameters nothing can be said."""
    known = {e.provenance.data for e in found.values() if e.provenance.is_of_known_data}
    return len(known) > 1


def _are_equal(one: Any, other: Any) -> bool:
    """True if two metrics read the same and hold the same numbers; functions go by their names."""
    return repr(one) == repr(other) and bool(eqx.tree_equal(_numbers(one), _numbers(other)))


def _numbers(metric: Any) -> list[Any]:
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(metric) if eqx.is_array_like(leaf)]


def _shapes(found: Evidence) -> str:
    return (
        " ".join(f"{list(shape)} {digest[:6]}" for shape, digest in found.provenance.data) or "none"
    )

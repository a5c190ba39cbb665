"""Comparison of models by evidence."""

import concurrent.futures
import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from volform.checks import is_positive_number, key_of, require_names
from volform.errors import ModelError, TrustWarning
from volform.inference.evidence.automatic import Automatic
from volform.inference.evidence.cautions import (
    cautions_on,
    cautions_on_loo,
    have_other_data,
    rankable,
)
from volform.inference.evidence.estimator import Estimator, estimator_of
from volform.inference.evidence.executing import by_executor, require_executor
from volform.inference.evidence.loo import Loo
from volform.inference.evidence.model_average import averaged_predictive
from volform.inference.evidence.one_by_one import (
    Estimated,
    Task,
    error_of_model,
    in_turn,
    with_own_model,
)
from volform.inference.evidence.stacking import weights_by_stacking
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.progress import waiting
from volform.results import Evidence, html_table, text_table

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
        prior: its probability before the data.
        approx: the Laplace approximation at its best mode, which `Comparison.predictive` draws from
            where the evidence has no draws; None where there is none. It is neither pickled nor
            saved.
        stack: its weight by stacking, `sum_k stack_k p_k(y_i | the other data)` being greatest;
            None unless all models have LOO of the same data.
    """

    name: str
    evidence: Evidence
    probability: float
    probability_error: float
    log_bayes_factor: float
    log_bayes_factor_error: float
    loo: Loo | None
    prior: float = math.nan
    approx: LaplaceApproximation | None = dataclasses.field(default=None, repr=False)
    stack: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        # It holds a posterior, and that a model, without which a table can be read.
        return {**vars(self), "approx": None}

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
            "prior": f"{self.prior:.3g}",
            "probability": share,
            "log BF": f"{self.log_bayes_factor:.2f}",
            "against it": self.words,
            "trust": found.trust.level.value,
            "k-hat": "" if k_hat is None else f"{k_hat:.2f}",
            "LOO": "" if self.loo is None else f"{self.loo.elpd:.1f} ± {self.loo.error:.1f}",
            "stack": "" if self.stack is None else f"{self.stack:.3f}",
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
                "prior": row.prior,
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
                "stack": math.nan if row.stack is None else row.stack,
                "densities": row.evidence.cost.densities,
                "gradients": row.evidence.cost.gradients,
            }
            for row in self.rows
        ]
        return pd.DataFrame(records).set_index("model")

    def predictive(
        self, key: PRNGKeyArray, *args: Any, draws: int = 1000, **kwargs: Any
    ) -> dict[str, Any]:
        """Posterior predictive draws averaged over the models by their probabilities.

        `p(y' | y) = sum_i p_i p(y' | y, model i)`: each draw is of a model drawn by its
        probability, and of its posterior: by the draws of its evidence, or by the Laplace
        approximation at its best mode where that has none.

        Args:
            key: key of the draws.
            *args: arguments of the models, by default those that each was conditioned on.
            draws: number of draws n.
            **kwargs: keyword arguments of the models.

        Returns:
            Draws of the sites that all models observe, each of shape (n, ...).

        Raises:
            ModelError: models without a posterior, as an evidence in closed form or one that was
                saved; no site that all observe, or sites of different shapes.
        """
        return averaged_predictive(self.rows, key, args, kwargs, draws)

    @property
    def _table(self) -> list[list[str]]:
        cells = [row.cells for row in self.rows]
        same = ["prior"] * (len({row.prior for row in self.rows}) <= 1)  # equal, or not known
        same += ["stack"] * all(row.stack is None for row in self.rows)
        cells = [{k: v for k, v in row.items() if k not in same} for row in cells]
        return [list(cells[0]), *(list(row.values()) for row in cells)]

    def __repr__(self) -> str:
        return "\n".join(
            [*text_table(self._table), *(f"caution: {text}" for text in self.cautions)]
        )

    def _repr_html_(self) -> str:
        return html_table(self._table, [f"caution: {text}" for text in self.cautions])


def _or_unknown(error: float) -> str:
    return "?" if math.isnan(error) else f"{error:.3f}"


def compare(
    models: Mapping[str, Any],
    *,
    key: PRNGKeyArray | None = None,
    by: Estimator | None = None,
    loo: bool = True,
    prior: Mapping[str, float] | None = None,
    executor: concurrent.futures.Executor | None = None,
) -> Comparison:
    """Rank models by evidence.

    The probability of a model is `p_i Z_i / sum_j p_j Z_j`, with p its probability before the data:
    all are taken as equally probable if `prior` is left out. Bayes factors are without it. Its
    standard error carries those of the log evidences, by the delta method.

    Args:
        models: a `Posterior`, `MAP`, Laplace approximation or `Evidence` for each name. An evidence
            is taken as it is, and so is that of an approximation where `by` is left out.
        key: key of searches and draws; `jax.random.key(0)` by default.
        by: the estimator; by default the cheapest that can be trusted, tried in the order
            Laplace, importance sampling, bridge sampling.
        loo: whether to give the leave-one-out predictive density beside the evidence, by ArviZ on
            weighted draws around the modes; left out where those weights cannot be trusted. Where
            all models have it, of the same data, the weights by stacking are beside it.
        prior: probability of each model before the data, by name; they sum to one.
        executor: where the models are estimated, one task each: `ProcessPoolExecutor()` of
            `concurrent.futures`, dask's `client.get_executor()`, mpi4py's `MPIPoolExecutor()`. The
            numbers are the same. A model that fails there is left out with a caution.

    Returns:
        A `Comparison`: a table, with cautions where data or metrics differ, where errors are
        larger than differences, or where an evidence cannot be trusted.

    Raises:
        ModelError: no models, a value of another type, an improper prior, no evidence at all
            that is a number, or a `prior` that is none over these models.
        VolformError: whatever the estimator raises, with the name of the model.

    References:
        Kass & Raftery (1995), Bayes factors, JASA 90, 773; Yao, Vehtari, Simpson & Gelman (2018),
        using stacking to average Bayesian predictive distributions, Bayesian Analysis 13, 917.

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
    require_executor(executor, "compare", ModelError)
    estimator = estimator_of(by, Automatic())
    key = key_of(key, "compare", ModelError)
    shares = _prior(prior, list(models))
    tasks = {
        name: Task(model, estimator, jax.random.fold_in(key, index), loo, kept=by is None)
        for index, (name, model) in enumerate(models.items())
    }
    with waiting("compare", show=True) as phase:
        if executor is None:
            results, failures = dict(in_turn(tasks, phase)), {}
        else:
            outcomes = by_executor(executor, tasks, phase, "model {!r} of `models`")
            results, failures = _sorted_out(dict(outcomes), tasks)
    found = {name: result.evidence for name, result in results.items()}
    scores = {name: r.score for name, r in results.items() if r.score is not None}
    if not any(math.isfinite(float(e.log_z)) for e in found.values()):
        reasons = "; ".join(f"{name}: {e.trust}" for name, e in found.items())
        raise ModelError(f"No evidence in `models` is a finite number to be ranked by ({reasons}).")
    cautions = [*cautions_on(found), *cautions_on_loo(scores)]
    cautions += [f"{name} is left out: {error}" for name, error in failures.items()]
    if have_other_data(found):
        warnings.warn(cautions[0], TrustWarning, stacklevel=2)
    weights = weights_by_stacking(found, scores)
    rows = [
        dataclasses.replace(row, approx=results[row.name].approx, stack=weights.get(row.name))
        for row in _rows(found, scores, shares)
    ]
    return Comparison(tuple(rows), tuple(cautions))


def _prior(prior: Any, names: list[str]) -> dict[str, float]:
    """Probabilities before the data; equal ones for None.

    Raises:
        ModelError: names that are not those of the models, or numbers that are no probabilities.
    """
    if prior is None:
        return dict.fromkeys(names, 1.0 / len(names))
    if not isinstance(prior, Mapping) or set(prior) != set(names):
        given = list(prior) if isinstance(prior, Mapping) else prior
        raise ModelError(
            f"`prior` of compare is of {given!r}; it should hold a probability for each of the "
            f"models {names}. To leave a model out, leave it out of `models`."
        )
    if not all(map(is_positive_number, prior.values())) or abs(sum(prior.values()) - 1.0) > 1e-6:
        raise ModelError(
            f"`prior` of compare is {dict(prior)}; it should hold positive numbers whose sum is "
            "one. Divide them by their sum, if they are odds."
        )
    return {name: float(np.asarray(prior[name]).item()) for name in names}


def _sorted_out(
    results: Mapping[str, Estimated | Exception], tasks: Mapping[str, Task]
) -> tuple[dict[str, Estimated], dict[str, Exception]]:
    """Models that came back, in the order of the tasks, and the exceptions of those that did not.

    Raises:
        Exception: that of the first model, where none came back.
    """
    found, failures = dict[str, Estimated](), dict[str, Exception]()
    for name in tasks:
        result = results[name]
        if isinstance(result, Exception):
            failures[name] = error_of_model(name, result)
        else:
            found[name] = with_own_model(result, tasks[name].target)
    if not found:
        raise next(iter(failures.values()))
    return found, failures


def _rows(
    found: dict[str, Evidence], scores: dict[str, Loo | str], prior: dict[str, float]
) -> list[Row]:
    names = sorted(found, key=lambda name: -rankable(found[name].log_z))
    log_z = np.array([rankable(found[name].log_z) for name in names])
    errors = np.array([float(found[name].error) for name in names])
    joint = log_z + np.log([prior[name] for name in names])
    shares = np.exp(joint - np.logaddexp.reduce(joint))
    share_errors = _delta(shares, errors)
    gaps = np.hypot(errors, errors[0])
    return [
        Row(
            name,
            found[name],
            float(shares[i]),
            float(share_errors[i]),
            float(log_z[0] - log_z[i]),
            float(gaps[i]) if i else 0.0,
            score if isinstance(score := scores.get(name), Loo) else None,
            prior[name],
        )
        for i, name in enumerate(names)
    ]


def _delta(shares: Float[np.ndarray, " k"], errors: Float[np.ndarray, " k"]) -> Any:
    """Standard errors of softmax: d p_i = p_i sum_j (delta_ij - p_j) d log Z_j."""
    jacobian = shares[:, None] * (np.eye(len(shares)) - shares)
    # An unknown error, NaN, is of no account where nothing depends on it.
    return np.linalg.norm(np.where(jacobian == 0.0, 0.0, jacobian * errors), axis=1)

"""Scores of predicted classes, with standard errors, of several predictives side by side."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.stats
from jaxtyping import Float, Int

from volform.errors import DataError
from volform.models.data_checks import core_of
from volform.results import html_table, text_table

BINS = 15  # of the confidence, as in Guo et al. (2017)


class ScoreEstimate(NamedTuple):
    """A number with its standard error over the examples."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ± {self.error:.4f}"


class ClassScores(NamedTuple):
    """Scores of one predictive distribution of classes.

    Attributes:
        nll: mean of minus the log probability of the label, in nats.
        brier: mean of the squared distance of the probabilities from the label.
        ece: expected calibration error, in bins of the confidence.
        accuracy: share of labels that have the highest probability.
        auroc: probability that an example has a higher confidence than one from outside, None
            where none were given.
    """

    nll: ScoreEstimate
    brier: ScoreEstimate
    ece: ScoreEstimate
    accuracy: ScoreEstimate
    auroc: ScoreEstimate | None = None


class ScoreTable(NamedTuple):
    """Scores of several predictive distributions, by name; built by `class_scores`."""

    scores: dict[str, ClassScores]

    def __getitem__(self, name: Any) -> Any:
        """The scores of one predictive."""
        return self.scores[name]

    def _cells(self) -> list[list[str]]:
        heads = {"nll": "NLL", "brier": "Brier", "ece": "ECE", "accuracy": "accuracy"}
        outside = any(found.auroc is not None for found in self.scores.values())
        heads |= {"auroc": "AUROC"} if outside else {}
        rows = [
            [name, *(str(getattr(found, key) or "") for key in heads)]
            for name, found in self.scores.items()
        ]
        return [["", *heads.values()], *rows]

    def __repr__(self) -> str:
        return "\n".join(text_table(self._cells()))

    def _repr_html_(self) -> str:
        return html_table(self._cells(), [])


def class_scores(
    predictives: Mapping[str, Any] | Any,
    labels: Any,
    *,
    outside: Mapping[str, Any] | Any = None,
    bins: int = BINS,
) -> Any:
    """Score predicted probabilities of classes against labels, with standard errors.

        NLL = mean_n -log p_n(y_n),    Brier = mean_n |p_n - e(y_n)|^2,
        ECE = sum_b |sum_{n in b} (confidence_n - hit_n)| / N

    with the confidence the highest probability, and b bins of it of equal width. AUROC is
    `P(confidence of an example > of one from outside) + P(equal) / 2`. The errors are those of
    means over independent examples; of ECE with the signs of the bins held, which is too small
    where the bins' gaps are within theirs, and ECE itself is biased upwards there; of AUROC by
    DeLong et al. (1988).

    Args:
        predictives: probabilities of shape (n, classes), or a NumPyro Categorical or Bernoulli of
            the examples, as `approx.predictive(x, by=Linearized())["y"]`; or several by name.
        labels: of the examples, shape (n,).
        outside: predictives of other inputs, laid out and named like `predictives`.
        bins: number of bins of the confidence.

    Returns:
        `ClassScores`, or a `ScoreTable` of several.

    Raises:
        DataError: for probabilities that are none, labels that are no classes, or other names or
            classes outside.

    References:
        Naeini, Cooper & Hauskrecht (2015); Guo et al. (2017), On calibration of modern neural
        networks; DeLong, DeLong & Clarke-Pearson (1988).

    >>> import jax.numpy as jnp, volform as vf
    >>> sure = jnp.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.8, 0.2]])
    >>> even = jnp.full((4, 2), 0.5)
    >>> vf.inference.class_scores({"sure": sure, "even": even}, jnp.array([0, 1, 1, 0]))
          NLL              Brier            ECE              accuracy
    sure  0.7136 ± 0.5304  0.4500 ± 0.3903  0.3000 ± 0.2121  0.7500 ± 0.2500
    even  0.6931 ± 0.0000  0.5000 ± 0.0000  0.0000 ± 0.2887  0.5000 ± 0.2887
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise DataError(f"`bins` of class_scores is {bins!r}; it should be a whole number above 0.")
    if not isinstance(predictives, Mapping):
        away = None if outside is None else _probabilities(outside, "outside")
        return _scores(_probabilities(predictives, "predictives"), labels, away, bins)
    if not predictives:
        raise DataError("`predictives` of class_scores is empty; give at least one, by name.")
    names = list(predictives)
    if outside is not None and (not isinstance(outside, Mapping) or set(outside) != set(names)):
        raise DataError(
            f"`outside` of class_scores should hold a predictive for each of {names}, by name; got "
            f"{list(outside) if isinstance(outside, Mapping) else type(outside).__name__}."
        )
    found = {}
    for name in names:
        away = None if outside is None else _probabilities(outside[name], name)
        found[name] = _scores(_probabilities(predictives[name], name), labels, away, bins)
    return ScoreTable(found)


def _probabilities(predictive: Any, name: str) -> Float[np.ndarray, "n k"]:
    fn = core_of(predictive)
    if isinstance(fn, dist.Distribution):
        probs = getattr(fn, "probs", None)
        if probs is None:
            raise DataError(
                f"`{name}` of class_scores is {type(fn).__name__}; it should be a Categorical or "
                "Bernoulli, or an array of probabilities."
            )
        is_binary = isinstance(fn, dist.BernoulliLogits | dist.BernoulliProbs)
        predictive = jnp.stack([1.0 - probs, probs], -1) if is_binary else probs
    given = np.asarray(predictive)
    found = given.astype(float)
    if found.ndim != 2 or found.shape[1] < 2 or not len(found):
        raise DataError(
            f"`{name}` of class_scores has shape {found.shape}; it should be (n, classes), one row "
            "of probabilities for each example."
        )
    # Each of bfloat16 is rounded by 1 / 256 of it, and so is their sum.
    close = max(1e-4, float(jnp.finfo(given.dtype).eps) if _is_floating(given) else 0.0)
    if not np.all(found >= 0.0) or not np.allclose(found.sum(1), 1.0, rtol=0.0, atol=close):
        raise DataError(
            f"`{name}` of class_scores has rows that are no probabilities: each entry should be at "
            "least 0, and each row should sum to 1. Of logits take `jax.nn.softmax` first."
        )
    return found


def _is_floating(given: np.ndarray) -> bool:
    return bool(jnp.issubdtype(given.dtype, jnp.floating))


def _scores(probs: Float[np.ndarray, "n k"], labels: Any, outside: Any, bins: int) -> ClassScores:
    y = _labels(labels, probs)
    if outside is not None and outside.shape[1] != probs.shape[1]:
        raise DataError(
            f"`outside` of class_scores has {outside.shape[1]} classes and `predictives` "
            f"{probs.shape[1]}; they should be the same classes, of one network."
        )
    chosen = probs[np.arange(len(y)), y]
    with np.errstate(divide="ignore"):  # a label of probability zero has an infinite NLL
        nll = _mean(-np.log(chosen))
    target = np.eye(probs.shape[1])[y]
    confidence = probs.max(1)
    hit = (probs.argmax(1) == y).astype(float)
    return ClassScores(
        nll,
        _mean(np.sum((probs - target) ** 2, 1)),
        _calibration(confidence - hit, confidence, bins),
        _mean(hit),
        None if outside is None else _auroc(confidence, outside.max(1)),
    )


def _labels(labels: Any, probs: Float[np.ndarray, "n k"]) -> Int[np.ndarray, " n"]:
    y = np.asarray(labels)
    size = probs.shape[1]
    wanted = f"whole numbers from 0 to {size - 1}, one for each of {len(probs)} examples"
    if y.shape != probs.shape[:1] or y.dtype.kind not in "biuf":
        raise DataError(
            f"`labels` of class_scores should be {wanted}; got shape {y.shape}, {y.dtype}."
        )
    with np.errstate(invalid="ignore"):
        is_class = (y == np.round(y)) & (y >= 0) & (y < size)
    if not is_class.all():
        first = int(np.argmin(is_class))
        raise DataError(
            f"`labels` of class_scores should be {wanted}; {int(np.sum(~is_class))} are none, the "
            f"first {y[first]} at index {first}."
        )
    return y.astype(int)


def _mean(each: Float[np.ndarray, " n"]) -> ScoreEstimate:
    has_error = len(each) > 1 and bool(np.all(np.isfinite(each)))
    error = each.std(ddof=1) / np.sqrt(len(each)) if has_error else np.nan
    return ScoreEstimate(float(each.mean()), float(error))


def _calibration(
    gaps: Float[np.ndarray, " n"], confidence: Float[np.ndarray, " n"], bins: int
) -> ScoreEstimate:
    """The mean of the gaps with the signs that they have in their bins."""
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    sums = np.bincount(bin_of, gaps, bins)
    signs = np.where(sums < 0.0, -1.0, 1.0)
    return _mean(signs[bin_of] * gaps)


def _auroc(inside: Float[np.ndarray, " n"], outside: Float[np.ndarray, " m"]) -> ScoreEstimate:
    """By ranks; the variance by those of the placements."""
    n, m = len(inside), len(outside)
    ranks = scipy.stats.rankdata(np.concatenate([inside, outside]))
    of_inside = (ranks[:n] - scipy.stats.rankdata(inside)) / m
    of_outside = 1.0 - (ranks[n:] - scipy.stats.rankdata(outside)) / n
    parts = [
        each.var(ddof=1) / len(each) if len(each) > 1 else np.nan
        for each in (of_inside, of_outside)
    ]
    return ScoreEstimate(float(of_inside.mean()), float(np.sqrt(sum(parts))))

"""Ranking models by evidence: probabilities, their errors, words, and cautions."""

import dataclasses
import math
import warnings
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal, norm

import volform as vf
from volform.errors import ModelError, SaddleError, TrustWarning
from volform.geometry import DiagonalField
from volform.inference import Automatic, Comparison, SiteMetrics
from volform.inference.attached_metrics import metric_of_model
from volform.results import Cost, Level, Trust

KEY = jax.random.key(0)
Y = jnp.array([0.5, 1.5, 0.2, 0.9, -0.4, 1.1])


def normal(y: Any, scale: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def exact(scale: float, y: Any = Y) -> float:
    n = len(y)
    return multivariate_normal(np.zeros(n), np.eye(n) + scale**2 * np.ones((n, n))).logpdf(y)


def found(log_z: float, error: float = 0.0, **changes: Any) -> vf.results.Evidence:
    """An evidence out of thin air."""
    fields = {
        "metric": vf.Euclidean(),
        "dim": 1,
        "method": "hearsay",
        "trust": Trust(Level.GOOD, "we were told"),
        "diagnostics": {},
        "cost": Cost(),
    }
    values = jnp.asarray(float(log_z)), jnp.asarray(float(error))
    return vf.results.Evidence(*values, None, **(fields | changes))


SCALES = {"wide": 30.0, "narrow": 1.0, "medium": 5.0}


@cache
def compared() -> Comparison:
    models = {name: vf.condition(normal, Y, jnp.array(scale)) for name, scale in SCALES.items()}
    return vf.compare(models, by=vf.Laplace())


# --- Numbers


def test_ranks_and_probabilities() -> None:
    table = compared()
    assert [row.name for row in table.rows] == ["narrow", "medium", "wide"]
    log_z = np.array([exact(SCALES[row.name]) for row in table.rows])
    shares = np.exp(log_z) / np.exp(log_z).sum()
    assert_allclose([row.probability for row in table.rows], shares, rtol=1e-8)
    assert_allclose(sum(row.probability for row in table.rows), 1.0, rtol=1e-12)
    assert_allclose([row.log_bayes_factor for row in table.rows], log_z[0] - log_z, atol=1e-8)
    assert table["wide"].name == "wide"
    with pytest.raises(ModelError, match="'other' is no model of this comparison"):
        table["other"]


def test_log_evidences_far_below_underflow() -> None:
    table = vf.compare({"a": found(-20_000.0), "b": found(-20_001.0)})
    assert_allclose(table["b"].probability, 1.0 / (1.0 + math.e), rtol=1e-10)


def test_errors_of_probabilities_are_those_of_a_simulation() -> None:
    log_z, errors = np.array([0.0, -0.5, -2.0]), np.array([0.02, 0.05, 0.1])
    table = vf.compare(
        {str(i): found(z, e) for i, (z, e) in enumerate(zip(log_z, errors, strict=True))}
    )
    noisy = log_z + errors * np.random.default_rng(0).normal(size=(200_000, 3))
    shares = np.exp(noisy) / np.exp(noisy).sum(1, keepdims=True)
    stated = [table[name].probability_error for name in "012"]
    assert_allclose(stated, shares.std(0), rtol=0.02)
    factors = [table[name].log_bayes_factor_error for name in "012"]
    assert_allclose(factors, [0.0, math.hypot(0.02, 0.05), math.hypot(0.02, 0.1)], rtol=1e-6)


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (0.99, "barely worth a mention"),
        (1.01, "positive"),
        (2.99, "positive"),
        (3.01, "strong"),
        (4.99, "strong"),
        (5.01, "very strong"),
    ],
)
def test_words_of_kass_and_raftery(gap: float, words: str) -> None:
    table = vf.compare({"better": found(0.0), "worse": found(-gap)})
    assert [row.words for row in table.rows] == ["best", words]


def test_an_evidence_that_is_nan_comes_last() -> None:
    bad = found(math.nan, trust=Trust(Level.POOR, "no mode"))
    table = vf.compare({"bad": bad, "good": found(-3.0)})
    assert [row.probability for row in table.rows] == [1.0, 0.0]
    assert "bad is not to be trusted (poor: no mode)" in table.cautions
    with pytest.raises(ModelError, match=r"No evidence in `models`.*worse: poor: no mode"):
        vf.compare({"bad": bad, "worse": bad})


def test_unknown_error_is_not_shown_as_none() -> None:
    table = vf.compare({"a": found(0.0, math.nan), "b": found(-1.0, 0.1)})
    assert [math.isnan(row.probability_error) for row in table.rows] == [True, True]
    assert repr(table).count("± ?") == 2
    certain = vf.compare({"a": found(0.0, 0.1), "no mode": found(math.nan, math.nan)})
    assert certain["a"].probability_error == 0.0


# --- Cautions


def test_no_caution_without_a_reason() -> None:
    assert vf.compare({"a": found(0.0, 0.01), "b": found(-3.0, 0.01)}).cautions == ()
    assert compared().cautions == ()


def test_difference_within_errors() -> None:
    table = vf.compare({"a": found(0.0, 0.2), "b": found(-0.3, 0.1)})
    assert table.cautions == ("a and b differ by less than two standard errors",)
    assert "caution: a and b differ by less than two standard errors" in repr(table)


def test_other_data() -> None:
    models = {
        "six": vf.condition(normal, Y, jnp.array(1.0)),
        "five": vf.condition(normal, Y[:5], jnp.array(1.0)),
    }
    with pytest.warns(TrustWarning, match=r"different data.*six \[6\].*five \[5\]"):
        table = vf.compare(models, by=vf.Laplace(), loo=False)
    assert any("the models have different data" in text for text in table.cautions)


def test_the_same_data_under_another_name() -> None:
    def renamed(z: Any) -> None:
        mu = numpyro.sample("nu", dist.Laplace(0.0, 1.0))
        numpyro.sample("z", dist.Normal(mu, 1.0), obs=z)

    models = {"y": vf.condition(normal, Y, jnp.array(1.0)), "z": vf.condition(renamed, Y)}
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrustWarning)
        table = vf.compare(models, by=vf.Laplace(), loo=False)
    assert not any("data" in text for text in table.cautions)


@pytest.mark.parametrize(
    ("one", "other", "caution"),
    [
        (vf.Euclidean(jnp.ones(2)), vf.Euclidean(jnp.ones(2)), ""),
        (vf.Euclidean(2.0), vf.Euclidean(jnp.array(2.0)), ""),
        (vf.Fisher(lambda s: dist.Normal(0, s)), vf.Fisher(lambda s: dist.Normal(0, s)), ""),
        (vf.Euclidean(1.0 + 1e-12), None, ""),
        (vf.Euclidean(jnp.ones(2)), vf.Euclidean(jnp.ones(3)), "the metrics differ (a: "),
        (
            vf.Euclidean(jnp.ones(2)),
            vf.Euclidean(jnp.ones(2) + 1e-12),
            "the metrics differ in their numbers (a: Euclidean(scale=[1. 1.]), b: ",
        ),
        (vf.JointFisher(), vf.Euclidean(), "the metrics differ (a: JointFisher(), b: Euclidean())"),
    ],
)
def test_metrics_are_equal_when_they_read_and_count_the_same(
    one: Any, other: Any, caution: str
) -> None:
    table = vf.compare({"a": found(0.0, metric=one), "b": found(-5.0, metric=other)})
    about = [text for text in table.cautions if "metrics" in text]
    assert len(about) == bool(caution)
    assert not caution or about[0].startswith(caution)


def pair() -> None:
    numpyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1), infer={"metric": THREE})
    numpyro.sample("b", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=jnp.array(0.5))


THREE = 3.0 * vf.Euclidean() + vf.Euclidean(0.5)
WIDE = vf.Euclidean(jnp.array(2.0))


@pytest.mark.parametrize(
    ("attached", "name"),
    [
        (WIDE, "Euclidean(scale=2.0)"),
        ({"b": WIDE}, "a: 3.0 * Euclidean() + Euclidean(scale=0.5), b: Euclidean(scale=2.0)"),
        ({"a": vf.Euclidean()}, "Euclidean()"),
        ({("a", "b"): DiagonalField(lambda a, b: (a**2 + 1.0, b))}, "('a', 'b'): DiagonalField"),
    ],
)
def test_the_metric_itself(attached: Any, name: str) -> None:
    """What was attached; attached again, it gives the same posterior."""
    posterior = vf.condition(vf.attach(pair, attached))
    metric = metric_of_model(posterior)
    assert repr(metric) == posterior.metric_name
    if isinstance(attached, vf.Metric):
        assert metric is attached
    elif isinstance(metric, SiteMetrics):
        assert all(metric[sites] is own for sites, own in attached.items())
    again = vf.condition(vf.attach(pair, metric))
    u = jnp.array([0.3, -0.2, 0.7])
    assert_allclose(again.metric(u).as_matrix(), posterior.metric(u).as_matrix(), rtol=1e-12)
    at = {"a": jnp.zeros(2), "b": 1.0}
    evidence = vf.laplace(posterior, at=at, second_order=False, refuse=False).evidence
    assert evidence.metric_name.startswith(name)
    assert f", metric {evidence.metric_name.replace('()', '')}, 3 parameters" in repr(evidence)
    # An evidence equals itself, whatever arrays its metric holds, also after JAX has had it.
    known = dataclasses.replace(evidence, error=jnp.zeros(()))  # NaN, which equals nothing
    passed = eqx.filter_jit(lambda found: found)(known)
    assert bool(eqx.tree_equal(known, passed))
    assert list(passed.terms) == list(evidence.terms)


def test_other_metrics() -> None:
    models = {
        "flat": vf.condition(normal, Y, jnp.array(1.0)),
        "Fisher": vf.condition(vf.attach(normal, vf.LikelihoodFisher()), Y, jnp.array(1.0)),
    }
    table = vf.compare(models, by=vf.Laplace(), loo=False)
    assert any("the metrics differ (flat: Euclidean" in text for text in table.cautions)


def test_a_factor_may_leave_the_density_unnormalized() -> None:
    def model(y: Any) -> None:
        normal(y, 1.0)
        numpyro.factor("bonus", jnp.array(3.0))

    models = {"plain": vf.condition(normal, Y, jnp.array(1.0)), "bonus": vf.condition(model, Y)}
    table = vf.compare(models, by=vf.Laplace(), loo=False)
    expected = "bonus: integral of a density that bonus may leave unnormalized"
    assert expected in table.cautions


# --- What it takes


def saddle(y: Any) -> None:
    x = numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)
    numpyro.factor("ridge", 0.5 * x[1] ** 2)


def improper(y: Any) -> None:
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_improper_prior_is_refused_by_name() -> None:
    models = {
        "proper": vf.condition(normal, Y, jnp.array(1.0)),
        "no prior": vf.condition(improper, Y),
    }
    with pytest.raises(ModelError, match=r"'no prior' of `models` cannot be.*`mu` is improper"):
        vf.compare(models, by=vf.Laplace(), loo=False)


def test_formal_integral_is_refused_too() -> None:
    formal = vf.evidence(vf.condition(improper, Y), by=vf.Laplace(), allow_improper=True)
    assert "formal integral" in repr(formal)
    with pytest.raises(ModelError, match=r"'no prior' of `models` cannot be.*`mu` is improper"):
        vf.compare({"no prior": formal, "proper": found(-1.0)})


def test_what_an_estimator_raises_names_the_model() -> None:
    posterior = vf.condition(saddle, Y)
    with pytest.raises(SaddleError, match=r"'flat' of `models` cannot be compared"):
        vf.compare({"flat": posterior}, by=vf.Laplace(), loo=False)


@pytest.mark.parametrize("models", [{}, [1, 2], None])
def test_no_models(models: Any) -> None:
    with pytest.raises(ModelError, match="`models` of compare should be a dict"):
        vf.compare(models)


def test_a_model_that_is_none() -> None:
    with pytest.raises(ModelError, match=r"'f' of `models` cannot.*`target` should be a Posterior"):
        vf.compare({"f": normal})
    with pytest.raises(ModelError, match="`by` should be an estimator"):
        vf.compare({"f": vf.condition(normal, Y, jnp.array(1.0))}, by=vf.Laplace)


def test_every_stage_of_a_model_is_taken() -> None:
    posterior = vf.condition(normal, Y, jnp.array(1.0))
    fit = vf.find_map(posterior, key=KEY)
    approx = vf.laplace(fit)
    models = {"posterior": posterior, "map": fit, "laplace": approx, "evidence": approx.evidence}
    table = vf.compare(models, by=vf.Laplace())
    assert_allclose([float(row.evidence.log_z) for row in table.rows], exact(1.0), rtol=1e-8)
    assert table["evidence"].loo is None
    assert table["posterior"].loo is not None


def test_automatic_estimator_by_default() -> None:
    models = {"only": vf.condition(normal, Y, jnp.array(1.0))}
    (row,) = vf.compare(models, key=jax.random.key(3), loo=False).rows
    assert row.evidence.trust.level is Level.GOOD
    assert row.probability == 1.0
    assert abs(float(row.evidence.log_z) - exact(1.0)) < 0.05


# --- LOO, and what is shown


def test_leave_one_out_of_a_conjugate_model() -> None:
    def log_predictive(i: int) -> float:
        others = np.delete(np.asarray(Y), i)
        precision = 1.0 + len(others)
        return norm.logpdf(Y[i], others.sum() / precision, math.sqrt(1.0 + 1.0 / precision))

    pointwise = np.array([log_predictive(i) for i in range(len(Y))])
    loo = compared()["narrow"].loo
    assert loo is not None
    assert loo.good
    assert_allclose(loo.elpd, pointwise.sum(), atol=0.1)
    assert_allclose(loo.error, math.sqrt(len(Y)) * pointwise.std(), rtol=0.2)


def test_table() -> None:
    frame = compared().to_dataframe()
    assert list(frame.index) == ["narrow", "medium", "wide"]
    assert frame.index.name == "model"
    assert list(frame.columns) == [
        "log_z", "error", "method", "k_hat", "prior", "probability", "probability_error",
        "log_bayes_factor", "log_bayes_factor_error", "against", "trust", "reason", "metric",
        "parameters", "elpd_loo", "elpd_loo_error", "stack", "densities", "gradients",
    ]  # fmt: skip
    assert np.isfinite(frame["elpd_loo"]).all()
    assert_allclose(frame.loc["narrow", "log_z"], exact(1.0), rtol=1e-8)


def test_text() -> None:
    table = compared()
    header, *rows = repr(table).splitlines()
    for word in ("model", "log Z", "error", "probability", "log BF", "trust", "LOO", "metric"):
        assert word in header
    assert [line.split()[0] for line in rows] == ["narrow", "medium", "wide"]
    assert f"{exact(1.0):.3f}" in rows[0]
    assert "best" in rows[0]
    assert f"{exact(1.0) - exact(30.0):.2f}" in rows[2]
    assert "strong" in rows[2]


def test_an_approximation_is_not_estimated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its evidence is there, whatever its curvature; another estimator is asked for by `by`."""
    approx = vf.laplace(vf.condition(normal, Y, 1.0), curvature=vf.GGN())
    with monkeypatch.context() as patch:
        patch.setattr(Automatic, "estimate", None)  # would fail if it were called
        table = vf.compare({"a": approx, "b": approx.evidence})
    assert [row.evidence.method for row in table.rows] == ["Laplace with GGN()"] * 2
    assert_allclose([row.probability for row in table.rows], 0.5)
    assert any("another curvature than the Hessian, GGN()" in text for text in table.cautions)
    sampled = vf.compare({"a": approx}, by=vf.Importance(), loo=False)
    assert "importance" in sampled.rows[0].evidence.method

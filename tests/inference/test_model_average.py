"""Probabilities of models with a prior, and predictions averaged by them."""

import pickle
from typing import Any

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import volform as vf
from volform.errors import ModelError, OperatorError

Y = np.array([0.5, 1.5, 0.2])
KEY = jax.random.key(0)
PRIOR = {"narrow": 0.2, "far": 0.8}


def model(y, mean, scale):
    mu = numpyro.sample("mu", dist.Normal(mean, scale))
    with numpyro.plate("data", 3):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


MODELS = {"narrow": (0.0, 1.0), "far": (5.0, 3.0)}


def posteriors() -> dict[str, Any]:
    return {name: vf.condition(model, Y, *given) for name, given in MODELS.items()}


def log_z(mean: float, scale: float) -> float:
    return stats.multivariate_normal(np.full(3, mean), np.eye(3) + scale**2).logpdf(Y)


def predicted(mean: float, scale: float) -> tuple[float, float]:
    """Mean and variance of the next datum."""
    precision = 3.0 + scale**-2
    return (Y.sum() + mean * scale**-2) / precision, 1.0 + 1.0 / precision


@pytest.fixture(scope="module")
def table() -> Any:
    return vf.compare(posteriors(), by=vf.Laplace(), loo=False, prior=PRIOR)  # exact here


def test_probabilities_are_bayes_rule(table):
    joint = {name: np.log(PRIOR[name]) + log_z(*MODELS[name]) for name in MODELS}
    total = np.logaddexp.reduce(list(joint.values()))
    for name, row in {row.name: row for row in table.rows}.items():
        assert_allclose(row.probability, np.exp(joint[name] - total), rtol=1e-10)
        assert row.prior == PRIOR[name]
    gap = log_z(*MODELS["narrow"]) - log_z(*MODELS["far"])
    assert_allclose(table["far"].log_bayes_factor, gap, rtol=1e-8)  # without the prior
    shares = np.array([row.probability for row in table.rows])
    errors = np.array([float(row.evidence.error) for row in table.rows])
    assert_allclose(table.rows[0].probability_error, shares.prod() * np.hypot(*errors), rtol=1e-10)


def test_the_prior_is_shown_where_it_is_not_even(table):
    assert repr(table).split("\n")[0].split()[:5] == ["model", "log", "Z", "error", "prior"]
    assert table.to_dataframe().loc["far", "prior"] == 0.8
    evidences = {row.name: row.evidence for row in table.rows}
    even = vf.compare(evidences)
    assert "prior" not in repr(even)
    assert even["far"].prior == 0.5


@pytest.mark.parametrize("by", ["Laplace", "quadrature"])
def test_predictions_are_those_of_the_mixture(table, by):
    if by == "quadrature":
        table = vf.compare(posteriors(), by=vf.Quadrature(), loo=False, prior=PRIOR)
    draws = table.predictive(KEY, draws=20_000)["y"]
    assert draws.shape == (20_000, 3)
    moments = {name: predicted(*given) for name, given in MODELS.items()}
    shares = {row.name: row.probability for row in table.rows}
    mean = sum(shares[name] * moments[name][0] for name in MODELS)
    variance = sum(shares[n] * (moments[n][1] + (moments[n][0] - mean) ** 2) for n in MODELS)
    assert abs(draws[:, 0].mean() - mean) < 4.0 * (variance / 20_000) ** 0.5
    assert_allclose(draws[:, 0].var(), variance, rtol=0.05)
    half = draws[:10_000, 0].mean() - draws[10_000:, 0].mean()  # in no order of the models
    assert abs(half) < 4.0 * (variance / 5_000) ** 0.5
    assert (table.predictive(KEY, draws=10)["y"] == table.predictive(KEY, draws=10)["y"]).all()


def test_new_arguments_go_to_all_models(table):
    draws = table.predictive(KEY, Y, 50.0, 0.5, draws=100)["y"]
    assert draws.shape == (100, 3)
    assert abs(draws.mean()) < 3.0  # the prior is no part of the prediction


def test_other_shapes_and_sites_are_refused():
    def named(z):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("z", dist.Normal(mu, 1.0), obs=z)

    def shaped(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0).expand([3, 1]), obs=y[:, None])

    given = {"one": vf.condition(model, Y, 0.0, 1.0)}
    other = vf.compare({**given, "two": vf.condition(named, Y)}, by=vf.Laplace(), loo=False)
    with pytest.raises(ModelError, match="`predictive` averages sites that all models observe"):
        other.predictive(KEY)
    other = vf.compare({**given, "two": vf.condition(shaped, Y)}, by=vf.Laplace(), loo=False)
    with pytest.raises(ModelError, match=r"`y` has the shapes \[\(3,\), \(3, 1\)\]"):
        other.predictive(KEY)


def test_what_was_saved_can_be_read_but_predicts_nothing(table, tmp_path):
    for again in (vf.load(vf.save(table, tmp_path / "t.vf")), pickle.loads(pickle.dumps(table))):
        assert repr(again) == repr(table)
        assert again["far"].prior == 0.8
        with pytest.raises(ModelError, match="has an evidence by Laplace without a posterior"):
            again.predictive(KEY)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({"narrow": 1.0}, r"is of \['narrow'\]; it should hold a probability for each"),
        ({"narrow": 0.5, "far": 0.25, "x": 0.25}, r"is of \['narrow', 'far', 'x'\]"),
        ({"narrow": 2.0, "far": 1.0}, "positive numbers whose sum is one"),
        ({"narrow": 1.0, "far": 0.0}, "positive numbers whose sum is one"),
        ({"narrow": float("nan"), "far": 0.5}, "positive numbers whose sum is one"),
        ([0.5, 0.5], r"is of \[0.5, 0.5\]"),
    ],
)
def test_misuse_of_the_prior(table, prior, message):
    evidences = {row.name: row.evidence for row in table.rows}
    with pytest.raises(ModelError, match=message):
        vf.compare(evidences, prior=prior)


def test_misuse_of_predictive(table):
    with pytest.raises(ModelError, match="`key` of predictive"):
        table.predictive(0)
    with pytest.raises((ModelError, OperatorError), match="`draws` of predictive"):
        table.predictive(KEY, draws=0)

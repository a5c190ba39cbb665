"""Weights of models by stacking their leave-one-out predictive densities."""

import math
from functools import cache
from inspect import signature
from typing import Any

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import brentq

import volform as vf
from volform.inference.evidence.stacking import stacking_weights

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(30, 3))
Y = X @ np.array([1.0, 0.7, 0.0]) + 0.5 * RANDOM.normal(size=30)


def line(x: Any, y: Any = None) -> None:
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(slope * x, 0.8), obs=y)


@cache
def lines() -> dict[str, Any]:
    return {f"x{i}": vf.condition(line, jnp.asarray(X[:, i]), y=jnp.asarray(Y)) for i in range(3)}


@cache
def compared() -> Any:
    return vf.compare(lines(), by=vf.Laplace())


def densities(log_densities: np.ndarray) -> np.ndarray:
    return np.exp(log_densities - log_densities.max(axis=1, keepdims=True))


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0, 1e4])
@pytest.mark.parametrize(("data", "models"), [(8, 2), (8, 10), (300, 6)])
def test_no_direction_leads_upward(spread: float, data: int, models: int) -> None:
    random = np.random.default_rng(data)
    for _ in range(5):
        terms = spread * (random.normal(size=(data, models)) + random.normal(size=models)) - 900.0
        weights = stacking_weights(terms)
        assert np.all(weights >= 0.0)
        assert_allclose(weights.sum(), 1.0, rtol=1e-12)
        # Concave: by the gradient at w, no weights are better by more than log(max slope).
        p = densities(terms)
        slopes = np.mean(p / (p @ weights)[:, None], axis=0)
        assert slopes.max() - 1.0 < 1e-6


def test_two_models_and_their_closed_form() -> None:
    terms = np.random.default_rng(1).normal(size=(40, 2)) + np.array([0.2, 0.0])
    p = densities(terms)
    root: Any = brentq(
        lambda w: np.sum((p[:, 0] - p[:, 1]) / (w * p[:, 0] + (1 - w) * p[:, 1])), 0, 1
    )
    assert_allclose(stacking_weights(terms), [root, 1.0 - root], atol=1e-5)
    # Of 3 data that only the one expects and 5 that only the other does.
    apart = np.where(np.arange(8)[:, None] < 3, [0.0, -2000.0], [-2000.0, 0.0])
    assert_allclose(stacking_weights(apart), [3 / 8, 5 / 8], atol=1e-6)
    # No worse model gets weight, and equal models equal ones.
    assert_allclose(stacking_weights(terms[:, :1] - np.array([0.0, 1.0])), [1.0, 0.0], atol=1e-6)
    assert_allclose(stacking_weights(np.repeat(terms[:, :1], 3, axis=1)), np.full(3, 1 / 3))


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # ArviZ 0.23 on pandas 3.1
def test_weights_are_those_of_arviz_on_the_same_densities() -> None:
    data = {name: vf.to_arviz(vf.laplace(posterior)) for name, posterior in lines().items()}
    # ArviZ 1.x rounds unless it is told not to, 0.x knows no such word.
    exact = {"round_to": "none"} if "round_to" in signature(arviz.compare).parameters else {}
    theirs: Any = arviz.compare(data, method="stacking", **exact)["weight"]
    found = {name: arviz.loo(draws, pointwise=True) for name, draws in data.items()}
    terms = [np.ravel(f.loo_i if hasattr(f, "loo_i") else f.elpd_i) for f in found.values()]
    ours, its = stacking_weights(np.array(terms).T), np.array([theirs[name] for name in data])
    # ArviZ stops where a step changes the sum of log densities by less than 1e-6.
    score, its_score = (np.sum(np.log(np.exp(terms).T @ weights)) for weights in (ours, its))
    assert its_score <= score < its_score + 1e-5
    assert_allclose(ours, its, atol=1e-3)
    assert 0.1 < ours[1] < 0.9


def test_weights_are_in_the_table() -> None:
    table = compared()
    terms = np.array([row.loo.pointwise for row in table.rows])
    assert_allclose(terms.sum(1), [row.loo.elpd for row in table.rows], rtol=1e-10)
    # Leave-one-out by the closed form of a conjugate model.
    for name, row_of in (("x0", 0), ("x2", 2)):
        x = X[:, row_of]
        precision = 0.25 + (np.sum(x**2) - x**2) / 0.64
        mean = (np.sum(x * Y) - x * Y) / 0.64 / precision
        variance = 0.64 + x**2 / precision
        exact = -0.5 * np.log(2 * np.pi * variance) - 0.5 * (Y - mean * x) ** 2 / variance
        assert_allclose(table[name].loo.pointwise, exact, atol=0.2)
    assert_allclose([row.stack for row in table.rows], stacking_weights(terms.T), rtol=1e-10)
    frame = table.to_dataframe()
    assert_allclose(frame["stack"].sum(), 1.0)
    assert_allclose(frame.loc["x1", "stack"], table["x1"].stack)
    header, *rows = repr(table).splitlines()[:4]
    column = header.index("stack")
    for text, row in zip(rows, table.rows, strict=True):
        assert text[column:].split()[0] == f"{row.stack:.3f}"
    assert "<th>stack</th>" in table._repr_html_()


def test_weights_are_kept(tmp_path: Any) -> None:
    again = vf.load(vf.save(compared(), tmp_path / "table.vf"))
    assert repr(again) == repr(compared())
    assert_allclose(again["x0"].loo.pointwise, compared()["x0"].loo.pointwise)


@pytest.mark.filterwarnings("ignore::volform.errors.TrustWarning")  # that data differ
def test_no_weights_unless_all_have_loo_of_the_same_data() -> None:
    one = lines()["x0"]
    other = vf.condition(line, jnp.asarray(X[:, 1]), y=jnp.asarray(Y) + 1.0)
    for models in (
        {"only": one},
        {"one": one, "evidence": compared()["x1"].evidence},
        {"one": one, "other data": other},
    ):
        table = vf.compare(models, by=vf.Laplace())
        assert all(row.stack is None for row in table.rows)
        assert "stack" not in repr(table).splitlines()[0]
        assert all(math.isnan(weight) for weight in table.to_dataframe()["stack"])

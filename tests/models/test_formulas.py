"""Linear models from formulas, against the same models written out."""

import builtins
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from numpy.testing import assert_allclose
from numpyro.infer import MCMC, NUTS

import volform as vf
from volform.errors import DataError, ModelError

FRAME = pd.DataFrame(
    {
        "y": [1.0, 2.1, 2.9, 4.2, 0.3, 1.9],
        "x": [0.0, 1.0, 2.0, 3.0, 0.5, 1.5],
        "g": list("aabbcc"),
        "passed": ["no", "yes", "yes", "yes", "no", "no"],
        "count": [0, 1, 3, 6, 1, 2],
    }
)


def test_is_the_model_written_out():
    y, x, g = jnp.asarray(FRAME.y), jnp.asarray(FRAME.x), jnp.array([0, 0, 1, 1, 2, 2])
    s_y, s_x, m_x = np.std(FRAME.y, ddof=0), np.std(FRAME.x, ddof=0), np.mean(FRAME.x)

    def model():
        wide = 2.5 * s_y * np.sqrt(1.0 + (m_x / s_x) ** 2)
        intercept = numpyro.sample("Intercept", dist.Normal(np.mean(FRAME.y), wide))
        slope = numpyro.sample("x", dist.Normal(0.0, 2.5 * s_y / s_x))
        deviation = numpyro.sample("1|g_sd", dist.Exponential(1.0 / s_y))
        with numpyro.plate("g", 3):
            effect = numpyro.sample("1|g", dist.Normal(0.0, deviation))
        sigma = numpyro.sample("sigma", dist.Exponential(1.0 / s_y))
        numpyro.sample("y", dist.Normal(intercept + slope * x + effect[g], sigma), obs=y)

    found = vf.condition(vf.glm("y ~ x + (1 | g)", FRAME, family=dist.Normal))
    expected = vf.condition(vf.attach(model, vf.JointFisher()))
    assert found.names == expected.names
    u = 0.3 * jnp.arange(1.0, 8.0)
    assert_allclose(found.log_density(u), expected.log_density(u), rtol=1e-12)
    assert_allclose(found.metric(u).as_matrix(), expected.metric(u).as_matrix(), rtol=1e-10)


@pytest.mark.standard_promotion
@pytest.mark.parametrize(
    ("formula", "family", "likelihood", "y"),
    [
        (
            "passed ~ 1",
            dist.Bernoulli,
            lambda eta: dist.BernoulliLogits(eta),
            np.array([0.0, 1, 1, 1, 0, 0]),
        ),
        ("count ~ 1", dist.Poisson, lambda eta: dist.Poisson(np.exp(eta)), FRAME["count"]),
        ("y ~ 1", lambda eta: dist.Laplace(eta, 2.0), lambda eta: dist.Laplace(eta, 2.0), FRAME.y),
    ],
    ids=["logit", "log", "own"],
)
def test_families(formula, family, likelihood, y):
    posterior = vf.condition(vf.glm(formula, FRAME, family=family))
    u = jnp.array([0.7])
    found = posterior.bound_model.log_likelihood(u)
    assert_allclose(found, np.sum(likelihood(0.7).log_prob(np.asarray(y))), rtol=1e-10)


def test_varying_slopes_by_levels():
    """Effects of a factor in groups: rows of the matrix pick each group's own."""
    frame = FRAME.assign(k=list("uvuvuv"))
    posterior = vf.condition(vf.glm("y ~ 1 + (0 + k | g)", frame))
    assert posterior.layout.site("k|g").shape == (3, 2)
    effects = jnp.arange(6.0).reshape(3, 2)
    one = jnp.ones(())
    values = {"Intercept": 0.0 * one, "k|g_sd": one, "k|g": effects, "sigma": one}
    found = posterior.program.run(values)["y"]["fn"].loc
    assert_allclose(found, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])


@pytest.mark.standard_promotion
def test_predicts_other_rows():
    approx = vf.laplace(vf.condition(vf.glm("y ~ x + (1 | g)", FRAME)))
    new = pd.DataFrame({"x": [0.0, 50.0], "g": ["a", "c"]})
    found = approx.predictive(jax.random.key(0), new, draws=400)["y"]
    expected = approx.mean["Intercept"] + 50.0 * approx.mean["x"]
    assert found.shape == (400, 2)
    assert abs(found[:, 1].mean() - expected) < 0.2 * found[:, 1].std()


@pytest.mark.standard_promotion
def test_rows_and_groups_keep_their_labels():
    frame = FRAME.set_axis(["Uppsala", "Lund", "Visby", "Kalmar", "Borlänge", "Luleå"])
    model = vf.glm("y ~ 1 + (1 | g)", frame)
    approx = vf.laplace(vf.condition(model), second_order=False)
    mcmc = MCMC(NUTS(model), num_warmup=20, num_samples=20, progress_bar=False)
    mcmc.run(jax.random.key(0))
    for data in (vf.to_arviz(approx, draws=10), vf.to_arviz(mcmc)):
        assert data["observed_data"]["y"].dims == ("row",)
        assert data["observed_data"].coords["row"].values.tolist() == list(frame.index)
        assert data["posterior"]["1|g"].dims == ("chain", "draw", "g")
        assert data["posterior"].coords["g"].values.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    "given",
    [
        {name: FRAME[name].to_numpy() for name in FRAME},
        xr.Dataset.from_dataframe(FRAME),
    ],
    ids=["dict", "xarray"],
)
def test_other_tables(given):
    u = jnp.array([0.1, 0.2, 0.3])
    found, expected = (vf.condition(vf.glm("y ~ x", data)) for data in (given, FRAME))
    assert_allclose(found.log_density(u), expected.log_density(u), rtol=1e-13)


@pytest.mark.parametrize(
    ("formula", "options", "error", "message"),
    [
        ("y ~ xx", {}, DataError, r"`formula` has 'xx', .* did you mean \['x'\]"),
        ("y ~ (1 | gg)", {}, DataError, r"did you mean \['g'\]"),
        ("~ x", {}, DataError, "`formula` '~ x' cannot be read"),
        ("x", {}, DataError, "`formula` 'x' has no response"),
        ("g ~ x", {}, DataError, "The response `g` has 3 levels"),
        ("y ~ hole", {}, DataError, "1 incomplete rows"),
        ("y ~ x", {"family": dist.Normal(0.0, 1.0)}, ModelError, "`family` of glm is"),
        ("y ~ x", {"family": dist.Gamma}, ModelError, r"`lambda eta: dist.Gamma"),
        ("loss ~ x", {"family": dist.Poisson}, DataError, r"`loss` holds -2; `dist.Poisson`"),
        ("end ~ x", {}, DataError, r"`end` holds infinite values"),
        ("passed ~ x", {}, DataError, r"`passed` is text of two levels"),
        ("y ~ nope", {}, DataError, r"'nope', which is no column of the data; it has \['y', 'x'"),
    ],
)
def test_mistakes(formula, options, error, message):
    hole, end, loss = [1.0, np.nan, 2, 3, 4, 5], [1.0, np.inf, 2, 3, 4, 5], [-2, 1, 2, 3, 4, 5]
    with pytest.raises(error, match=message):
        vf.glm(formula, FRAME.assign(hole=hole, end=end, loss=loss), **options)


def test_data_that_are_no_table():
    with pytest.raises(DataError, match=r"`data` of glm is a Series; it should be a data frame"):
        vf.glm("y ~ x", FRAME.y)


def test_an_offset_has_the_coefficient_one():
    frame = FRAME.assign(exposure=[1.0, 2.0, 1.5, 3.0, 0.5, 1.0])
    x, log_exposure = jnp.asarray(frame.x), jnp.log(jnp.asarray(frame.exposure))
    m_x, s_x = np.mean(frame.x), np.std(frame.x)

    def model():
        wide = 2.5 * np.sqrt(1.0 + (m_x / s_x) ** 2)
        center = np.log(np.mean(frame["count"])) - float(jnp.mean(log_exposure))
        intercept = numpyro.sample("Intercept", dist.Normal(center, wide))
        slope = numpyro.sample("x", dist.Normal(0.0, 2.5 / s_x))
        rate = jnp.exp(intercept + slope * x + log_exposure)
        numpyro.sample("count", dist.Poisson(rate), obs=jnp.asarray(frame["count"]))

    formula = "count ~ x + offset(np.log(exposure))"
    found = vf.condition(vf.glm(formula, frame, family=dist.Poisson))
    expected = vf.condition(vf.attach(model, vf.JointFisher()))
    u = jnp.array([0.4, -0.3])
    assert found.names == ("Intercept", "x")
    assert_allclose(found.log_density(u), expected.log_density(u), rtol=1e-12)
    twice = vf.laplace(found).predictive(jax.random.key(0), frame.assign(exposure=1e3), draws=50)
    assert np.mean(twice["count"]) > 100  # the offset of other rows counts


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAME.drop(columns="x"), r"for prediction has no column 'x', .* it has \['y', 'g'"),
        (FRAME.assign(g=list("aabbcz")), r"for prediction does not fit the model: .*z"),
    ],
)
def test_other_rows_that_do_not_fit(frame, message):
    approx = vf.laplace(vf.condition(vf.glm("y ~ x + g", FRAME)))
    with pytest.raises(DataError, match=message):
        approx.predictive(jax.random.key(0), frame, draws=2)


def test_without_the_package(monkeypatch):
    there = importlib.import_module

    def missing(name, *rest):
        if name == "formulae":
            raise builtins.ImportError(name)
        return there(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModelError, match="`glm` needs the package formulae"):
        vf.glm("y ~ x", FRAME)

"""Derivatives of log Z by hyperparameters, and the Savage-Dickey ratio, against closed forms."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.infer.reparam import LocScaleReparam
from scipy import stats

import volform as vf
from volform.errors import DataError, ModelError, UnknownSiteError
from volform.inference import DensityRatio, savage_dickey

X = jnp.array([[1.0, 0.5], [0.2, -1.0], [-0.7, 0.4], [0.3, 1.1]])
Y = jnp.array([1.0, -0.4, 0.1, 1.6])
SCALES = jnp.array([1.5, 0.5])


def regression(x, y, scale, noise=1.0):
    b = numpyro.sample("b", dist.Normal(jnp.zeros(2), scale).to_event(1))
    numpyro.sample("y", dist.Normal(x @ b, noise).to_event(1), obs=y)


def log_z(scale, noise) -> float:
    x = np.asarray(X)
    covariance = noise**2 * np.eye(4) + (x * np.asarray(scale) ** 2) @ x.T
    return float(stats.multivariate_normal(np.zeros(4), covariance).logpdf(np.asarray(Y)))


def gradient(scale, noise, step: float = 1e-5) -> tuple[np.ndarray, float]:
    unit = step * np.eye(2)
    scale = np.asarray(scale)
    of_scale = [(log_z(scale + e, noise) - log_z(scale - e, noise)) / (2.0 * step) for e in unit]
    return np.array(of_scale), (log_z(scale, noise + step) - log_z(scale, noise - step)) / (
        2.0 * step
    )


@pytest.fixture(scope="module")
def posterior() -> Any:
    return vf.condition(regression, X, Y, SCALES, noise=0.8)


@pytest.fixture(scope="module")
def found(posterior: Any) -> Any:
    return vf.evidence(posterior, by=vf.Importance())


def test_of_laplace_it_is_the_gradient_of_the_closed_form(posterior):
    of_scale, of_noise = gradient(SCALES, 0.8)
    got = vf.sensitivity(vf.laplace(posterior), {"scale": SCALES, "noise": 0.8})
    assert_allclose(got.gradient["scale"], of_scale, rtol=1e-7)
    assert_allclose(got.gradient["noise"], of_noise, rtol=1e-7)
    assert_allclose(got.elasticity["scale"], of_scale * np.asarray(SCALES), rtol=1e-7)
    assert np.isnan(got.error["noise"])


def test_values_need_not_be_those_that_it_was_conditioned_on(posterior):
    got = vf.sensitivity(posterior, {"scale": 2.0 * SCALES, "noise": 0.3})
    of_scale, of_noise = gradient(2.0 * SCALES, 0.3)
    assert_allclose(got.gradient["scale"], of_scale, rtol=1e-6)
    assert_allclose(got.gradient["noise"], of_noise, rtol=1e-6)


def test_by_draws_it_is_within_its_error(posterior, found):
    of_scale, of_noise = gradient(SCALES, 0.8)
    got = vf.sensitivity(found, {"scale": SCALES, "noise": 0.8})
    assert (np.abs(got.gradient["scale"] - of_scale) < 4.0 * got.error["scale"]).all()
    assert abs(got.gradient["noise"] - of_noise) < 4.0 * got.error["noise"]
    assert 0.0 < got.error["noise"] < 0.05
    exact = vf.evidence(posterior, by=vf.Quadrature())
    got = vf.sensitivity(exact, {"scale": SCALES, "noise": 0.8})
    assert_allclose(got.gradient["scale"], of_scale, rtol=1e-6)
    assert got.method == "quadrature"


@pytest.mark.parametrize("second_order", [False, True])
def test_it_is_the_same_in_other_coordinates(second_order):
    def centered(y, a):
        tau = numpyro.sample("tau", dist.HalfNormal(a))
        t = numpyro.sample("t", dist.Normal(0.5, tau))
        numpyro.sample("y", dist.Normal(t, 1.0).expand([3]).to_event(1), obs=y)

    other = numpyro.handlers.reparam(centered, config={"t": LocScaleReparam(centered=0)})
    y = jnp.array([2.0, 0.5, 3.0])
    here = vf.condition(vf.attach(centered, vf.JointFisher()), y, 1.0)
    there = vf.condition(vf.attach(other, vf.JointFisher(reference=centered)), y, 1.0)
    got = [
        vf.sensitivity(p, {"a": 1.0}, second_order=second_order).gradient["a"]
        for p in (here, there)
    ]
    assert_allclose(*got, rtol=1e-8)


def test_how_it_is_shown(posterior):
    got = vf.sensitivity(posterior, {"scale": SCALES, "noise": 0.8})
    frame = got.to_dataframe()
    assert list(frame.index) == ["scale[0]", "scale[1]", "noise"]
    assert_allclose(frame["gradient"][:2], got.gradient["scale"])
    text = repr(got).split("\n")
    assert text[0] == "Sensitivity of log Z by Laplace"
    assert text[2].split()[:2] == ["scale[0]", "1.5"]
    assert "<th>noise</th>" in got._repr_html_()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"scal": 1.0},
            UnknownSiteError,
            r"no argument 'scal'; it has \['x', 'y', 'scale'",
        ),
        ({}, ModelError, "`hyperparameters` of sensitivity should be a dict"),
        ({"noise": float("nan")}, ModelError, "has nan for `noise`; it should be a finite number"),
        ({"noise": "one"}, ModelError, "has 'one' for `noise`"),
        (["noise"], ModelError, "should be a dict of values by the names"),
    ],
)
def test_misuse_of_sensitivity(posterior, given, error, message):
    with pytest.raises(error, match=message):
        vf.sensitivity(posterior, given)


def test_draws_of_other_values_are_refused(posterior, found):
    with pytest.raises(ModelError, match="the draws are not of the posterior with these"):
        vf.sensitivity(found, {"noise": 0.7})
    with pytest.raises(ModelError, match=r"an evidence by importance sampling .* without draws"):
        vf.sensitivity(dataclasses.replace(found, draws=None), {"noise": 0.8})
    with pytest.raises(ModelError, match=r"`target` of sensitivity should be a posterior"):
        vf.sensitivity(3, {"noise": 0.8})


# --- Savage and Dickey


def exact_ratio() -> float:
    """Log Bayes factor of no second effect."""
    return log_z([1.5, 0.0], 0.8) - log_z(SCALES, 0.8)


def apart(x, y):
    b = numpyro.sample("b", dist.Normal(0.0, 1.5))
    c = numpyro.sample("c", dist.Normal(0.0, 0.5))
    numpyro.sample("y", dist.Normal(b * x[:, 0] + c * x[:, 1], 0.8).to_event(1), obs=y)


def test_of_nested_regressions():
    posterior = vf.condition(apart, X, Y)
    approx = vf.laplace(posterior)
    of_laplace = savage_dickey(approx, {"c": 0.0})
    assert_allclose(of_laplace.log_bayes_factor, exact_ratio(), rtol=1e-8)
    assert np.isnan(of_laplace.error)
    by_nodes = savage_dickey(vf.evidence(approx, by=vf.Quadrature()), {"c": 0.0})
    assert_allclose(by_nodes.log_bayes_factor, exact_ratio(), rtol=1e-6)
    draws = vf.evidence(approx, by=vf.Importance())
    for target in (draws, draws.draws):
        got = savage_dickey(target, {"c": 0.0})
        assert 0.0 < got.error < 0.02
        assert abs(got.log_bayes_factor - exact_ratio()) < 4.0 * got.error
        assert_allclose(got.log_prior, stats.norm.logpdf(0.0, 0.0, 0.5))
    of_both = savage_dickey(approx, {"b": 0.0, "c": 0.0})  # there is no other site
    null = stats.norm.logpdf(np.asarray(Y), 0.0, 0.8).sum()
    assert_allclose(of_both.log_bayes_factor, null - log_z(SCALES, 0.8), rtol=1e-8)
    got = savage_dickey(draws, {"b": 0.0, "c": 0.0})
    assert abs(got.log_bayes_factor - of_both.log_bayes_factor) < 4.0 * got.error
    assert repr(got).startswith("log Bayes factor -")


def test_the_ratio_is_the_same_in_other_coordinates():
    def by_scale(y):
        s = numpyro.sample("s", dist.LogNormal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, s).expand([3]).to_event(1), obs=y)

    def by_log(y):
        r = numpyro.sample("r", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(r)).expand([3]).to_event(1), obs=y)

    y = jnp.array([1.0, -2.0, 0.5])
    points = {"s": 2.0}, {"r": np.log(2.0)}
    flat = vf.condition(vf.attach(by_scale, vf.Unconstrained()), y), vf.condition(by_log, y)
    got = [
        savage_dickey(vf.laplace(p), at).log_bayes_factor
        for p, at in zip(flat, points, strict=True)
    ]
    assert_allclose(*got, rtol=1e-8)
    found = vf.evidence(flat[0], by=vf.Quadrature())
    exact = stats.norm.logpdf(np.asarray(y), 0.0, 2.0).sum() - float(found.log_z)
    assert_allclose(savage_dickey(found, points[0]).log_bayes_factor, exact, rtol=1e-4)


def test_a_prior_that_depends_on_other_sites():
    def model(y):
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        t = numpyro.sample("t", dist.Normal(0.0, 0.5 + tau))
        numpyro.sample("y", dist.Normal(t, 1.0), obs=y)

    y = 1.5
    found = vf.evidence(vf.condition(model, jnp.array(y)), by=vf.Quadrature())
    got = savage_dickey(found, {"t": 0.3})
    exact = stats.norm.logpdf(y, 0.3, 1.0) - float(found.log_z)
    assert abs(got.log_bayes_factor - exact) < 4.0 * got.error
    assert 0.0 < got.error < 0.01


def test_heavy_tails_are_said():
    good = DensityRatio(0.5, 0.1, -0.5, -1.0, 0.2, "draws")
    assert repr(good) == "log Bayes factor 0.500 ± 0.1 for the hypothesis, by draws"
    assert "not to be trusted: k-hat 0.90" in repr(dataclasses.replace(good, k_hat=0.9))


def bounded(y):
    low = numpyro.sample("low", dist.Normal(0.0, 1.0))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    x = numpyro.sample("x", dist.Uniform(low, low + 1.0))
    numpyro.sample("y", dist.Normal(x, scale), obs=y)


def mixed(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(3)))
    numpyro.sample("y", dist.Categorical(p), obs=y)


@pytest.fixture(scope="module")
def bounded_draws() -> Any:
    posterior = vf.condition(vf.attach(bounded, vf.Unconstrained()), jnp.array([0.5, 0.7, 0.4]))
    return vf.laplace(posterior).sample(jax.random.key(0), 100)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"x": 0.5}, ModelError, "The support of `x` depends on other sites"),
        ({"scale": 0.0}, DataError, "has 0.0 for `scale`, which is not inside of its support"),
        ({"scale": -1.0}, DataError, "which is not inside of its support"),
        ({"scale": float("nan")}, DataError, "which is not inside of its support"),
        ({"scale": "a"}, DataError, "has 'a' for `scale`; it should be a number"),
        ({"scale": [1.0]}, DataError, r"has the shape \(1,\) for `scale`, which has \(\)"),
        ({"z": 0.0}, UnknownSiteError, "has 'z', which is no latent site"),
        ({}, ModelError, "`values` of savage_dickey should be a dict"),
    ],
)
def test_misuse_of_the_ratio(bounded_draws, values, error, message):
    with pytest.raises(error, match=message):
        savage_dickey(bounded_draws, values)


def test_marginals_that_have_no_closed_form():
    approx = vf.laplace(vf.condition(vf.attach(mixed, vf.Unconstrained()), jnp.array([0, 1, 1, 2])))
    with pytest.raises(ModelError, match=r"no marginal of \['p'\] in closed form"):
        savage_dickey(approx, {"p": [0.2, 0.3, 0.5]})

    def gamma():
        numpyro.sample("x", dist.Gamma(2.0, 1.0))

    with pytest.raises(ModelError, match="An edge of the support cuts off"):
        savage_dickey(vf.laplace(vf.condition(gamma)), {"x": 1.0})
    with pytest.raises(ModelError, match="without draws or without its model"):
        savage_dickey(3, {"x": 1.0})

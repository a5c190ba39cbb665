"""Draws from a Laplace approximation, and what is made of them."""

import math
from functools import cache
from typing import Any

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.infer import MCMC
from scipy.stats import multivariate_normal

import volform as vf
from volform.errors import ConvergenceError
from volform.inference import LaplaceApproximation

KEY = jax.random.key(0)


def fitted(model: Any, metric: Any, *data: Any, **named: Any) -> LaplaceApproximation:
    posterior = vf.condition(vf.attach(model, metric), *data, **named)
    fit = vf.find_map(posterior, key=KEY, starts=1)
    return vf.laplace(fit, second_order=False)


# --- Charts


def regression(x: Any, y: Any = None) -> None:
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    numpyro.deterministic("precision", scale**-2)
    with numpyro.plate("datum", len(x)):
        numpyro.sample("y", dist.Normal(x @ slope, scale), obs=y)


def regression_data(n: int = 30) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 2))
    return jnp.asarray(x), jnp.asarray(x @ np.array([1.0, -0.5]) + 0.7 * rng.normal(size=n))


@cache
def regression_fit(metric: str) -> LaplaceApproximation:
    metrics = {
        "Unconstrained": vf.Unconstrained(),
        "Fisher": vf.LikelihoodFisher(),
        "Euclidean": vf.Euclidean(),
    }
    return fitted(regression, metrics[metric], *regression_data())


CHARTS = {
    "Unconstrained": "draws Gaussian where the metric is flat (values of no site)",
    "Fisher": "draws Gaussian in unconstrained coordinates (no chart is known in which",
    "Euclidean": "draws Gaussian where the metric is flat (values of slope, scale)",
}


@pytest.mark.parametrize("metric", CHARTS)
def test_draws_have_the_covariance_of_the_approximation(metric: str) -> None:
    n = 20_000
    approx = regression_fit(metric)
    draws = approx.sample(KEY, n)
    assert CHARTS[metric] in repr(approx)
    assert draws.u.shape == (n, 3)
    # Gaussian in the values under the Euclidean metric, else in u = (slope, log scale).
    u, scale = approx.mode.at.u, approx.values["scale"]
    in_values = metric == "Euclidean"
    x = np.c_[draws.values["slope"], draws.values["scale"]] if in_values else draws.u
    center = np.r_[approx.values["slope"], scale] if in_values else u
    units = np.array([1.0, 1.0, scale]) if in_values else np.ones(3)
    covariance = approx.covariance * np.outer(units, units)
    sd = np.sqrt(np.diag(covariance))
    assert_allclose(np.mean(x, 0) / sd, center / sd, atol=4.0 / math.sqrt(n))
    errors = (np.cov(np.asarray(x).T) - covariance) / np.outer(sd, sd)
    assert np.abs(errors).max() < 4.0 * math.sqrt(2.0 / n)


def test_draws_are_reproducible() -> None:
    approx = regression_fit("Fisher")
    one, two, other = (approx.sample(jax.random.key(k), 100).u for k in (1, 1, 2))
    assert_allclose(one, two, rtol=0)
    assert not np.allclose(one, other)


def half_line(shape: Any) -> None:
    with numpyro.plate("element", len(shape)):
        numpyro.sample("x", dist.Gamma(shape, 1.0))


def test_draws_outside_the_support_are_replaced_and_counted() -> None:
    # Mode 1, standard deviation 1 in x: a sixth of the Gaussian is below zero.
    approx = fitted(half_line, vf.Euclidean(), jnp.array([2.0]))
    assert_allclose(approx.values["x"], 1.0, rtol=1e-8)
    draws = approx.sample(KEY, 10_000)
    assert draws.u.shape == (10_000, 1)
    assert np.all(np.asarray(draws.values["x"]) > 0)
    tried = 2 * 10_000
    assert abs(draws.outside / tried - 0.1587) < 4.0 * math.sqrt(0.1587 * 0.84 / tried)
    assert f"{draws.outside} replaced outside the support" in repr(draws)


def test_a_gaussian_that_misses_the_support_is_refused() -> None:
    approx = fitted(half_line, vf.Euclidean(), jnp.full(16, 1.0 + 1e-6))
    with pytest.raises(ConvergenceError, match="Fewer than one in a thousand"):
        approx.sample(KEY, 1000)


# --- Predictions


def test_predictive_draws_observations_and_deterministic_sites() -> None:
    approx = regression_fit("Fisher")
    _, y = regression_data()
    at_data = approx.predictive(KEY, draws=4000)
    assert at_data["y"].shape == (4000, 30)
    assert_allclose(at_data["precision"].shape, (4000,))
    assert not np.allclose(at_data["y"], y)
    elsewhere = approx.predictive(KEY, jnp.array([[2.0, 0.0], [0.0, 2.0]]), draws=4000)
    mean = 2.0 * np.asarray(approx.values["slope"])
    assert_allclose(elsewhere["y"].mean(0), mean, atol=0.1)


# --- ArviZ


def groups(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("group", 3, dim=-1):
        theta = numpyro.sample("theta", dist.Normal(mu, 1.0))
        numpyro.deterministic("excess", theta - mu)
        with numpyro.plate("repeat", 4, dim=-2):
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


GROUP_DATA = jnp.asarray(np.random.default_rng(4).normal(size=(4, 3)))


def test_arviz_object_has_groups_dims_and_evidence() -> None:
    posterior = vf.condition(vf.attach(groups, vf.JointFisher()), GROUP_DATA)
    approx = vf.laplace(vf.find_map(posterior, key=KEY, starts=1))
    data = vf.to_arviz(approx, key=KEY, draws=500)
    assert data["posterior"]["theta"].dims == ("chain", "draw", "group")
    assert data["posterior"]["theta"].shape == (1, 500, 3)
    assert data["posterior"]["excess"].dims == ("chain", "draw", "group")
    assert data["observed_data"]["y"].dims == ("repeat", "group")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "repeat", "group")
    attributes = data["posterior"].attrs
    assert attributes["log_z"] == pytest.approx(float(approx.evidence.log_z))
    assert attributes["correction"] == pytest.approx(float(approx.evidence.correction))
    assert attributes["metric"] == "JointFisher()"
    assert attributes["draws_replaced_outside_support"] == 0
    draws = approx.sample(KEY, 500)
    assert_allclose(data["posterior"]["mu"][0], draws.values["mu"])
    excess = draws.values["theta"] - draws.values["mu"][:, None]
    assert_allclose(data["posterior"]["excess"][0], excess, atol=1e-12)
    likelihood = dist.Normal(draws.values["theta"][:, None], 1.0).log_prob(GROUP_DATA)
    assert_allclose(data["log_likelihood"]["y"][0], likelihood, rtol=1e-10)
    summary = arviz.summary(data, var_names=["mu", "theta"], kind="stats")
    assert list(summary.index) == ["mu", "theta[0]", "theta[1]", "theta[2]"]
    loo = arviz.loo(data)
    assert loo.n_data_points == 12
    assert np.isfinite(loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd)


# --- NUTS


def exact_moments(x: Any, y: Any) -> tuple[Any, Any]:
    """Posterior mean and standard deviation of (slope, scale): conjugate given the scale."""
    nodes, weights = np.polynomial.legendre.leggauss(100)
    total, first, second = 0.0, np.zeros(3), np.zeros(3)
    for scale, weight in zip(np.exp(-0.3 + nodes), weights, strict=True):
        marginal = multivariate_normal(np.zeros(len(y)), scale**2 * np.eye(len(y)) + x @ x.T)
        covariance = np.linalg.inv(np.eye(2) + x.T @ x / scale**2)
        mean = np.r_[covariance @ x.T @ y / scale**2, scale]
        mass = weight * scale * np.exp(marginal.logpdf(y) - 0.5 * scale**2)
        total += mass
        first += mass * mean
        second += mass * (mean**2 + np.r_[np.diag(covariance), 0.0])
    mean = first / total
    return mean, np.sqrt(second / total - mean**2)


@pytest.mark.standard_promotion
def test_nuts_needs_only_a_short_warm_up() -> None:
    data = regression_data()
    kernel = vf.nuts(regression_fit("Fisher"))
    mcmc = MCMC(kernel, num_warmup=50, num_samples=2000, progress_bar=False)
    mcmc.run(KEY, *data, extra_fields=("num_steps", "diverging"))
    assert mcmc.get_extra_fields()["diverging"].sum() == 0
    assert np.mean(mcmc.get_extra_fields()["num_steps"]) < 8
    draws = mcmc.get_samples()
    found = np.c_[draws["slope"], draws["scale"]]
    mean, sd = exact_moments(*map(np.asarray, data))
    assert_allclose((found.mean(0) - mean) / sd, 0.0, atol=4.0 / math.sqrt(1000))
    assert_allclose(found.std(0) / sd, 1.0, atol=4.0 / math.sqrt(1000))

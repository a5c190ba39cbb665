"""The main job in float32: exact to its digits, float32 throughout, and one warning where not."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

import volform as vf
from volform import networks as nn
from volform.errors import PrecisionWarning

pytestmark = pytest.mark.float32

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)), RNG.normal(size=12)
PRECISION = np.eye(3) / 4.0 + X.T @ X / 0.25
METRICS = [None, vf.LikelihoodFisher(), vf.JointFisher(), vf.Unconstrained()]


def regression(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


def fitted(model: Any, metric: Any, x: Any, y: Any) -> Any:
    attached = model if metric is None else vf.attach(model, metric)
    posterior = vf.condition(attached, jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    return vf.laplace(vf.find_map(posterior, key=jax.random.key(0)))


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_conjugate_regression(metric: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", PrecisionWarning)
        approx = fitted(regression, metric, X, Y)
    marginal = multivariate_normal(np.zeros(12), 0.25 * np.eye(12) + 4.0 * X @ X.T)
    evidence = approx.evidence
    assert approx.mode.converged
    assert_allclose(evidence.log_z, marginal.logpdf(Y), rtol=1e-4)
    assert_allclose(evidence.log_z_second_order, marginal.logpdf(Y), rtol=1e-4)
    assert_allclose(approx.covariance, np.linalg.inv(PRECISION), rtol=1e-4, atol=1e-6)
    mode = np.linalg.solve(PRECISION, X.T @ Y / 0.25)
    assert_allclose(approx.values["beta"], mode, rtol=1e-4, atol=1e-6)


def test_conjugate_scale() -> None:
    """log Z of an exponential rate under its Gamma prior: second order, against the closed form."""

    def model(shape: Any, y: Any) -> None:
        rate = numpyro.sample("rate", dist.Gamma(shape, 2.0))
        numpyro.sample("y", dist.Exponential(rate), obs=y)

    y = np.array([0.5, 1.2, 0.3, 2.0, 0.7, 1.1, 0.2, 0.9, 0.4, 1.6])
    found = fitted(model, vf.LikelihoodFisher(), 3.0, y)
    n, rate = 3.0 + y.size, 2.0 + y.sum()
    # In log(rate) with the flat metric: -l = n t - rate e^t + const, of third and fourth
    # derivative n, so that c = -1/8 n / n^2 + (1/8 + 1/12) n^2 / n^3 = 1 / (12 n).
    laplace = n * np.log(n / rate) - n + 0.5 * np.log(2.0 * np.pi / n)
    constant = 3.0 * np.log(2.0) - np.log(2.0)  # log of 2^3 / Gamma(3)
    assert_allclose(found.evidence.log_z, constant + laplace, rtol=1e-4)
    assert_allclose(found.evidence.correction, 1.0 / (12.0 * n), rtol=1e-3)
    assert_allclose(found.values["rate"], n / rate, rtol=1e-4)


def test_results_are_float32() -> None:
    approx = fitted(regression, None, X, Y)
    evidence, draws = approx.evidence, approx.sample(jax.random.key(1), 10)
    arrays = (
        approx.values,
        approx.mode.at,
        approx.covariance,
        (evidence.log_z, evidence.log_z_second_order, evidence.correction),
        draws.values,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(arrays)} == {jnp.dtype("float32")}


def test_badly_conditioned_regression_warns_once() -> None:
    with pytest.warns(PrecisionWarning, match=r"`float32`.*jax_enable_x64") as caught:
        evidence = fitted(
            regression, vf.Unconstrained(), X * np.array([1.0, 30.0, 1e4]), Y
        ).evidence
    assert np.isfinite(evidence.log_z)
    assert len(caught) == 1


def test_search_without_hessians() -> None:
    """1,501 parameters, of a network whose evidence in float64 is -40.845."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(20, 3)), jnp.float32)
    net = nn.MLP(widths=(300,), activation=jnp.tanh, b_std=1.0)
    posterior = vf.condition(nn.regression(net, 0.3), x, x[:, :1] - x[:, 1:2])
    found = vf.laplace(posterior, curvature=vf.GGN())
    assert found.precision.in_structure().dtype == jnp.float32
    assert_allclose(found.evidence.log_z, -40.845, atol=0.01)


def test_too_few_digits_are_told() -> None:
    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 1000.0))
        numpyro.sample("y", dist.Normal(a, 0.01), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = vf.find_map(vf.condition(model, 1000.0 + 0.01 * jnp.arange(5.0)))
    assert "float32 may hold too few digits: `jax.config.update('jax_enable_x64'" in str(fit)

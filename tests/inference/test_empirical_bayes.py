"""Hyperparameters of highest evidence, against closed forms and scikit-learn."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import optimistix as optx
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import constraints
from scipy.stats import multivariate_normal
from sklearn.datasets import load_diabetes
from sklearn.linear_model import BayesianRidge

import volform as vf
from volform.errors import ModelError
from volform.inference.evidence.empirical_bayes import evidence_at

KEY = jax.random.key(0)
POSITIVE = {"scale": constraints.positive, "noise": constraints.positive}


def regression(x: Any, y: Any, scale: Any, noise: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(x.shape[1]), scale).to_event(1))
    numpyro.sample("y", dist.Normal(x @ beta, noise), obs=y)


def small_data() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3))
    return jnp.asarray(x), jnp.asarray(x @ np.array([1.0, -2.0, 0.5]) + 0.5 * rng.normal(size=20))


def exact(x: Any, y: Any, scale: Any, noise: Any) -> Any:
    """Log evidence of the regression, which is a Gaussian density of y."""
    covariance = noise**2 * jnp.eye(len(y)) + scale**2 * x @ x.T
    lower = jnp.linalg.cholesky(covariance)
    z = jax.scipy.linalg.solve_triangular(lower, y, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diag(lower)))
    return -0.5 * z @ z - log_det - 0.5 * len(y) * jnp.log(2 * jnp.pi)


METRICS = {
    "Euclidean": vf.Euclidean(),
    "likelihood": vf.LikelihoodFisher(),
    "joint": vf.JointFisher(),
}


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_gradient_is_that_of_the_closed_form(metric: str, second_order: bool) -> None:
    x, y = small_data()

    def ours(h: dict[str, Any]) -> Any:
        model = vf.attach(regression, METRICS[metric])
        posterior = vf.condition(model, x, y, h["scale"], h["noise"])
        return evidence_at(posterior, jnp.zeros(3), second_order)

    at = {"scale": jnp.array(0.8), "noise": jnp.array(0.6)}
    value, gradient = jax.jit(jax.value_and_grad(ours))(at)
    closed, closed_gradient = jax.value_and_grad(lambda h: exact(x, y, **h))(at)
    assert_allclose(value, closed, rtol=1e-10)
    for name in at:
        assert_allclose(gradient[name], closed_gradient[name], rtol=1e-8)


def poisson(y: Any, scale: Any) -> None:
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0 / scale))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


def test_gradient_through_a_mode_that_moves() -> None:
    # Not Gaussian: the mode and both determinants depend on the hyperparameter.
    y = jnp.array([3, 5, 2, 4])

    @partial(jax.jit, static_argnums=1)
    @partial(jax.value_and_grad, argnums=0)
    def ours(scale: Any, second_order: bool) -> Any:
        posterior = vf.condition(vf.attach(poisson, vf.LikelihoodFisher()), y, scale)
        return evidence_at(posterior, jnp.zeros(1), second_order)

    for second_order in (False, True):
        step = 1e-4
        _, slope = ours(1.5, second_order)
        difference = ours(1.5 + step, second_order)[0] - ours(1.5 - step, second_order)[0]
        assert_allclose(slope, difference / (2 * step), rtol=1e-6)


def test_hyperparameters_of_bayesian_ridge() -> None:
    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    flat = {"alpha_1": 0, "alpha_2": 0, "lambda_1": 0, "lambda_2": 0}
    ridge = BayesianRidge(
        fit_intercept=False, tol=1e-12, max_iter=10_000, compute_score=True, **flat
    ).fit(x, y)
    found = vf.maximize_evidence(
        lambda h: vf.condition(regression, jnp.asarray(x), jnp.asarray(y), h["scale"], h["noise"]),
        {"scale": 1.0, "noise": 1.0},
        supports=POSITIVE,
    )
    assert found.converged
    assert_allclose(found.hyperparameters["noise"] ** -2, ridge.alpha_, rtol=1e-8)
    assert_allclose(found.hyperparameters["scale"] ** -2, ridge.lambda_, rtol=1e-8)
    assert_allclose(found.approx.evidence.log_z, ridge.scores_[-1], rtol=1e-10)
    coefficients = found.approx.values["beta"]
    assert_allclose(coefficients, ridge.coef_, rtol=1e-6)
    assert "Highest evidence: log Z -485.776" in repr(found)


@pytest.mark.standard_promotion  # optax mixes integers and floats
@pytest.mark.slow
def test_optax_finds_the_same() -> None:
    x, y = small_data()

    def build(h: dict[str, Any]) -> vf.models.Posterior:
        return vf.condition(regression, x, y, h["scale"], h["noise"])

    by_bfgs = vf.maximize_evidence(build, {"scale": 1.0, "noise": 1.0}, supports=POSITIVE)
    solver = optx.OptaxMinimiser(optax.adam(0.05), rtol=1e-7, atol=1e-7)
    by_adam = vf.maximize_evidence(
        build,
        {"scale": 1.0, "noise": 1.0},
        supports=POSITIVE,
        solver=solver,
        max_steps=3000,
        tolerance=1e-3,
    )
    for name in POSITIVE:
        assert_allclose(by_adam.hyperparameters[name], by_bfgs.hyperparameters[name], rtol=1e-3)
    marginal = multivariate_normal(
        np.zeros(20),
        by_bfgs.hyperparameters["noise"] ** 2 * np.eye(20)
        + by_bfgs.hyperparameters["scale"] ** 2 * np.asarray(x @ x.T),
    )
    assert_allclose(by_bfgs.approx.evidence.log_z, marginal.logpdf(y), rtol=1e-10)


def test_unknown_support() -> None:
    x, y = small_data()
    with pytest.raises(ModelError, match=r"`supports` names \['sclae'\]"):
        vf.maximize_evidence(
            lambda h: vf.condition(regression, x, y, h["scale"], 1.0),
            {"scale": 1.0},
            supports={"sclae": constraints.positive},
        )


def test_improper_prior_is_refused_unless_allowed() -> None:
    def flat(y: Any, noise: Any) -> None:
        mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(mu, noise), obs=y)

    y = jnp.array([0.5, 1.0, 2.5])

    def build(h: dict[str, Any]) -> vf.models.Posterior:
        return vf.condition(flat, y, h["noise"])

    supports = {"noise": constraints.positive}
    with pytest.raises(ModelError, match="The prior of `mu` is improper"):
        vf.maximize_evidence(build, {"noise": 1.0}, supports=supports)
    found = vf.maximize_evidence(build, {"noise": 1.0}, supports=supports, allow_improper=True)
    # The restricted maximum likelihood of the variance: the sum of squares over n - 1.
    assert_allclose(found.hyperparameters["noise"] ** 2, np.var(y, ddof=1), rtol=1e-8)

"""The main job on a real model: eight schools, two spellings, evidence, draws, export, NUTS."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoLaplaceApproximation
from numpyro.infer.reparam import LocScaleReparam

import volform as vf

# NUTS and Adam mix dtypes inside NumPyro.
pytestmark = pytest.mark.standard_promotion

SIGMA = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])
Y = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])


def eight_schools(sigma, y=None, prior=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0) if prior is None else prior)
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


noncentered = numpyro.handlers.reparam(eight_schools, config={"theta": LocScaleReparam(centered=0)})


@pytest.fixture(scope="module")
def approx():
    posterior = vf.condition(vf.attach(eight_schools, vf.JointFisher()), SIGMA, y=Y)
    return vf.laplace(vf.find_map(posterior, key=jax.random.key(0)))


def test_evidence_is_that_of_the_design(approx):
    evidence = approx.evidence
    # Exact by quadrature: -31.31135 (reference/evidence: eight_schools_centered).
    assert float(evidence.log_z) == pytest.approx(-31.445, abs=5e-4)
    assert float(evidence.log_z_second_order) == pytest.approx(-31.319, abs=5e-4)
    assert float(evidence.correction) == pytest.approx(0.134, abs=5e-4)
    assert repr(evidence) == (
        "log Z -31.445, second order -31.319, correction c = +0.134, metric JointFisher, "
        "10 parameters\n"
        "trust fair: |c| is small; other modes and heavy tails are not seen from one mode"
    )


def test_the_other_spelling_has_the_same_mode_and_evidence(approx):
    metric = vf.JointFisher(reference=eight_schools)
    posterior = vf.condition(vf.attach(noncentered, metric), SIGMA, y=Y)
    again = vf.laplace(posterior)
    first, second = approx.evidence, again.evidence
    assert float(second.log_z) == pytest.approx(float(first.log_z), rel=1e-11)
    assert float(second.correction) == pytest.approx(float(first.correction), rel=1e-8)
    np.testing.assert_allclose(again.mode.eigenvalues, approx.mode.eigenvalues, rtol=1e-8)
    named = posterior.values(again.mode.at.u, ("mu", "tau", "theta"))
    for name, value in approx.values.items():
        np.testing.assert_allclose(named[name], value, rtol=1e-8)


def test_log_normal_prior():
    posterior = vf.condition(
        vf.attach(eight_schools, vf.JointFisher()), SIGMA, y=Y, prior=dist.LogNormal(1.0, 1.0)
    )
    evidence = vf.laplace(posterior).evidence  # exact by quadrature: -31.04614
    assert float(evidence.log_z) == pytest.approx(-31.165, abs=5e-4)
    assert float(evidence.log_z_second_order) == pytest.approx(-31.031, abs=5e-4)


def test_the_map_prints_what_a_reader_needs(approx):
    text = repr(approx.mode)
    for word in ("mu", "tau", "theta", "log q^G", "|gradient|", "smallest eigenvalue", "converged"):
        assert word in text
    assert approx.mode.converged
    assert approx.mode.gradient_norm < 1e-8


def test_unconstrained_is_auto_laplace():
    posterior = vf.condition(vf.attach(noncentered, vf.Unconstrained()), SIGMA, y=Y)
    ours = vf.laplace(posterior, second_order=False)
    assert float(ours.evidence.log_z) == pytest.approx(-37.0815464, abs=1e-6)
    guide = AutoLaplaceApproximation(noncentered)
    svi = SVI(noncentered, guide, numpyro.optim.Minimize(), Trace_ELBO())
    svi.init(jax.random.key(0), SIGMA, y=Y)
    # At our mode; NumPyro lays sites out by name, which here is also the order of the model.
    assert list(posterior.names) == sorted(posterior.names)
    theirs = guide.get_posterior({"auto_loc": ours.mode.at.u}).covariance_matrix
    np.testing.assert_allclose(ours.covariance, theirs, rtol=1e-7, atol=1e-10)


def test_draws_and_predictive(approx):
    samples = approx.sample(jax.random.key(1), 4000)
    assert samples.values["theta"].shape == (4000, 8)
    assert samples.outside == 0
    spread = np.cov(np.asarray(samples.u).T)
    np.testing.assert_allclose(spread, approx.covariance, atol=0.1 * np.abs(spread).max())
    predicted = approx.predictive(jax.random.key(2), draws=50)
    assert predicted["y"].shape == (50, 8)
    assert np.ptp(np.asarray(predicted["y"][:, 0])) > 1.0


def test_arviz_export(approx):
    exported = vf.to_arviz(approx, draws=300)
    assert exported["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert exported["posterior"].attrs["log_z"] == pytest.approx(-31.445, abs=5e-4)
    assert exported["log_likelihood"]["y"].shape == (1, 300, 8)
    np.testing.assert_array_equal(exported["observed_data"]["y"], Y)
    kind = "DataTree" if int(az.__version__.split(".")[0]) >= 1 else "InferenceData"
    assert type(exported).__name__ == kind


def test_nuts_starts_at_the_mode_with_the_laplace_covariance():
    approx = vf.laplace(vf.condition(vf.attach(noncentered, vf.Unconstrained()), SIGMA, y=Y))
    mcmc = MCMC(vf.nuts(approx), num_warmup=200, num_samples=1500, progress_bar=False)
    mcmc.run(jax.random.key(3), SIGMA, y=Y)
    mu = np.asarray(mcmc.get_samples()["mu"])
    assert mu.mean() == pytest.approx(4.4, abs=0.5)  # posteriordb: 4.4


def test_draws_outside_the_support_are_counted():
    def model(y):
        sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
        numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)

    approx = vf.laplace(vf.condition(model, jnp.array([0.5, -1.5, 2.0])))
    samples = approx.sample(jax.random.key(0), 2000)
    assert samples.outside > 0
    assert len(samples.u) == 2000
    assert np.all(np.asarray(samples.values["sigma"]) > 0)
    assert "values of sigma" in repr(approx)

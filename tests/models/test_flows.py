"""The metric of a flow: flat in its base coordinates, and right for every flow."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoBNAFNormal, AutoDelta, AutoIAFNormal

import volform as vf

Y = np.array([0.9, 1.4, 0.2])


def banana():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("w", dist.Normal(x**2, 0.1))


def regression(y):
    # "b" before "a": the guide has its own order
    b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a + b[0] + jnp.arange(3.0) * b[1], 1.0), obs=y)


def exact():
    x = np.stack([np.ones(3), np.ones(3), np.arange(3.0)], 1)
    covariance = np.eye(3) + x @ x.T
    quadratic = Y @ np.linalg.solve(covariance, Y)
    return -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * covariance)[1])


def trained(model, *args, steps, guide=AutoIAFNormal):
    guide = guide(model)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-2), Trace_ELBO(num_particles=4))
    if not steps:
        return guide, svi.get_params(svi.init(jax.random.key(0), *args))
    return guide, svi.run(jax.random.key(0), steps, *args, progress_bar=False).params


@pytest.mark.standard_promotion
def test_every_flow_gives_the_evidence():
    guide, params = trained(regression, Y, steps=0)
    posterior = vf.condition(vf.attach(regression, vf.flow_metric(guide, params)), Y)
    assert posterior.metric_name == "FlowMetric(AutoIAFNormal)"
    z = jnp.array([0.3, -0.8, 0.5])
    x = guide.get_transform(params)(z)
    u = posterior.unconstrain(
        {name: jnp.reshape(v, np.shape(posterior.values(jnp.zeros(3))[name]))
         for name, v in guide._unpack_latent(x).items()}
    )  # fmt: skip
    # det G = det(du/dz)^-2, and log q^G = log p + log |det du/dz|
    log_det = float(guide.get_transform(params).log_abs_det_jacobian(z, x))
    assert float(posterior.log_volume(u)) == pytest.approx(-log_det, abs=1e-10)
    approx = vf.laplace(posterior)
    assert "base coordinates of FlowMetric" in repr(approx)
    found = vf.evidence(approx.mode, by=vf.Importance())
    assert float(found.log_z) == pytest.approx(exact(), abs=4 * float(found.error))
    assert float(found.error) < 0.02


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_a_trained_flow_lowers_k_hat():
    before = vf.evidence(vf.condition(banana), by=vf.Importance())
    guide, params = trained(banana, steps=2000)
    posterior = vf.condition(vf.attach(banana, vf.flow_metric(guide, params)))
    after = vf.evidence(posterior, by=vf.Importance())
    assert after.diagnostics["k_hat"] < before.diagnostics["k_hat"]
    assert abs(float(after.log_z)) < 4 * float(after.error)


@pytest.mark.standard_promotion
def test_refused():
    guide, params = trained(banana, steps=0)
    with pytest.raises(vf.errors.MetricError, match="train the guide on this model"):
        vf.condition(vf.attach(regression, vf.flow_metric(guide, params)), Y)
    with pytest.raises(vf.errors.MetricError, match="automatic guide of NumPyro with a flow"):
        vf.flow_metric(AutoDelta(banana), {})
    with pytest.raises(vf.errors.MetricError, match="automatic guide of NumPyro with a flow"):
        vf.flow_metric(AutoIAFNormal(banana), params)  # never run
    guide, params = trained(banana, steps=0, guide=AutoBNAFNormal)
    with pytest.raises(vf.errors.MetricError, match="has no inverse"):
        vf.flow_metric(guide, params)

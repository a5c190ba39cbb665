"""Bridges to NumPyro's guides and predictives, and to blackjax."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.reparam import NeuTraReparam
from numpyro.optim import Adam

import volform as vf
from volform.errors import ConvergenceError, ModelError

X = jnp.array([[0.5, -1.0], [1.0, 0.3], [-0.7, 0.2], [2.0, 1.5]])
Y = jnp.array([1.2, 0.4, -0.3, 0.9])


def linear(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    offset = numpyro.sample("a", dist.Normal(0.0, 3.0))
    numpyro.sample("y", dist.Normal(offset + x @ slope, 1.0), obs=y)


def scale(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)


def angle(y):
    numpyro.sample("y", dist.VonMises(numpyro.sample("t", dist.VonMises(3.0, 1.0)), 4.0), obs=y)


@pytest.fixture(scope="module")
def approx():
    return vf.laplace(vf.condition(vf.attach(linear, vf.JointFisher()), X, y=Y))


@pytest.mark.standard_promotion
def test_guide_is_the_posterior_where_that_is_gaussian(approx):
    """Then log p - log q is log Z at every draw, without training."""
    guide = approx.guide()
    for seed in range(3):
        loss = Trace_ELBO().loss(jax.random.key(seed), guide.params, linear, guide, X, y=Y)
        assert_allclose(loss, -approx.evidence.log_z, rtol=1e-12)


@pytest.mark.standard_promotion
def test_guide_begins_and_is_trained_on(approx):
    guide = approx.guide()
    svi = SVI(linear, guide, Adam(0.01), Trace_ELBO())
    state = svi.init(jax.random.key(0), X, y=Y)
    params = svi.get_params(state)
    assert_allclose(params["auto_scale_tril"], guide.params["auto_scale_tril"], rtol=1e-10)
    state, _ = svi.update(state, X, y=Y)
    assert jnp.any(svi.get_params(state)["auto_loc"] != params["auto_loc"])
    draws = Predictive(linear, guide=guide, params=params, num_samples=7)(jax.random.key(1), X)
    assert draws["y"].shape == (7, 4)


@pytest.mark.standard_promotion
def test_guide_preconditions(approx):
    """The posterior of NeuTra's latent is then a standard normal."""
    guide = approx.guide()
    model = NeuTraReparam(guide, guide.params).reparam(linear)
    mcmc = MCMC(NUTS(model), num_warmup=100, num_samples=400, progress_bar=False)
    mcmc.run(jax.random.key(1), X, y=Y)
    latent = mcmc.get_samples()["auto_shared_latent"]
    assert_allclose(latent.mean(0), 0.0, atol=0.3)
    assert_allclose(latent.std(0), 1.0, atol=0.3)


@pytest.mark.filterwarnings("ignore:Continuous inference poorly handles circular:UserWarning")
@pytest.mark.parametrize(("model", "y"), [(scale, [0.5, -1.0, 2.0]), (angle, [3.0, -3.1, 2.9])])
def test_guide_of_a_bounded_and_of_a_circular_site(model, y):
    """The curvature of log q^G in NumPyro's coordinate: angles are cut elsewhere there."""
    metric = vf.Unconstrained() if model is scale else vf.Euclidean()
    found = vf.laplace(vf.condition(vf.attach(model, metric), jnp.array(y)))
    guide = found.guide()
    (name,) = found.values
    chart = numpyro.distributions.biject_to(guide.prototype_trace[name]["fn"].support)
    assert_allclose(chart(guide.params["auto_loc"][0]), found.values[name], rtol=1e-10)

    def log_q(u):
        point = found.posterior.unconstrain({name: chart(u)})
        return found.posterior.log_density(point)

    curvature = -jax.grad(jax.grad(log_q))(guide.params["auto_loc"][0])
    assert_allclose(guide.params["auto_scale_tril"][0, 0] ** -2, curvature, rtol=1e-6)


def test_no_guide_where_a_support_moves():
    def model(y):
        low = numpyro.sample("low", dist.Normal(0.0, 1.0))
        high = numpyro.sample("high", dist.Uniform(low, low + 3.0))
        numpyro.sample("y", dist.Normal(high, 1.0), obs=y)

    with pytest.raises(ModelError, match="`guide` of an approximation of `model`"):
        vf.laplace(vf.condition(model, Y)).guide()


@pytest.mark.standard_promotion
def test_draws_go_into_predictive(approx):
    draws = approx.sample(jax.random.key(0), 5)
    assert set(dict(draws)) == {"slope", "a"}
    found = Predictive(linear, dict(draws))(jax.random.key(1), X)["y"]
    assert found.shape == (5, 4)
    for given in (draws, draws.values):
        assert_allclose(Predictive(linear, given)(jax.random.key(1), X)["y"], found)
    assert "a" in draws
    assert "b" not in draws
    assert len(list(draws)) == len(draws) == 2
    assert draws.get("b") is None
    # Mapped over as a pytree they stay draws, with all that makes them.
    again = jax.tree.map(lambda leaf: leaf, draws)
    assert_allclose(again["slope"], draws["slope"])
    assert_allclose(again.log_q, draws.log_q)
    first = jax.tree.map(lambda leaf: leaf[0], draws)
    assert_allclose(first["a"], draws["a"][0])


def test_weights_are_not_left_out_of_draws_by_site(approx):
    drawn = vf.evidence(approx, by=vf.Importance()).draws
    with pytest.raises(ModelError, match="`draws` have weights, and by site they would count"):
        Predictive(linear, drawn)
    again = drawn.resampled(jax.random.key(0), 7)
    assert Predictive(linear, again)(jax.random.key(1), X)["y"].shape == (7, 4)


# --- blackjax


def test_blackjax_target():
    posterior = vf.condition(vf.attach(scale, vf.JointFisher()), Y)
    u = jnp.array([0.3])
    for target in (posterior, vf.find_map(posterior), vf.laplace(posterior)):
        found = vf.to_blackjax(target)
        assert_allclose(found.logdensity(u), posterior.log_density_lebesgue(u))
        assert_allclose(found.mass_matrix(u), posterior.metric(u).as_matrix())
        assert jnp.isfinite(found.logdensity(found.position))
        assert_allclose(found.values(u)["sigma"], jnp.exp(0.3))


def test_rmhmc_of_blackjax_draws_from_it(approx):
    """Flat and Gaussian: means and deviations are the approximation's."""
    found = vf.to_blackjax(approx)
    kernel = blackjax.rmhmc(found.logdensity, 0.7, found.mass_matrix, 3)

    def step(state, key):
        state, _ = kernel.step(key, state)
        return state, state.position

    keys = jax.random.split(jax.random.key(0), 800)
    _, u = jax.jit(lambda s: jax.lax.scan(step, s, keys))(kernel.init(found.position))
    drawn = jax.vmap(found.values)(u)
    for name, mean in approx.mean.items():
        assert np.all(np.abs(drawn[name].mean(0) - mean) < 0.3 * approx.std[name])
        assert_allclose(drawn[name].std(0), approx.std[name], rtol=0.3)


def test_mistakes_of_to_blackjax():
    with pytest.raises(ModelError, match="`target` of to_blackjax is of the type function"):
        vf.to_blackjax(scale)

    def impossible(y):
        numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.factor("y", -jnp.inf)

    with pytest.raises(ConvergenceError, match="give `to_blackjax` the mode"):
        vf.to_blackjax(vf.condition(impossible, Y))

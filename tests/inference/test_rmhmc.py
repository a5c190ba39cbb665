"""Laws of the generalized leapfrog, and RMHMC as a kernel of NumPyro's MCMC."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC

import volform as vf
from volform.errors import (
    ConvergenceError,
    DataError,
    ModelError,
    SingularMetricError,
    TrustWarning,
)
from volform.inference.samplers import leapfrog, rmhmc, search_time

D = 3
U, NOISE = np.array([0.3, -0.5, 0.8]), np.array([0.7, -1.1, 0.4])


def log_density(u):
    return -0.5 * u[0] ** 2 / 9.0 - 0.5 * jnp.exp(-u[0]) * (u[1:] @ u[1:]) - u[0]


def fisher(u):
    """Of the funnel, with a wave that is not its own."""
    wave = 0.3 * jnp.sin(u)
    return jnp.diag(jnp.append(1.0 / 9.0 + 1.0, jnp.exp(-u[0]) * jnp.ones(2))) + jnp.outer(
        wave, wave
    )


TARGET = leapfrog.Target(log_density, fisher)


def step(target, u, p, step_size):
    """One leapfrog step of positions and momenta: the noise is chosen to be the momentum."""
    noise = jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(target.matrix(u)), p, lower=True)
    end = leapfrog.travel(target, u[None], noise[None], step_size, jnp.ones((), int))
    return end.u[0], end.momentum[0], end


stepped = jax.jit(lambda u, p, step_size: step(TARGET, u, p, step_size))


def test_a_step_taken_back_leads_to_its_start():
    u, p, end = stepped(U, NOISE, jnp.asarray(0.4))
    back, q, _ = stepped(u, -p, jnp.asarray(0.4))
    assert np.abs(u - U).max() > 0.1
    assert_allclose(back, U, rtol=0.0, atol=1e-8)
    assert_allclose(-q, NOISE, rtol=0.0, atol=1e-8)
    assert not end.nonreversible
    assert end.steps == 2
    assert 4 <= int(end.metrics[0]) <= 12


def test_a_step_keeps_volumes():
    x, h = np.concatenate([U, NOISE]), 1e-4

    def moved(x):
        return np.concatenate(stepped(x[:D], x[D:], jnp.asarray(0.4))[:2])

    columns = [(moved(x + h * e) - moved(x - h * e)) / (2.0 * h) for e in np.eye(2 * D)]
    assert abs(np.linalg.det(np.stack(columns)) - 1.0) < 1e-6


def test_the_energy_is_of_second_order():
    travel = jax.jit(lambda size, n: leapfrog.travel(TARGET, U[None], NOISE[None], size, n))
    ends = [travel(jnp.asarray(0.8 / n), jnp.asarray(n)) for n in (8, 16, 32, 64)]
    errors = [abs(float(end.energy[0] - end.start_energy[0])) for end in ends]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert_allclose(slopes, 2.0, atol=0.1)
    # H + log p is the log density of the momentum, N(0, G), up to a constant: the law is p.
    for end in ends:
        u, p = end.u[0], end.momentum[0]
        g = np.asarray(fisher(u))
        kinetic = 0.5 * p @ np.linalg.solve(g, p) + 0.5 * np.linalg.slogdet(g)[1]
        assert_allclose(end.energy[0] + log_density(u), kinetic, rtol=1e-10)


@pytest.mark.parametrize("step_size", [20.0, 1e4])
def test_steps_without_a_solution_are_counted_and_lost(step_size):
    _, _, end = stepped(U, NOISE, jnp.asarray(step_size))
    assert bool(end.is_lost[0])
    assert np.isfinite(end.u).all() or bool(end.nonreversible[0])


def test_times_are_jittered_evenly():
    found = [float(rmhmc.van_der_corput(jnp.asarray(i), jnp.float64)) for i in range(7)]
    assert found == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]


# --- Warm-up


def test_the_longer_time_is_found_for_a_slow_coordinate():
    """Draws of an autoregression whose memory shrinks with the time, and whose cost grows."""
    rng, warmup = np.random.default_rng(0), 1000
    state = search_time.begin(2, warmup, np.float64)
    learned = jax.jit(search_time.learned, static_argnums=2)
    with jax.numpy_dtype_promotion("standard"):
        u, times = rng.normal(size=(64, 2)), []
        for i in range(warmup):
            memory = np.array([np.exp(-((float(state.time) / 8.0) ** 2)), 0.0])
            old, u = u, memory * u + np.sqrt(1.0 - memory**2) * rng.normal(size=u.shape)
            steps = np.full(64, int(2.0 * state.time))
            accept = np.full(64, np.exp(-(float(state.step_size) ** 2)))
            state = learned(state, jnp.asarray(i), warmup, old, u, accept, steps)
            times.append(float(state.time))
    assert sorted(set(times)) == [8.0, 16.0, 32.0]
    assert not state.searching
    assert times[-1] == 16.0  # 1 / 32 of a draw for each gradient, where 8 and 32 give less
    assert_allclose(np.exp(-(float(state.step_size) ** 2)), 0.9, atol=0.02)


# --- With NumPyro


def funnel(n):
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    with numpyro.plate("n", n):
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2.0)))


def y_of_scale(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.deterministic("variance", sigma**2)
    numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)


def scale_posterior(y=2.0):
    return vf.condition(vf.attach(y_of_scale, vf.JointFisher()), jnp.asarray(y))


def z_score(draws, mean):
    error = draws.std() / np.sqrt(effective_sample_size(draws))
    return (draws.mean() - mean) / error


@pytest.mark.standard_promotion
def test_a_funnel():
    """Where NUTS at its defaults is off by six standard errors, and never sees the neck."""
    posterior = vf.condition(vf.attach(funnel, vf.JointFisher()), 9)
    mcmc = MCMC(
        vf.RMHMC(posterior),
        num_warmup=200,
        num_samples=400,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    fields = ("nonreversible", "num_steps", "metric_evaluations", "adapt_state.step_size")
    mcmc.run(jax.random.key(0), extra_fields=(*fields, "accept_prob"))
    v = np.asarray(mcmc.get_samples(group_by_chain=True)["v"])
    extra = mcmc.get_extra_fields(group_by_chain=True)
    assert v.shape == (4, 400)
    assert abs(z_score(v, 0.0)) < 4.0
    assert abs(z_score((v / 3.0) ** 2, 1.0)) < 4.0
    assert v.min() < -6.0
    assert extra["diverging"].sum() + extra["nonreversible"].sum() <= 1
    assert 0.8 < extra["accept_prob"].mean() < 0.97
    assert len(np.unique(extra["adapt_state.step_size"])) == 1  # shared, and settled
    assert extra["metric_evaluations"].sum() < 6 * extra["num_steps"].sum()
    assert effective_sample_size(v) > 10.0 * extra["num_steps"].sum() / 1000.0
    data = vf.to_arviz(mcmc)
    assert data["posterior"]["x"].shape == (4, 400, 9)


def run(mcmc, fields):
    mcmc.run(jax.random.key(0), extra_fields=fields)
    jax.effects_barrier()


@pytest.mark.standard_promotion
def test_one_chain_and_more_draws(monkeypatch):
    monkeypatch.setattr(rmhmc, "TOO_SMALL", 10.0)
    mcmc = MCMC(vf.RMHMC(scale_posterior()), num_warmup=50, num_samples=300, progress_bar=False)
    with pytest.warns(TrustWarning, match=r"step size .* do not fit"):
        run(mcmc, ("energy", "potential_energy"))
    first, extra = mcmc.get_samples(), mcmc.get_extra_fields()
    assert_allclose(first["variance"], first["sigma"] ** 2)
    assert (extra["energy"] > extra["potential_energy"]).all()
    posterior = mcmc.sampler.posterior
    u = posterior.unconstrain({"sigma": first["sigma"][-1]})
    assert_allclose(extra["potential_energy"][-1], -posterior.log_density(u), rtol=1e-8)
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key)
    again = mcmc.get_samples()["sigma"]
    draws = np.stack([first["sigma"], again])
    grid = np.linspace(1e-3, 8.0, 20_001)
    weights = np.exp(-0.5 * grid**2 - 0.5 * 4.0 / grid**2) / grid
    assert abs(z_score(draws, np.average(grid, weights=weights))) < 4.0
    assert mcmc.last_state.i == 650
    data = vf.to_arviz(mcmc)
    assert data["log_likelihood"]["y"].shape[:2] == (1, 300)


def sum_of_two(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


@pytest.mark.standard_promotion
def test_bad_input():
    with pytest.raises(ModelError, match=r"`posterior` of RMHMC .* `vf.condition"):
        vf.RMHMC(y_of_scale)
    with pytest.raises(SingularMetricError, match=r"Fisher\(\)` is singular: rank 1 of 2"):
        vf.RMHMC(vf.condition(vf.attach(sum_of_two, vf.LikelihoodFisher()), jnp.ones(2)))
    kernel = vf.RMHMC(scale_posterior())
    mcmc = MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False)
    with pytest.raises(DataError, match=r"given data, which the posterior of RMHMC has already"):
        mcmc.run(jax.random.key(0), jnp.ones(1))
    for wrong in ({"sigma": jnp.ones(2)}, {"tau": jnp.ones(())}, jnp.ones(1)):
        with pytest.raises(DataError, match=r"`init_params` .* \{'sigma': \(\)\}"):
            kernel.init(jax.random.key(0), 100, wrong)
    state = kernel.init(jax.random.key(0), 100, {"sigma": 0.5})
    assert state.z["sigma"] == 0.5
    with pytest.warns(TrustWarning, match="`num_warmup` is 20"):
        kernel.init(jax.random.key(0), 20)


@pytest.mark.standard_promotion
def test_no_start_has_a_likelihood():
    def model(y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Uniform(0.0, 1e-9 + 0.0 * a), obs=y)

    posterior = vf.condition(model, jnp.asarray(0.5))
    with pytest.raises(ConvergenceError, match="1000 draws from the prior of `model`"):
        vf.RMHMC(posterior)


@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.parametrize("metric", [vf.JointFisher(), vf.Euclidean(), vf.Unconstrained()], ids=repr)
@pytest.mark.parametrize("is_centered", [True, False])
def test_the_law_depends_on_neither_metric_nor_chart(metric, is_centered):
    y = jnp.array([0.5, -0.8, 2.1, 1.4])

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        tau = numpyro.sample("tau", dist.LogNormal(0.0, 0.5))
        with numpyro.plate("n", 4):
            if is_centered:
                theta = numpyro.sample("theta", dist.Normal(mu, tau))
            else:
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                theta = numpyro.deterministic("theta", mu + tau * z)
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    kernel = vf.RMHMC(vf.condition(vf.attach(model, metric), y))
    mcmc = MCMC(
        kernel,
        num_warmup=500,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1))
    draws = np.log(np.asarray(mcmc.get_samples(group_by_chain=True)["tau"]))
    # theta and mu integrated out by hand: y ~ N(0, (1 + tau^2) I + 4 11^T).
    grid = np.linspace(-3.0, 3.0, 20_001)
    s = 1.0 + np.exp(2.0 * grid)
    deviations = np.sum((y - y.mean()) ** 2)
    log_p = -1.5 * np.log(s) - 0.5 * deviations / s - 0.5 * np.log(s + 16.0)
    log_p += -0.5 * 4.0 * float(y.mean()) ** 2 / (s + 16.0) - 0.5 * (grid / 0.5) ** 2
    weights = np.exp(log_p - log_p.max())
    assert abs(z_score(draws, np.average(grid, weights=weights))) < 4.0
    second = np.average(grid**2, weights=weights)
    assert abs(z_score(draws**2, second)) < 4.0

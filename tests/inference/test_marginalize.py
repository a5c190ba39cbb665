"""Latent sites integrated out inside a model: against closed forms, quadrature and NUTS."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density, potential_energy

import volform as vf
from volform.errors import ConvergenceError, ModelError, UnknownSiteError

Y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0])
SIGMA = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0])
COUNTS = jnp.array([[0.0, 2.0, 1.0], [5.0, 7.0, 4.0]])


def schools(sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    numpyro.deterministic("variance", tau**2)
    with numpyro.plate("school", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def schools_exact(sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    numpyro.sample("y", dist.Normal(mu, jnp.sqrt(tau**2 + sigma**2)), obs=y)


def counts(y):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with numpyro.plate("group", len(y)):
        effect = numpyro.sample("effect", dist.Normal(0.0, scale))
        rate = jnp.exp(level + effect)[:, None]
        numpyro.sample("y", dist.Poisson(jnp.broadcast_to(rate, y.shape)).to_event(1), obs=y)


def rates(y):
    """The same by rates, whose logarithms are the effects."""
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with numpyro.plate("group", len(y)):
        rate = numpyro.sample("rate", dist.LogNormal(level, scale))[:, None]
        numpyro.sample("y", dist.Poisson(jnp.broadcast_to(rate, y.shape)).to_event(1), obs=y)


def density_of(model):
    """Log density as a function of the level and the logarithm of the scale."""

    def density(x):
        values = {"level": x[0], "scale": jnp.exp(x[1])}
        return log_density(model, (COUNTS,), {}, values)[0]

    return jax.jit(jax.value_and_grad(density))


def potential_of(model):
    """As NumPyro's samplers see it: log |d tau / d log tau| is a factor from within the site."""

    def potential(x):
        return potential_energy(model, (SIGMA, Y), {}, {"mu": x[0], "tau": x[1]})

    return jax.jit(jax.value_and_grad(potential))


@pytest.mark.standard_promotion
def test_a_gaussian_is_integrated_exactly():
    found, exact = map(potential_of, (vf.marginalize(schools, "theta"), schools_exact))
    for point in ((4.0, 1.0), (-20.0, -20.0), (0.0, 6.0)):
        for ours, wanted in zip(found(jnp.array(point)), exact(jnp.array(point)), strict=True):
            np.testing.assert_allclose(ours, wanted, rtol=1e-11, atol=1e-13)


def by_quadrature(level, scale):
    x, w = np.polynomial.hermite_e.hermegauss(80)
    rate = np.exp(level + scale * x)[:, None, None]
    terms = scipy.stats.poisson.logpmf(np.asarray(COUNTS), rate).sum(-1)
    groups = scipy.special.logsumexp(terms, axis=0, b=(w / np.sqrt(2 * np.pi))[:, None])
    priors = scipy.stats.norm.logpdf(level) + scipy.stats.halfnorm.logpdf(scale)
    return groups.sum() + priors


@pytest.mark.standard_promotion
def test_counts_against_quadrature():
    first = density_of(vf.marginalize(counts, "effect"))
    corrected = vf.marginalize(counts, ["effect"], second_order=True)
    second = jax.jit(lambda values: log_density(corrected, (COUNTS,), {}, values)[0])
    for level, scale in ((0.5, 0.4), (-0.3, 1.2)):
        point = jnp.array([level, np.log(scale)])
        exact = by_quadrature(level, scale)
        gap = abs(first(point)[0] - exact)
        assert 1e-4 < gap < 0.1
        values = {"level": jnp.asarray(level), "scale": jnp.asarray(scale)}
        assert abs(second(values) - exact) < 0.2 * gap
        steps = 1e-5 * np.eye(2)
        slopes = [(first(point + h)[0] - first(point - h)[0]) / 2e-5 for h in steps]
        np.testing.assert_allclose(first(point)[1], slopes, rtol=1e-7, atol=1e-8)


@pytest.mark.standard_promotion
def test_the_spelling_does_not_matter():
    """The flat metric of the logarithms is the same of effects and of rates."""
    by_effect = density_of(vf.marginalize(counts, "effect", metric=vf.Unconstrained()))
    by_rate = density_of(vf.marginalize(rates, "rate", metric=vf.Unconstrained()))
    point = jnp.array([0.2, -0.4])
    for one, other in zip(by_effect(point), by_rate(point), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


@pytest.mark.standard_promotion
def test_draws_of_the_sites_again():
    """At one phi: the Gaussian itself, and by their weights the law that is none."""
    fixed = {"mu": jnp.full(400, 4.0), "tau": jnp.full(400, 3.0)}
    found = vf.marginalize(schools, "theta").draws(jax.random.key(1), fixed, SIGMA, Y)
    np.testing.assert_allclose(found.weights, 1 / 400, rtol=1e-9)
    precision = 1 / 9 + 1 / SIGMA**2
    mean = (4 / 9 + Y / SIGMA**2) / precision
    normal = (found.values["theta"] - mean) * np.sqrt(precision)
    np.testing.assert_allclose(normal.mean(0), 0.0, atol=4 / 400**0.5)
    np.testing.assert_allclose(normal.std(0), 1.0, atol=4 / 800**0.5)

    fixed = {"level": jnp.full(4000, 0.5), "scale": jnp.full(4000, 0.8)}
    found = vf.marginalize(counts, "effect").draws(jax.random.key(1), fixed, COUNTS)
    assert found.k_hat < 0.7
    x, w = np.polynomial.hermite_e.hermegauss(80)
    rate = np.exp(0.5 + 0.8 * x)[:, None, None]
    mass = w[:, None] * np.exp(scipy.stats.poisson.logpmf(np.asarray(COUNTS), rate).sum(-1))
    exact = 0.8 * (x @ mass) / mass.sum(0)
    weighted = found.weights @ found.values["effect"]
    # Without the weights the first is .03 off.
    np.testing.assert_allclose(weighted, exact, atol=4 * 0.5 / 4000**0.5)


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_nuts_and_the_sites_again():
    model = vf.marginalize(counts, "effect")
    mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=1000, progress_bar=False)
    mcmc.run(jax.random.key(0), COUNTS)
    assert set(mcmc.get_samples()) == {"level", "scale"}
    found = model.draws(jax.random.key(1), mcmc, COUNTS)
    again = model.draws(jax.random.key(1), mcmc.get_samples(), COUNTS)
    np.testing.assert_array_equal(again.u, found.u)
    joint = vf.evidence(vf.condition(counts, COUNTS), by=vf.Importance(20_000)).summary()
    ours = found.summary()
    for site in ("level", "scale", "effect"):
        off = (ours.mean[site] - joint.mean[site]) / joint.sd[site]
        assert np.all(np.abs(off) < 4.0 / 300**0.5)


@pytest.mark.standard_promotion
def test_handlers_around_see_what_is_left():
    """Reparametrized, or given, a site that is left is the same in the evidence."""
    marginal = vf.marginalize(schools, "theta")
    values = {"mu": jnp.asarray(1.5), "tau": jnp.asarray(0.7)}

    def density(model, given):
        return log_density(model, (SIGMA, Y), {}, given)[0]

    exact = density(schools_exact, values)
    np.testing.assert_allclose(density(marginal, values), exact, rtol=1e-12)
    for handler in (handlers.condition, handlers.substitute):
        given = handler(marginal, {"tau": values["tau"]})
        np.testing.assert_allclose(density(given, {"mu": values["mu"]}), exact, rtol=1e-12)
    other = handlers.reparam(marginal, {"mu": LocScaleReparam(0.0)})
    found = density(other, {"mu_decentered": values["mu"] / 5.0, "tau": values["tau"]})
    np.testing.assert_allclose(found, exact + np.log(5.0), rtol=1e-12)


@pytest.mark.standard_promotion
def test_other_data_are_no_old_ones(monkeypatch):
    marginal = vf.marginalize(schools, "theta")
    values = {"mu": jnp.asarray(1.5), "tau": jnp.asarray(0.7)}

    def gap(*args, **kwargs):
        found, exact = (
            log_density(model, args, kwargs, values)[0] for model in (marginal, schools_exact)
        )
        return abs(found - exact)

    data = np.array(Y)
    assert gap(SIGMA, data) < 1e-11
    data[:] = data[::-1]
    assert gap(SIGMA, data) < 1e-11
    assert gap(sigma=SIGMA, y=Y) < 1e-11
    assert gap(sigma=SIGMA[::-1], y=Y) < 1e-11
    model = vf.marginalize(scaled, "theta")
    first = log_density(model, (Y,), {}, {"phi": jnp.zeros(())})[0]
    monkeypatch.setitem(globals(), "NOISE", 0.5)
    second = log_density(model, (Y,), {}, {"phi": jnp.zeros(())})[0]
    anew = log_density(vf.marginalize(scaled, "theta"), (Y,), {}, {"phi": jnp.zeros(())})[0]
    assert second == anew != first


NOISE = 1.0


def scaled(y):
    phi = numpyro.sample("phi", dist.Normal(0.0, 1.0))
    theta = numpyro.sample("theta", dist.Normal(phi, 1.0))
    numpyro.sample("y", dist.Normal(theta, NOISE), obs=y)


def linked(y):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    numpyro.sample("phi", dist.Normal(theta, 1.0))
    numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def endless(y):
    phi = numpyro.sample("phi", dist.Normal(0.0, 1.0))
    theta = numpyro.sample("theta", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(phi, 1.0), obs=y)
    numpyro.factor("slope", theta)


@pytest.mark.standard_promotion
def test_bad_input():
    values = {name: jnp.ones(()) for name in ("phi", "mu", "tau")}

    def run(model, *args):
        return log_density(model, args, {}, values)

    for name in ("thetas", "y", "variance"):
        with pytest.raises(UnknownSiteError, match=rf"`sites` .*'{name}'.*'mu', 'tau', 'theta'"):
            run(vf.marginalize(schools, name), SIGMA, Y)
    with pytest.raises(ModelError, match="`phi` of `linked` depends on `theta`"):
        run(vf.marginalize(linked, "theta"), Y)
    for sites in ((), 3, ["theta", "theta"]):
        with pytest.raises(ModelError, match="`sites` of marginalize is"):
            vf.marginalize(linked, sites)
    with pytest.raises(ModelError, match=r"`sites` .* names all latent sites"):
        run(vf.marginalize(linked, ["theta", "phi"]), Y)
    model = vf.marginalize(endless, "theta")
    assert run(model, Y)[0] == -np.inf
    with pytest.raises(ConvergenceError, match=r"`samples` has 2 draws .*`theta` has no"):
        model.draws(jax.random.key(0), {"phi": jnp.zeros(2)}, Y)
    with pytest.raises(UnknownSiteError, match=r"`samples` of draws lacks \['mu'\]"):
        vf.marginalize(schools, "theta").draws(jax.random.key(0), {"tau": jnp.ones(2)}, SIGMA, Y)

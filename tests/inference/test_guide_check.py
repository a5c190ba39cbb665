"""ELBO and k-hat of guides against closed forms: of Gaussians both are known."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
from numpy.testing import assert_allclose
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

import volform as vf
from volform.errors import ConvergenceError, ModelError
from volform.inference import GuideCheck, check_guide
from volform.results import Level

pytestmark = [pytest.mark.standard_promotion, pytest.mark.rank_promotion]

Y = np.array([1.0, -0.5])


def pair(y, rho):
    """Two numbers with unit variances and a correlation, seen with noise: a Gaussian posterior."""
    prior = jnp.array([[1.0, rho], [rho, 1.0]])
    z = numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(2), prior))
    numpyro.sample("y", dist.Normal(z, 1e3).to_event(1), obs=y)


def exact(rho):
    """Mean, precision and log Z."""
    prior = np.array([[1.0, rho], [rho, 1.0]])
    precision = np.linalg.inv(prior) + 1e-6 * np.eye(2)
    normal: Any = scipy.stats.multivariate_normal
    log_z = normal.logpdf(Y, np.zeros(2), prior + 1e6 * np.eye(2))
    return np.linalg.solve(precision, 1e-6 * Y), precision, log_z


def set_up(kind, model, *args):
    guide = kind(model)
    SVI(model, guide, numpyro.optim.Adam(0.1), Trace_ELBO()).init(jax.random.key(0), *args)
    return guide


def test_of_the_posterior_itself():
    mean, precision, log_z = exact(0.9)
    guide = set_up(AutoMultivariateNormal, pair, Y, 0.9)
    params = {"auto_loc": mean, "auto_scale_tril": np.linalg.cholesky(np.linalg.inv(precision))}
    check = check_guide(pair, guide, params, Y, rho=0.9)
    assert_allclose([check.elbo, check.log_z], log_z, rtol=1e-12)
    assert check.elbo_error < 1e-12
    assert check.k_hat < 0.5
    assert check.trust.level is Level.GOOD
    assert str(check).startswith(f"ELBO {log_z:.3f} ± ")


@pytest.mark.parametrize("rho", [0.2, 0.4, 0.9])
def test_of_independent_normals(rho):
    """`log p / q = 1/2 e^T (1 - C) e` for e ~ N(0, I), C the precision scaled to unit diagonal.

    Of its largest eigenvalue mu = rho the tail of p / q falls as t^(-1 / mu): k is rho. The ELBO
    lacks the divergence `KL(q | p) = -1/2 log det C`.
    """
    mean, precision, log_z = exact(rho)
    guide = set_up(AutoDiagonalNormal, pair, Y, rho)
    params = {"auto_loc": mean, "auto_scale": np.diag(precision) ** -0.5}
    check = check_guide(pair, guide, params, Y, rho)
    scaled = precision / np.sqrt(np.outer(np.diag(precision), np.diag(precision)))
    elbo = log_z + 0.5 * np.linalg.slogdet(scaled)[1]
    assert abs(check.elbo - elbo) < 4.0 * check.elbo_error
    # The variance of 1/2 e^T A e with A = 1 - C is |A|^2 / 2.
    sd = np.linalg.norm(np.eye(2) - scaled) / math.sqrt(2.0)
    assert_allclose(check.elbo_error, sd / math.sqrt(10_000), rtol=0.1)
    # Over keys its deviation is .1 from 10,000 draws, whose tail is not yet quite a power: + .05.
    assert abs(check.k_hat - rho) < 0.2
    if rho > 0.7:
        assert check.trust.level is Level.POOR
        assert "k-hat" in str(check)
    else:
        assert check.trust.level is not Level.POOR
        assert abs(check.log_z - log_z) < 4.0 * check.log_z_error


def logarithm(y):
    s = numpyro.sample("s", dist.LogNormal(0.5, 2.0))
    numpyro.sample("y", dist.Normal(jnp.log(s), 1.0), obs=y)


def by_hand(y):
    loc = numpyro.param("loc", 0.0)
    numpyro.sample("s", dist.LogNormal(loc, numpyro.param("scale", 1.0)))


def test_charts_of_sites():
    """The posterior of log s is Normal: with the right Jacobians both guides are exact."""
    y = 1.3
    mean, sd = (0.5 / 4.0 + y) / 1.25, 1.25**-0.5
    log_z = scipy.stats.norm.logpdf(y, 0.5, 5.0**0.5)
    auto = set_up(AutoNormal, logarithm, y)
    of_auto = check_guide(logarithm, auto, {"s_auto_loc": mean, "s_auto_scale": sd}, y)
    of_hand = check_guide(logarithm, by_hand, {"loc": mean, "scale": sd}, y)
    for check in (of_auto, of_hand):
        assert_allclose([check.elbo, check.log_z], log_z, rtol=1e-10)
        assert check.k_hat < 0.5


def spread(y):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    numpyro.deterministic("variance", tau**2)
    with numpyro.plate("data", 3):
        numpyro.sample("y", dist.Normal(0.0, tau), obs=y)


def test_beside_quadrature():
    """A Laplace approximation as a guide, of a skewed posterior."""
    y = np.array([0.1, 0.4, 0.6])

    def log_density(tau):
        normal: Any = scipy.stats.norm
        return math.log(2.0) + normal.logpdf(tau) + np.sum(normal.logpdf(y, 0.0, tau))

    total = scipy.integrate.quad(lambda tau: math.exp(log_density(tau)), 0.0, 9.0, epsabs=1e-12)[0]
    log_z = math.log(total)
    guide = vf.laplace(vf.condition(spread, jnp.asarray(y))).guide()
    check = check_guide(spread, guide, guide.params, y, key=jax.random.key(1))
    assert abs(check.log_z - log_z) < 4.0 * check.log_z_error
    mean, sd = (float(guide.params[f"auto_{name}"].ravel()[0]) for name in ("loc", "scale_tril"))

    def term(u):
        q: Any = scipy.stats.norm(mean, sd)
        return q.pdf(u) * (log_density(math.exp(u)) + u - q.logpdf(u))

    elbo = scipy.integrate.quad(term, mean - 8.0 * sd, mean + 8.0 * sd, epsabs=1e-12)[0]
    assert abs(check.elbo - elbo) < 4.0 * check.elbo_error
    assert elbo < log_z


def test_draws_outside_of_the_support():
    """NumPyro's `Uniform` has its density outside as well."""

    def model():
        numpyro.sample("x", dist.Uniform(0.0, 1.0))

    def guide():
        numpyro.sample("x", dist.Normal(numpyro.param("loc", 0.5), 0.5))

    check = check_guide(model, guide, {"loc": jnp.array(0.5)})
    assert check.elbo == -math.inf
    assert math.isnan(check.elbo_error)
    assert abs(check.log_z) < 4.0 * check.log_z_error
    assert check.trust.level is Level.POOR
    assert "outside the support" in check.trust.reason
    with pytest.raises(ConvergenceError, match=r"zero at all of 500 draws: the guide lies outside"):
        check_guide(model, guide, {"loc": jnp.array(99.0)}, draws=500)


@pytest.mark.float32
def test_single_precision():
    guide = set_up(AutoMultivariateNormal, pair, Y.astype(np.float32), 0.9)
    mean, precision, log_z = exact(0.9)
    tril = np.linalg.cholesky(np.linalg.inv(precision))
    params = {"auto_loc": jnp.asarray(mean), "auto_scale_tril": jnp.asarray(tril)}
    check = check_guide(pair, guide, params, Y.astype(np.float32), 0.9, draws=1000)
    assert_allclose(check.elbo, log_z, rtol=1e-5)
    assert check.k_hat < 0.5


# --- Misuse


def two(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


def of_one(y):
    numpyro.sample("a", dist.Normal(numpyro.param("loc", 0.0), 1.0))


def with_a_third(y):
    for name in ("a", "b", "c"):
        numpyro.sample(name, dist.Normal(numpyro.param("loc", 0.0), 1.0))


def with_a_point(y):
    of_one(y)
    numpyro.sample("b", dist.Delta(numpyro.param("point", 0.0)))


def of_counts(y):
    numpyro.sample("k", dist.Poisson(2.0))
    two(y)


def with_counts(y):
    numpyro.sample("k", dist.Poisson(numpyro.param("rate", 2.0)))
    with_a_third(y)


def in_parts(y):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", 4, subsample_size=2):
        numpyro.sample("y", dist.Normal(a, 1.0), obs=y)


def not_a_number(y):
    numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.factor("f", jnp.nan)


def without_sites(y):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


LOC = {"loc": jnp.array(0.3)}
MISUSE = {
    "no parameters": (two, of_one, {}, r"`params` of check_guide are \[\], and .* \['loc'\]"),
    "others": (two, of_one, LOC | {"log": 1.0}, r"\['loc', 'log'\].*`svi.run"),
    "no mapping": (two, of_one, 3.0, "are float, and"),
    "NaN": (two, of_one, {"loc": jnp.nan}, "not all finite: the training has diverged"),
    "a site too few": (two, of_one, LOC, "`b` is not in both `model` and `guide`"),
    "a site too many": (two, with_a_third, LOC, "`c` is not in both"),
    "a point": (two, with_a_point, LOC | {"point": 1.0}, "draws 1 numbers, .*2.*`AutoDelta`"),
    "counts": (of_counts, with_counts, LOC | {"rate": 2.0}, "`k` is discrete.*sum it out"),
    "no guide": (two, None, LOC, "`guide` of check_guide is None; it should be a function"),
    "no model": (3, of_one, LOC, "`model` of check_guide is 3; it"),
    "nothing latent": (without_sites, without_sites, {}, "has no latent site"),
    "a part of the data": (in_parts, of_one, LOC, "plate `data` takes a part.*subsample_size"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    model, guide, params, message = MISUSE[name]
    with pytest.raises(ModelError, match=message):
        check_guide(model, guide, params, jnp.array(0.5))


def test_points_and_densities_that_are_no_numbers():
    guide = set_up(AutoDelta, two, 0.5)
    with pytest.raises(ModelError, match="draws 0 numbers"):
        check_guide(two, guide, {"a_auto_loc": 0.1, "b_auto_loc": 0.2}, 0.5)
    with pytest.raises(ConvergenceError, match=r"NaN at 100 of 100 draws.*`params`"):
        check_guide(not_a_number, of_one, LOC, 0.5, draws=100)
    bad: Any = ((99, "too few to fit the tail"), (2.5, "whole number"))
    for draws, message in bad:
        with pytest.raises(ModelError, match=message):
            check_guide(two, of_one, LOC, 0.5, draws=draws)
    with pytest.raises(ModelError, match="`key` of check_guide"):
        check_guide(two, of_one, LOC, 0.5, key=3)  # pyright: ignore[reportArgumentType]


def test_shown():
    trust = vf.results.Trust(Level.FAIR, "k-hat 0.60")
    check = GuideCheck(-31.5, 0.012, 0.6, -31.4, 0.02, trust, 10_000)
    assert str(check) == (
        "ELBO -31.500 ± 0.012, k-hat 0.60, log Z -31.400 ± 0.02 (10,000 draws)\n"
        "trust fair: k-hat 0.60"
    )

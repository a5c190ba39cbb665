"""The globe of docs/globe.md: six waters of nine tosses, under four metrics in three spellings.

Expected numbers are of the formulas in one variable, with the metric `g(p) dp^2` written by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import expit, ndtr
from numpy.testing import assert_allclose
from scipy import optimize, stats

import volform as vf


def globe(water, tosses=9):
    p = numpyro.sample("p", dist.Uniform(0.0, 1.0))
    numpyro.sample("water", dist.Binomial(tosses, p), obs=water)


def by_logit(water, tosses=9):
    x = numpyro.sample("x", dist.Logistic(0.0, 1.0))
    p = numpyro.deterministic("p", expit(x))
    numpyro.sample("water", dist.Binomial(tosses, p), obs=water)


def by_probit(water, tosses=9):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    p = numpyro.deterministic("p", ndtr(z))
    numpyro.sample("water", dist.Binomial(tosses, p), obs=water)


SPELLINGS = {"p": (globe, lambda p: p), "x": (by_logit, expit), "z": (by_probit, ndtr)}


def flat_p(p):
    return jnp.ones_like(p)


def flat_logit(p):
    return (p * (1.0 - p)) ** -2.0


def flat_probit(p):
    return 2.0 * jnp.pi * jnp.exp(jax.scipy.special.ndtri(p) ** 2)


def likelihood(p):
    return 9.0 / (p * (1.0 - p))


def joint(p):
    return likelihood(p) + flat_logit(p) / 3.0  # of the logistic law that logit p has


def expected(g, water=6, tosses=9):
    """Mode, log Z and log Z to second order by the coefficients of the expansion in p."""

    def volume(p):
        return 0.5 * jnp.log(g(p))

    def loss(p):
        return volume(p) - water * jnp.log(p) - (tosses - water) * jnp.log1p(-p)

    def derivatives(f, count):
        found = []
        for _ in range(count):
            f = jax.grad(f)
            found.append(f)
        return [float(d(mode)) for d in found]

    mode = optimize.brentq(lambda p: float(jax.grad(loss)(p)), 0.3, 0.9, xtol=1e-14)
    _, h, t, q = derivatives(loss, 4)
    b1, b2 = derivatives(volume, 2)
    c = -q / h**2 / 8 + 5 * t**2 / h**3 / 24 + 0.5 * (b2 + b1**2) / h - 0.5 * b1 * t / h**2
    choose = np.log(float(stats.binom.pmf(water, tosses, mode))) - water * np.log(mode)
    log_z = choose - (tosses - water) * np.log1p(-mode) - float(loss(mode))
    log_z += 0.5 * np.log(2.0 * np.pi) - 0.5 * (np.log(h) - 2.0 * float(volume(mode)))
    return mode, log_z, log_z + np.log1p(c)


CASES = {
    ("Euclidean", "p"): flat_p,
    ("Euclidean", "x"): flat_logit,
    ("Euclidean", "z"): flat_probit,
    ("Unconstrained", "p"): flat_logit,
    ("on p", "z"): flat_p,
    ("LikelihoodFisher", "p"): likelihood,
    ("LikelihoodFisher", "x"): likelihood,
    ("LikelihoodFisher", "z"): likelihood,
    ("JointFisher", "p"): joint,
    ("JointFisher", "x"): joint,
    ("JointFisher", "z"): joint,
}
METRICS = {
    "Euclidean": vf.Euclidean(),
    "Unconstrained": vf.Unconstrained(),
    "on p": {"p": vf.Euclidean()},
    "LikelihoodFisher": vf.LikelihoodFisher(),
    "JointFisher": vf.JointFisher(reference=globe),
}
# To the digits of the page: mode, log Z to second order.
PAGE = {
    flat_p: (0.667, -2.3115),
    flat_logit: (0.636, -2.3028),
    flat_probit: (0.642, -2.3025),
    likelihood: (0.650, -2.3030),
    joint: (0.648, -2.3037),
}


@pytest.mark.parametrize(("name", "site"), CASES, ids=map(" ".join, CASES))
def test_the_metric_and_not_the_spelling_decides(name, site):
    g, (model, to_p) = CASES[name, site], SPELLINGS[site]
    approx = vf.laplace(vf.condition(vf.attach(model, METRICS[name]), 6))
    found = (
        float(to_p(approx.values[site])),
        approx.evidence.log_z,
        approx.evidence.log_z_second_order,
    )
    assert_allclose(found, expected(g), rtol=1e-9)
    assert (round(found[0], 3), round(found[2], 4)) == PAGE[g]
    assert abs(found[2] - np.log(0.1)) < 0.01


@pytest.mark.parametrize(
    ("metric", "extra"),
    [(vf.LikelihoodFisher(), 0.5), (vf.Euclidean(), 0.0), (vf.Unconstrained(), 1.0)],
    ids=["Fisher", "Euclidean", "Unconstrained"],
)
def test_more_tosses(metric, extra):
    approx = vf.laplace(vf.condition(vf.attach(globe, metric), 24, tosses=36))
    assert_allclose(approx.values["p"], (24 + extra) / (36 + 2 * extra), rtol=1e-10)


def test_the_table_of_the_book():
    """The Gaussian is cut off at one: 0.157 before, 0.150 on the support."""
    found = vf.laplace(vf.condition(globe, 6)).summary()
    mode, sd = 2 / 3, np.sqrt(2 / 9 / 9)
    cut = stats.truncnorm(-mode / sd, (1 - mode) / sd, mode, sd)
    assert_allclose([found.mean["p"], found.sd["p"]], [cut.mean(), cut.std()], rtol=1e-8)
    assert (round(sd, 3), round(cut.std(), 3)) == (0.157, 0.150)


def test_the_exact_answer():
    found = vf.evidence(vf.condition(globe, 6))
    assert_allclose(found.log_z, np.log(0.1), rtol=1e-11)
    beta = stats.beta(7, 4)
    table = found.summary()
    assert_allclose([table.mean["p"], table.sd["p"]], [beta.mean(), beta.std()], rtol=1e-9)

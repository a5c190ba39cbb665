"""The same scalars over NumPyro's reparametrizations, and over spellings written by hand."""

from collections.abc import Callable
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro import handlers
from numpyro.distributions import constraints, transforms
from numpyro.infer.reparam import (
    ExplicitReparam,
    HaarReparam,
    LocScaleReparam,
    TransformReparam,
)
from scipy.special import logsumexp

import volform as vf
from volform.geometry import DiagonalField

from .scalars import Scalars, assert_other_coordinates, assert_same, scalars_of


def check_spellings(
    spellings: list[Callable], sites: list[str], *data: Any, **named: Any
) -> Scalars:
    """All spellings (models with metrics attached) agree; returns what they agree on."""
    first, *others = [scalars_of(model, sites, *data, **named) for model in spellings]
    for other in others:
        assert_other_coordinates(first, other)
        assert_same(first, other)
    return first


# --- Hierarchical models: scale and location


def groups(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    log_tau = [transforms.AffineTransform(0.0, 0.4), transforms.ExpTransform()]
    tau = numpyro.sample("tau", dist.TransformedDistribution(dist.Normal(0.0, 1.0), log_tau))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def test_hierarchical_model_with_the_default_metric() -> None:
    config: dict = {"theta": LocScaleReparam(centered=0.2), "tau": TransformReparam()}
    spellings = [groups, handlers.reparam(groups, config=config)]
    check_spellings(spellings, ["mu", "tau", "theta"], jnp.array([0.9, -0.3, 2.1]))


# --- Regression


def logistic(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(4), 2.0).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(20, 4)) + 0.5)
    y = jnp.asarray(rng.integers(0, 2, 20))
    haar = handlers.reparam(logistic, config={"beta": HaarReparam(dim=-1)})
    metric = vf.LikelihoodFisher()  # which belongs to no spelling
    spellings: list[Callable] = [vf.attach(model, metric) for model in (logistic, haar)]
    check_spellings(spellings, ["beta"], x, y)


# --- Embedded supports


def proportions(counts: Any) -> None:
    p = numpyro.sample("p", dist.Dirichlet(jnp.array([2.0, 1.5, 1.0, 3.0])))
    numpyro.sample("counts", dist.Multinomial(30, p), obs=counts)


def proportions_by_sticks(counts: Any) -> None:
    """The same law: each stick breaks off a Beta-distributed share of what is left."""
    concentration = jnp.array([2.0, 1.5, 1.0, 3.0])
    rest = jnp.cumsum(concentration[::-1])[::-1]
    with numpyro.plate("stick", 3):
        v = numpyro.sample("v", dist.Beta(concentration[:-1], rest[1:]))
    left = jnp.concatenate([jnp.ones(1), jnp.cumprod(1.0 - v)])
    p = numpyro.deterministic("p", left * jnp.concatenate([v, jnp.ones(1)]))
    numpyro.sample("counts", dist.Multinomial(30, p), obs=counts)


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_simplex() -> None:
    counts = jnp.array([9, 4, 5, 12])
    metric = {"p": vf.Euclidean()}  # of the simplex as it lies in R^4
    spellings: list[Callable] = [vf.attach(proportions, metric)]
    spellings.append(vf.attach(proportions_by_sticks, metric))
    check_spellings(spellings, ["p"], counts)


def _loadings(tril: Any, x: Any, y: Any) -> None:
    numpyro.sample("y", dist.Normal(x @ tril.T, 0.5), obs=y)


def loadings(x: Any, y: Any) -> None:
    _loadings(numpyro.sample("tril", dist.LKJCholesky(3, 2.0)), x, y)


def loadings_by_angles(x: Any, y: Any) -> None:
    """The same law, in other coordinates of the partial correlations."""
    a = numpyro.sample("a", dist.ImproperUniform(constraints.real_vector, (), (3,)))
    bent = jnp.sinh(a) + 0.3 * a
    to_tril = transforms.CorrCholeskyTransform()
    tril = numpyro.deterministic("tril", to_tril(bent))
    log_det = to_tril.log_abs_det_jacobian(bent, tril) + jnp.sum(jnp.log(jnp.cosh(a) + 0.3))
    numpyro.factor("prior", dist.LKJCholesky(3, 2.0).log_prob(tril) + log_det)
    _loadings(tril, x, y)


@pytest.mark.standard_promotion
@pytest.mark.slow
def test_cholesky_factor_of_a_correlation() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 3))
    tril = np.linalg.cholesky(np.array([[1.0, 0.6, -0.2], [0.6, 1.0, 0.1], [-0.2, 0.1, 1.0]]))
    y = x @ tril.T + 0.5 * rng.normal(size=(8, 3))
    metric = {"tril": vf.Euclidean()}  # of the factors as they lie in R^(3 x 3)
    spellings: list[Callable] = [vf.attach(m, metric) for m in (loadings, loadings_by_angles)]
    check_spellings(spellings, ["tril"], jnp.asarray(x), jnp.asarray(y))


# --- Mixture


def _mixture(mu: Any, y: Any) -> None:
    weight = numpyro.sample("weight", dist.Beta(3.0, 3.0))
    mixing = dist.Categorical(probs=jnp.stack([weight, 1.0 - weight]))
    with numpyro.plate("datum", len(y)):
        component = dist.Normal(mu, 0.8)
        numpyro.sample("y", dist.MixtureSameFamily(mixing, component), obs=y)


def mixture(y: Any) -> None:
    base = dist.Normal(jnp.array([-1.0, 0.5]), 1.0).to_event(1)
    ordered = dist.TransformedDistribution(base, transforms.OrderedTransform())
    _mixture(numpyro.sample("mu", ordered), y)


def mixture_by_gap(y: Any) -> None:
    """The same law, in the midpoint and the square root of the gap."""
    middle = numpyro.sample("middle", dist.ImproperUniform(constraints.real, (), ()))
    root = numpyro.sample("root", dist.ImproperUniform(constraints.softplus_positive, (), ()))
    gap = root**2
    mu = numpyro.deterministic("mu", jnp.stack([middle - gap / 2.0, middle + gap / 2.0]))
    prior = dist.Normal(-1.0, 1.0).log_prob(mu[0]) + dist.LogNormal(0.5, 1.0).log_prob(gap)
    numpyro.factor("prior", prior + jnp.log(2.0 * root))
    _mixture(mu, y)


@pytest.mark.standard_promotion
@pytest.mark.slow
def test_mixture_with_ordered_means() -> None:
    rng = np.random.default_rng(2)
    y = jnp.asarray(np.concatenate([rng.normal(-1.5, 0.8, 12), rng.normal(1.5, 0.8, 18)]))
    metric = {"mu": vf.Euclidean()}
    spellings: list[Callable] = [vf.attach(m, metric) for m in (mixture, mixture_by_gap)]
    check_spellings(spellings, ["mu", "weight"], y)


# --- One prior law of a scale, written in many ways


def scale(exponent: Any, y: Any) -> None:
    """sigma, its variance, its precision: the latent value is a power of sigma."""
    power = transforms.PowerTransform(exponent)
    x = numpyro.sample("x", dist.TransformedDistribution(dist.HalfNormal(1.0), power))
    sigma = numpyro.deterministic("sigma", power.inv(x))
    numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)


def scale_as_probability(y: Any) -> None:
    u = numpyro.sample("u", dist.Uniform(0.0, 1.0))
    sigma = numpyro.deterministic("sigma", np.sqrt(2.0) * jax.lax.erf_inv(u))
    numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)


def plain_scale(y: Any) -> None:
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)


stretched_log = [transforms.ExpTransform().inv, transforms.AffineTransform(1.0, 2.0)]
scale_as_logarithm = handlers.reparam(plain_scale, config={"sigma": ExplicitReparam(stretched_log)})


class Power(eqx.Module):
    """The metric c sigma^p: |d sigma|^2, |d sigma^2|^2, ... by the choice of numbers."""

    factor: Any
    power: Any

    def __call__(self, sigma: Any) -> Any:
        return self.factor * sigma**self.power


POWERS = {
    "|d sigma|^2": (1.0, 0.0),
    "Fisher, 40 |d log sigma|^2": (40.0, -2.0),
    "|d sigma^2|^2": (4.0, 2.0),
    "|d sigma^-2|^2": (4.0, -6.0),
}


def scale_scalars(model: Callable, squares: float, *exponent: float) -> list[Scalars]:
    """Scalars under each metric for 20 draws, of which the likelihood knows the squares only."""
    data = (*map(jnp.asarray, exponent), jnp.full(20, np.sqrt(squares / 20)))
    powers = [Power(*map(jnp.asarray, numbers)) for numbers in POWERS.values()]
    metrics = [{"sigma": DiagonalField(power)} for power in powers]
    return [scalars_of(vf.attach(model, metric), ["sigma"], *data) for metric in metrics]


def exact_log_z(squares: float) -> float:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    sigma = np.sqrt(squares / 20) * np.exp(3.0 * nodes)
    log_prior = 0.5 * np.log(2.0 / np.pi) - 0.5 * sigma**2
    log_likelihood = -0.5 * squares / sigma**2 - 20 * np.log(np.sqrt(2.0 * np.pi) * sigma)
    return logsumexp(log_prior + log_likelihood + np.log(3.0 * sigma), b=weights)


@cache
def in_sigma() -> list[Scalars]:
    return scale_scalars(scale, 7.4239, 1.0)


def test_modes_of_a_scale_belong_to_the_metric() -> None:
    # With NumPyro's AutoDelta they belong to the spelling: these are the modes of sigma in the
    # model written in sigma, log sigma, sigma^2 and sigma^-2.
    modes = [found.values["sigma"] for found in in_sigma()]
    assert_allclose(modes, [0.6038, 0.6189, 0.5897, 0.6527], atol=6e-5)


# Sum of squares, exact log Z, and under |d sigma|^2 and Fisher: log Z of first and second order.
@pytest.mark.parametrize(
    ("squares", "exact", "euclidean", "fisher"),
    [
        (7.4239, -20.2835, (-20.3262, None), (-20.2901, None)),
        (43.786038, -38.12531, (-38.15437, -38.12533), (-38.12627, -38.12495)),
    ],
)
def test_evidence_of_a_scale(squares: float, exact: float, euclidean: tuple, fisher: tuple) -> None:
    found = scale_scalars(scale, squares, 1.0)
    assert abs(exact_log_z(squares) - exact) < 1e-4
    for scalars, (first, second) in zip(found, (euclidean, fisher), strict=False):
        assert abs(scalars.log_z - first) < 1e-4
        assert second is None or abs(scalars.log_z_second_order - second) < 1e-5
    for scalars in found:
        errors = np.array([scalars.log_z, scalars.log_z_second_order]) - exact_log_z(squares)
        assert abs(errors[1]) < max(0.1 * abs(errors[0]), 5e-4)


@pytest.mark.parametrize(
    ("model", "exponent"),
    [
        (scale, [2.0]),
        (scale, [-2.0]),
        (scale_as_logarithm, []),
        pytest.param(scale_as_probability, [], marks=pytest.mark.slow),
    ],
    ids=["variance", "precision", "logarithm", "probability"],
)
def test_spellings_of_a_scale(model: Callable, exponent: list) -> None:
    for found, other in zip(in_sigma(), scale_scalars(model, 7.4239, *exponent), strict=True):
        assert_other_coordinates(found, other)
        assert_same(found, other)

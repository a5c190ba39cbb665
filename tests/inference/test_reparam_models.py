"""The same scalars over NumPyro's reparametrizations, and over spellings written by hand."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import constraints, transforms
from numpyro.infer.reparam import (
    ExplicitReparam,
    HaarReparam,
    LocScaleReparam,
    TransformReparam,
)
from numpy.testing import assert_allclose

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


def schools(sigma: Any, y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def test_eight_schools_by_reference() -> None:
    # Exact by quadrature: -31.31135
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    noncentered = handlers.reparam(schools, config={"theta": LocScaleReparam(centered=0)})
    spellings: list[Callable] = [
        vf.attach(schools, vf.JointFisher()),
        vf.attach(noncentered, vf.JointFisher(reference=schools)),
    ]
    agreed = check_spellings(spellings, ["mu", "tau", "theta"], sigma, y=y)
    assert_allclose(agreed.log_z, -31.445, atol=5e-4)
    assert_allclose(agreed.log_z_second_order, -31.319, atol=5e-4)
    assert_allclose(agreed.correction, 0.134, atol=5e-4)


def groups(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    log_tau = [transforms.AffineTransform(0.0, 0.4), transforms.ExpTransform()]
    tau = numpyro.sample("tau", dist.TransformedDistribution(dist.Normal(0.0, 1.0), log_tau))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


GROUP_DATA = jnp.array([0.9, -0.3, 2.1])


def test_hierarchical_model_with_the_default_metric() -> None:
    configs: list[dict] = [
        {"theta": LocScaleReparam(centered=0), "tau": TransformReparam()},
        {"theta": LocScaleReparam(centered=0.6)},
    ]
    spellings = [groups, *(handlers.reparam(groups, config=config) for config in configs)]
    check_spellings(spellings, ["mu", "tau", "theta"], GROUP_DATA)


# --- Regression


def logistic(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(4), 2.0).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def logistic_qr(x: Any, y: Any) -> None:
    """In gamma = R beta, of which the columns of Q are the regressors."""
    q, r = jnp.linalg.qr(x)
    gamma = numpyro.sample("gamma", dist.ImproperUniform(constraints.real_vector, (), (4,)))
    beta = numpyro.deterministic("beta", jax.scipy.linalg.solve_triangular(r, gamma))
    log_det = -jnp.sum(jnp.log(jnp.abs(jnp.diagonal(r))))
    numpyro.factor("prior", dist.Normal(0.0, 2.0).log_prob(beta).sum() + log_det)
    numpyro.sample("y", dist.Bernoulli(logits=q @ gamma), obs=y)


@pytest.mark.standard_promotion
def test_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(20, 4)) + 0.5)
    y = jnp.asarray(rng.integers(0, 2, 20))
    haar = handlers.reparam(logistic, config={"beta": HaarReparam(dim=-1)})
    # The Fisher metric of the likelihood belongs to no spelling; the prior keeps it regular.
    metric = vf.LikelihoodFisher()
    spellings: list[Callable] = [vf.attach(m, metric) for m in (logistic, logistic_qr, haar)]
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


@pytest.mark.standard_promotion
def test_simplex() -> None:
    counts = jnp.array([9, 4, 5, 12])
    metric = {"p": vf.Euclidean()}  # of the simplex as it lies in R^4
    spellings: list[Callable] = [vf.attach(proportions, metric)]
    spellings.append(vf.attach(proportions_by_sticks, metric))
    check_spellings(spellings, ["p"], counts)


def correlations(y: Any) -> None:
    tril = numpyro.sample("tril", dist.LKJCholesky(3, 2.0))
    with numpyro.plate("datum", len(y)):
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(3), scale_tril=tril), obs=y)


def correlations_by_angles(y: Any) -> None:
    """The same law, in other coordinates of the partial correlations."""
    x = numpyro.sample("x", dist.ImproperUniform(constraints.real_vector, (), (3,)))
    bent = jnp.sinh(x) + 0.3 * x
    to_tril = transforms.CorrCholeskyTransform()
    tril = numpyro.deterministic("tril", to_tril(bent))
    log_det = to_tril.log_abs_det_jacobian(bent, tril) + jnp.sum(jnp.log(jnp.cosh(x) + 0.3))
    numpyro.factor("prior", dist.LKJCholesky(3, 2.0).log_prob(tril) + log_det)
    with numpyro.plate("datum", len(y)):
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(3), scale_tril=tril), obs=y)


@pytest.mark.standard_promotion
def test_cholesky_factor_of_a_correlation() -> None:
    rng = np.random.default_rng(1)
    tril = np.linalg.cholesky(np.array([[1.0, 0.6, -0.2], [0.6, 1.0, 0.1], [-0.2, 0.1, 1.0]]))
    y = jnp.asarray(rng.normal(size=(25, 3)) @ tril.T)
    metric = {"tril": vf.Euclidean()}
    spellings: list[Callable] = [vf.attach(correlations, metric)]
    spellings.append(vf.attach(correlations_by_angles, metric))
    check_spellings(spellings, ["tril"], y)


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
def test_mixture_with_ordered_means() -> None:
    rng = np.random.default_rng(2)
    y = jnp.asarray(np.concatenate([rng.normal(-1.5, 0.8, 12), rng.normal(1.5, 0.8, 18)]))
    metric = {"mu": vf.Euclidean()}
    spellings: list[Callable] = [vf.attach(m, metric) for m in (mixture, mixture_by_gap)]
    check_spellings(spellings, ["mu", "weight"], y)


# --- One prior law of a scale, written in six ways


def scale(y: Any) -> None:
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)


def scale_as_probability(y: Any) -> None:
    u = numpyro.sample("u", dist.Uniform(0.0, 1.0))
    sigma = numpyro.deterministic("sigma", jax.scipy.special.ndtri(0.5 * (1.0 + u)))
    numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)


def _explicit(transform: transforms.Transform) -> Callable:
    return handlers.reparam(scale, config={"sigma": ExplicitReparam(transform)})


SCALE_SPELLINGS = {
    "log sigma": _explicit(transforms.ComposeTransform([transforms.ExpTransform().inv, transforms.AffineTransform(0.0, 2.0)])),
    "sigma^2": _explicit(transforms.PowerTransform(2.0)),
    "sigma^-2": _explicit(transforms.PowerTransform(-2.0)),
    "softplus": _explicit(transforms.SoftplusTransform().inv),
    "probability": scale_as_probability,
}


class Power(eqx.Module):
    """The metric c sigma^power: |d sigma|^2, |d sigma^2|^2, ... by the choice of numbers."""

    factor: Any
    power: Any

    def __call__(self, sigma: Any) -> Any:
        return self.factor * sigma**self.power


# The metric, and the mode of sigma and the evidence that belong to it. With NumPyro's AutoDelta
# and AutoLaplaceApproximation such figures belong to the spelling instead: the modes are those
# of the models written in sigma, log sigma, sigma^2 and sigma^-2.
SCALE_METRICS = {
    "|d sigma|": (Power(1.0, 0.0), 0.6038, -20.3262),
    "|d log sigma|, Fisher": (Power(40.0, -2.0), 0.6189, -20.2901),
    "|d sigma^2|": (Power(4.0, 2.0), 0.5897, None),
    "|d sigma^-2|": (Power(4.0, -6.0), 0.6527, None),
}


def scale_scalars(model: Callable) -> list[Scalars]:
    y = jnp.full(20, np.sqrt(7.424 / 20))  # the likelihood knows the sum of squares only
    metrics = [
        DiagonalField(jax.tree.map(jnp.asarray, power)) for power, _, _ in SCALE_METRICS.values()
    ]
    return [scalars_of(vf.attach(model, {"sigma": g}), ["sigma"], y) for g in metrics]


@pytest.fixture(scope="module")
def in_sigma() -> list[Scalars]:
    return scale_scalars(scale)


def test_scale_of_a_normal(in_sigma: list[Scalars]) -> None:
    # Exact by quadrature: -20.2835
    for found, (_, mode, log_z) in zip(in_sigma, SCALE_METRICS.values(), strict=True):
        assert_allclose(found.values["sigma"], mode, atol=6e-5)
        assert log_z is None or abs(found.log_z - log_z) < 1e-4
        assert abs(found.log_z_second_order + 20.2835) < 0.1 * abs(found.log_z + 20.2835)


@pytest.mark.parametrize("spelling", SCALE_SPELLINGS)
def test_spellings_of_a_scale(spelling: str, in_sigma: list[Scalars]) -> None:
    others = scale_scalars(SCALE_SPELLINGS[spelling])
    for found, other in zip(in_sigma, others, strict=True):
        assert_other_coordinates(found, other)
        assert_same(found, other)

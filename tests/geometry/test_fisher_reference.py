"""The Fisher metric, its volume, connection and curvature against an independent program."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform.geometry import christoffel, log_volume, scalar_curvature

REFERENCE = json.loads(Path(__file__).with_name("fisher_reference.json").read_text("utf-8"))

COVARIANCE = np.array([[2.0, 0.5], [0.5, 1.0]])
DESIGN = np.array([[1.0, -1.0], [1.0, 0.0], [1.0, 0.5], [1.0, 2.0]])

METRICS = {
    "normal_mu_sigma": vf.Fisher(dist.Normal),
    "normal_mu_logsigma": vf.Fisher(lambda mu, s: dist.Normal(mu, jnp.exp(s))),
    "bernoulli_p": vf.Fisher(dist.BernoulliProbs),
    "bernoulli_logit": vf.Fisher(dist.BernoulliLogits),
    "binomial10_p": vf.Fisher(lambda p: dist.BinomialProbs(p, 10)),
    "poisson_rate": vf.Fisher(dist.Poisson),
    "exponential_rate": vf.Fisher(dist.Exponential),
    "gamma_shape_rate": vf.Fisher(dist.Gamma),
    "gamma_shape_mean": vf.Fisher(lambda a, mean: dist.Gamma(a, a / mean)),
    "beta_ab": vf.Fisher(dist.Beta),
    "dirichlet3": vf.Fisher(lambda a, b, c: dist.Dirichlet(jnp.stack([a, b, c]))),
    "categorical3_p": vf.Fisher(lambda p, q: dist.CategoricalProbs(jnp.stack([p, q, 1 - p - q]))),
    "categorical3_logits": vf.Fisher(lambda a, b: dist.CategoricalLogits(jnp.stack([a, b, 0 * a]))),
    "laplace_mu_b": vf.Fisher(dist.Laplace),
    "cauchy_x0_g": vf.Fisher(dist.Cauchy),
    "logistic_mu_s": vf.Fisher(dist.Logistic),
    "student_t5_mu_s": vf.Fisher(lambda mu, s: dist.StudentT(5.0, mu, s)),
    "mvn_mean_fixed_cov": vf.Fisher(
        lambda a, b: dist.MultivariateNormal(jnp.stack([a, b]), COVARIANCE)
    ),
    "logistic_regression": vf.Fisher(lambda a, b: dist.BernoulliLogits(DESIGN @ jnp.stack([a, b]))),
    # The Fisher metric of x | v plus the precision of the prior v ~ Normal(0, 3).
    "funnel2_augmented": vf.Fisher(lambda v, x: dist.Normal(x, jnp.exp(v / 2)))
    + vf.pullback(vf.Euclidean(3.0), lambda v, x: v),
}


def test_every_reference_family_is_tested():
    assert set(METRICS) == set(REFERENCE["families"])


@pytest.mark.parametrize("name", METRICS)
def test_metric_volume_connection_curvature(name):
    metric = METRICS[name]

    @jax.jit
    def computed(*x):
        point = x if len(x) > 1 else x[0]
        return {
            "G": metric(point).as_matrix(),
            "sqrt_det_G": jnp.exp(log_volume(metric, point)),
            "christoffel": christoffel(metric, point),
            "scalar_curvature": scalar_curvature(metric, point),
        }

    for case in REFERENCE["families"][name]:
        for what, actual in computed(*case["x"]).items():
            desired = np.array(case[what])
            atol = 1e-10 * max(1.0, np.abs(desired).max())
            assert_allclose(actual, desired, rtol=1e-10, atol=atol, err_msg=what)


def probabilities(angles):
    """The simplex as the positive part of a sphere of radius 2, in spherical coordinates."""
    sines = jnp.append(1.0, jnp.cumprod(jnp.sin(angles)))
    return (sines * jnp.append(jnp.cos(angles), 1.0)) ** 2


def volume(metric, dimensions, nodes=20):
    """Integral of sqrt(det G) over the cube of angles, by Gauss-Legendre quadrature."""
    t, w = np.polynomial.legendre.leggauss(nodes)
    t, w = np.pi / 4 * (t + 1), np.pi / 4 * w
    points = np.array(list(itertools.product(t, repeat=dimensions)))
    weights = np.prod(list(itertools.product(w, repeat=dimensions)), -1)
    return weights @ np.exp(jax.jit(jax.vmap(lambda x: log_volume(metric, x)))(points))


@pytest.mark.parametrize(
    ("name", "family", "dimensions"),
    [
        ("bernoulli", lambda p: dist.BernoulliProbs(p[0]), 1),
        ("binomial10", lambda p: dist.BinomialProbs(p[0], 10), 1),
        ("categorical3", dist.CategoricalProbs, 2),
        ("categorical4", dist.CategoricalProbs, 3),
    ],
)
def test_jeffreys_volumes(name, family, dimensions):
    metric = vf.Fisher(lambda angles: family(probabilities(angles)))
    actual = volume(metric, dimensions)
    assert_allclose(actual, REFERENCE["jeffreys_volumes"][name], rtol=1e-10)

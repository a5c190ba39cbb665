"""Laplace draws along geodesics: their density, by quadrature, and in another chart."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import transforms

import volform as vf
from volform.errors import ConvergenceError
from volform.geometry import exp_determinant, log, log_volume
from volform.inference import ExponentialMap
from volform.inference.laplace import placed_at

Y = jnp.array([0.3, -1.2, 2.1, 0.8, 1.9, -0.4])
ALONG = ExponentialMap()


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(3.0))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


@pytest.fixture(scope="module")
def approx():
    return vf.laplace(vf.condition(vf.attach(model, vf.LikelihoodFisher()), Y))


@pytest.fixture(scope="module")
def draws(approx):
    return approx.sample(jax.random.key(1), 1000, along=ALONG)


def test_density_by_geometry(approx, draws):
    """By `log` and `exp_determinant` in (mu, log sigma), with the metric in closed form."""
    metric = vf.geometry.DiagonalField(
        lambda u: jnp.array([1.0, 2.0]) * len(Y) * jnp.stack([jnp.exp(-2.0 * u[1]), 1.0])
    )
    center, u = jnp.asarray(approx.at.u), jnp.asarray(draws.u[0])
    v = log(metric, center, u)
    precision = approx.precision.as_matrix()
    height = 0.5 * jnp.linalg.slogdet(precision)[1] - math.log(2.0 * math.pi)
    volume = log_volume(metric, u) - log_volume(metric, center)
    stretch = jnp.log(exp_determinant(metric, center, v)) - volume
    wanted = height - 0.5 * v @ precision @ v - stretch
    assert_allclose(draws.log_q[0], wanted, rtol=1e-5)


def test_log_prob_is_the_density_of_the_draws(approx, draws):
    few = {name: value[:5] for name, value in draws.values.items()}
    found = approx.log_prob(few, along=ALONG)
    assert_allclose(found + few["sigma"] * 0.0 + np.log(few["sigma"]), draws.log_q[:5], rtol=1e-5)


def test_weights_give_the_evidence(approx, draws):
    """A density that does not integrate to one is seen: the mean of the weights is Z."""
    exact = vf.evidence(approx.posterior, by=vf.Quadrature()).log_z
    weights = np.exp(draws.log_p - draws.log_q - exact)
    error = weights.std() / math.sqrt(len(weights))
    assert error < 0.02
    assert abs(weights.mean() - 1.0) < 4.0 * error
    importance = vf.Importance(draws=1000, df=math.inf, rounds=0, along=ALONG)
    found = vf.evidence(approx, by=importance)
    assert abs(found.log_z - exact) < 4.0 * found.error
    assert found.diagnostics["effective_draws"] > 700
    assert np.isfinite(found.draws.u).all()


class SinhTransform(transforms.Transform):
    domain = codomain = dist.constraints.real

    def __call__(self, x):
        return jnp.sinh(x)

    def _inverse(self, y):
        return jnp.arcsinh(y)

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return jnp.log(jnp.cosh(x))

    def tree_flatten(self):
        return (), ((), {})


def test_density_in_another_chart(approx):
    exact = ExponentialMap(tolerance=1e-12)

    def density(posterior, u):
        values = {name: np.asarray(value) for name, value in posterior.values(u).items()}
        fit = vf.laplace(posterior)
        jacobian = posterior.layout.constrain_with_log_det(u)[1]
        return jnp.asarray(fit.log_prob(values, along=exact)) + jacobian

    phi = {"mu": SinhTransform(), "sigma": transforms.PowerTransform(-2.0)}
    found = vf.check_invariance(density, approx.posterior, phi, points=1)
    assert found.rule == "log density"
    assert found.defects["log density"] < 1e-8


def test_what_is_past_a_conjugate_point_is_no_draw():
    """On a sphere of three dimensions all geodesics meet twice at once, at the antipode."""

    def sphere():
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    metric = vf.geometry.DiagonalField(lambda x: 4.0 / (1.0 + x @ x) ** 2 * jnp.ones_like(x))
    posterior = vf.condition(vf.attach(sphere, {"x": metric}))
    chart = ExponentialMap().chart(posterior, jnp.array([1.0, 0.0, 0.0]))  # where G is 1
    w = np.random.default_rng(0).normal(size=(50, 3)) * 2.0
    length = np.linalg.norm(w, axis=1)
    u, log_det, inside = placed_at(posterior, chart, w)
    assert np.array_equal(inside, length < np.pi)
    stretch = (np.sin(length) / length) ** 2 * (0.5 * (1.0 + (u**2).sum(1))) ** 3
    assert_allclose(log_det[inside], -np.log(stretch[inside]), atol=1e-4)


def test_values_that_no_geodesic_leads_to(approx):
    with pytest.raises(ConvergenceError, match="1 of 1 points that no regular geodesic"):
        approx.log_prob({"mu": 1e9, "sigma": 1e-9}, along=ALONG)

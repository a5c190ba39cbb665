"""The chart of the sphere."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import biject_to, constraints
from numpyro.infer import MCMC, NUTS

from volform.models import StereographicTransform

U = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))


def test_numpyro_knows_the_chart():
    assert isinstance(biject_to(constraints.sphere), StereographicTransform)


def test_image_and_inverse():
    chart = StereographicTransform()
    x = chart(U)
    assert x.shape == chart.forward_shape(U.shape) == (5, 3)
    assert chart.inverse_shape(x.shape) == U.shape
    assert_allclose(jnp.sum(x**2, -1), 1.0, rtol=1e-14)
    assert_allclose(chart.inv(x), U, rtol=1e-12)
    assert_allclose(chart(jnp.zeros(2)), [0.0, 0.0, 1.0])


def test_area_element_is_that_of_the_embedding():
    chart = StereographicTransform()
    jacobians = jax.vmap(jax.jacfwd(chart))(U)
    grams = jnp.swapaxes(jacobians, -1, -2) @ jacobians
    expected = 0.5 * jnp.linalg.slogdet(grams)[1]
    assert_allclose(chart.log_abs_det_jacobian(U, chart(U)), expected, rtol=1e-12)


def test_area_of_the_sphere():
    """The area element over all of the plane adds up to 4 pi."""
    s = np.linspace(-8.0, 8.0, 401)
    radius = np.exp(s)
    u = jnp.stack([radius, jnp.zeros_like(radius)], -1)
    density = jnp.exp(StereographicTransform().log_abs_det_jacobian(u, None))
    area = np.sum(2.0 * np.pi * radius**2 * density) * (s[1] - s[0])
    assert_allclose(area, 4.0 * np.pi, rtol=1e-5)


@pytest.mark.standard_promotion
def test_stock_nuts_runs_on_the_sphere():
    """The von Mises-Fisher density exp(k mu . x) on the sphere: E[mu . x] = coth k - 1 / k."""
    k, mu = 4.0, jnp.array([0.6, 0.0, 0.8])

    def model():
        flat = dist.ImproperUniform(constraints.sphere, (), event_shape=(3,))
        x = numpyro.sample("x", flat)
        numpyro.factor("pull", k * x @ mu)

    mcmc = MCMC(NUTS(model), num_warmup=200, num_samples=800, progress_bar=False)
    mcmc.run(jax.random.key(0))
    cosine = np.asarray(mcmc.get_samples()["x"] @ mu)
    assert abs(cosine.mean() - (1.0 / np.tanh(k) - 1.0 / k)) < 4.0 * cosine.std() / np.sqrt(200)

"""`condition` and `Posterior`: densities, metric and coordinates on every kind of model."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose
from numpyro import handlers
from numpyro.infer.util import potential_energy

import volform as vf

from .zoo import CASES, Y

# One of the models has a `numpyro.param` and a key, which `condition` says.
pytestmark = pytest.mark.filterwarnings("ignore:.*held at:volform.errors.TrustWarning")


def points(posterior, count=2):
    return jnp.asarray(np.random.default_rng(0).uniform(-1.0, 1.0, (count, posterior.dim)))


def numpyro_density(case, posterior):
    """Minus NumPyro's potential energy, as a function of u."""
    model = handlers.seed(case.model, 0)

    def density(u):
        parts = {site.name: site.part(u) for site in posterior.layout.sites}
        with jax.ensure_compile_time_eval():  # for models with Python control flow on data
            return -potential_energy(model, case.args, case.kwargs, parts)

    return density


def euclidean_gram(posterior, u):
    """J^T J with J the Jacobian of all latent values by forward-mode differentiation."""
    jacobian = jax.jacfwd(lambda u: ravel_pytree(posterior.values(u))[0])(u)
    return jacobian.T @ jacobian


@pytest.mark.parametrize("case", CASES)
def test_density_metric_and_coordinates(case):
    posterior = vf.condition(case.model, *case.args, **case.kwargs)
    reference = numpyro_density(case, posterior)

    @jax.jit
    @jax.vmap
    def ours(u):
        return (
            posterior.log_density_lebesgue(u),
            posterior.log_density(u),
            posterior.metric(u).as_matrix(),
            posterior.unconstrain(posterior.values(u)),
        )

    @jax.jit
    @jax.vmap
    def expected(u):
        density, gram = reference(u), euclidean_gram(posterior, u)
        return density, density - 0.5 * jnp.linalg.slogdet(gram)[1], gram, u

    u = points(posterior)
    for actual, desired in zip(ours(u), expected(u), strict=True):
        assert_allclose(actual, desired, rtol=1e-10, atol=1e-10)


# --- Posterior under transformations


def growth(y, sigma):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("n", 3):
        size = numpyro.sample("size", dist.LogNormal(rate, sigma))
        numpyro.deterministic("log_size", jnp.log(size))
        numpyro.sample("y", dist.Normal(size, 1.0), obs=y)


@pytest.fixture(scope="module")
def posterior():
    return vf.condition(growth, jnp.array([1.0, 2.0, 4.0]), sigma=jnp.array(0.5))


def test_gradient_is_the_derivative(posterior):
    u, direction = points(posterior)
    slope = jax.jit(jax.grad(posterior.log_density))(u)
    h = 1e-5
    ends = jax.jit(jax.vmap(posterior.log_density))(
        jnp.stack([u - h * direction, u + h * direction])
    )
    assert_allclose(slope @ direction, (ends[1] - ends[0]) / (2 * h), rtol=1e-7)


def test_jit_and_vmap_change_nothing(posterior):
    u = points(posterior, 3)
    one_by_one = jnp.stack([posterior.log_density(point) for point in u])
    assert_allclose(jax.jit(jax.vmap(posterior.log_density))(u), one_by_one, rtol=1e-14)


def test_posterior_passes_into_jit_with_other_data(posterior):
    """Arrays are leaves: the same compiled function serves other data of the same shape."""
    compiled = 0

    @eqx.filter_jit
    def density(posterior, u):
        nonlocal compiled
        compiled += 1
        return posterior.log_density(u)

    other = vf.condition(growth, jnp.array([3.0, 1.0, 2.0]), sigma=jnp.array(0.7))
    u = points(posterior)[0]
    assert_allclose(density(posterior, u), posterior.log_density(u), rtol=1e-14)
    assert_allclose(density(other, u), other.log_density(u), rtol=1e-14)
    assert compiled == 1


@pytest.mark.leaks
def test_condition_under_jit_differentiates_in_the_data(posterior):
    u, data = points(posterior)[0], jnp.array([1.0, 2.0, 4.0])

    def density(y):
        return vf.condition(growth, y, sigma=jnp.array(0.5)).log_density(u)

    size = posterior.values(u)["size"]
    assert_allclose(jax.jit(jax.grad(density))(data), size - data, rtol=1e-12)


def test_values_by_name(posterior):
    u = points(posterior)[0]
    values = posterior.values(u, ("log_size", "size"))
    assert list(values) == ["log_size", "size"]
    assert_allclose(values["log_size"], jnp.log(values["size"]))
    assert list(posterior.values(u)) == list(posterior.names) == ["rate", "size"]


def test_unconstrain_broadcasts_and_takes_integers(posterior):
    u = posterior.unconstrain({"rate": 1, "size": 2})
    assert_allclose(u, [0.0, *[np.log(2.0)] * 3])
    assert u.dtype == jnp.float64


def test_repr(posterior):
    assert repr(posterior) == (
        "Posterior of growth: 4 parameters (rate, size[3]), observed y\n"
        "metric Euclidean()\n  rate: Euclidean()\n  size: Euclidean()"
    )


# --- What a model may be


def mean_model(y, scale):
    mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@dataclasses.dataclass
class Unhashable:
    scale: float

    def __call__(self, y):
        mean_model(y, self.scale)

    def model(self, y):
        mean_model(y, self.scale)


class Module(eqx.Module):
    scale: jax.Array

    def __call__(self, y):
        mean_model(y, self.scale)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: functools.partial(mean_model, scale=2.0), id="partial"),
        pytest.param(lambda: Unhashable(2.0), id="instance"),
        pytest.param(lambda: Unhashable(2.0).model, id="method"),
        pytest.param(lambda: Module(jnp.array(2.0)), id="equinox module"),
        pytest.param(lambda: handlers.seed(lambda y: mean_model(y, 2.0), 0), id="seeded"),
    ],
)
def test_any_callable_is_a_model(model):
    posterior = vf.condition(model(), jnp.asarray(Y))
    density = eqx.filter_jit(lambda posterior, u: posterior.log_density(u))(posterior, jnp.ones(1))
    expected = dist.Normal(0.0, 2.0).log_prob(1.0) + dist.Normal(1.0, 1.0).log_prob(Y).sum()
    assert_allclose(density, expected, rtol=1e-14)


def test_handlers_that_change_what_is_latent():
    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        nu = numpyro.sample("nu", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(nu, 1.0).expand([3]))

    assert vf.condition(handlers.condition(model, {"y": Y})).names == ("mu", "nu")
    assert vf.condition(handlers.condition(model, {"y": Y, "nu": 0.3})).names == ("mu",)
    assert vf.condition(handlers.do(model, {"nu": 0.3})).names == ("mu", "nu", "y")
    lifted = handlers.lift(lambda: numpyro.param("scale", 1.0), {"scale": dist.LogNormal(0.0, 1.0)})
    assert vf.condition(lifted).names == ("scale",)


def test_a_model_that_is_undefined_at_the_origin():
    """The origin of u is not special: v / |v| is NaN there, which NumPyro's validation refuses."""

    def model(y):
        v = numpyro.sample("v", dist.Normal(0.0, 1.0).expand([3]))
        numpyro.sample("y", dist.Normal(v / jnp.linalg.norm(v), 1.0), obs=y)

    posterior = vf.condition(model, Y)
    assert jnp.isfinite(posterior.log_density(jnp.array([0.1, 0.2, 0.3])))


# --- float32


@pytest.mark.float32
@pytest.mark.parametrize("metric", [vf.Euclidean(), vf.JointFisher()])
def test_float32(metric):
    """Data in float64 are taken in float32; densities and metric stay there, and are right."""
    posterior = vf.condition(vf.attach(growth, metric), np.array([1.0, 2.0, 4.0]), sigma=0.5)
    u = points(posterior)[0]
    values = posterior.values(u)
    density = jax.jit(lambda u: posterior.log_density_lebesgue(u))(u)
    assert density.dtype == posterior.log_volume(u).dtype == posterior.metric(u).as_matrix().dtype
    assert density.dtype == jnp.float32
    rate, size = (np.asarray(values[name], np.float64) for name in ("rate", "size"))
    z = (np.log(size) - rate) / 0.5
    expected = np.log(rate) - rate - 0.5 * z @ z - 3.0 * np.log(0.5 * np.sqrt(2.0 * np.pi))
    expected -= 0.5 * np.sum((size - [1.0, 2.0, 4.0]) ** 2) + 1.5 * np.log(2.0 * np.pi)
    assert_allclose(density, expected + np.log(rate), rtol=1e-5)
    assert_allclose(posterior.unconstrain(values), u, atol=1e-6)

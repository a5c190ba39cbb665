"""The first trace of a model: one program, unless it needs values in Python or has bad ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpy.testing import assert_allclose, assert_array_equal
from tests.compilations import compilations
from tests.schools import SIGMA, Y, eight_schools

import volform as vf
from volform.errors import DataError
from volform.models import inspection, recording
from volform.models.recording import recorded

NAN = np.array([0.3, np.nan, 1.2])


def test_conditioning_hardly_compiles():
    """It took 21 programs when NumPyro's checks were each one of their own."""
    jax.clear_caches()
    with compilations() as first:
        vf.condition(vf.attach(eight_schools, vf.JointFisher()), SIGMA, y=Y)
    assert 1 <= len(first) <= 8
    with compilations() as again:
        vf.condition(vf.attach(eight_schools, vf.JointFisher()), Y**2 + 1.0, y=SIGMA)
    assert len(again) <= 2  # the data


@pytest.mark.parametrize("together", [0.0, 1.0])
def test_a_recording_is_evaluated_whole(together, monkeypatch):
    """As one program or, a long one, equation by equation; what is not traced is kept."""
    monkeypatch.setattr(recording, "TOGETHER", together)

    def f(x, y):
        return {"sum": x + y, "same": x, "name": "f", "one": jnp.ones(2), "plain": 3}

    found = recorded(f, jnp.arange(3.0), jax.ShapeDtypeStruct((), float)).evaluated(
        jnp.arange(3.0), jnp.array(2.0)
    )
    assert_array_equal(found["sum"], [2.0, 3.0, 4.0])
    assert_array_equal(found["same"], [0.0, 1.0, 2.0])
    assert_array_equal(found["one"], np.ones(2))
    assert (found["name"], found["plain"]) == ("f", 3)


# --- Where values are needed, operation by operation


def on_data(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0 if y.mean() > 0.0 else 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def on_count(y):
    z = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([int(y.max())]))
    numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)


@pytest.mark.parametrize("model", [on_data, on_count])
def test_python_on_values(model, monkeypatch):
    """The same posterior, by a trace that runs operation by operation."""
    eager = []
    first = inspection._first_trace
    monkeypatch.setattr(inspection, "_first_trace", lambda p: eager.append(p) or first(p))
    y = jnp.array([1.0, 3.0])
    posterior = vf.condition(model, y)
    assert len(eager) == 1
    assert posterior.dim == (1 if model is on_data else 3)


def on_levels(group, y):
    z = numpyro.sample("z", dist.LKJCholesky(2, 1.0))
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([len(np.unique(group))]))
    numpyro.sample("y", dist.Normal(mu[group], 1.0 + z[1, 0] ** 2), obs=y)


@pytest.mark.standard_promotion
def test_functions_of_numpy_of_the_data_are_traced_with_constants():
    """Of which no operation is compiled by itself: NumPyro's own trace compiles some sixty."""
    group, y = np.array([0, 1, 1, 2]), np.arange(4.0)
    with compilations() as programs:
        posterior = vf.condition(on_levels, group, y)
    assert len(programs) <= 12
    assert posterior.dim == 4
    u = np.array([0.3, -1.0, 0.2, 0.5])
    z = np.tanh(0.3)
    # LKJ with concentration one is uniform in the correlation, whose slope in u is 1 - z^2.
    expected = np.log(0.5 * (1.0 - z**2)) + scipy.stats.norm.logpdf(u[1:]).sum()
    expected += scipy.stats.norm.logpdf(y, u[1:][group], 1.0 + z**2).sum()
    assert_allclose(posterior.log_density_lebesgue(u), expected, rtol=1e-12)


# --- What NumPyro refuses at one point is refused when a model is conditioned


def with_scale(scale, y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, scale), obs=y)


def held_covariates(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu * NAN, 1.0), obs=y)


def negative_latent_scale(y):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(0.0, -tau), obs=y)


def in_a_mixture(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    each = dist.Normal(jnp.stack([mu, -mu]), jnp.array([1.0, -1.0]) * jnp.exp(mu))
    both = dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), each)
    numpyro.sample("y", both.expand([3]).to_event(1), obs=y)


def in_a_factor(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.factor("likelihood", dist.Normal(mu * NAN, 1.0).log_prob(y).sum())


@pytest.mark.parametrize(
    ("model", "argument"),
    [
        (functools.partial(with_scale, np.array([1.0, -1.0, 1.0])), "scale"),
        (held_covariates, "loc"),
        (negative_latent_scale, "scale"),
        (in_a_mixture, "scale"),
        (in_a_factor, "loc"),
    ],
)
def test_arguments_of_distributions(model, argument):
    message = f"could not be run .*Normal distribution got invalid {argument} parameter"
    with pytest.raises(DataError, match=message):
        vf.condition(model, np.ones(3))


def test_arguments_that_are_bad_at_the_origin_alone():
    """As a standard deviation that is its own coordinate."""

    def model(y):
        scale = numpyro.sample("scale", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, jnp.abs(scale)), obs=y)

    assert vf.condition(model, np.ones(3)).dim == 1


# --- Observed values are looked at, also those that are computed


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        (lambda y, mu: jnp.log(y - 1.0), r"`y` holds 1 values that are NaN .* index \(0,\)"),
        (lambda y, mu: y[:2], r"`y` has data of shape \(2,\)"),
        (lambda y, mu: 2.3 - y, r"`y` holds 1 values outside the support of its distribution, Exp"),
        (lambda y, mu: 2.3 - y + mu, r"`y` holds 1 values outside the support of its distribution"),
    ],
)
def test_observed_values_that_are_computed(observe, message):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        rate = jnp.exp(mu) * jnp.ones(3)
        numpyro.sample("y", dist.Exponential(rate), obs=observe(y, mu))

    with pytest.raises(DataError, match=message):
        vf.condition(model, np.array([0.5, 2.5, 2.0]))


class Written(dist.constraints.Constraint):
    """A support by one of the methods that only arrays of JAX have."""

    event_dim = 0

    def tree_flatten(self):
        return (), ((), {})

    def __call__(self, x):
        return x.at[...].add(1.0) > 0.0


class OnWritten(dist.Normal):
    support = Written()


@pytest.mark.parametrize("y", [0.5, -1.5])
def test_a_support_that_is_written_for_jax(y):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", OnWritten(mu * jnp.ones(2), 1.0), obs=y)

    data = jnp.array([0.5, y])
    if y > 0.0:
        assert vf.condition(model, data).dim == 1
    else:
        with pytest.raises(DataError, match="1 values outside the support of its distribution"):
            vf.condition(model, data)


# --- The metric


def test_a_metric_runs_the_model_once():
    """Its states and their tangents by one trace."""
    posterior = vf.condition(vf.attach(eight_schools, vf.JointFisher()), SIGMA, y=Y)
    u = jnp.linspace(-1.0, 1.0, 10)
    jaxpr = jax.make_jaxpr(lambda u: posterior.metric(u).as_matrix())(u)
    tau = np.exp(u[1])
    assert sum(eqn.primitive.name == "exp" for eqn in jaxpr.eqns) == 1
    assert_allclose(posterior.metric(u).as_matrix()[0, 0], 1 / 25 + 8 / tau**2)

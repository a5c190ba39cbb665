"""The search for the mode: where it ends, what it says, and what it costs when repeated."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro.distributions import constraints
from tests.compilations import compilations

import volform as vf
from volform.errors import ConvergenceError, SaddleError, UnknownSiteError
from volform.inference.modes.verdicts import Edge, Flat, NotConverged

KEY = jax.random.key(0)


# --- Convergence


def poisson(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(3), 3.0).to_event(1))
    numpyro.sample("y", dist.Poisson(jnp.exp(x @ beta)), obs=y)


def robust(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(3), 3.0).to_event(1))
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    numpyro.sample("y", dist.StudentT(4.0, x @ beta, scale), obs=y)


def beta_binomial(y: Any) -> None:
    mean = numpyro.sample("mean", dist.Beta(1.0, 1.0))
    size = numpyro.sample("size", dist.LogNormal(2.0, 1.0))
    with numpyro.plate("group", len(y)):
        p = numpyro.sample("p", dist.Beta(mean * size, (1.0 - mean) * size))
        numpyro.sample("y", dist.Binomial(20, p), obs=y)


def cases() -> dict[str, tuple]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(30, 3)))
    return {
        "Poisson regression": (
            poisson,
            vf.LikelihoodFisher(),
            x,
            jnp.asarray(rng.poisson(2.0, 30)),
        ),
        "Student": (robust, vf.Euclidean(), x, jnp.asarray(rng.standard_t(3, 30))),
        "beta-binomial": (beta_binomial, vf.Unconstrained(), jnp.asarray(rng.binomial(20, 0.4, 6))),
    }


@pytest.mark.standard_promotion
@pytest.mark.parametrize("name", cases())
def test_gradient_vanishes_in_the_norm_of_the_metric(name: str) -> None:
    model, metric, *data = cases()[name]
    posterior = vf.condition(vf.attach(model, metric), *data)
    fit = vf.find_map(posterior, key=KEY)
    assert fit.converged
    assert fit.gradient_norm < 1e-8
    assert len(fit.modes) == 1
    # ... by a gradient that the search has not computed itself

    @jax.jit
    def gradient_and_metric(u: Any) -> Any:
        return jax.grad(posterior.log_density)(u), posterior.metric(u).as_matrix()

    gradient, gram = gradient_and_metric(fit.at.u)
    assert np.sqrt(gradient @ np.linalg.solve(gram, gradient)) < 1e-8


def regression(x: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (3,)))
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
    numpyro.sample("y", dist.StudentT(3.0, x @ beta, scale), obs=y)


def test_parameters_of_sizes_1e_minus_6_to_1e6() -> None:
    # The default metric knows nothing of the units of the regressors: E spreads over 1e24.
    rng = np.random.default_rng(0)
    x, unit = rng.normal(size=(30, 3)), np.array([1e-6, 1.0, 1e6])
    y = jnp.asarray(x @ np.array([1.0, -2.0, 3.0]) + rng.standard_t(3, size=30))
    plain, scaled = (
        vf.find_map(vf.condition(regression, jnp.asarray(x), y), key=KEY) for x in (x, x / unit)
    )
    assert plain.converged
    assert scaled.converged
    assert scaled.eigenvalues[-1] > 1e22 * scaled.eigenvalues[0]
    assert_allclose(scaled.values["beta"], plain.values["beta"] * unit, rtol=1e-10)


# --- One program with several modes


def wells(depth: Any) -> None:
    """Wells at x = -1 and, less deep by 2 `depth`, x = 1; a saddle near 0."""
    x = numpyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
    y = numpyro.sample("y", dist.ImproperUniform(constraints.real, (), ()))
    numpyro.factor("density", -4.0 * (x**2 - 1.0) ** 2 - depth * x - 0.5 * (y - x) ** 2)


def wells_of(depth: float) -> vf.models.Posterior:
    return vf.condition(wells, jnp.asarray(depth))


def test_several_modes_are_reported_best_first() -> None:
    fit = vf.find_map(wells_of(0.5), key=KEY, starts=9)
    assert fit.converged
    assert [np.sign(mode.u[0]) for mode in fit.modes] == [-1.0, 1.0]
    assert fit.values["x"] < 0
    assert sum(mode.starts for mode in fit.modes) == fit.starts == 9
    assert fit.modes[0].log_density - fit.modes[1].log_density == pytest.approx(1.0, abs=0.01)
    assert "2 distinct modes" in repr(fit)


def test_a_saddle_is_left() -> None:
    fit = vf.find_map(wells_of(0.0), key=KEY, starts=1)  # the origin, where the gradient is zero
    assert fit.converged
    assert abs(fit.values["x"]) == pytest.approx(1.0, abs=1e-8)


def test_initial_values_are_a_start_as_well() -> None:
    fit = vf.find_map(wells_of(0.5), key=KEY, starts=1, initial={"x": 1.0, "y": 1.0})
    assert fit.starts == 2
    assert {np.sign(mode.u[0]) for mode in fit.modes} <= {-1.0, 1.0}
    with pytest.raises(UnknownSiteError, match="`initial` lacks the latent sites"):
        vf.find_map(wells_of(0.5), key=KEY, initial={"x": 1.0})
    with pytest.raises(UnknownSiteError, match=r"`initial` holds \['z'\], which are no sites"):
        vf.find_map(wells_of(0.5), key=KEY, initial={"x": 1.0, "y": 1.0, "z": 0.0})


def test_the_same_key_gives_the_same_search() -> None:
    one, two = (vf.find_map(wells_of(0.5), key=KEY, starts=9) for _ in range(2))
    assert_allclose(one.at.u, two.at.u, rtol=0)
    assert one.steps == two.steps
    other = vf.find_map(wells_of(0.5), key=jax.random.key(1), starts=9)
    assert other.steps != one.steps
    assert_allclose(other.at.u, one.at.u, rtol=1e-10)


def test_new_data_of_the_same_shape_compile_nothing() -> None:
    vf.find_map(wells_of(0.4), key=KEY, starts=9)
    with compilations() as seen:
        for depth in (0.1, 0.2, 0.3):
            fit = vf.find_map(wells_of(depth), key=jax.random.key(2), starts=9)
            assert fit.converged
    assert not seen


# --- Where there is no strict mode


def test_flat_directions_are_reported_with_their_sites() -> None:
    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.ImproperUniform(constraints.real, (), ()))
        b = numpyro.sample("b", dist.ImproperUniform(constraints.real, (), ()))
        c = numpyro.sample("c", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(a + b + c, 1.0), obs=y)

    fit = vf.find_map(vf.condition(model, jnp.array([0.3, 1.2])), key=KEY)
    assert not fit.converged
    assert isinstance(fit.verdict, Flat)
    assert fit.verdict.count == 1
    assert fit.verdict.sites == ("a", "b")
    assert "1 flat directions, along a, b" in repr(fit)
    with pytest.raises(SaddleError, match="is no strict mode"):
        vf.laplace(fit)


def test_an_unbounded_density_is_not_called_converged() -> None:
    def schools(sigma: Any, y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("school", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    posterior = vf.condition(vf.attach(schools, vf.Unconstrained()), sigma, y)
    fit = vf.find_map(posterior, key=KEY)
    assert not fit.converged
    assert isinstance(fit.verdict, NotConverged)
    assert "rises toward an edge" in str(fit.verdict)
    assert fit.starts <= 80
    assert np.log(float(fit.values["tau"])) > -210.0  # where every start ends that runs off
    with pytest.raises(ConvergenceError, match="is no strict mode"):
        vf.laplace(fit)
    told = vf.laplace(fit, refuse=False)
    assert str(fit.verdict) in told.evidence.note


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_a_mode_at_the_edge_itself_is_called_so(scale: float) -> None:
    """Non-centered schools in the metric of tau: the maximum is at tau = 0, with no slope there."""

    def schools(sigma: Any, y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0 * scale))
        tau = numpyro.sample("tau", dist.HalfNormal(5.0 * scale))
        with numpyro.plate("school", 8):
            theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mu + tau * theta, sigma), obs=y)

    y = scale * jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = scale * jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    fit = vf.find_map(vf.condition(schools, sigma, y), key=KEY)
    assert isinstance(fit.verdict, Edge)
    assert fit.verdict.sites == ("tau",)
    with pytest.raises(ConvergenceError, match=r"JointFisher.* or `vf.Unconstrained"):
        vf.laplace(fit)


def test_a_site_without_coordinates():
    def model():
        numpyro.sample("empty", dist.Normal(0.0, 1.0).expand([0]).to_event(1))
        numpyro.sample("x", dist.Normal(1.0, 2.0))

    fit = vf.find_map(vf.condition(model))
    assert fit.converged
    assert fit.values["empty"].shape == (0,)
    np.testing.assert_allclose(vf.laplace(fit).evidence.log_z, 0.0, atol=1e-12)

"""Latent sites whose support depends on the sites before them: u to values is triangular."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose
from numpyro import handlers
from numpyro.infer.util import potential_energy

import volform as vf
from volform.errors import ConvergenceError, DataError

Y = jnp.asarray(np.random.default_rng(1).normal(0.0, 1.2, 40))


def likelihood(a: Any, b: Any, y: Any) -> None:
    """GARCH(1, 1) of an intercept of .3."""

    def step(variance: Any, y: Any) -> tuple[Any, Any]:
        after = 0.3 + a * y**2 + b * variance
        return after, after

    _, later = jax.lax.scan(step, 1.0, y[:-1])
    variances = jnp.concatenate([jnp.ones(1), later])
    numpyro.sample("y", dist.Normal(0.0, jnp.sqrt(variances)), obs=y)


def garch(y: Any) -> None:
    a = numpyro.sample("a", dist.Uniform(0.0, 1.0))
    likelihood(a, numpyro.sample("b", dist.Uniform(0.0, 1.0 - a)), y)


def garch_by_hand(y: Any) -> None:
    a = numpyro.sample("a", dist.Uniform(0.0, 1.0))
    share = numpyro.sample("share", dist.Uniform(0.0, 1.0))
    likelihood(a, numpyro.deterministic("b", share * (1.0 - a)), y)


def truncated(y: Any) -> None:
    low = numpyro.sample("low", dist.Normal(0.0, 1.0))
    x = numpyro.sample("x", dist.TruncatedNormal(0.0, 1.0, low=low))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def truncated_by_hand(y: Any) -> None:
    low = numpyro.sample("low", dist.Normal(0.0, 1.0))
    z = numpyro.sample("z", dist.TruncatedNormal(-low, 1.0, low=0.0))
    x = numpyro.deterministic("x", low + z)
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def chain(y: Any) -> None:
    """A vector on moving intervals, and a site whose bound is a moving site."""
    widths = numpyro.sample("widths", dist.HalfNormal(jnp.ones(2)).to_event(1))
    with numpyro.plate("two", 2):
        x = numpyro.sample("x", dist.Uniform(-widths, 2.0 * widths))
    top = numpyro.sample("top", dist.Pareto(1.0 + jnp.sum(x**2), 2.0))
    numpyro.sample("z", dist.Normal(top, 1.0))
    numpyro.sample("y", dist.Normal(x[0] + top, 1.0), obs=y)


MODELS = [garch, truncated, chain]


def point(posterior: Any, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed).uniform(-1.0, 1.0, posterior.dim))


@pytest.mark.parametrize("model", MODELS)
def test_density_is_numpyro_s(model: Any) -> None:
    posterior = vf.condition(model, Y)
    for seed in range(3):
        u = point(posterior, seed)
        parts = {site.name: site.part(u) for site in posterior.layout.sites}
        expected = -potential_energy(handlers.seed(model, 0), (Y,), {}, parts)
        assert_allclose(posterior.log_density_lebesgue(u), expected, rtol=1e-12)
        assert_allclose(jax.jit(posterior.log_density_lebesgue)(u), expected, rtol=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_values_and_back(model: Any) -> None:
    posterior = vf.condition(model, Y)
    for seed in range(3):
        u = point(posterior, seed)
        assert_allclose(posterior.unconstrain(posterior.values(u)), u, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("model", MODELS)
def test_metrics_are_pulled_back_by_the_whole_jacobian(model: Any) -> None:
    posterior = vf.condition(model, Y)
    u = point(posterior)

    def flat(u: Any) -> Any:
        return jnp.concatenate([jnp.ravel(v) for v in posterior.values(u).values()])

    jacobian = jax.jacfwd(flat)(u)
    assert_allclose(jnp.triu(jacobian, 1), 0.0)
    assert np.any(np.tril(jacobian, -1) != 0.0)
    assert_allclose(posterior.metric(u).as_matrix(), jacobian.T @ jacobian, rtol=1e-12, atol=1e-14)
    # q^G under the flat metric of values is the density of the values.
    expected = posterior.program.log_density(posterior.values(u))
    assert_allclose(posterior.log_density(u), expected, rtol=1e-12)


def test_unconstrained_metric() -> None:
    posterior = vf.condition(vf.attach(garch, vf.Unconstrained()), Y)
    assert_allclose(posterior.metric(point(posterior)).as_matrix(), np.eye(2))


def test_a_value_outside_of_the_support_that_the_others_leave() -> None:
    posterior = vf.condition(garch, Y)
    posterior.unconstrain({"a": 0.2, "b": 0.5})
    with pytest.raises(DataError, match="`b` in `values` is not inside its support"):
        posterior.unconstrain({"a": 0.7, "b": 0.5})
    with pytest.raises(DataError, match="`a` in `values` has shape"):
        posterior.unconstrain({"a": jnp.ones(3), "b": 0.5})


@pytest.mark.parametrize(
    ("model", "by_hand", "metric", "metric_by_hand"),
    [
        (garch, garch_by_hand, vf.JointFisher(), vf.JointFisher()),
        (garch, garch_by_hand, vf.Euclidean(), {"b": vf.Euclidean()}),
        (truncated, truncated_by_hand, vf.JointFisher(), vf.JointFisher()),
        (garch, garch_by_hand, None, None),
    ],
    ids=["garch-joint", "garch-flat", "truncated-joint", "garch-field"],
)
def test_the_spelling_by_hand(model: Any, by_hand: Any, metric: Any, metric_by_hand: Any) -> None:
    if metric_by_hand is None:  # a metric on values of the model, which the other has as well
        field = lambda a, b: jnp.array([[2.0 + a**2, b], [b, 5.0 + b**2]])  # noqa: E731
        metric = metric_by_hand = {("a", "b"): vf.geometry.MatrixField(field)}
    moving = vf.condition(vf.attach(model, metric), Y)
    fixed = vf.condition(vf.attach(by_hand, metric_by_hand), Y)
    for seed in range(3):  # the coordinates u are the same
        u = point(moving, seed)
        assert_allclose(moving.log_density(u), fixed.log_density(u), rtol=1e-8)
        of_both = [p.metric(u).as_matrix() for p in (moving, fixed)]
        assert_allclose(*of_both, rtol=1e-8, atol=1e-12)
    fits = [vf.find_map(p) for p in (moving, fixed)]
    assert all(fit.converged for fit in fits)
    names = moving.names
    values = [fit.posterior.values(fit.at.u, names) for fit in fits]
    for name in names:
        assert_allclose(values[0][name], values[1][name], rtol=1e-8)
    log_z = [float(vf.laplace(fit).evidence.log_z) for fit in fits]
    assert_allclose(log_z[0], log_z[1], rtol=1e-8)


def brute_force() -> float:
    """log of the integral over the triangle, by Gauss-Legendre in the values."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    nodes, weights = 0.5 * (nodes + 1.0), 0.5 * weights
    program = vf.condition(garch, Y).program
    a, share = (g.ravel() for g in np.meshgrid(nodes, nodes, indexing="ij"))
    mass = np.outer(weights, weights).ravel() * (1.0 - a)
    log_p = jax.jit(jax.vmap(lambda a, b: program.log_density({"a": a, "b": b})))
    found = np.asarray(log_p(jnp.asarray(a), jnp.asarray(share * (1.0 - a))))
    return float(np.logaddexp.reduce(found + np.log(mass)))


def test_evidence_and_draws() -> None:
    exact = brute_force()
    posterior = vf.condition(vf.attach(garch, vf.JointFisher()), Y)
    assert_allclose(float(vf.evidence(posterior, by=vf.Quadrature()).log_z), exact, atol=1e-6)
    fit = vf.find_map(posterior)
    found = vf.evidence(fit, by=vf.Importance())
    assert abs(float(found.log_z) - exact) < max(5.0 * float(found.error), 1e-3)
    approx = vf.laplace(fit)
    assert abs(float(approx.evidence.log_z_second_order) - exact) < 0.2
    draws = approx.sample(jax.random.key(1), 500).values
    a, b = np.asarray(draws["a"]), np.asarray(draws["b"])
    assert np.all((a > 0.0) & (b > 0.0) & (a + b < 1.0))
    jacobian = sum(site.log_jacobian for site in approx.explain().sites)
    assert_allclose(jacobian, posterior.layout.constrain_with_log_det(fit.at.u)[1], rtol=1e-10)


BOUNDED = jnp.array([0.3, 1.7, 2.2, 0.9])


def bounded(y: Any) -> None:
    high = numpyro.sample("high", dist.Pareto(1.0, 2.0))
    numpyro.sample("y", dist.Uniform(0.0, high), obs=y)


def bounded_in_a_plate(y: Any) -> None:
    """A datum beyond all the others is left out by a mask."""
    high = numpyro.sample("high", dist.Pareto(1.0, 2.0))
    beyond = jnp.concatenate([y, jnp.array([9.0])])
    with numpyro.plate("n", 5), handlers.mask(mask=beyond < 9.0):
        numpyro.sample("y", dist.Uniform(0.0, high), obs=beyond)


@pytest.mark.parametrize("model", [bounded, bounded_in_a_plate])
def test_data_whose_support_moves(model: Any) -> None:
    """NumPyro's own density of Uniform goes on below the largest datum."""
    posterior = vf.condition(model, BOUNDED)
    density = [
        float(posterior.log_density_lebesgue(posterior.unconstrain({"high": high})))
        for high in (2.1, 2.2 + 1e-9, 3.0)
    ]
    expected = [math.log(2.0) - 7.0 * math.log(h) + math.log(h - 1.0) for h in (2.2, 3.0)]
    assert density[0] == -math.inf
    assert_allclose(density[1:], expected, rtol=1e-8)


@pytest.mark.parametrize(
    "y", [2.2, np.array([1.0, 2.2]), np.float64(2.2)], ids=["float", "array", "scalar"]
)
def test_data_of_numpy_and_python_may_have_a_support_that_moves(y: Any) -> None:
    def inside() -> None:
        bounded(y)

    u = jnp.array([1.1])
    for posterior in (vf.condition(bounded, y), vf.condition(inside)):
        assert_allclose(
            posterior.log_density_lebesgue(u),
            vf.condition(bounded, jnp.asarray(y)).log_density_lebesgue(u),
            rtol=1e-12,
        )


def test_evidence_of_data_that_bound_a_parameter() -> None:
    """With the prior Pareto(1, 2) it is 2 m^-(n + 2) / (n + 2), m the largest datum."""
    posterior = vf.condition(bounded, BOUNDED)
    exact = math.log(2.0 / 6.0) - 6.0 * math.log(2.2)
    found = vf.evidence(posterior, by=vf.Quadrature())
    assert_allclose(float(found.log_z), exact, atol=2e-6)
    assert len(found.provenance.data) == 1
    fit = vf.find_map(posterior)  # at the bound, where log q^G has no derivative
    assert not fit.converged
    with pytest.raises(ConvergenceError, match="no strict mode"):
        vf.laplace(fit)

"""Fisher metrics of models with solvers, whose derivatives are their own and in reverse only."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax.experimental.ode import odeint
from numpy.testing import assert_allclose

import volform as vf
from volform.inference.modes.expansion import expand_second

T = jnp.linspace(0.0, 8.0, 9)
Y = jnp.array([1.1, 1.9, 3.2, 4.4, 6.6, 7.5, 8.9, 9.1, 9.9])


def numerical(r: Any, k: Any) -> Any:
    return odeint(lambda n, t, r, k: r * n * (1.0 - n / k), 1.0, T, r, k)


def closed(r: Any, k: Any) -> Any:
    return k / (1.0 + (k - 1.0) * jnp.exp(-r * T))


@jax.custom_vjp
def in_reverse(r: Any, k: Any) -> Any:
    return closed(r, k)


in_reverse.defvjp(
    lambda r, k: (closed(r, k), (r, k)), lambda rk, g: jax.vjp(lambda r, k: closed(r, k), *rk)[1](g)
)


def growth(curve: Callable[[Any, Any], Any]) -> None:
    r = numpyro.sample("r", dist.LogNormal(-0.5, 0.5))
    k = numpyro.sample("k", dist.LogNormal(2.3, 0.3))
    s = numpyro.sample("s", dist.HalfNormal(0.5))
    n = numpyro.deterministic("n", curve(r, k))
    numpyro.sample("y", dist.Normal(n, s), obs=Y)


def posteriors(metric: Any, *curves: Any) -> list[vf.models.Posterior]:
    return [vf.condition(vf.attach(growth, metric), curve) for curve in curves]


U = jnp.array([-0.4, 2.3, -1.4])


@pytest.mark.parametrize(
    "metric",
    [
        vf.JointFisher(),
        vf.LikelihoodFisher() + 0.1 * vf.Euclidean(),
        {"n": vf.Euclidean()},
        vf.models.ObservedInformation(),
    ],
    ids=str,
)
def test_metric_through_a_solver(metric: Any) -> None:
    """`odeint` solves to 1.4e-8 of the value at each step."""
    numbers, exact = (p.metric(U).as_matrix() for p in posteriors(metric, numerical, closed))
    assert_allclose(numbers, exact, rtol=2e-6, atol=2e-6 * float(jnp.max(jnp.abs(exact))))


def test_gradient_of_the_volume() -> None:
    slopes = [
        jax.jit(jax.grad(p.log_volume))(U) for p in posteriors(vf.JointFisher(), numerical, closed)
    ]
    assert_allclose(slopes[0], slopes[1], rtol=1e-6)


def test_evidence_where_all_derivatives_are_there() -> None:
    fits = [vf.find_map(p) for p in posteriors(vf.JointFisher(), in_reverse, closed)]
    assert all(fit.converged for fit in fits)
    assert_allclose(fits[0].at.u, fits[1].at.u, rtol=1e-9)
    assert_allclose(fits[0].at.hessian, fits[1].at.hessian, rtol=1e-9, atol=1e-7)
    found = [float(vf.laplace(fit).evidence.log_z) for fit in fits]
    assert_allclose(found[0], found[1], rtol=1e-10)


def test_expansion_through_a_solver_without_a_third_derivative() -> None:
    """By differences of the gradient; quadrature of the closed form has log Z = -5.923."""
    numbers, exact = posteriors(vf.JointFisher(), numerical, closed)
    fit = vf.find_map(exact)
    at = eqx.filter_jit(expand_second)(numbers, fit.at.u)
    assert_allclose(at.value, fit.at.value, rtol=1e-6)
    assert at.gradient_norm < 1e-5
    assert_allclose(at.hessian, fit.at.hessian, rtol=1e-5, atol=1e-3)
    assert_allclose(at.log_det, fit.at.log_det, atol=1e-5)
    evidence = vf.laplace(fit).evidence
    assert abs(float(evidence.log_z_second_order) + 5.923) < 0.005
    log_z = -float(at.value) + 1.5 * math.log(2.0 * math.pi) - 0.5 * float(at.log_det)
    assert_allclose(log_z, evidence.log_z, atol=1e-5)

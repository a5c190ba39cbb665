"""Proximal points, mirror descent and descent of outputs: the equations that they solve."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optimistix as optx
import pytest
from numpy.testing import assert_allclose
from tests.geometry.laws import CURVED

import volform as vf
from volform.optimizers import (
    Bregman,
    KullbackLeibler,
    PulledBack,
    SquaredDistance,
    implicit_gradient_descent,
    mirror_descent,
    natural_gradient,
    negative_entropy,
    output_space_descent,
    proximal_point,
)

from .problems import START, loss, step


def outputs(x):
    return jnp.stack([jnp.sinh(x[0]) + 0.3 * x[1], x[1] + 0.1 * x[0] ** 2])


DISSIMILARITIES = [
    SquaredDistance(CURVED),
    Bregman(lambda x: jnp.sum(jnp.exp(x))),
    PulledBack(SquaredDistance(), outputs),
    KullbackLeibler(lambda x: dist.Normal(x[0], jnp.exp(x[1]))),
]


SLOW = [pytest.param(rho, marks=pytest.mark.slow) for rho in DISSIMILARITIES[:3]]


@pytest.mark.parametrize("rho", [*SLOW, DISSIMILARITIES[3]])
def test_the_proximal_point(rho):
    u, _ = step(proximal_point(rho, 3.0), loss, START)
    residual = jax.grad(loss)(u) + 3.0 * jax.grad(lambda u: rho(u, START))(u)
    assert np.abs(residual).max() < 1e-10
    assert loss(u) + 3.0 * rho(u, START) <= loss(START)


def test_without_dissimilarity_it_is_the_minimum():
    u, _ = step(proximal_point(SquaredDistance(), 1e-9), loss, START)
    assert np.abs(jax.grad(loss)(u)).max() < 1e-8


def test_a_solver_of_the_user():
    tx = proximal_point(SquaredDistance(), 3.0, solver=optx.NonlinearCG(1e-9, 1e-9))
    exact, _ = step(proximal_point(SquaredDistance(), 3.0), loss, START)
    assert_allclose(step(tx, loss, START)[0], exact, atol=1e-6)


def test_a_large_strength_is_the_natural_gradient():
    """|prox - NGD| falls as 1 / strength^2."""
    rho = SquaredDistance(CURVED)
    scaled = []
    for strength in (1e2, 1e3, 1e4):
        prox, _ = step(proximal_point(rho, strength), loss, START)
        natural, _ = step(natural_gradient(CURVED, 1.0 / strength), loss, START)
        scaled.append(np.linalg.norm(prox - natural) * strength**2)
    assert_allclose(scaled[0], scaled[2], rtol=0.02)
    assert_allclose(scaled[1], scaled[2], rtol=0.002)


@pytest.mark.parametrize("rate", [0.1, 100.0])
def test_implicit_gradient_descent(rate):
    u, _ = step(implicit_gradient_descent(rate), loss, START)
    assert_allclose(u, START - rate * jax.grad(loss)(u), atol=1e-9)
    quadratic = lambda x: 500.0 * jnp.sum(x**2)  # noqa: E731
    u, _ = step(implicit_gradient_descent(rate), quadratic, START)
    assert_allclose(u, START / (1.0 + 1000.0 * rate), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rho", [*SLOW[1:], DISSIMILARITIES[3]])
def test_mirror_descent_solves_its_equation(rho):
    u, _ = step(mirror_descent(rho, 0.2), loss, START)
    slope = jax.grad(lambda u: rho(u, START))(u)
    assert_allclose(slope, -0.2 * jax.grad(loss)(START), atol=1e-10)


def test_mirror_descent_in_closed_form():
    u, _ = step(mirror_descent(SquaredDistance(), 0.2), loss, START)
    assert_allclose(u, START - 0.2 * jax.grad(loss)(START), rtol=1e-15)
    p, cost = jnp.array([0.2, 0.5, 0.3]), jnp.array([1.0, -2.0, 0.5])
    u, _ = step(mirror_descent(negative_entropy(), 0.7), lambda p: cost @ p, p)
    weights = p * np.exp(-0.7 * cost)
    assert_allclose(u, weights / weights.sum(), rtol=1e-14)  # the exponentiated gradient
    newton = Bregman(lambda x: jnp.sum(jnp.exp(x)))
    closed = Bregman(newton.generator, lambda slope: jnp.log(slope))
    pair = [step(mirror_descent(rho, 0.2), loss, START)[0] for rho in (newton, closed)]
    assert_allclose(pair[0], pair[1], rtol=1e-12)


def test_descent_of_the_outputs():
    target = jnp.array([0.4, 1.0])
    of_outputs = lambda z: jnp.sum((z - target) ** 2)  # noqa: E731
    fn = lambda x: of_outputs(outputs(x))  # noqa: E731
    u, _ = step(output_space_descent(outputs, of_outputs, 0.5), fn, START)
    assert_allclose(outputs(u), target, atol=1e-10)  # in one step
    u, _ = step(output_space_descent(outputs, of_outputs, 0.1), fn, START)
    z = outputs(START)
    assert_allclose(outputs(u), z - 0.2 * (z - target), atol=1e-10)


def test_more_outputs_than_parameters():
    f = lambda x: jnp.stack([x[0], x[1], x[0] * x[1]])  # noqa: E731
    of_outputs = lambda z: 0.5 * jnp.sum((z - 1.0) ** 2)  # noqa: E731
    u, _ = step(output_space_descent(f, of_outputs, 0.3), lambda x: of_outputs(f(x)), START)
    wanted = f(START) - 0.3 * (f(START) - 1.0)
    nearest = jax.grad(lambda u: jnp.sum((f(u) - wanted) ** 2))(u)
    assert np.abs(nearest).max() < 1e-8


def test_the_count_of_steps_in_outputs():
    """ceil(ln(h0 / tol) / 2 ln(1 + 2 / strength)) steps, for another map than Rosenbrock's."""
    fn = lambda x: jnp.sum(outputs(x) ** 2)  # noqa: E731
    tx = proximal_point(PulledBack(SquaredDistance(), outputs), 4.0)
    x, steps, state = START, 0, tx.init(START)
    while fn(x) >= 1e-8:
        x, state = step(tx, fn, x, state)
        steps += 1
    assert steps == math.ceil(math.log(float(fn(START)) / 1e-8) / (2.0 * math.log1p(0.5)))


def test_as_a_natural_gradient_of_the_divergence():
    metric = DISSIMILARITIES[3].metric
    u, _ = step(natural_gradient(metric, 0.1), loss, START)
    v, _ = step(natural_gradient(vf.Fisher(DISSIMILARITIES[3].family), 0.1), loss, START)
    assert_allclose(u, v, rtol=1e-12)

"""Laplace's method beside what leaves no trace in derivatives at the mode.

Right values: in closed form, or by dense sums.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import betabinom, chi, nbinom, norm

import volform as vf
from volform.results import Level

KINKS: dict[str, Callable[[Any, float], Any]] = {
    "slope": lambda x, w: -5.0 * jax.nn.relu(x - w),
    "curvature": lambda x, w: -50.0 * jax.nn.relu(x - w) ** 2,
    "step": lambda x, w: jnp.where(x > w, -3.0, 0.0),
}


@pytest.mark.parametrize("d", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("kind", KINKS)
def test_a_kink_that_no_derivative_shows_is_in_the_error(kind: str, d: int) -> None:
    def model(w: Any) -> None:
        x = numpyro.sample("x", dist.Normal(jnp.zeros(d), 1.0).to_event(1))
        numpyro.factor("kink", jnp.sum(KINKS[kind](x, w)))

    grid = np.linspace(-10.0, 10.0, 200_001)
    normal = np.exp(-0.5 * grid**2) / math.sqrt(2.0 * math.pi)
    for w in (1e-6, 0.1, 0.5, 0.9, 1.5, 2.5):
        exact = d * math.log(np.trapezoid(np.exp(KINKS[kind](grid, w)) * normal, grid))
        found = vf.laplace(vf.condition(model, w)).evidence
        off = abs(float(found.log_z_second_order) - exact)
        assert found.trust.level is Level.POOR or off < 2.0 * float(found.error), (w, found)
        assert float(found.error) > 0.5 * min(off, 0.1), (w, found)


def diagonal(x: Any, w: float) -> Any:
    return -5.0 * jax.nn.relu(jnp.sum(x) / math.sqrt(x.size) - w)


def corner(x: Any, w: float) -> Any:
    return jnp.where((x[:2] > w).all(), -5.0, 0.0)


def sphere(x: Any, w: float) -> Any:
    root = jnp.sqrt(jnp.sum(x**2) + 1e-300)
    return -5.0 * jax.nn.relu(root - w * math.sqrt(x.size))


def with_kink(kind: Any, d: int, w: float) -> float:
    """Evidence of N(0, I) times the exponential of a kink, by a sum over one coordinate."""
    t = np.linspace(-10.0, 20.0, 300_001)
    if kind is corner:
        return 1.0 - norm.sf(w) ** 2 * -np.expm1(-5.0)
    edge, density = (w, norm.pdf(t)) if kind is diagonal else (w * math.sqrt(d), chi.pdf(t, d))
    return float(np.trapezoid(np.exp(-5.0 * np.maximum(t - edge, 0.0)) * density, t))


@pytest.mark.parametrize("d", [2, 25])
@pytest.mark.parametrize("kind", [diagonal, corner, sphere])
def test_a_kink_between_the_axes_is_in_the_error(kind: Any, d: int) -> None:
    def model(w: Any) -> None:
        x = numpyro.sample("x", dist.Normal(jnp.zeros(d), 1.0).to_event(1))
        numpyro.factor("kink", kind(x, w))

    for w in (0.6, 1.0, 1.5):
        found = vf.laplace(vf.condition(model, w)).evidence
        off = abs(float(found.log_z_second_order) - math.log(with_kink(kind, d, w)))
        assert found.trust.level is Level.POOR or off < 2.0 * float(found.error), (w, found)


def counts(y: Any, n: Any) -> None:
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    numpyro.sample("y", dist.Binomial(n, p), obs=y)


def rates(y: Any) -> None:
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


def many_rates(y: Any) -> None:
    rate = numpyro.sample("rate", dist.Gamma(20.0, jnp.ones(len(y))).to_event(1))
    numpyro.sample("y", dist.Poisson(rate).to_event(1), obs=y)


@pytest.mark.parametrize("metric", [vf.JointFisher(), vf.Unconstrained()])
def test_smooth_densities_raise_no_alarm(metric: Any) -> None:
    cases = [(counts, (y, 10), betabinom.logpmf(y, 10, 2, 2)) for y in (1, 4)]
    cases += [(rates, (y,), nbinom.logpmf(y, 2, 0.5)) for y in (0, 3, 20)]
    y = np.arange(10, 30)
    cases += [(many_rates, (y,), nbinom.logpmf(y, 20, 0.5).sum())]
    for model, data, exact in cases:
        posterior = vf.condition(vf.attach(model, metric), *map(jnp.asarray, data))
        found = vf.laplace(posterior).evidence
        assert found.trust.level is Level.FAIR
        c = abs(float(found.correction))
        assert found.diagnostics["gap"] < 0.01 + 0.5 * c
        assert abs(float(found.log_z_second_order) - exact) < 0.01 + 0.25 * c

"""What a change of coordinates does to evidence: nothing to the invariant one, else log |det J|.

That Laplace is exact for Gaussian posteriors is in `test_laplace_against_exact`, and that all
scalars are invariant in `test_spellings`.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpy.testing import assert_allclose
from scipy.integrate import dblquad
from scipy.stats import multivariate_normal

import volform as vf
from volform.geometry import MatrixField

from .spellings import in_theta, random_problem


def naive_evidence(log_density: Callable, at: Any) -> Any:
    """Laplace with the density's value carried along as a function, and no Jacobian."""
    value, hessian = jax.jit(lambda x: (log_density(x), jax.hessian(log_density)(x)))(at)
    return value + 0.5 * at.size * np.log(2.0 * np.pi) - 0.5 * np.linalg.slogdet(-hessian)[1]


# --- Integrals of a function are invariant against the volume form only

H = np.array([[2.5, 0.8], [0.8, 1.9917]])
G = np.array([[1.3, -0.4], [-0.4, 0.7]])
J = np.array([[2.0, 1.0], [-1.0, 1.0]])


class Constant(eqx.Module):
    matrix: Any

    def __call__(self, x: Any) -> Any:
        return self.matrix


def function_and_volume(h: Any, metric: Any) -> None:
    """exp(-x.h.x / 2) as a density with respect to dV_G."""
    prior = vf.Jeffreys(metric, dist.constraints.real_vector, (2,))
    x = numpyro.sample("x", prior, infer={"metric": metric})
    numpyro.factor("h", -0.5 * x @ h @ x)


def integral(form: Any) -> float:
    (a, b), (_, c) = form.tolist()

    def height(x: float, y: float) -> float:
        return math.exp(-0.5 * (a * x * x + 2.0 * b * x * y + c * y * y))

    reach = 9.0 / np.sqrt(np.linalg.eigvalsh(form)[0])
    return dblquad(height, -reach, reach, -reach, reach, epsabs=1e-7)[0]


def test_integral_of_a_carried_function() -> None:
    back = np.linalg.inv(J)
    in_theta, in_psi = integral(H), integral(back.T @ H @ back)
    assert_allclose([in_theta, in_psi], [3.016, 9.048], rtol=1e-3)
    assert_allclose(in_psi / in_theta, np.linalg.det(J), rtol=1e-6)
    for form, gram in ((H, G), (back.T @ H @ back, back.T @ G @ back)):
        metric = MatrixField(Constant(jnp.asarray(gram)))
        posterior = vf.condition(function_and_volume, jnp.asarray(form), metric)
        fit = vf.find_map(posterior, key=jax.random.key(0), starts=1)
        against_volume = np.log(in_theta) + 0.5 * np.linalg.slogdet(G)[1]
        evidence = vf.laplace(fit, allow_improper=True).evidence
        assert_allclose(evidence.log_z, against_volume, rtol=1e-6)


# --- Polar coordinates of one weight vector


def test_naive_laplace_in_polar_coordinates_is_off_by_log_r() -> None:
    problem = random_problem(2, 2)
    posterior = vf.condition(vf.attach(in_theta, {"theta": vf.Euclidean()}), problem)
    fit = vf.find_map(posterior, key=jax.random.key(0), starts=1)
    cartesian = vf.laplace(fit, allow_improper=True).evidence
    x, y = fit.values["theta"]
    r = np.hypot(x, y)

    def in_polar(at: Any) -> Any:
        return problem.log_density(at[0] * jnp.stack([jnp.cos(at[1]), jnp.sin(at[1])]))

    naive = naive_evidence(in_polar, jnp.stack([r, np.arctan2(y, x)]))
    assert_allclose(naive, cartesian.log_z - np.log(r), rtol=1e-10)
    assert abs(np.log(r)) > 0.1


# --- Choice between two models, one of them also in other units: psi = c theta

NOISE = 0.5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3))
Y = X @ np.array([0.4, -0.3, 0.2]) + NOISE * RNG.normal(size=12)


def regression(x: Any, units: Any) -> None:
    """In psi = units * beta, with the prior of beta carried along."""
    prior = dist.Normal(0.0, 2.0 * units).expand([x.shape[1]]).to_event(1)
    beta = numpyro.deterministic("beta", numpyro.sample("psi", prior) / units)
    numpyro.sample("y", dist.Normal(x @ beta, NOISE), obs=jnp.asarray(Y))


def naive_and_invariant(x: Any, units: float) -> tuple[float, float]:
    x = jnp.asarray(x)
    model = vf.attach(regression, {"beta": vf.Euclidean()})
    fit = vf.find_map(vf.condition(model, x, jnp.asarray(units)), key=jax.random.key(0), starts=1)

    def log_joint(psi: Any) -> Any:
        beta = psi / units
        prior, likelihood = dist.Normal(0.0, 2.0), dist.Normal(x @ beta, NOISE)
        return jnp.sum(prior.log_prob(beta)) + jnp.sum(likelihood.log_prob(jnp.asarray(Y)))

    naive = naive_evidence(log_joint, fit.values["psi"])
    return float(naive), float(vf.laplace(fit).evidence.log_z)


def exact(x: Any) -> float:
    covariance = NOISE**2 * np.eye(len(x)) + 4.0 * x @ x.T
    return multivariate_normal(np.zeros(len(x)), covariance).logpdf(Y)


def test_units_flip_the_naive_ranking_of_models_and_not_the_invariant_one() -> None:
    small, large = X[:, :1], X
    gap = exact(large) - exact(small)
    other_naive, other = naive_and_invariant(small, 1.0)
    lead = {}
    for units in (1e-2, 1.0, 1e2):
        naive, invariant = naive_and_invariant(large, units)
        assert_allclose(naive, exact(large) + 3.0 * np.log(units), rtol=1e-10)
        assert_allclose(invariant - other, gap, rtol=1e-8)
        lead[units] = naive - other_naive
    assert lead[1e-2] < 0.0 < lead[1e2]
    assert_allclose(lead[1.0], gap, rtol=1e-8)

"""Random models in two spellings: in theta, and in psi with theta = f(psi) for a random chart f.

Every coefficient is data of the model or a leaf of the metric, so that all examples of one
dimension share their compiled functions.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import volform as vf
from volform.geometry import DiagonalField, MatrixField

TERMS = 7  # of the likelihood, and of the family whose Fisher metric is taken


class Diffeomorphism(eqx.Module):
    """psi -> theta: affine, monotone elementwise, triangular shear, affine, monotone elementwise."""

    first: Any
    shift: Any
    bulge: Any
    wave: Any
    second: Any
    kink: Any
    log_scale: Any  # log |det first| + log |det second|

    def __call__(self, psi: Any) -> tuple[Any, Any]:
        """theta, and log |det dtheta/dpsi|."""
        x = self.first @ psi + self.shift
        log_det = self.log_scale + jnp.sum(jnp.log1p(self.bulge * jnp.cosh(x)))
        x = x + self.bulge * jnp.sinh(x)
        x = x + 0.4 * jnp.sin(self.wave @ x)  # strictly triangular: unit determinant
        x = self.second @ x
        log_det += jnp.sum(jnp.log1p(self.kink / jnp.cosh(x) ** 2))
        return x + self.kink * jnp.tanh(x), log_det


class Problem(eqx.Module):
    """A smooth, strongly log-concave target that is not Gaussian, and a chart of it."""

    x: Any
    y: Any
    center: Any
    quartic: Any
    chart: Diffeomorphism

    def log_density(self, theta: Any) -> Any:
        """Logistic regression with a prior lighter-tailed than the normal; unnormalized."""
        logits = self.x @ theta
        residual = theta - self.center
        prior = 0.5 * jnp.sum(residual**2) + self.quartic * jnp.sum(residual**4)
        return jnp.sum(self.y * logits - jax.nn.softplus(logits)) - prior


def in_theta(problem: Problem) -> None:
    d = problem.x.shape[1]
    theta = numpyro.sample("theta", dist.ImproperUniform(constraints.real_vector, (), (d,)))
    numpyro.factor("density", problem.log_density(theta))


def in_psi(problem: Problem) -> None:
    d = problem.x.shape[1]
    psi = numpyro.sample("psi", dist.ImproperUniform(constraints.real_vector, (), (d,)))
    theta, log_det = problem.chart(psi)
    numpyro.deterministic("theta", theta)
    numpyro.factor("density", problem.log_density(theta) + log_det)


def in_positive_theta(problem: Problem) -> None:
    """The law of exp(theta), on the positive orthant."""
    d = problem.x.shape[1]
    support = constraints.independent(constraints.positive, 1)
    theta = numpyro.sample("theta", dist.ImproperUniform(support, (), (d,)))
    numpyro.factor("density", problem.log_density(jnp.log(theta)) - jnp.sum(jnp.log(theta)))


def in_psi_to_positive_theta(problem: Problem) -> None:
    d = problem.x.shape[1]
    psi = numpyro.sample("psi", dist.ImproperUniform(constraints.real_vector, (), (d,)))
    log_theta, log_det = problem.chart(psi)
    numpyro.deterministic("theta", jnp.exp(log_theta))
    numpyro.factor("density", problem.log_density(log_theta) + log_det)


class Diagonal(eqx.Module):
    size: Any
    waves: Any

    def __call__(self, theta: Any) -> Any:
        return self.size * jnp.exp(0.5 * jnp.sin(self.waves @ theta))


class Curved(eqx.Module):
    size: Any
    waves: Any

    def __call__(self, theta: Any) -> Any:
        v = jnp.sin(self.waves @ theta)
        return self.size * (jnp.eye(theta.size) + jnp.outer(v, v))


class Family(eqx.Module):
    x: Any

    def __call__(self, theta: Any) -> dist.Distribution:
        return dist.Normal(self.x @ theta, jnp.exp(0.3 * jnp.tanh(self.x[0] @ theta)))


def random_problem(d: int, seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    first, second = _well_conditioned(rng, d), _well_conditioned(rng, d)
    log_scale = sum(np.linalg.slogdet(m)[1] for m in (first, second))
    chart = Diffeomorphism(
        jnp.asarray(first),
        jnp.asarray(rng.normal(size=d)) * 0.3,
        jnp.asarray(rng.uniform(0.0, 0.5, d)),
        jnp.asarray(np.tril(rng.normal(size=(d, d)), -1)),
        jnp.asarray(second),
        jnp.asarray(rng.uniform(-0.5, 0.5, d)),
        jnp.asarray(log_scale),
    )
    return Problem(
        jnp.asarray(rng.normal(size=(TERMS, d))),
        jnp.asarray(1.0 * rng.integers(0, 2, TERMS)),
        jnp.asarray(rng.normal(size=d)) * 0.5,
        jnp.asarray(rng.uniform(0.0, 0.2)),
        chart,
    )


def random_metric(d: int, seed: int) -> vf.Metric:
    """Euclidean + diagonal field + dense curved field + Fisher, in random proportions."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-2.0, 1.0, 3)
    waves = [jnp.asarray(rng.normal(size=(d, d)) * 0.5 / np.sqrt(d)) for _ in range(2)]
    x = jnp.asarray(rng.normal(size=(TERMS, d)) / np.sqrt(d))
    return (
        0.1 * vf.Euclidean()
        + DiagonalField(Diagonal(jnp.asarray(sizes[0]), waves[0]))
        + MatrixField(Curved(jnp.asarray(sizes[1]), waves[1]))
        + 0.5 * vf.Fisher(Family(jnp.asarray(sizes[2]) * x))
    )


def _well_conditioned(rng: np.random.Generator, d: int) -> np.ndarray:
    rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return rotation * rng.uniform(0.5, 2.0, d) @ np.linalg.qr(rng.normal(size=(d, d)))[0]

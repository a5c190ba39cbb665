"""Random models in two spellings: in theta, and in psi with theta = f(psi) for a random chart f.

Every coefficient is data of the model or a leaf of the metric, so that all examples of one
dimension share their compiled functions. Charts and metrics differ in kind from one dimension to
the next.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

import volform as vf
from volform.geometry import DiagonalField, MatrixField

TERMS = 7  # of the likelihood, and of the family whose Fisher metric is taken


# --- Bijections of R^d that return log |det| as well


class Affine(eqx.Module):
    matrix: Any
    shift: Any
    log_det: Any

    def __call__(self, x: Any) -> tuple[Any, Any]:
        return self.matrix @ x + self.shift, self.log_det


class Sinh(eqx.Module):
    size: Any

    def __call__(self, x: Any) -> tuple[Any, Any]:
        return x + self.size * jnp.sinh(x), jnp.sum(jnp.log1p(self.size * jnp.cosh(x)))


class Tanh(eqx.Module):
    size: Any

    def __call__(self, x: Any) -> tuple[Any, Any]:
        slope = 1.0 + self.size / jnp.cosh(x) ** 2
        return x + self.size * jnp.tanh(x), jnp.sum(jnp.log(slope))


class Shear(eqx.Module):
    wave: Any  # strictly triangular: unit determinant

    def __call__(self, x: Any) -> tuple[Any, Any]:
        return x + 0.7 * jnp.sin(self.wave @ x), jnp.zeros(())


class Chain(eqx.Module):
    layers: tuple[Callable, ...]

    def __call__(self, x: Any) -> tuple[Any, Any]:
        total = jnp.zeros(())
        for layer in self.layers:
            x, log_det = layer(x)
            total += log_det
        return x, total


def _affine(rng: np.random.Generator, d: int) -> Affine:
    left, right = (np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(2))
    scales = rng.uniform(0.4, 2.0, d)
    shift = 0.3 * rng.normal(size=d)
    return Affine(*map(jnp.asarray, (left * scales @ right, shift, np.log(scales).sum())))


def _sinh(rng: np.random.Generator, d: int) -> Sinh:
    return Sinh(jnp.asarray(rng.uniform(0.0, 0.6, d)))


def _tanh(rng: np.random.Generator, d: int) -> Tanh:
    return Tanh(jnp.asarray(rng.uniform(-0.6, 0.6, d)))


def _shear(rng: np.random.Generator, d: int) -> Shear:
    wave = np.tril(rng.normal(size=(d, d)), -1)
    return Shear(jnp.asarray(wave if rng.integers(2) else wave.T))


_CHARTS = {
    1: (_affine, _sinh, _tanh),
    2: (_shear, _affine, _sinh),
    3: (_affine, _tanh, _shear),
    4: (_shear, _tanh),
    5: (_sinh, _affine, _shear),
    6: (_affine, _tanh),
    7: (_shear,),
    8: (_affine, _shear, _sinh),
}


# --- Metrics on theta


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
        return dist.Poisson(jnp.exp(self.x @ theta))


def random_metric(d: int, seed: int) -> vf.Metric:
    rng = np.random.default_rng(seed)
    size = jnp.asarray(10.0 ** rng.uniform(-2.0, 1.0))
    waves = jnp.asarray(rng.normal(size=(d, d)) / np.sqrt(d))
    x = jnp.asarray(rng.normal(size=(TERMS, d)) / np.sqrt(d))
    diagonal = DiagonalField(Diagonal(size, waves))
    curved = MatrixField(Curved(size, waves))
    family = vf.Fisher(Family(x))
    kinds = {
        1: vf.Euclidean() + 0.5 * diagonal,
        2: curved,
        3: family,
        4: diagonal + curved,
        5: diagonal,
        6: vf.Euclidean(),
        7: 2.0 * diagonal,
        8: vf.Euclidean() + curved,
    }
    return kinds[d]


# --- Models


class Problem(eqx.Module):
    """A smooth, strongly log-concave target that is not Gaussian, and a chart of it."""

    x: Any
    y: Any
    center: Any
    quartic: Any
    chart: Chain

    def log_density(self, theta: Any) -> Any:
        """Logistic regression with a prior of lighter tails than the normal; unnormalized."""
        logits = self.x @ theta
        residual = theta - self.center
        prior = 0.5 * jnp.sum(residual**2) + self.quartic * jnp.sum(residual**4)
        return jnp.sum(self.y * logits - jax.nn.softplus(logits)) - prior


def random_problem(d: int, seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    return Problem(
        jnp.asarray(rng.normal(size=(TERMS, d))),
        jnp.asarray(1.0 * rng.integers(0, 2, TERMS)),
        jnp.asarray(0.5 * rng.normal(size=d)),
        jnp.asarray(rng.uniform(0.0, 0.2)),
        Chain(tuple(make(rng, d) for make in _CHARTS[d])),
    )


def _flat(name: str, d: int, support: constraints.Constraint = constraints.real) -> Any:
    vector = constraints.independent(support, 1)
    return numpyro.sample(name, dist.ImproperUniform(vector, (), (d,)))


def in_theta(problem: Problem) -> None:
    theta = _flat("theta", problem.x.shape[1])
    numpyro.factor("density", problem.log_density(theta))


def in_psi(problem: Problem) -> None:
    psi = _flat("psi", problem.x.shape[1])
    theta, log_det = problem.chart(psi)
    numpyro.deterministic("theta", theta)
    numpyro.factor("density", problem.log_density(theta) + log_det)


def in_positive_theta(problem: Problem) -> None:
    """The law of exp(theta)."""
    theta = _flat("theta", problem.x.shape[1], constraints.positive)
    log_theta = jnp.log(theta)
    numpyro.factor("density", problem.log_density(log_theta) - jnp.sum(log_theta))


def in_psi_for_positive_theta(problem: Problem) -> None:
    psi = _flat("psi", problem.x.shape[1])
    log_theta, log_det = problem.chart(psi)
    numpyro.deterministic("theta", jnp.exp(log_theta))
    numpyro.factor("density", problem.log_density(log_theta) + log_det)


# --- A chart as NumPyro has them


class Spelled(Transform):
    """`w = w0 + A (f(z) - f(z0))` on vectors, with `f(z) = z + c sinh(z)` and z0 = 1/2."""

    domain = codomain = constraints.independent(constraints.real, 1)

    def __init__(self, w0: Any, matrix: Any, c: Any):
        self.w0, self.matrix, self.c = w0, matrix, c  # arrays, so that all charts share programs

    def __call__(self, z: Any) -> Any:
        bent = z - 0.5 + self.c * (jnp.sinh(z) - jnp.sinh(0.5))
        return self.w0 + self.matrix @ bent

    def _inverse(self, w: Any) -> Any:
        raise NotImplementedError

    def log_abs_det_jacobian(self, z: Any, w: Any, intermediates: Any = None) -> Any:
        slopes = jnp.log1p(self.c * jnp.cosh(z))
        return jnp.linalg.slogdet(self.matrix)[1] + jnp.sum(slopes)

    def tree_flatten(self) -> Any:
        return (self.w0, self.matrix, self.c), (("w0", "matrix", "c"), {})

"""Random diffeomorphisms of R^d, and the one map and metric that the worked figures belong to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from volform.geometry import MatrixField, Metric


@dataclass(frozen=True)
class Diffeomorphism:
    """A map with its inverse in closed form."""

    forward: Callable[[Any], Any]
    inverse: Callable[[Any], Any]

    def then(self, other: "Diffeomorphism") -> "Diffeomorphism":
        return Diffeomorphism(
            lambda x: other.forward(self.forward(x)), lambda y: self.inverse(other.inverse(y))
        )

    @property
    def back(self) -> "Diffeomorphism":
        return Diffeomorphism(self.inverse, self.forward)


def affine(rng: np.random.Generator, d: int) -> Diffeomorphism:
    left, right = (np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(2))
    stretch, shift = np.exp(rng.uniform(-0.7, 0.7, d)), rng.normal(size=d)
    return Diffeomorphism(
        lambda x: left @ (stretch * (right @ x)) + shift,
        lambda y: right.T @ ((left.T @ (y - shift)) / stretch),
    )


def sinh(rng: np.random.Generator, d: int) -> Diffeomorphism:
    rate = rng.uniform(0.1, 0.5, d)
    return Diffeomorphism(
        lambda x: jnp.sinh(rate * x) / rate, lambda y: jnp.arcsinh(rate * y) / rate
    )


def shear(rng: np.random.Generator, d: int) -> Diffeomorphism:
    """Moves some coordinates by a function of the others: triangular up to a permutation."""
    moved = rng.permutation(d) % 2
    size, waves = rng.uniform(-1.0, 1.0, d) * moved, rng.normal(size=(d, d)) * (1 - moved)
    return Diffeomorphism(
        lambda x: x + size * jnp.sin(waves @ x), lambda y: y - size * jnp.sin(waves @ y)
    )


def random_diffeomorphism(rng: np.random.Generator, d: int) -> Diffeomorphism:
    layers = [layer(rng, d) for layer in rng.permutation([affine, sinh, shear])]
    return layers[0].then(layers[1]).then(layers[2])


def random_metric(rng: np.random.Generator, d: int) -> Metric:
    root, waves = rng.normal(size=(d, d)), rng.normal(size=(2, d))

    def matrix(x: Any) -> Any:
        ripple = jnp.sin(waves @ x)
        return root @ root.T + np.eye(d) + jnp.outer(ripple[0] * x, ripple[0] * x)

    return MatrixField(matrix)


def random_function(rng: np.random.Generator, d: int) -> Callable[[Any], Any]:
    root, wave, slope = rng.normal(size=(d, d)), rng.normal(size=d), rng.normal(size=d)
    return lambda x: jnp.sum((root @ x) ** 2) / 4 + jnp.cos(wave @ x) + jnp.exp(0.3 * slope @ x)


@dataclass(frozen=True)
class Setting:
    """Everything that a law of transformation is stated about, in d dimensions."""

    d: int
    rng: np.random.Generator
    point: Any
    f: Diffeomorphism
    metric: Metric
    function: Callable[[Any], Any]

    def vector(self) -> Any:
        return jnp.asarray(self.rng.normal(size=self.d))

    def matrix(self) -> Any:
        return jnp.asarray(self.rng.normal(size=(self.d, self.d)))


@st.composite
def settings_in(draw: Any, dimensions: Any) -> Setting:
    d, seed = draw(dimensions), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    point = jnp.asarray(rng.normal(size=d))
    f = random_diffeomorphism(rng, d)
    return Setting(d, rng, point, f, random_metric(rng, d), random_function(rng, d))


def anywhere(max_d: int = 5) -> st.SearchStrategy[Setting]:
    return settings_in(st.integers(1, max_d))


# The worked figures: one nonlinear chart of R^2, one curved metric, one point, and at that point
# a vector, a covector and a Hessian.
PHI = Diffeomorphism(
    lambda t: jnp.stack([t[0] + 0.3 * jnp.sin(t[1]) + 0.2 * t[0] ** 3, jnp.sinh(t[1])]),
    lambda p: _phi_inverse(p),
)
CURVED = MatrixField(
    lambda t: jnp.array([[2 + jnp.cos(t[0]), 0.3 * t[1]], [0.3 * t[1], 1 + t[0] ** 2]])
)
POINT = np.array([0.7, -0.4])
VECTOR = np.array([0.3, 1.1])
COVECTOR = np.array([-0.5, 0.8])
HESSIAN = np.array([[3.0, 0.4], [0.4, 1.5]])


def _phi_inverse(p: Any) -> Any:
    """Root of t0 + 0.2 t0^3 = c by Cardano's formula; the second coordinate is sinh."""
    second = jnp.arcsinh(p[1])
    c = (p[0] - 0.3 * jnp.sin(second)) / 0.4
    root = jnp.sqrt(c**2 + (5.0 / 3.0) ** 3)
    return jnp.stack([jnp.cbrt(root + c) - jnp.cbrt(root - c), second])

"""Random diffeomorphisms, metrics and functions of R^d, and laws stated about them."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, strategies as st
from numpy.testing import assert_allclose

import volform as vf
from volform.geometry import MatrixField


def close(actual: Any, desired: Any, rtol: float = 1e-10, size: Any = None) -> None:
    """Equal to `rtol` of `size`, which is the largest entry of each leaf unless it is given."""

    def leaf_close(a: Any, b: Any) -> None:
        largest = np.abs(b).max() if size is None else size
        assert_allclose(a, b, rtol=rtol, atol=float(rtol * largest))

    jax.tree.map(leaf_close, actual, desired)


class Affine(eqx.Module):
    matrix: Any
    matrix_inverse: Any
    shift: Any

    def __call__(self, x: Any) -> Any:
        return self.matrix @ x + self.shift

    def inv(self, y: Any) -> Any:
        return self.matrix_inverse @ (y - self.shift)


class Sinh(eqx.Module):
    rate: Any

    def __call__(self, x: Any) -> Any:
        return jnp.sinh(self.rate * x) / self.rate

    def inv(self, y: Any) -> Any:
        return jnp.arcsinh(self.rate * y) / self.rate


class Shear(eqx.Module):
    """Moves some coordinates by a function of the others: triangular up to a permutation."""

    size: Any
    waves: Any

    def __call__(self, x: Any) -> Any:
        return x + self.size * jnp.sin(self.waves @ x)

    def inv(self, y: Any) -> Any:
        return y - self.size * jnp.sin(self.waves @ y)


class Chain(eqx.Module):
    """Diffeomorphisms one after another."""

    parts: tuple[Any, ...]

    def __call__(self, x: Any) -> Any:
        return functools.reduce(lambda value, part: part(value), self.parts, x)

    def inv(self, y: Any) -> Any:
        return functools.reduce(lambda value, part: part.inv(value), self.parts[::-1], y)


def random_chain(rng: np.random.Generator, d: int) -> Chain:
    def affine() -> Affine:
        left, right = (np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(2))
        stretch, shift = np.exp(rng.uniform(-0.7, 0.7, d)), rng.normal(size=d)
        return Affine((left * stretch) @ right, (right.T / stretch) @ left.T, shift)

    moved = rng.permutation(d) % 2
    size, waves = rng.uniform(-1.0, 1.0, d) * moved, rng.normal(size=(d, d)) * (1 - moved)
    return Chain((Shear(size, waves), affine(), Sinh(rng.uniform(0.1, 0.5, d)), affine()))


class Ripple(eqx.Module):
    """A metric with curvature, `A A^T + I + s s^T` with s = sin(w . x) x."""

    root: Any
    wave: Any

    def __call__(self, x: Any) -> Any:
        s = jnp.sin(self.wave @ x) * x
        return self.root @ self.root.T + jnp.eye(x.size) + jnp.outer(s, s)


class Valley(eqx.Module):
    """A function with no symmetry."""

    root: Any
    wave: Any
    slope: Any

    def __call__(self, x: Any) -> Any:
        bowl = jnp.sum((self.root @ x) ** 2) / 4.0
        return bowl + jnp.cos(self.wave @ x) + jnp.exp(0.3 * self.slope @ x)


class Setting(eqx.Module):
    """What a law is stated about: a point x, maps f and g, a metric G, a function L, tensors."""

    x: Any
    f: Chain
    g: Chain
    metric: vf.Metric
    function: Valley
    vectors: Any
    matrices: Any

    @property
    def y(self) -> Any:
        """The point in the coordinates of f."""
        return self.f(self.x)

    @property
    def carried_metric(self) -> vf.Metric:
        """The metric in the coordinates of f."""
        return vf.pullback(self.metric, self.f.inv)

    def carried_function(self, y: Any) -> Any:
        """The function in the coordinates of f."""
        return self.function(self.f.inv(y))


def random_setting(d: int, seed: int) -> Setting:
    rng = np.random.default_rng(seed)
    setting = Setting(
        rng.normal(size=d),
        random_chain(rng, d),
        random_chain(rng, d),
        MatrixField(Ripple(rng.normal(size=(d, d)), rng.normal(size=d))),
        Valley(rng.normal(size=(d, d)), rng.normal(size=d), rng.normal(size=d)),
        rng.normal(size=(3, d)),
        rng.normal(size=(2, d, d)),
    )
    return jax.tree.map(jnp.asarray, setting)


def law(dimensions: tuple[int, ...] = (1, 2, 5), rtol: float = 1e-10) -> Callable:
    """Decorator: a test that the two pytrees returned for a random `Setting` are equal.

    A third thing returned is the size that `rtol` refers to, where the sides can cancel. The sides
    are compiled once for each number of dimensions.
    """

    def decorate(sides: Callable[[Setting], tuple[Any, ...]]) -> Callable:
        compiled = jax.jit(sides)

        @given(d=st.sampled_from(dimensions), seed=st.integers(0, 2**32 - 1))
        def test(d: int, seed: int) -> None:
            actual, desired, *size = compiled(random_setting(d, seed))
            close(actual, desired, rtol, *size)

        test.__name__, test.__doc__ = sides.__name__, sides.__doc__
        return test

    return decorate


# The worked figures: one nonlinear chart of R^2, one curved metric, one point, and at that point
# a vector, a covector and a Hessian.


class Phi(eqx.Module):
    def __call__(self, t: Any) -> Any:
        return jnp.stack([t[0] + 0.3 * jnp.sin(t[1]) + 0.2 * t[0] ** 3, jnp.sinh(t[1])])

    def inv(self, p: Any) -> Any:
        """By Cardano's formula for t0 + 0.2 t0^3."""
        second = jnp.arcsinh(p[1])
        c = (p[0] - 0.3 * jnp.sin(second)) / 0.4
        root = jnp.sqrt(c**2 + (5.0 / 3.0) ** 3)
        return jnp.stack([jnp.cbrt(root + c) - jnp.cbrt(root - c), second])


PHI = Phi()
CURVED = MatrixField(
    lambda t: jnp.array([[2 + jnp.cos(t[0]), 0.3 * t[1]], [0.3 * t[1], 1 + t[0] ** 2]])
)
POINT = np.array([0.7, -0.4])
VECTOR = np.array([0.3, 1.1])
COVECTOR = np.array([-0.5, 0.8])
HESSIAN = np.array([[3.0, 0.4], [0.4, 1.5]])

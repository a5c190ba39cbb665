"""Lanczos' method with full re-orthogonalization, and what is read off it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from matfree.stochtrace import sampler_signs

from volform.linalg.methods import Krylov
from volform.linalg.operator import mapped
from volform.linalg.pencil import Pencil


class Decomposition(NamedTuple):
    """`S Q^T = Q^T T + remainder`, with orthonormal rows Q, shape (k, n), and T tridiagonal."""

    basis: Float[Array, "k n"]
    diagonal: Float[Array, " k"]
    off_diagonal: Float[Array, " k"]

    def ritz(self) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
        """Eigenvalues of T in ascending order, and its eigenvectors as columns."""
        return _ritz(self.diagonal, self.off_diagonal)


def _ritz(
    diagonal: Float[Array, " k"], off_diagonal: Float[Array, " k"]
) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    off = off_diagonal[:-1]
    return jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1))


def lanczos(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    start: Float[Array, " n"],
    depth: int,
    key: PRNGKeyArray,
) -> Decomposition:
    """Lanczos' tridiagonal form of a symmetric operator, from the vector `start`.

    Where the Krylov space is exhausted (an operator of few distinct eigenvalues), the coupling is
    set to zero and the method goes on with a fresh vector, so that quadrature stays exact and
    repeated eigenvalues can be found. matfree's decomposition divides rounding by itself there.
    """
    step = lambda carry, i: advanced(product, key, carry, i)  # noqa: E731
    (basis, *_), (alphas, betas) = jax.lax.scan(step, begun(start, depth), jnp.arange(depth))
    return Decomposition(basis, alphas, betas)


def begun(start: Float[Array, " n"], depth: int) -> tuple[Array, ...]:
    """State of `advanced` before the first step."""
    zero = jnp.zeros((), start.dtype)
    basis = jnp.zeros((depth, start.size), start.dtype)
    return basis, start / jnp.linalg.norm(start), jnp.zeros_like(start), zero, zero


def advanced(
    product: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    key: PRNGKeyArray,
    carry: tuple[Array, ...],
    i: Array,
) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
    """Step i of Lanczos' method: what is carried along, and the entries of T that it gives."""
    basis, vector, before, coupling, scale = carry
    n = vector.size
    rounding = float(10.0 * n**0.5 * jnp.finfo(vector.dtype).eps)

    def cleaned(vector: Array) -> Array:
        return vector - (basis @ vector) @ basis

    basis = basis.at[i].set(vector)
    image = product(vector)
    alpha = vector @ image
    rest = cleaned(image - alpha * vector - coupling * before)
    size = jnp.linalg.norm(rest)
    scale = jnp.maximum(scale, jnp.abs(alpha) + coupling + size)
    exhausted = size <= rounding * scale
    fresh = jax.random.normal(jax.random.fold_in(key, i), (n,), vector.dtype)
    direction = jnp.where(exhausted, fresh, rest / jnp.where(exhausted, 1.0, size))
    direction = cleaned(direction)  # once is not enough, twice is
    norm = jnp.linalg.norm(direction)
    beta = jnp.where(exhausted, 0.0, size * norm)
    direction = direction / jnp.where(norm > 0, norm, 1.0)
    return (basis, direction, vector, beta, scale), (alpha, beta)


def signs(by: Krylov, like: Float[Array, " n"]) -> Float[Array, "probes n"]:
    """The probes of `by`: vectors of independent signs."""
    return sampler_signs(like, num=by.probes)(by.key)


class LanczosQuadrature(NamedTuple):
    """Nodes and weights with `sum_i w_i f(x_i)` near `z^T f(S) z / |z|^2` for each probe z."""

    nodes: Float[Array, "probes k"]
    weights: Float[Array, "probes k"]


def quadrature(form: Pencil, by: Krylov, probes: Float[Array, "probes n"]) -> LanczosQuadrature:
    """Gauss quadrature of the spectral measure of each probe."""
    product = form.mv()
    depth = min(by.depth, form.size())

    def of_one(probe: Float[Array, " n"]) -> tuple[Array, Array]:
        found = lanczos(product, probe, depth, by.key)
        return found.diagonal, found.off_diagonal

    return measures(*mapped(of_one, probes, by.batch))


def measures(
    diagonals: Float[Array, "probes k"], off_diagonals: Float[Array, "probes k"]
) -> LanczosQuadrature:
    """The quadratures of the vectors that tridiagonal forms started from.

    One matrix at a time: on CPUs, JAX gives those of a batch to the threads that wait for them, and
    on as many devices as there are threads all of them wait.
    """

    def measure(form: tuple[Array, Array]) -> LanczosQuadrature:
        values, vectors = _ritz(*form)
        return LanczosQuadrature(values, vectors[0] ** 2)

    return jax.lax.map(measure, (diagonals, off_diagonals))


def averaged(samples: Any) -> tuple[Any, Any]:
    """Mean over the leading axis and its standard error."""
    count = jax.tree.leaves(samples)[0].shape[0]
    mean = jax.tree.map(lambda s: jnp.mean(s, 0), samples)
    error = jax.tree.map(lambda s: jnp.std(s, 0, ddof=1) / count**0.5, samples)
    return mean, error

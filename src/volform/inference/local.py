"""The local expansion of -log q^G: gradient, Hessian, metric, spectrum of E = G^-1 H."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from volform.geometry.information import MonteCarlo
from volform.models import Posterior


class Quadratic(eqx.Module):
    """l = -log q^G at u to second order, in coordinates.

    Attributes:
        u: the point, shape (d,).
        value: -log q^G(u).
        gradient: partial derivatives of l in u, shape (d,).
        hessian: second partial derivatives of l in u, shape (d, d).
        gram: the metric in u, shape (d, d).
        gradient_norm: norm of dl in the metric, sqrt(dl^T G^-1 dl).
    """

    u: Float[Array, " d"]
    value: Float[Array, ""]
    gradient: Float[Array, " d"]
    hessian: Float[Array, "d d"]
    gram: Float[Array, "d d"]
    gradient_norm: Float[Array, ""]


class Expansion(eqx.Module):
    """l = -log q^G at u to second order, in the eigenbasis of E = G^-1 H.

    With G = L L^T and L^-1 H L^-T = V diag(eigenvalues) V^T, the columns of `frame` = L^-T V are
    tangent vectors that are orthonormal in the metric and diagonalize E.

    Attributes:
        u: the point, shape (d,).
        value: -log q^G(u).
        gradient: dl in the frame, shape (d,); its Euclidean norm is the metric's norm of dl.
        hessian: second partial derivatives of l in u, shape (d, d).
        gram: the metric in u, shape (d, d).
        eigenvalues: eigenvalues of E in ascending order, shape (d,).
        frame: orthonormal eigenvectors of E as columns, in u, shape (d, d).
    """

    u: Float[Array, " d"]
    value: Float[Array, ""]
    gradient: Float[Array, " d"]
    hessian: Float[Array, "d d"]
    gram: Float[Array, "d d"]
    eigenvalues: Float[Array, " d"]
    frame: Float[Array, "d d"]

    @property
    def gradient_norm(self) -> Float[Array, ""]:
        """Norm of dl in the metric, sqrt(dl^T G^-1 dl)."""
        return jnp.linalg.norm(self.gradient)

    @property
    def whitener(self) -> Float[Array, "d d"]:
        """W with W^T H W = I; NaN where H is not positive definite."""
        return self.frame / jnp.sqrt(self.eigenvalues)

    @property
    def decrement(self) -> Float[Array, ""]:
        """Newton decrement sqrt(dl^T |H|^-1 dl): distance to the mode in standard deviations."""
        return jnp.linalg.norm(self.gradient / jnp.sqrt(jnp.abs(self.eigenvalues)))


def objective(u: Float[Array, " d"], posterior: Posterior) -> Float[Array, ""]:
    """l(u) = -log q^G(u)."""
    return -posterior.log_density(u)


def hessian_of(function: Any, u: Float[Array, " d"], batch: int = 64) -> tuple[Any, Any, Any]:
    """Value, gradient and Hessian, by forward over reverse, `batch` columns at a time."""
    (value, gradient), push = jax.linearize(jax.value_and_grad(function), u)

    def column(direction: Float[Array, " d"]) -> Float[Array, " d"]:
        return push(direction)[1]

    eye = jnp.eye(u.size, dtype=u.dtype)
    columns = (
        jax.vmap(column)(eye) if u.size <= batch else jax.lax.map(column, eye, batch_size=batch)
    )
    return value, gradient, 0.5 * (columns + columns.T)


def quadratic(posterior: Posterior, u: Float[Array, " d"]) -> Quadratic:
    """Expand -log q^G to second order at u."""
    value, gradient, hessian = hessian_of(lambda u: objective(u, posterior), u)
    gram = posterior.metric(u).as_matrix()
    whitened = solve_triangular(jnp.linalg.cholesky(gram), gradient, lower=True)
    return Quadratic(u, value, gradient, hessian, gram, jnp.linalg.norm(whitened))


def diagonalized(at: Quadratic) -> Expansion:
    """The expansion in the eigenbasis of E. Not differentiable."""
    lower = jnp.linalg.cholesky(at.gram)
    half = solve_triangular(lower, at.hessian, lower=True)
    relative = solve_triangular(lower, half.T, lower=True)
    eigenvalues, vectors = eigenbasis(0.5 * (relative + relative.T))
    frame = solve_triangular(lower.T, vectors, lower=False)
    gradient = frame.T @ at.gradient
    return Expansion(at.u, at.value, gradient, at.hessian, at.gram, eigenvalues, frame)


def eigenbasis(relative: Float[Array, "d d"]) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Eigenvalues in ascending order and orthonormal eigenvectors of a symmetric matrix.

    Of a positive definite one with a wide spectrum from the singular values of its Cholesky
    factor, whose spread is the square root of the matrix's: parameters in units far apart keep
    their digits.
    """
    values, vectors = jnp.linalg.eigh(relative)
    narrow = values[0] > jnp.finfo(values.dtype).eps ** 0.25 * values[-1]
    lower = jnp.linalg.cholesky(relative)

    def by_factor() -> tuple[Array, Array]:
        vectors, values, _ = jnp.linalg.svd(lower)
        return values[::-1] ** 2, vectors[:, ::-1]

    # The factor costs several times as much as eigh, and gains no digit of a narrow spectrum.
    is_better = ~narrow & jnp.all(jnp.isfinite(lower))
    return jax.lax.cond(is_better, by_factor, lambda: (values, vectors))


@eqx.filter_jit
def volume_error(posterior: Posterior, u: Float[Array, " d"], keys: int = 8) -> Any:
    """Standard error of log sqrt(det G) at u from Monte Carlo in the metric; None without any.

    The spread over fresh keys of the Monte Carlo routes, each with the metric's number of draws.
    """
    leaves, treedef = jax.tree.flatten(posterior, is_leaf=_is_sampled)
    sampled = [index for index, leaf in enumerate(leaves) if _is_sampled(leaf)]
    if not sampled:
        return None

    def log_volume(fold: Array) -> Float[Array, ""]:
        fresh = list(leaves)
        for index in sampled:
            route = leaves[index]
            fresh[index] = MonteCarlo(jax.random.fold_in(route.key, fold), route.draws)
        return jax.tree.unflatten(treedef, fresh).log_volume(u)

    return jnp.std(jax.vmap(log_volume)(jnp.arange(keys)), ddof=1)


def _is_sampled(leaf: Any) -> bool:
    return isinstance(leaf, MonteCarlo)

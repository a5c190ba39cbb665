"""Curvature of a metric, by automatic differentiation."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from volform.geometry.connection import first_kind
from volform.geometry.metric import Metric
from volform.linalg.structured import Point


def scalar_curvature(metric: Metric, point: Point) -> Float[Array, ""]:
    """Scalar curvature `R = G^ij R_ij`, twice the Gaussian curvature of a surface.

    Taken in the frame in which G is the identity at `point`, where with `G_ij,k = d_k G_ij` and
    `Gamma_kij = 1/2 (G_jk,i + G_ik,j - G_ij,k)`

        R = G_ij,ij - G_ii,jj + Gamma_kij Gamma_kij - Gamma_kii Gamma_kjj,

    so that the unit sphere S^n has R = n (n - 1).

    Args:
        metric: a metric.
        point: where to evaluate it.

    Returns:
        A scalar, the same in all coordinates; not finite where G is not positive definite. Costs
        O(n^5) time and O(n^4) memory.

    References:
        do Carmo (1992), Riemannian Geometry, chapter 4 (there divided by n (n - 1)).

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> normal = vf.Fisher(dist.Normal)  # hyperbolic plane
    >>> round(float(scalar_curvature(normal, (jnp.array(0.0), jnp.array(2.0)))), 6)
    -1.0
    """
    x, unravel = ravel_pytree(point)
    chol = jnp.linalg.cholesky(metric(point).as_matrix())
    frame = solve_triangular(chol, jnp.eye(x.size, dtype=x.dtype), lower=True).T

    def matrix(s: Float[Array, " n"]) -> Float[Array, "n n"]:
        return frame.T @ metric(unravel(x + frame @ s)).as_matrix() @ frame

    origin = jnp.zeros_like(x)
    second = jax.jacfwd(jax.jacfwd(matrix))(origin)  # [i, j, k, l] = G_ij,kl
    gamma = first_kind(jax.jacfwd(matrix)(origin))
    linear = jnp.einsum("ijij", second) - jnp.einsum("iijj", second)
    square = jnp.sum(gamma**2) - jnp.sum(jnp.trace(gamma, axis1=1, axis2=2) ** 2)
    # The compiler takes 0 * inf for 0 where the derivatives of a singular metric vanish.
    return jnp.where(jnp.isfinite(frame).all(), linear + square, jnp.nan)

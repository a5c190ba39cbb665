"""Curvature of a metric, by automatic differentiation."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float, PyTree

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


def riemann_curvature(metric: Metric, point: Point) -> Float[Array, "n n n n"]:
    """Riemann's curvature tensor with all indices below, `R_ijkl = <R(e_i, e_j) e_l, e_k>`.

    With `G_ij,kl = d_k d_l G_ij` and the Christoffel symbols of the first kind

        R_ijkl = 1/2 (G_il,jk + G_jk,il - G_ik,jl - G_jl,ik)
                 + G^mn (Gamma_mjk Gamma_nil - Gamma_mjl Gamma_nik),

    so that a surface of Gaussian curvature K has `R_1212 = K det G`.

    Args:
        metric: a metric.
        point: where to evaluate it.

    Returns:
        A tensor in `ravel_pytree` order, antisymmetric in i, j and in k, l. Costs O(n^5) time and
        O(n^4) memory; not finite where G is singular.

    References:
        do Carmo (1992), Riemannian Geometry, chapter 4 (the sign of whose R is the other one).

    >>> import jax.numpy as jnp, volform as vf
    >>> sphere = vf.geometry.DiagonalField(lambda t, f: (jnp.ones_like(t), jnp.sin(t) ** 2))
    >>> tensor = riemann_curvature(sphere, (jnp.array(0.5), jnp.array(0.0)))
    >>> round(float(tensor[0, 1, 0, 1] - jnp.sin(0.5) ** 2), 9)
    0.0
    """
    x, unravel = ravel_pytree(point)

    def matrix(x: Float[Array, " n"]) -> Float[Array, "n n"]:
        return metric(unravel(x)).as_matrix()

    second = jax.jacfwd(jax.jacfwd(matrix))(x)  # [i, j, k, l] = G_ij,kl
    gamma = first_kind(jax.jacfwd(matrix)(x))  # [m, i, j] = Gamma_mij
    raised = cho_solve((jnp.linalg.cholesky(matrix(x)), True), gamma.reshape(x.size, -1))
    square = jnp.einsum("mjk,mil->ijkl", gamma, raised.reshape(gamma.shape))
    half = 0.5 * jnp.einsum("iljk->ijkl", second) + 0.5 * jnp.einsum("jkil->ijkl", second) + square
    # The other terms are these with k and l exchanged.
    return half - jnp.swapaxes(half, 2, 3)


def ricci_curvature(metric: Metric, point: Point) -> Float[Array, "n n"]:
    """Ricci's tensor `R_jl = G^ik R_ijkl`; (n - 1) G on the unit sphere of dimension n.

    Args:
        metric: a metric.
        point: where to evaluate it.

    Returns:
        A symmetric bilinear form, whose trace is `scalar_curvature`. Costs what
        `riemann_curvature` does.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> normal = vf.Fisher(dist.Normal)  # curvature -1/2: minus half the metric
    >>> ricci_curvature(normal, (jnp.array(0.0), jnp.array(2.0))).round(9).tolist()
    [[-0.125, ...], [..., -0.25]]
    """
    tensor = riemann_curvature(metric, point)
    chol = jnp.linalg.cholesky(metric(point).as_matrix())
    raised = cho_solve((chol, True), tensor.reshape(chol.shape[0], -1)).reshape(tensor.shape)
    return jnp.trace(raised, axis1=0, axis2=2)


def sectional_curvature(
    metric: Metric, point: Point, left: PyTree, right: PyTree
) -> Float[Array, ""]:
    """Gaussian curvature of the plane of two tangent vectors v and w at a point.

    `K = <R(v, w) w, v> / (|v|^2 |w|^2 - <v, w>^2)`, from derivatives of G along v and w alone.

    Args:
        metric: a metric.
        point: where to evaluate it.
        left: tangent vector v, laid out like the point.
        right: tangent vector w; where it is a multiple of v the result is not finite.

    Returns:
        A scalar, the same in all coordinates and for all vectors of the plane. Costs O(n^3).

    References:
        do Carmo (1992), Riemannian Geometry, chapter 4.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> mean, scale = (jnp.array(1.0), jnp.array(0.0)), (jnp.array(0.0), jnp.array(1.0))
    >>> normal, point = vf.Fisher(dist.Normal), (jnp.array(0.0), jnp.array(2.0))
    >>> round(float(sectional_curvature(normal, point, mean, scale)), 9)
    -0.5
    """
    x, unravel = ravel_pytree(point)
    pair = jnp.stack([ravel_pytree(left)[0], ravel_pytree(right)[0]])

    def lowered(x: Float[Array, " n"]) -> Float[Array, "2 n"]:
        return jax.vmap(lambda v: ravel_pytree(metric(unravel(x)).mv(unravel(v)))[0])(pair)

    def forms(t: Float[Array, " 2"]) -> Float[Array, "2 2"]:
        return lowered(x + t @ pair) @ pair.T

    second = jax.jacfwd(jax.jacfwd(forms))(jnp.zeros(2, x.dtype))  # [a, b, c, e] = d_c d_e G(a, b)
    slope = jax.jacfwd(lambda t: lowered(x + t @ pair))(jnp.zeros(2, x.dtype))  # [a, k, b]
    grads = jax.jacrev(lambda x: lowered(x) @ pair.T)(x)  # [a, b, k]

    def symbol(a: int, b: int) -> Float[Array, " n"]:
        return 0.5 * (slope[a, :, b] + slope[b, :, a] - grads[a, b])

    chol = jnp.linalg.cholesky(metric(point).as_matrix())
    straight = jnp.stack([symbol(0, 1), symbol(0, 0), symbol(1, 1)], axis=1)
    mixed, first, other = solve_triangular(chol, straight, lower=True).T
    linear = second[0, 1, 0, 1] - 0.5 * second[0, 0, 1, 1] - 0.5 * second[1, 1, 0, 0]
    gram = forms(jnp.zeros(2, x.dtype))
    return (linear + mixed @ mixed - first @ other) / jnp.linalg.det(gram)

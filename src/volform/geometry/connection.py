"""The Levi-Civita connection of a metric by automatic differentiation, and Hessians with it.

All arrays are dense and in `ravel_pytree` order, with n the number of coordinates of the point.
Functions take the point whole, as those in `volform.geometry.tensors` do.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from volform.geometry.metric import Metric
from volform.geometry.tensors import gradient, scalar_of, sharp, space_of
from volform.linalg.generalized import whitened_form
from volform.linalg.structured import Point, whiten


def christoffel(metric: Metric, point: Point) -> Float[Array, "n n n"]:
    """Christoffel symbols `Gamma^k_ij = 1/2 G^kl (d_i G_jl + d_j G_il - d_l G_ij)`.

    They are no tensor: under a change of coordinates they gain a second-derivative term.

    Args:
        metric: a metric.
        point: where to evaluate them.

    Returns:
        Gamma[k, i, j], symmetric in i and j. Costs O(n^4); not finite where G is singular.

    References:
        do Carmo (1992), Riemannian Geometry, chapter 2.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> gamma = christoffel(vf.Fisher(dist.Normal), (jnp.array(0.0), jnp.array(2.0)))
    >>> gamma[1].round(12).tolist()
    [[0.25, 0.0], [0.0, -0.5]]
    """
    x, unravel = ravel_pytree(point)

    def matrix(x: Float[Array, " n"]) -> Float[Array, "n n"]:
        return metric(unravel(x)).as_matrix()

    lowered = first_kind(jax.jacfwd(matrix)(x))
    solved = cho_solve((jnp.linalg.cholesky(matrix(x)), True), lowered.reshape(x.size, -1))
    return solved.reshape(lowered.shape)


def covariant_hessian(
    metric: Metric, function: Callable[..., Float[Array, ""]], point: Point
) -> Float[Array, "n n"]:
    """Covariant Hessian `H_ij = d_i d_j L - Gamma^k_ij d_k L`, a tensor at every point.

    At a critical point of L it is the matrix of second derivatives, whatever the metric.

    Args:
        metric: a metric.
        function: L, from a point to a scalar, called as `L(point)`.
        point: where to evaluate it.

    Returns:
        H, shape (n, n), symmetric; a `BilinearForm` at a `TangentSpace`.

    Raises:
        TensorError: for a function of several arguments, or whose value is no real number.

    References:
        do Carmo (1992), Riemannian Geometry, chapter 6; Kristiadi et al. (2023), Eq. (6).

    >>> import jax.numpy as jnp, volform as vf
    >>> g = vf.pullback(vf.Euclidean(), jnp.log)  # flat in log x
    >>> covariant_hessian(g, lambda x: jnp.log(x) ** 2, jnp.array(3.0)).item()
    0.222...
    """
    if (space := space_of(point)) is not None:
        return space.form(covariant_hessian(metric, function, space.point))
    x, unravel = ravel_pytree(point)
    scalar = scalar_of(function, "covariant_hessian")
    plain = jax.hessian(lambda x: scalar(unravel(x)))(x)
    return plain - christoffel_along(metric, point, gradient(metric, function, point))


def christoffel_along(
    metric: Callable[[Point], lx.AbstractLinearOperator], point: Point, vector: Point
) -> Float[Array, "n n"]:
    """`Gamma^k_ij w_k` of a covector w = G v, without the Christoffel symbols.

    With v held fixed it is `1/2 [d_i (G v)_j + d_j (G v)_i - (v . d) G_ij]`.

    Args:
        metric: a metric.
        point: where to evaluate it.
        vector: the tangent vector v = G^-1 w, laid out like the point.

    Returns:
        A symmetric matrix, shape (n, n).

    >>> import jax.numpy as jnp, volform as vf
    >>> g = vf.pullback(vf.Euclidean(), jnp.log)  # x^-2, with Gamma = -1/x
    >>> christoffel_along(g, jnp.array(2.0), jnp.array(4.0)).item()  # w = 1
    -0.5
    """
    x, unravel = ravel_pytree(point)

    def lowered(x: Float[Array, " n"]) -> Float[Array, " n"]:
        return ravel_pytree(metric(unravel(x)).mv(vector))[0]

    def matrix(x: Float[Array, " n"]) -> Float[Array, "n n"]:
        return metric(unravel(x)).as_matrix()

    slope = jax.jacfwd(lowered)(x)
    along = jax.jvp(matrix, (x,), (ravel_pytree(vector)[0],))[1]
    return 0.5 * (slope + slope.T - along)


def raise_index(metric: Metric, point: Point, bilinear: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The linear operator `E = G^-1 H` that a bilinear form is, relative to a metric.

    Its determinant, trace and eigenvalues do not depend on the coordinates.

    Args:
        metric: a metric.
        point: where H lives.
        bilinear: symmetric H, shape (n, n).

    Returns:
        E, shape (n, n); not symmetric as a matrix. An `Endomorphism` at a `TangentSpace`.

    References:
        Kristiadi et al. (2023), Eq. (2), with G^-1 for the printed G.

    >>> import jax.numpy as jnp, volform as vf
    >>> raise_index(vf.Euclidean(0.5), jnp.zeros(2), 8.0 * jnp.eye(2)).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    if (space := space_of(point, bilinear)) is not None:
        return space.form(bilinear).under(metric)
    _, unravel = ravel_pytree(point)

    def raised(row: Float[Array, " n"]) -> Float[Array, " n"]:
        return ravel_pytree(sharp(metric, point, unravel(row)))[0]

    return jax.vmap(raised, out_axes=1)(bilinear)


def generalized_eigenvalues(
    metric: Metric, point: Point, bilinear: Float[Array, "n n"]
) -> Float[Array, " n"]:
    """Eigenvalues of `G^-1 H` in ascending order: those of the symmetric pencil (H, G).

    Taken as the eigenvalues of `L^-1 H L^-T` with `G = L L^T`, which is symmetric; independent of
    the coordinates.

    Args:
        metric: a metric.
        point: where H lives.
        bilinear: symmetric H, shape (n, n).

    Returns:
        Eigenvalues, shape (n,); not finite where G is not positive definite.

    References:
        Golub & Van Loan (2013), Matrix Computations, section 8.7; Kristiadi et al. (2023),
        Eq. (11).

    >>> import jax.numpy as jnp, volform as vf
    >>> h = jnp.diag(jnp.array([4.0, -1.0]))
    >>> generalized_eigenvalues(vf.Euclidean(2.0), jnp.zeros(2), h).tolist()
    [-4.0, 16.0]
    """
    if (space := space_of(point, bilinear)) is not None:
        return space.form(bilinear).eigenvalues(metric)
    _, unravel = ravel_pytree(point)
    operator = metric(point)
    return jnp.linalg.eigvalsh(whitened_form(bilinear, lambda w: whiten(operator, unravel(w))))


def first_kind(slope: Float[Array, "n n n"]) -> Float[Array, "n n n"]:
    """Christoffel symbols of the first kind, Gamma_kij, from slope[i, j, k] = d_k G_ij."""
    lowered = jnp.swapaxes(slope, 1, 2)  # [i, k, j] = d_k G_ij
    return 0.5 * (slope + lowered - jnp.moveaxis(slope, 2, 0))

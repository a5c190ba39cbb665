"""Coframes of vectors and matrices: Gaussian families, Student t, Wishart and LKJ.

The value row is in the value's own coordinate for those of vectors, and in NumPyro's unconstrained
coordinates for Cholesky factors: there their entries are independent given the parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln, polygamma
from jaxtyping import Array
from numpyro.distributions import biject_to

from volform.geometry.coframes import or_zero, register_coframe, trigamma_excess


@register_coframe(dist.MultivariateNormal)
def _multivariate_normal(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    return _gaussian(fn.scale_tril, dfn.scale_tril, or_zero(dx) - dfn.loc)


@register_coframe(dist.LowRankMultivariateNormal)
def _low_rank_multivariate_normal(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    def tril(factor: Array, diagonal: Array) -> Array:
        eye = jnp.eye(diagonal.shape[-1], dtype=factor.dtype)
        return jnp.linalg.cholesky(
            factor @ jnp.swapaxes(factor, -1, -2) + diagonal[..., None] * eye
        )

    primal, tangent = jax.jvp(tril, (fn.cov_factor, fn.cov_diag), (dfn.cov_factor, dfn.cov_diag))
    return _gaussian(primal, tangent, or_zero(dx) - dfn.loc)


def _gaussian(tril: Array, dtril: Array, shift: Array) -> Array:
    """|L^-1 shift|^2 + 1/2 tr[(W + W^T)^2] with W = L^-1 dL, lower triangular."""
    n = tril.shape[-1]
    batch = jnp.broadcast_shapes(tril.shape[:-2], shift.shape[:-1])
    tril, dtril = (jnp.broadcast_to(m, (*batch, n, n)) for m in (tril, dtril))
    location = solve_triangular(tril, jnp.broadcast_to(shift, (*batch, n))[..., None], lower=True)
    w = solve_triangular(tril, dtril, lower=True)
    # For lower-triangular W: 1/2 tr[(W + W^T)^2] = 2 sum_i W_ii^2 + sum_{i>j} W_ij^2.
    weights = jnp.tril(jnp.ones((n, n), tril.dtype), -1) + np.sqrt(2.0) * jnp.eye(
        n, dtype=tril.dtype
    )
    rows, columns = np.tril_indices(n)
    return jnp.concatenate([location[..., 0], (weights * w)[..., rows, columns]], -1)


@register_coframe(dist.GaussianRandomWalk)
def _gaussian_random_walk(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    # the first value is a step from zero
    scale = jnp.asarray(fn.scale)[..., None]
    path = jnp.zeros(fn.num_steps, scale.dtype) if dx is None else dx
    steps = jnp.diff(path, axis=-1, prepend=jnp.zeros_like(path[..., :1])) / scale
    sigma = np.sqrt(2.0 * fn.num_steps) * dfn.scale[..., None] / scale
    return _joined(steps, sigma)


@register_coframe(dist.CAR)
def _car(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    adjacency = jnp.asarray(fn.adj_matrix.toarray() if fn.is_sparse else fn.adj_matrix)

    def precision(correlation: Any, factor: Any) -> Array:
        adjacent = adjacency.astype(jnp.result_type(correlation, factor))
        degrees = adjacent.sum(-1, keepdims=True) * jnp.eye(
            adjacent.shape[-1], dtype=adjacent.dtype
        )
        correlation, factor = (jnp.asarray(v)[..., None, None] for v in (correlation, factor))
        return factor * (degrees - correlation * adjacent)

    q, dq = jax.jvp(
        precision,
        (jnp.asarray(fn.correlation), jnp.asarray(fn.conditional_precision)),
        (dfn.correlation, dfn.conditional_precision),
    )
    return _gaussian_of_precision(q, dq, or_zero(dx) - dfn.loc)


def _gaussian_of_precision(q: Array, dq: Array, shift: Array) -> Array:
    """|R^T shift|^2 + 1/2 tr[(R^-1 dQ R^-T)^2] with Q = R R^T."""
    n = q.shape[-1]
    batch = jnp.broadcast_shapes(q.shape[:-2], shift.shape[:-1])
    root, dq = (jnp.broadcast_to(m, (*batch, n, n)) for m in (jnp.linalg.cholesky(q), dq))
    location = jnp.einsum("...ij,...i->...j", root, jnp.broadcast_to(shift, (*batch, n)))
    half = solve_triangular(root, dq, lower=True)
    whole = solve_triangular(root, jnp.swapaxes(half, -1, -2), lower=True)
    return jnp.concatenate([location, np.sqrt(0.5) * whole.reshape(*batch, n * n)], -1)


@register_coframe(dist.MultivariateStudentT)
def _multivariate_student_t(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    n = fn.event_shape[-1]
    nu = jnp.asarray(fn.df, fn.scale_tril.dtype)[..., None]
    gaussian = _gaussian(fn.scale_tril, dfn.scale_tril, or_zero(dx) - dfn.loc)
    location, scale = gaussian[..., :n], gaussian[..., n:]
    rows, columns = np.tril_indices(n)
    diagonal = scale[..., rows == columns]
    trace = np.sqrt(2.0) * jnp.sum(diagonal, -1, keepdims=True)  # of S^-1 dS, S = L L^T
    share = jnp.sqrt((nu + n) / (nu + n + 2.0))
    stretch = jnp.sqrt(nu / (2.0 * n * (nu + n + 2.0)))
    cross = -1.0 / ((nu + n) * (nu + n + 2.0))
    ddf = dfn.df[..., None]
    return _joined(
        share * location,
        share * (diagonal - trace / (np.sqrt(2.0) * n)),
        share * scale[..., rows != columns],
        stretch * trace + cross / stretch * ddf,
        jnp.sqrt(_tail_information(nu, n)) * ddf,
    )


def _tail_information(nu: Array, n: int) -> Array:
    """I_nu_nu less what the scale explains; beyond 100 n, where it cancels, expanded in 1 / nu."""
    small = jnp.minimum(nu, 100.0 * n)
    exact = (
        0.25 * (polygamma(1, small / 2.0) - polygamma(1, (small + n) / 2.0))
        - n * (small + n + 4.0) / (2.0 * small * (small + n) * (small + n + 2.0))
        - 2.0 * n / (small * (small + n) ** 2 * (small + n + 2.0))
    )
    w = 1.0 / jnp.maximum(nu, 100.0 * n)
    terms = (
        n * (n + 2.0) / 2.0,
        -(n**2) * (n + 2.0),
        n * (1.5 * n**3 + 10.0 / 3.0 * n**2 - 4.0 / 3.0),
        -(n**2) * (2.0 * n**3 + 5.0 * n**2 - 4.0),
        n * (2.5 * n**5 + 7.0 * n**4 - 28.0 / 3.0 * n**2 + 16.0 / 3.0),
    )
    series = w**4 * sum(term * w**k for k, term in enumerate(terms))
    return jnp.where(nu > 100.0 * n, series, exact)


@register_coframe(dist.WishartCholesky)
def _wishart_cholesky(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    """Bartlett (1933): A = L^-1 x has independent entries, A_ii^2 ~ chi^2(nu - i), A_ij ~ N(0, 1).

    In log x_ii and x_ij, with alpha_i = d log(x_ii / L_ii), M = L^-1 dL, e = L^-1 dx below the
    diagonal, and g_ij = (L^-1)_ij L_jj d log x_jj - M_ij, the score is the sum of
    (nu - i - A_ii^2) alpha_i + dnu (log A_ii - E log A_ii), M_ii (A_ij^2 - 1),
    A_ij (e_ij + g_ij A_jj) and A_ij A_kj M_ik for i > k > j: uncorrelated terms.
    """
    n = fn.event_shape[-1]
    index = jnp.arange(n, dtype=fn.scale_tril.dtype)
    nu = jnp.asarray(fn.concentration, index.dtype)[..., None] - index
    dnu = dfn.concentration[..., None]
    dlog, below = _in_log_cholesky(fn, x, dx)
    batch = jnp.broadcast_shapes(
        fn.scale_tril.shape[:-2], nu.shape[:-1], dlog.shape[:-1], dfn.scale_tril.shape[:-2]
    )
    tril, dtril, below = (
        jnp.broadcast_to(m, (*batch, n, n)) for m in (fn.scale_tril, dfn.scale_tril, below)
    )
    m, e = (solve_triangular(tril, v, lower=True) for v in (dtril, below))
    turn = m.diagonal(axis1=-2, axis2=-1)
    columns = tril.diagonal(axis1=-2, axis2=-1) * dlog
    eye = jnp.broadcast_to(jnp.eye(n, dtype=tril.dtype), tril.shape)
    g = solve_triangular(tril, eye, lower=True) * columns[..., None, :] - m
    mean, rest = _chi_moments(nu)
    counts = jnp.sqrt(index)  # of the entries to the left of the diagonal
    a = nu / 2.0
    parts = (
        jnp.sqrt(a) * (2.0 * (dlog - turn) - 0.5 * dnu / a),
        0.5 * jnp.sqrt(trigamma_excess(a)) * dnu,
        np.sqrt(2.0) * counts * turn,
        _below(e + mean[..., None, :] * g),
        _below(rest[..., None, :] * g),
        _below(m * counts),
    )
    return _joined(*parts)


def _in_log_cholesky(fn: Any, x: Any, dx: Any) -> tuple[Array, Array]:
    """Tangents of the logarithms of the diagonal, and of the entries below it; else zeros."""
    if dx is None:
        zeros = jnp.zeros(fn.event_shape, fn.scale_tril.dtype)
        return zeros[0], zeros
    diagonal, ddiagonal = (jnp.diagonal(v, axis1=-2, axis2=-1) for v in (x, dx))
    return ddiagonal / diagonal, jnp.tril(dx, -1)


def _chi_moments(nu: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of a chi variable; beyond 100 expanded in 1 / nu."""
    small = jnp.minimum(nu, 100.0)
    near = np.sqrt(2.0) * jnp.exp(gammaln((small + 1.0) / 2.0) - gammaln(small / 2.0))
    w = 1.0 / jnp.maximum(nu, 100.0)
    # of mean^2 / nu - 1, by Stirling's series
    series = w * (-0.5 + w * (0.125 + w * (0.0625 + w * (-0.0390625 - 0.08984375 * w))))
    far = jnp.sqrt((1.0 + series) / w)
    mean = jnp.where(nu > 100.0, far, near)
    variance = jnp.where(nu > 100.0, -series / w, small - near**2)
    return mean, jnp.sqrt(variance)


def _below(matrix: Array) -> Array:
    rows, columns = np.tril_indices(matrix.shape[-1], -1)
    return matrix[..., rows, columns]


def _joined(*parts: Array) -> Array:
    batch = jnp.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return jnp.concatenate([jnp.broadcast_to(p, (*batch, p.shape[-1])) for p in parts], -1)


@register_coframe(dist.LKJCholesky)
def _lkj_cholesky(fn: Any, x: Any, dx: Any, dfn: Any) -> Array:
    """Lewandowski, Kurowicka, Joe (2009): partial correlations tanh(t_ij) are independent.

    Those of a column have (1 + tanh t) / 2 ~ Beta(b, b) with b = concentration + (n - 2 - j) / 2,
    j counted from zero.
    """
    n = fn.dimension
    concentration = jnp.asarray(fn.concentration, jnp.result_type(dfn.concentration))[..., None]
    columns = jnp.asarray(np.tril_indices(n, -1)[1], concentration.dtype)
    b = concentration + (n - 2.0 - columns) / 2.0
    spread = 2.0 * polygamma(1, b) - 4.0 * polygamma(1, 2.0 * b)
    own = jnp.sqrt(jnp.sum(spread, -1, keepdims=True)) * dfn.concentration[..., None]
    if dx is None:
        return own
    _, dt = jax.jvp(biject_to(fn.support).inv, (x,), (dx,))
    return _joined(2.0 * b / jnp.sqrt(2.0 * b + 1.0) * dt, own)

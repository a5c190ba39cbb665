"""Information of a continuous family on the line, by quadrature with fixed nodes.

Nodes lie where the cumulative distribution function takes fixed values u in (0, 1), or, where the
family has no quantiles, at fixed multiples of the width of its density about the mode, in NumPyro's
unconstrained coordinate t. They are then held fixed in t, and the weights follow the density: the
derivatives in the parameters are those of the integral, and no quantile is differentiated.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import biject_to

from volform.geometry.scores import Route, ScoreTangents, along, unwrapped


class ScoreQuadrature(Route):
    """Double-exponential quadrature of the squared scores (Takahasi and Mori 1974).

    A value that is latent is measured in NumPyro's unconstrained coordinate. Bounds of the support
    of an observed one carry no information.

    Attributes:
        nodes: nodes of the unit interval, of each piece of it where the density has kinks; twice as
            many on either side of the mode. A mixture has as many for each of its components.
    """

    nodes: int = eqx.field(static=True, default=101)

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Gram matrix of the scores at the nodes."""
        s, weights = self._scores(move)
        return (s * weights[None]) @ s.T

    def root(self, move: ScoreTangents) -> Float[Array, "d m"]:
        """Scores along each tangent at the nodes, by the roots of the weights."""
        s, weights = self._scores(move)
        return s * jnp.sqrt(weights)[None]

    def _scores(self, move: ScoreTangents) -> tuple[Float[Array, "d m"], Float[Array, " m"]]:
        move = move.elements()
        shape = jnp.broadcast_shapes(move.weight.shape, move.fn.batch_shape)
        if move.dt is not None:
            shape = jnp.broadcast_shapes(shape, move.dt.shape[1:])
        breaks = _kinks(move.fn)
        t, weights = _nodes_in_t(move.fn, self.nodes, breaks, shape)
        if move.dt is None:
            chart = biject_to(move.fn.support)
            x = jax.vmap(chart)(t)
            now, s = along(lambda fn, x: _kernel(fn)(x), move.fn, move.dfn, x)
            now = now if breaks else now + jax.vmap(chart.log_abs_det_jacobian)(t, x)
        else:
            start = move.fn, jnp.zeros_like(move.dt[0])
            tangents = move.dfn, move.dt
            now, s = along(lambda z, t: _log_density(z[0], t + z[1]), start, tangents, t)
        if not breaks:  # the nodes are held fixed, and the weights follow the density
            weights = weights * jnp.exp(now - jax.lax.stop_gradient(now))
            weights = weights / jnp.sum(weights, 0)
        # Densities lack their constants, and where the support of an observed value moves, scores
        # have a mean.
        s = s - jnp.sum(weights[None] * s, 1, keepdims=True)
        return s.reshape(len(s), -1), (
            weights * jnp.broadcast_to(move.weight, shape)[None]
        ).reshape(-1)

    def __str__(self) -> str:
        return f"quadrature, {self.nodes} nodes"


def has_quadrature(fn: Any) -> bool:
    """Tell whether the family is one of real numbers with a density on an interval."""
    fn = unwrapped(fn)
    if fn.event_shape or fn.support is None or fn.support.is_discrete:
        return False
    try:
        jax.eval_shape(lambda fn: _log_density(fn, jnp.zeros(fn.batch_shape)), fn)
    except NotImplementedError:
        return False
    return True


_TRUNCATED = (
    dist.LeftTruncatedDistribution,
    dist.RightTruncatedDistribution,
    dist.TwoSidedTruncatedDistribution,
    dist.LeftTruncatedGamma,
    dist.RightTruncatedGamma,
    dist.TwoSidedTruncatedGamma,
)


def _kernel(fn: Any) -> Callable[[Array], Array]:
    """The log density up to a constant: jax has no second derivative of incomplete gammas."""
    return unwrapped(fn.base_dist).log_prob if isinstance(fn, _TRUNCATED) else fn.log_prob


def _log_density(fn: Any, t: Any) -> Any:
    chart = biject_to(fn.support)
    x = chart(t)
    return _kernel(fn)(x) + chart.log_abs_det_jacobian(t, x)


def _nodes_in_t(fn: Any, count: int, breaks: list[Array], shape: Any) -> tuple[Array, Array]:
    """Nodes t and their weights, shape (n, *shape): held fixed, but for those beside a kink."""
    still = fn if breaks else jax.lax.stop_gradient(fn)
    x, weights = (_spread(v, shape) for v in _nodes(still, count, breaks))
    t = jax.vmap(biject_to(still.support).inv)(x)
    if breaks:
        return t, weights
    then = jax.vmap(lambda t: _log_density(still, t))(t)
    # Far out some values round to a bound, and some densities are the logarithm of a rounded zero.
    holds = jnp.isfinite(t) & jnp.isfinite(then) & (weights > 1e-30)
    weights = jnp.where(holds, weights, 0.0)
    safe = jnp.take_along_axis(t, jnp.argmax(weights, 0)[None], 0)
    return jnp.where(holds, t, safe), weights


def _kinks(fn: Any) -> list[Array]:
    """Values at which the score jumps, each of the shape of the batch."""
    match fn:
        case dist.Laplace() | dist.AsymmetricLaplace() | dist.AsymmetricLaplaceQuantile():
            return [jnp.broadcast_to(jnp.asarray(fn.loc), fn.batch_shape)]
        case _ if isinstance(fn, _TRUNCATED):
            return [jnp.broadcast_to(x, fn.batch_shape) for x in _kinks(unwrapped(fn.base_dist))]
        case dist.MixtureSameFamily():
            shape = (*fn.batch_shape, fn.mixture_size)
            every = _kinks(unwrapped(fn.component_distribution))
            return [x for xs in every for x in jnp.moveaxis(jnp.broadcast_to(xs, shape), -1, 0)]
        case dist.MixtureGeneral():
            every = [x for part in fn.component_distributions for x in _kinks(unwrapped(part))]
            return [jnp.broadcast_to(x, fn.batch_shape) for x in every]
        case _:
            return []


def _spread(v: Array, shape: Any) -> Array:
    ones = (1,) * (len(shape) - v.ndim + 1)
    return jnp.broadcast_to(v.reshape(v.shape[0], *ones, *v.shape[1:]), (v.shape[0], *shape))


def _nodes(fn: Any, count: int, breaks: list[Array]) -> tuple[Array, Array]:
    """Values x of the family, shape (n, *batch), and the probabilities that they stand for."""
    match fn:
        case dist.MixtureSameFamily():
            inner = [x[..., None] for x in breaks]
            parts = _nodes(unwrapped(fn.component_distribution), count, inner)
            x, weights = (_spread(v, (*fn.batch_shape, fn.mixture_size)) for v in parts)
            x, weights = (
                jnp.moveaxis(v, -1, 0)
                for v in (x, weights * jnp.asarray(fn.mixing_distribution.probs))
            )
            return x.reshape(-1, *fn.batch_shape), weights.reshape(-1, *fn.batch_shape)
        case dist.MixtureGeneral():
            shares = jnp.moveaxis(jnp.asarray(fn.mixing_distribution.probs), -1, 0)
            parts = [_nodes(unwrapped(f), count, breaks) for f in fn.component_distributions]
            x = [_spread(x, fn.batch_shape) for x, _ in parts]
            weights = [
                _spread(p, fn.batch_shape) * s for (_, p), s in zip(parts, shares, strict=True)
            ]
            return jnp.concatenate(x), jnp.concatenate(weights)
        case _ if _has_quantiles(fn):
            return _at_quantiles(fn, count, breaks)
        case _:
            return _about_the_mode(jax.lax.stop_gradient(fn), count)


def _has_quantiles(fn: Any) -> bool:
    if isinstance(fn, dist.TransformedDistribution):
        folds = any(isinstance(t, dist.transforms.AbsTransform) for t in fn.transforms)
        if folds or not _has_quantiles(unwrapped(fn.base_dist)):
            return False
    try:
        jax.eval_shape(lambda fn: fn.icdf(0.5), fn)
    except (NotImplementedError, ImportError):  # some need tensorflow_probability
        return False
    return True


def _dtype(fn: Any) -> Any:
    leaves = map(jnp.asarray, jax.tree.leaves(fn))
    floats = [v for v in leaves if jnp.issubdtype(v.dtype, jnp.floating)]
    return jnp.result_type(*floats) if floats else jnp.result_type(float)


def _at_quantiles(fn: Any, count: int, breaks: list[Array]) -> tuple[Array, Array]:
    u, du = unit_interval(count, _dtype(fn))
    ends = [jnp.zeros((), u.dtype), *(fn.cdf(x) for x in breaks), jnp.ones((), u.dtype)]
    ends = jnp.sort(jnp.stack(jnp.broadcast_arrays(*ends)), axis=0)
    shape = (-1, *(1,) * (ends.ndim - 1))
    u, du = u.reshape(shape), du.reshape(shape)
    widths = jnp.diff(ends, axis=0)
    levels = jnp.concatenate([low + w * u for low, w in zip(ends[:-1], widths, strict=True)])
    weights = jnp.concatenate([jnp.broadcast_to(w * du, u.shape[:1] + w.shape) for w in widths])
    return jax.vmap(fn.icdf)(levels), weights


def unit_interval(count: int, dtype: Any) -> tuple[Array, Array]:
    """Nodes and weights on (0, 1), as far out as numbers below one go."""
    reach = np.arcsinh(-np.log(np.finfo(dtype).eps) / np.pi)
    v = np.linspace(-reach, reach, count)
    u = 1.0 / (1.0 + np.exp(-np.pi * np.sinh(v)))
    du = (v[1] - v[0]) * np.pi * np.cosh(v) * u * (1.0 - u)
    return jnp.asarray(u, dtype), jnp.asarray(du / du.sum(), dtype)


def half_line(count: int, dtype: Any) -> tuple[Array, Array]:
    """Nodes and weights on (0, inf), from 1e-18 to 1e10."""
    v = np.linspace(-4.0, 3.4, count)
    x = np.exp(np.pi / 2 * np.sinh(v))
    return jnp.asarray(x, dtype), jnp.asarray((v[1] - v[0]) * np.pi / 2 * np.cosh(v) * x, dtype)


def _about_the_mode(fn: Any, count: int) -> tuple[Array, Array]:
    mode, t, dt = _in_t(fn, 2 * count)
    weights = dt * jnp.exp(jax.vmap(lambda t: _log_density(fn, t))(t))
    weights = jnp.where(jnp.isnan(weights), 0.0, weights)
    t = jnp.where(weights > 0.0, t, mode)
    return jax.vmap(biject_to(fn.support))(t), weights


def line_nodes(fn: Any, count: int) -> tuple[Float[Array, "n *batch"], Float[Array, "n *batch"]]:
    """Nodes t in the unconstrained coordinate and weights dt, on either side of the mode.

    Held fixed where the parameters of the family move. They go out to 1e10 widths of the density.

    Args:
        fn: a family for which `has_quadrature`, with its batch.
        count: nodes of each side.
    """
    return _in_t(jax.lax.stop_gradient(fn), count)[1:]


def _in_t(fn: Any, count: int) -> tuple[Array, Array, Array]:
    """The mode, and nodes and weights on either side of it, a width of the density apart."""
    dtype = _dtype(fn)

    def log_density(t: Array) -> Array:
        value = _log_density(fn, t)
        return jnp.where(value < jnp.inf, value, -jnp.inf)  # poles at a bound are no modes

    mode = _mode(log_density, fn.batch_shape, dtype)
    x, dx = (v.reshape(-1, *(1,) * mode.ndim) for v in half_line(count, dtype))
    sides = [(s, _width(log_density, mode, s)) for s in (-1.0, 1.0)]
    t = jnp.concatenate([mode + side * width * x for side, width in sides])
    return mode, t, jnp.concatenate([width * dx for _, width in sides])


def _mode(log_density: Callable[[Array], Array], shape: tuple[int, ...], dtype: Any) -> Array:
    """The highest point of a grid, moved by golden sections."""
    grid = jnp.asarray(np.sinh(np.linspace(-30.0, 30.0, 601)), dtype)
    heights = jax.vmap(lambda t: log_density(jnp.broadcast_to(t, shape)))(grid)
    best = jnp.clip(jnp.argmax(heights, 0), 1, grid.size - 2)
    golden = 0.5 * (np.sqrt(5.0) - 1.0)

    def narrowed(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        left, right = high - golden * (high - low), low + golden * (high - low)
        is_left = log_density(left) > log_density(right)
        return jnp.where(is_left, low, left), jnp.where(is_left, right, high)

    low, high = jax.lax.fori_loop(0, 60, narrowed, (grid[best - 1], grid[best + 1]))
    return 0.5 * (low + high)


def _width(log_density: Callable[[Array], Array], mode: Array, side: float) -> Array:
    """The least power of two at whose distance from the mode the density has fallen by e^-1/2."""
    steps = jnp.asarray(2.0 ** np.arange(-40.0, 41.0), mode.dtype).reshape(-1, *(1,) * mode.ndim)
    fallen = jax.vmap(log_density)(mode + side * steps) < log_density(mode) - 0.5
    return jnp.take(steps.ravel(), jnp.argmax(fallen, 0))

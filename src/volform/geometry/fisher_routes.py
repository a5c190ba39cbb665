"""Information of a NumPyro distribution along given tangents: which route, and the Gram matrix.

Every route gives the same thing: the (d, d) matrix G_ij = E[(s . t_i)(s . t_j)] of the joint score
s = d log p(x | z) / d(x, z) along d tangents t_i, summed over the batch. In order of preference:
closed form, Hessian of NumPyro's Kullback-Leibler divergence, enumeration of a finite support,
Monte Carlo with a given key.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import biject_to

from volform.errors import MetricError
from volform.geometry import coframes
from volform.geometry.dependence import moves


class ScoreTangents(eqx.Module):
    """Tangents of one site: of its value and of its distribution, with a leading axis d.

    Attributes:
        x: the value; dx: its tangents, None where the value is observed.
        dt: tangents of the value in NumPyro's unconstrained coordinates, None where observed.
        fn: the distribution; dfn: its tangents, a pytree like `fn` (zeros for integers).
        weight: per-element factor (scale and mask handlers), broadcast against the batch.
    """

    x: Any
    dx: Any
    dt: Any
    fn: dist.Distribution
    dfn: Any
    weight: Any = 1.0

    def reduced(self) -> "ScoreTangents":
        """The same move with masks in the weight and replicates of observed sites counted once."""
        fn, dfn, weight = self.fn, self.dfn, self.weight
        while True:
            if isinstance(fn, dist.MaskedDistribution):
                weight = weight * jnp.asarray(fn._mask, jnp.result_type(float))
            elif isinstance(fn, dist.ExpandedDistribution) and self.dx is None:
                weight = _sum_to(jnp.broadcast_to(weight, fn.batch_shape), fn.base_dist.batch_shape)
            else:
                return ScoreTangents(self.x, self.dx, self.dt, fn, dfn, weight)
            fn, dfn = fn.base_dist, dfn.base_dist


def _sum_to(weight: Array, shape: tuple[int, ...]) -> Array:
    weight = weight.sum(tuple(range(weight.ndim - len(shape))))
    ones = tuple(i for i, n in enumerate(shape) if n == 1 and weight.shape[i] != 1)
    return weight.sum(ones, keepdims=True)


class Route(eqx.Module):
    """Method by which the information of a family is computed."""

    @abc.abstractmethod
    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """G_ij of `move`: shape (d, d), symmetric positive semi-definite."""

    @abc.abstractmethod
    def root(self, move: ScoreTangents) -> Float[Array, "d m"]:
        """R of `move` with `R R^T = G`: shape (d, m)."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """The name shown in the `repr` of a metric."""


class ClosedForm(Route):
    """The coframe of `volform.geometry.coframes`."""

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Gram matrix of the coframe."""
        return _square(self.root(move))

    def root(self, move: ScoreTangents) -> Float[Array, "d m"]:
        """The coframe along each tangent."""
        e = jax.vmap(lambda dx, dfn: _coframe(move.fn, move.x, dx, dfn))(move.dx, move.dfn)
        return _weighted(e, move.weight)

    def __str__(self) -> str:
        return "closed form"


class DivergenceHessian(Route):
    """Hessian of `numpyro.distributions.kl_divergence` in its second argument."""

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Hessian in t at 0 of the sum of KL(fn || fn + sum_i t_i dfn_i)."""

        def divergence(t: Float[Array, " d"]) -> Float[Array, ""]:
            moved = _shift(move.fn, jax.tree.map(lambda v: jnp.tensordot(t, v, 1), move.dfn))
            return jnp.sum(move.weight * dist.kl_divergence(move.fn, moved))

        d = jax.tree.leaves(move.dfn)[0].shape[0]
        return jax.hessian(divergence)(jnp.zeros(d, jnp.result_type(float)))

    def root(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Root by the eigenvectors of G; rounding below zero is cut off."""
        values, vectors = jnp.linalg.eigh(self.gram(move))
        return vectors * jnp.sqrt(jnp.maximum(values, 0.0))

    def __str__(self) -> str:
        return "Hessian of the KL divergence"


class Enumeration(Route):
    """Exact sum over a finite support; over 0, ..., `largest` for counts that may differ."""

    largest: int | None = eqx.field(static=True, default=None)

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Gram matrix of the scores, weighted by the probabilities of the support."""
        return _square(self.root(move))

    def root(self, move: ScoreTangents) -> Float[Array, "d m"]:
        """Scores along each tangent, by the roots of the probabilities of the support."""
        fn: Any = move.fn
        if self.largest is None:
            support, beyond = fn.enumerate_support(expand=True), False
        else:
            count = jnp.broadcast_to(fn.total_count, fn.batch_shape)[None]
            k = jnp.arange(self.largest + 1, dtype=count.dtype)
            k = k.reshape(-1, *(1 for _ in fn.batch_shape))
            support, beyond = jnp.minimum(k, count), k > count
        weights = jnp.exp(jax.vmap(fn.log_prob)(support))
        return _score_root(move, support, jnp.where(beyond, 0.0, weights))

    def __str__(self) -> str:
        return "enumeration"


class MonteCarlo(Route):
    """Average over `draws` draws made with `key`: deterministic, smooth in the parameters."""

    key: PRNGKeyArray
    draws: int = eqx.field(static=True, default=1024)

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Gram matrix of the scores at the draws."""
        return _square(self.root(move))

    def root(self, move: ScoreTangents) -> Float[Array, "d m"]:
        """Scores along each tangent at the draws."""
        points, weights = _draws(move.fn, self.key, self.draws)
        return _score_root(move, points, weights)

    def __str__(self) -> str:
        return f"Monte Carlo, {self.draws} draws"


class NoInformation(Route):
    """No information: factors, improper priors, point masses, parameters that do not move."""

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Zeros."""
        return _square(self.root(move))

    def root(self, move: ScoreTangents) -> Float[Array, "d 0"]:
        """No columns."""
        d = jax.tree.leaves((move.dx, move.dfn))[0].shape[0]
        return jnp.zeros((d, 0))

    def __str__(self) -> str:
        return "none"


def choose_route(
    fn: dist.Distribution,
    *,
    latent: bool,
    moving: Any,
    sampler: MonteCarlo | None = None,
    name: str = "family",
) -> Route:
    """The most exact route for `fn`.

    Args:
        fn: the distribution.
        latent: whether its value moves too.
        moving: `dependence` of `fn`: the same pytree with a bool for each leaf.
        sampler: the Monte Carlo route to fall back on.
        name: what to call the distribution in an error.

    Raises:
        MetricError: when only Monte Carlo would do and no `sampler` is given.
    """
    core = _core(fn)
    if isinstance(core, dist.Unit | dist.ImproperUniform | dist.Delta):
        return NoInformation()
    if not latent and not moves(moving):
        return NoInformation()
    if _closed(fn, moving):
        return ClosedForm()
    if not latent and _has_divergence(fn):
        return DivergenceHessian()
    enumeration = None if latent else _enumeration(fn)
    if enumeration is not None:
        return enumeration
    if sampler is not None:
        return sampler
    raise MetricError(
        f"The Fisher information of `{type(core).__name__}` at `{name}` has no closed form here; "
        "give a key for Monte Carlo: `Fisher(..., key=jax.random.key(0))`, likewise for "
        "`LikelihoodFisher` and `JointFisher`, or register a KL divergence with NumPyro."
    )


def _core(fn: Any) -> Any:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def _closed(fn: Any, moving: Any) -> bool:
    fn, moving = _core(fn), _core(moving)
    if coframes.in_closed_form(fn):
        return True
    if isinstance(fn, dist.TransformedDistribution):
        is_chart = not moves(moving.transforms) and not _folds(fn)
        return is_chart and _closed(fn.base_dist, moving.base_dist)
    return False


def _folds(fn: dist.TransformedDistribution) -> bool:
    # NumPyro's only transform that is not injective, so that it loses information
    return any(isinstance(t, dist.transforms.AbsTransform) for t in fn.transforms)


def _has_divergence(fn: dist.Distribution) -> bool:
    try:
        jax.eval_shape(lambda p, q: dist.kl_divergence(p, q), fn, fn)
    except NotImplementedError:
        return False
    return True


def _enumeration(fn: dist.Distribution) -> Enumeration | None:
    if not fn.has_enumerate_support:
        return None
    core = _core(fn)
    if isinstance(core, dist.BetaBinomial) and not fn.event_shape:
        # NumPyro enumerates equal counts only, and none that are arguments of a compiled function
        count = core.total_count
        return None if isinstance(count, Tracer) else Enumeration(int(np.asarray(count).max()))
    try:
        fn.enumerate_support(expand=True)
    except (NotImplementedError, jax.errors.ConcretizationTypeError):
        return None
    return Enumeration()


def tangent_like(primal: Any, tangent: Any) -> Any:
    """Tangents with float0 (of integer leaves) replaced by zeros, so that arithmetic works."""
    return jax.tree.map(
        lambda p, t: jnp.zeros(jnp.shape(p)) if t.dtype == jax.dtypes.float0 else t,
        primal,
        tangent,
    )


def _coframe(fn: Any, x: Any, dx: Any, dfn: Any) -> Float[Array, "*batch m"]:
    match fn:
        case dist.ExpandedDistribution():
            e = _coframe(fn.base_dist, x, dx, dfn.base_dist)
            return jnp.broadcast_to(e, (*fn.batch_shape, e.shape[-1]))
        case dist.MaskedDistribution():
            e = _coframe(fn.base_dist, x, dx, dfn.base_dist)
            return jnp.where(jnp.asarray(fn._mask)[..., None], e, 0.0)
        case dist.Independent():
            e = _coframe(fn.base_dist, x, dx, dfn.base_dist)
            e = jnp.broadcast_to(e, (*fn.base_dist.batch_shape, e.shape[-1]))
            return e.reshape(*fn.batch_shape, -1)
        case dist.TransformedDistribution() if not coframes.in_closed_form(fn):
            return _coframe(fn.base_dist, *_pulled_through(fn.transforms, x, dx), dfn.base_dist)
        case _:
            return coframes.coframe(fn, x, dx, dfn)


def _pulled_through(transforms: Any, x: Any, dx: Any) -> tuple[Any, Any]:
    if dx is None:
        return x, None
    for transform in reversed(transforms):
        x, dx = jax.jvp(transform.inv, (x,), (dx,))
    return x, dx


def _weighted(e: Float[Array, "d *batch m"], weight: Any) -> Float[Array, "d n"]:
    weight = jnp.broadcast_to(jnp.asarray(weight, e.dtype), e.shape[1:-1])
    e = e * jnp.sqrt(weight)[None, ..., None]
    return e.reshape(e.shape[0], -1)


def _square(root: Float[Array, "d m"]) -> Float[Array, "d d"]:
    return root @ root.T


def _shift(fn: Any, step: Any) -> Any:
    def moved(leaf: Any, delta: Any) -> Any:
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return leaf + delta if is_float else leaf

    return jax.tree.map(moved, fn, step)


def _score_root(move: ScoreTangents, points: Any, weights: Any) -> Float[Array, "d m"]:
    def score(dt: Any, dfn: Any) -> Float[Array, "n *batch"]:
        def at(x: Any) -> Array:
            return jax.jvp(*_log_density_along(move.fn, x, dt, dfn))[1]

        return jax.vmap(at)(points)

    s = jax.vmap(score)(move.dt, move.dfn)
    e = jnp.sqrt(weights)[None] * s
    return _weighted(e[..., None], move.weight)


def _log_density_along(fn: Any, x: Any, dt: Any, dfn: Any) -> tuple[Any, tuple, tuple]:
    if dt is None:
        return (lambda eps: _shift_and_score(fn, dfn, eps, x)), (0.0,), (1.0,)
    chart = biject_to(fn.support)
    t = chart.inv(x)

    def log_density(eps: Any) -> Array:
        moved = t + eps * dt
        y = chart(moved)
        jacobian = chart.log_abs_det_jacobian(moved, y)
        extra = tuple(range(len(fn.batch_shape), jnp.ndim(jacobian)))
        return _shift_and_score(fn, dfn, eps, y) + jnp.sum(jacobian, extra)

    return log_density, (0.0,), (1.0,)


def _shift_and_score(fn: Any, dfn: Any, eps: Any, x: Any) -> Array:
    return _shift(fn, jax.tree.map(lambda v: eps * v, dfn)).log_prob(x)


def _draws(fn: Any, key: PRNGKeyArray, count: int) -> tuple[Any, Any]:
    """Draws with weights that sum to one; mixtures are stratified, so that draws stay smooth."""
    if isinstance(fn, dist.MixtureSameFamily):
        core = fn
        x = core.component_distribution.sample(key, (count,))  # (count, *batch, k, *event)
        axis = core.mixture_dim - len(core.event_shape)
        x = jnp.moveaxis(x, axis, 1)
        probs = jnp.moveaxis(jnp.asarray(core.mixing_distribution.probs), -1, 0)
        weights = jnp.broadcast_to(probs / count, (count, *probs.shape))
        return _merge(x), _merge(weights)
    return fn.sample(key, (count,)), jnp.full((count,) + (1,) * len(fn.batch_shape), 1.0 / count)


def _merge(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])

"""Moves of a NumPyro distribution and of its value, and the routes that measure their scores."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

_WRAPPERS = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)

CENSORED = (
    dist.LeftCensoredDistribution,
    dist.RightCensoredDistribution,
    dist.IntervalCensoredDistribution,
)


class ScoreTangents(eqx.Module):
    """Tangents of one site: of its value and of its distribution, with a leading axis d.

    Attributes:
        x: the value, None where it is not known.
        dx: tangents of the value, None where it is observed.
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
            elif isinstance(fn, dist.ExpandedDistribution) and self._has_replicates(fn):
                weight = sum_to(jnp.broadcast_to(weight, fn.batch_shape), fn.base_dist.batch_shape)
            else:
                return ScoreTangents(self.x, self.dx, self.dt, fn, dfn, weight)
            fn, dfn = fn.base_dist, dfn.base_dist

    def elements(self) -> "ScoreTangents":
        """The same move with every wrapper taken off, and one weight for each element."""
        fn, dfn, weight = self.fn, self.dfn, jnp.asarray(self.weight)
        while isinstance(fn, _WRAPPERS):
            shape = jnp.broadcast_shapes(weight.shape, fn.batch_shape)
            weight = jnp.broadcast_to(weight, shape)
            if isinstance(fn, dist.MaskedDistribution):
                weight = weight * jnp.asarray(fn._mask, jnp.result_type(float))
            elif isinstance(fn, dist.Independent):
                weight = weight.reshape(*shape, *(1,) * fn.reinterpreted_batch_ndims)
            elif self._has_replicates(fn):
                weight = sum_to(weight, fn.base_dist.batch_shape)
            fn, dfn = fn.base_dist, dfn.base_dist
        return ScoreTangents(self.x, self.dx, self.dt, fn, dfn, weight)

    def _has_replicates(self, fn: Any) -> bool:
        # what a censored datum tells depends on where it was censored
        return self.dx is None and not isinstance(unwrapped(fn), CENSORED)


def sum_to(weight: Array, shape: tuple[int, ...]) -> Array:
    """Sums over the axes along which an array of `shape` would be repeated."""
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


def unwrapped(fn: Any) -> Any:
    """The distribution under masks, expansions and reinterpreted batch dimensions."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def tangent_like(primal: Any, tangent: Any) -> Any:
    """Tangents with float0 (of integer leaves) replaced by zeros, so that arithmetic works."""
    return jax.tree.map(
        lambda p, t: jnp.zeros(jnp.shape(p)) if t.dtype == jax.dtypes.float0 else t,
        primal,
        tangent,
    )


def shifted(fn: Any, step: Any) -> Any:
    """The distribution with `step`, a pytree like `fn`, added to its floating parameters."""

    def moved(leaf: Any, delta: Any) -> Any:
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return leaf + delta if is_float else leaf

    return jax.tree.map(moved, fn, step)


def weighted(e: Float[Array, "d *batch m"], weight: Any) -> Float[Array, "d n"]:
    """Rows of a coframe by the roots of the weights of their elements, one after the other."""
    weight = jnp.broadcast_to(jnp.asarray(weight, e.dtype), e.shape[1:-1])
    e = e * jnp.sqrt(weight)[None, ..., None]
    return e.reshape(e.shape[0], -1)


def square(root: Float[Array, "d m"]) -> Float[Array, "d d"]:
    """R R^T."""
    return root @ root.T


def root_of(gram: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Root of a Gram matrix by its eigenvectors; rounding below zero is cut off."""
    values, vectors = jnp.linalg.eigh(gram)
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))

"""Moves of a NumPyro distribution and of its value, and the routes that measure their scores."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

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
        dt: tangents of the value in NumPyro's unconstrained coordinates, None where observed, and
            where the route does not read them.
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
    """Method by which the information of a family is computed.

    Attributes:
        in_unconstrained: whether a moving value is measured in NumPyro's unconstrained coordinates,
            so that `ScoreTangents.dt` is read.
    """

    in_unconstrained: ClassVar[bool] = True

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


def elementwise(f: Callable[..., Array]) -> Callable[..., Array]:
    """The same function, with partial derivatives that are computed once for all tangents.

    A Hessian takes d tangents through whatever the function computes inside, of an integral its
    every node; partial derivatives it only multiplies. `f` is of arrays of one shape, and acts on
    each of their elements.
    """

    def partial(i: int) -> Callable[..., Array]:
        def derivative(*xs: Array) -> Array:
            step = tuple(jnp.full_like(x, float(i == j)) for j, x in enumerate(xs))
            return jax.jvp(f, xs, step)[1]

        return elementwise(derivative)

    @jax.custom_jvp
    def value(*xs: Array) -> Array:
        return f(*xs)

    @value.defjvp
    def _(xs: tuple[Array, ...], steps: tuple[Array, ...]) -> tuple[Array, Array]:
        moved = sum(partial(i)(*xs) * step for i, step in enumerate(steps))
        return value(*xs), jnp.asarray(moved)

    return value


def along(
    f: Callable[[Any, Array], Array], z: Any, dz: Any, points: Array
) -> tuple[Float[Array, "n *batch"], Float[Array, "d n *batch"]]:
    """A function of parameters at each of n points, and its derivatives along d tangents.

    Values are computed once, not with every tangent. Where a point has one number, so are its
    derivatives, in reverse: of a mixture's score that is a third of the work.

    Args:
        f: the function of the parameters, a pytree, and one point.
        z: the parameters; integers among them stay as they are.
        dz: their tangents, a pytree like `z` with a leading axis d.
        points: the points, along the first axis.
    """
    leaves, structure = jax.tree.flatten(z)
    is_float = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]
    at = [jnp.asarray(leaf) for leaf, moves in zip(leaves, is_float, strict=True) if moves]
    tangents = zip(jax.tree.leaves(dz), is_float, strict=True)
    steps = [jnp.asarray(step) for step, moves in tangents if moves]

    def of(floats: list[Array], point: Array) -> Array:
        rest = iter(floats)
        every = [next(rest) if m else leaf for leaf, m in zip(leaves, is_float, strict=True)]
        return f(jax.tree.unflatten(structure, every), point)

    if not jax.eval_shape(of, at, points[0]).shape:
        values, slopes = jax.vmap(jax.value_and_grad(of), (None, 0))(at, points)
        d, n = len(steps[0]), len(values)
        pairs = zip(steps, slopes, strict=True)
        total = sum(step.reshape(d, -1) @ slope.reshape(n, -1).T for step, slope in pairs)
        return values, jnp.asarray(total)

    def moved(steps: list[Array]) -> tuple[Array, Array]:
        now = [step.astype(leaf.dtype) for step, leaf in zip(steps, at, strict=True)]
        return jax.jvp(lambda z: jax.vmap(lambda point: of(z, point))(points), (at,), (now,))

    return jax.vmap(moved, out_axes=(None, 0))(steps)


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

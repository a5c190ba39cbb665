"""Kernels of layers that put pixels together."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from volform.kernels.layers.rules import pairs_needed, propagate
from volform.kernels.propagation.moments import Moments
from volform.kernels.propagation.state import KernelState, LayerContext, Pairs
from volform.kernels.propagation.window_means import mixed, pool, window_mean
from volform.networks.graph import Aggregate
from volform.networks.layer import Flatten
from volform.networks.pooling import (
    AvgPool,
    GlobalAvgPool,
    GlobalPool,
    GlobalSumPool,
    SumPool,
    WindowPool,
)

_HIGHEST = jax.lax.Precision.HIGHEST


@pairs_needed.register
def _(layer: WindowPool, pairs: Pairs) -> Pairs:
    return Pairs.ALL


@propagate.register
def _(layer: AvgPool, state: KernelState, context: LayerContext) -> KernelState:
    # K'(p, p') = 1/size^2 sum_{d, d'} K(p + d, p' + d'), likewise T: P^2 numbers for P pixels.
    return _pooled(layer, state)


@propagate.register
def _(layer: SumPool, state: KernelState, context: LayerContext) -> KernelState:
    return _times(math.prod(layer.window_shape), _pooled(layer, state))


def _pooled(layer: WindowPool, state: KernelState) -> KernelState:
    shape = layer.shape_of(state.shape)
    return pool(state, layer.window.table(state.shape[:-1])).replace(shape=shape)


@pairs_needed.register
def _(layer: GlobalPool, pairs: Pairs) -> Pairs:
    return Pairs.ALL


@propagate.register
def _(layer: GlobalAvgPool, state: KernelState, context: LayerContext) -> KernelState:
    return _everywhere(layer, state)


@propagate.register
def _(layer: GlobalSumPool, state: KernelState, context: LayerContext) -> KernelState:
    return _times(math.prod(state.shape[:-1]), _everywhere(layer, state))


def _everywhere(layer: GlobalPool, state: KernelState) -> KernelState:
    if not state.has_pixels:
        return state
    state = pool(state, np.arange(state.moments.cross.shape[-1])[None])
    moments = Moments(*(moment[..., 0, 0] for moment in state.moments))
    shape = layer.shape_of(state.shape)
    return state.replace(moments=moments, ntk=state.ntk[..., 0, 0], shape=shape, self_moments=())


def _times(count: int, state: KernelState) -> KernelState:
    """The kernels of units times a number of pixels."""
    scaled = state.map(lambda moments: moments.times(float(count**2)))
    return scaled.replace(ntk=count**2 * state.ntk)


@pairs_needed.register
def _(layer: Aggregate, pairs: Pairs) -> Pairs:
    return Pairs.ALL


@propagate.register
def _(layer: Aggregate, state: KernelState, context: LayerContext) -> KernelState:
    shape, every = layer.shape_of(state.shape), (state.moments, *state.self_moments)
    matrix = layer.adjacency.astype(state.ntk.dtype)

    def aggregated(pairs: Float[Array, "... P P"]) -> Float[Array, "... T T"]:
        rows = jnp.einsum("tp,...pq->...tq", matrix, pairs, precision=_HIGHEST)
        return jnp.einsum("sq,...tq->...ts", matrix, rows, precision=_HIGHEST)

    crosses, same = [aggregated(m.cross) for m in every], [_same_rows(m, matrix) for m in every]
    return mixed(state, crosses, aggregated(state.ntk), same).replace(shape=shape)


def _same_rows(moments: Moments, matrix: Float[Array, "T P"]) -> Bool[Array, "... T T"]:
    """Tell whether two rows are one, and all nodes that they look at parallel and of one size."""
    differs = ~jnp.diagonal(moments.is_parallel, axis1=-2, axis2=-1)
    sees = jnp.einsum("tp,...p->...t", (matrix != 0).astype(int), differs.astype(int)) > 0
    is_one = jnp.all(matrix[:, None] == matrix[None], -1)
    return is_one.reshape((1,) * (sees.ndim - 1) + is_one.shape) & ~sees[..., None]


@pairs_needed.register
def _(layer: Flatten, pairs: Pairs) -> Pairs:
    return Pairs.NONE


@propagate.register
def _(layer: Flatten, state: KernelState, context: LayerContext) -> KernelState:
    shape = layer.shape_of(state.shape)
    if not state.has_pixels:
        return state.replace(shape=shape)
    # Means over the pixels, each with itself; their law is not that of one Gaussian process.
    state = window_mean(state, np.arange(state.moments.cross.shape[-1])[None])
    moments = Moments(*(moment[..., 0] for moment in state.moments))
    return state.replace(moments=moments, ntk=state.ntk[..., 0], shape=shape, is_gaussian=False)

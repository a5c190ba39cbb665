"""Kernels of layers that put pixels together."""

import numpy as np

from volform.kernels.layers.rules import pairs_needed, propagate
from volform.kernels.propagation.moments import Moments
from volform.kernels.propagation.state import KernelState, LayerContext, Pairs
from volform.kernels.propagation.window_means import pool, window_mean
from volform.networks.conv import AvgPool, GlobalAvgPool
from volform.networks.layer import Flatten


@pairs_needed.register
def _(layer: AvgPool, pairs: Pairs) -> Pairs:
    return Pairs.ALL


@propagate.register
def _(layer: AvgPool, state: KernelState, context: LayerContext) -> KernelState:
    # K'(p, p') = 1/size^2 sum_{d, d'} K(p + d, p' + d'), likewise T: P^2 numbers for P pixels.
    shape = layer.shape_of(state.shape)
    return pool(state, layer.window.table(state.shape[:-1])).replace(shape=shape)


@pairs_needed.register
def _(layer: GlobalAvgPool, pairs: Pairs) -> Pairs:
    return Pairs.ALL


@propagate.register
def _(layer: GlobalAvgPool, state: KernelState, context: LayerContext) -> KernelState:
    if not state.has_pixels:
        return state
    state = pool(state, np.arange(state.moments.cross.shape[-1])[None])
    moments = Moments(*(moment[..., 0, 0] for moment in state.moments))
    shape = layer.shape_of(state.shape)
    return state.replace(moments=moments, ntk=state.ntk[..., 0, 0], shape=shape, self_moments=())


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

"""Kernels of layer normalization and of dropout."""

import jax.numpy as jnp
from jaxtyping import Array

from volform.errors import NetworkError
from volform.kernels.layers.rules import propagate
from volform.kernels.propagation.moments import Moments, root
from volform.kernels.propagation.state import KernelState, LayerContext
from volform.networks.normalization import Dropout, LayerNorm


@propagate.register
def _(layer: LayerNorm, state: KernelState, context: LayerContext) -> KernelState:
    if not state.is_gaussian:
        raise NetworkError(
            "`LayerNorm()` follows values that are not Gaussian (the inputs, or an "
            "activation), whose mean does not vanish; put a `Dense(width)` before it."
        )
    # Behind a dense layer of infinite width the mean is 0 and the variance E[u^2]; the part of the
    # gradient that moves mean and variance is of order 1 / width.
    ends = state.moments.left + layer.eps, state.moments.right + layer.eps
    ntk = state.ntk / (jnp.sqrt(ends[0]) * jnp.sqrt(ends[1]))
    return state.map(lambda moments: _scaled(layer, moments)).replace(ntk=ntk)


def _scaled(layer: LayerNorm, moments: Moments) -> Moments:
    left, right = moments.left + layer.eps, moments.right + layer.eps
    size = jnp.sqrt(left) * jnp.sqrt(right)
    pairs = moments.cross / size, moments.area / size
    return Moments(moments.left / left, moments.right / right, *pairs)


@propagate.register
def _(layer: Dropout, state: KernelState, context: LayerContext) -> KernelState:
    # Noise added to each unit, of variance (1 / rate - 1) times its square.
    same = jnp.eye(*state.ntk.shape[:2], dtype=bool) & state.is_same
    pixels = state.ntk.shape[2:]
    same = same.reshape(*same.shape, *[1] * len(pixels))
    if state.self_moments:
        same &= jnp.eye(pixels[0], dtype=bool)[None, None]
    ntk = jnp.where(same, 1 / layer.rate, 1) * state.ntk
    noisy = tuple(
        _noisy(layer, m, jnp.eye(pixels[0], dtype=bool)[None]) for m in state.self_moments
    )
    moments = _noisy(layer, state.moments, same)
    return state.replace(moments=moments, ntk=ntk, self_moments=noisy, is_gaussian=False)


def _noisy(layer: Dropout, moments: Moments, same: Array) -> Moments:
    cross = jnp.where(same, moments.cross, 0)
    area = jnp.where(same, moments.area, root(moments.left) * root(moments.right))
    noise = Moments(moments.left, moments.right, cross, area)
    return moments.plus(noise.times(1 / layer.rate - 1))

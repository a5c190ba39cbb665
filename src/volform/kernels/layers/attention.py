"""Kernels of self-attention."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from volform.kernels.layers.rules import pairs_needed, propagate
from volform.kernels.layers.weighted import affine
from volform.kernels.propagation.moments import Moments
from volform.kernels.propagation.state import KernelState, LayerContext, Pairs
from volform.kernels.propagation.window_means import mixed
from volform.networks.attention import GlobalSelfAttention


@pairs_needed.register
def _(layer: GlobalSelfAttention, pairs: Pairs) -> Pairs:
    return Pairs.ALL


@propagate.register
def _(layer: GlobalSelfAttention, state: KernelState, context: LayerContext) -> KernelState:
    # Values mixed by the limits of the attention weights, then a dense layer.
    sites = layer.sites(state.shape, context.place)
    fans, where = sites["key"]
    weight = where.parametrization.weight(fans, layer.w_key_std)
    spread = fans.fan_in * weight.weight_deviation**2
    left, right = (jax.nn.softmax(spread * m.cross, -1) for m in state.self_moments)
    values = affine(layer.dense_layers["value"], state, *sites["value"])

    def mix(pairs: Float[Array, "n1 n2 P P"]) -> Float[Array, "n1 n2 P P"]:
        return left[:, None] @ pairs @ right.mT

    crosses = [mix(values.moments.cross)]
    crosses += [a @ m.cross @ a.mT for a, m in zip((left, right), values.self_moments, strict=True)]
    is_same = [_is_same_pixel(m) for m in (state.moments, *state.self_moments)]
    is_same[0] &= _is_same_example(state.moments)
    return affine(
        layer.dense_layers["out"],
        mixed(values, crosses, mix(values.ntk), is_same),
        *sites["out"],
    )


def _is_same_pixel(moments: Moments) -> Bool[Array, "... P P"]:
    return jnp.broadcast_to(jnp.eye(moments.cross.shape[-1], dtype=bool), moments.cross.shape)


def _is_same_example(moments: Moments) -> Bool[Array, "n1 n2 1 1"]:
    same = jnp.diagonal(moments.is_parallel & (moments.cross >= 0), axis1=-2, axis2=-1)
    return jnp.all(same, -1)[..., None, None]

"""Rules by which kernels go from layer to layer: questions that each kind of layer answers."""

from functools import partial, singledispatch
from typing import Any

import equinox as eqx
import jax
import numpy as np

from volform.errors import NetworkError
from volform.kernels.propagation.state import KernelState, LayerContext, Pairs
from volform.networks.layer import Composite, Identity, Layer, Pointwise


@singledispatch
def pairs_needed(layer: Layer, pairs: Pairs) -> Pairs:
    """The pairs of pixels of its inputs on which these ones of its outputs depend.

    Raises:
        NetworkError: for a layer without a kernel.
    """
    raise no_kernel(layer)


@singledispatch
def propagate(layer: Layer, state: KernelState, context: LayerContext) -> KernelState:
    """The kernels of its outputs, from those of its inputs.

    Raises:
        NetworkError: for a layer without a kernel.
    """
    raise no_kernel(layer)


def no_kernel(layer: Layer) -> NetworkError:
    """The error of a layer without a kernel."""
    name = type(layer).__name__
    return NetworkError(
        f"`{name}` has no kernel in the limit of infinite width; register one with "
        "`volform.kernels.propagate` (of an activation with `covariance` and `slope_covariance`), "
        "or look at the network at finite width by `volform.kernels.empirical_ntk`."
    )


def propagate_needed(layer: Layer, state: KernelState, context: LayerContext) -> KernelState:
    """`propagate`, of no more pairs of pixels than the layers from here on look at."""
    seen = state.restricted(pairs_needed(layer, context.pairs))
    if isinstance(layer, Composite):
        return propagate(layer, seen, context).restricted(context.pairs)
    return _propagated(*_split(layer, context), seen).restricted(context.pairs)


@pairs_needed.register
def _(layer: Pointwise, pairs: Pairs) -> Pairs:
    return max(pairs, Pairs.EQUAL)


@propagate.register
def _(layer: Identity, state: KernelState, context: LayerContext) -> KernelState:
    return state


# Like layers are traced once, however deep the network; and their numbers are traced, so that
# another w_std is not compiled anew.
@partial(jax.jit, static_argnums=1)
def _propagated(
    traced: tuple[Layer, LayerContext], rest: tuple[Layer, LayerContext], state: KernelState
) -> KernelState:
    layer, context = eqx.combine(traced, rest)
    return propagate(layer, state, context)


def _split(
    layer: Layer, context: LayerContext
) -> tuple[tuple[Layer, LayerContext], tuple[Layer, LayerContext]]:
    """Parts that are traced, and parts that a program is compiled for."""
    traced, rest = eqx.partition(layer, _is_number)
    own, where = eqx.partition(context, _is_array)
    return (traced, own), (rest, where)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, float) or _is_array(leaf)

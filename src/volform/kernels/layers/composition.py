"""Kernels of compositions: one after the other, and side by side."""

from functools import reduce, singledispatch
from typing import Any

from volform.kernels.layers.rules import no_kernel, pairs_needed, propagate, propagate_needed
from volform.kernels.propagation.moments import Moments
from volform.kernels.propagation.state import KernelState, LayerContext, Pairs
from volform.networks.composition import Concatenated, Multiplied, Parallel, Serial, Summed


@pairs_needed.register
def _(layer: Serial, pairs: Pairs) -> Pairs:
    return reduce(lambda behind, part: pairs_needed(part, behind), layer.layers[::-1], pairs)


@propagate.register
def _(layer: Serial, state: KernelState, context: LayerContext) -> KernelState:
    places = layer.places(context.place)
    for i, (part, place) in enumerate(zip(layer.layers, places, strict=True)):
        pairs = pairs_needed(Serial(layer.layers[i + 1 :]), context.pairs)
        state = propagate_needed(part, state, LayerContext(place, pairs))
    return state


@pairs_needed.register
def _(layer: Parallel, pairs: Pairs) -> Pairs:
    return max(pairs_needed(branch, pairs) for branch in layer.branches)


@propagate.register
def _(layer: Parallel, state: KernelState, context: LayerContext) -> KernelState:
    states = [propagate_needed(branch, state, context) for branch in layer.branches]
    shape = layer.joined_shape([state.shape for state in states])
    return joined_kernels(layer, states).replace(shape=shape)


@singledispatch
def joined_kernels(layer: Parallel, states: list[KernelState]) -> KernelState:
    """The kernels of what is put together from outputs with these kernels.

    Raises:
        NetworkError: for a layer without a kernel.
    """
    raise no_kernel(layer)


@joined_kernels.register
def _(layer: Summed, states: list[KernelState]) -> KernelState:
    return _sum(states)


@joined_kernels.register
def _(layer: Concatenated, states: list[KernelState]) -> KernelState:
    widths = [state.shape[-1] for state in states]
    scaled = []
    for state, width in zip(states, widths, strict=True):
        part = width / sum(widths)
        own = state.map(lambda moments, part=part: moments.times(part))
        scaled.append(own.replace(ntk=part * state.ntk))
    # Products of two channels add up in a mean as those of uncorrelated units do in a sum.
    return _sum(scaled).replace(is_gaussian=False)


@joined_kernels.register
def _(layer: Multiplied, states: list[KernelState]) -> KernelState:
    total = states[0]
    for state in states[1:]:
        ntk = total.ntk * state.moments.cross + total.moments.cross * state.ntk
        total = _together([total, state], Moments.product).replace(ntk=ntk)
    return total.replace(is_gaussian=total.is_gaussian and len(states) == 1)


def _sum(states: list[KernelState]) -> KernelState:
    moments = _together(states, Moments.plus)
    is_gaussian = all(state.is_gaussian for state in states)
    ntk = sum((state.ntk for state in states[1:]), states[0].ntk)
    return moments.replace(ntk=ntk, is_gaussian=is_gaussian)


def _together(states: list[KernelState], join: Any) -> KernelState:
    """The first state, with the moments of all of them joined."""
    every = [(state.moments, *state.self_moments) for state in states]
    moments, *within = [reduce(join, parts) for parts in zip(*every, strict=True)]
    return states[0].replace(moments=moments, self_moments=tuple(within))

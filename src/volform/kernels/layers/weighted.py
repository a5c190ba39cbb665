"""Kernels of layers with weights."""

from volform.kernels.layers.rules import pairs_needed, propagate
from volform.kernels.propagation.moments import constant
from volform.kernels.propagation.state import KernelState, LayerContext, Pairs
from volform.kernels.propagation.window_means import uncorrelated, window_mean
from volform.networks.conv import ConvLocal, WindowLayer
from volform.networks.dense import Dense, WeightLayer
from volform.networks.embedding import Embedding
from volform.networks.layer import Place
from volform.networks.parametrization import Fans


def affine(layer: WeightLayer, state: KernelState, fans: Fans, place: Place) -> KernelState:
    """Scaled by the weights, plus a constant for the biases and a term for its gradients.

    With `W = m w`: `K' = fan_in Var(W) K + Var(m' b)`, and
    `T' = fan_in Var(W) T + m^2 fan_in K + m'^2`, with K and T means over a unit's inputs.
    """
    weight = place.parametrization.weight(fans, layer.w_std)
    spread = fans.fan_in * weight.weight_deviation**2
    ntk = spread * state.ntk + weight.multiplier**2 * fans.fan_in * state.moments.cross
    state = state.map(lambda moments: moments.times(spread))
    if layer.b_std is not None:
        bias = place.parametrization.bias(fans, layer.b_std)
        variance = bias.weight_deviation**2
        state = state.map(lambda moments: moments.plus(constant(variance, moments)))
        ntk += bias.multiplier**2
    shape = (*state.shape[:-1], layer.width)
    return state.replace(ntk=ntk, shape=shape, is_gaussian=True)


@pairs_needed.register
def _(layer: Dense, pairs: Pairs) -> Pairs:
    return Pairs.NONE  # vectors have no pixels


@propagate.register
def _(layer: Dense, state: KernelState, context: LayerContext) -> KernelState:
    place = context.place
    return affine(layer, state, layer.fans(state.shape, place), place)


@pairs_needed.register
def _(layer: Embedding, pairs: Pairs) -> Pairs:
    return max(pairs, Pairs.EQUAL)  # tokens rather than means


@propagate.register
def _(layer: Embedding, state: KernelState, context: LayerContext) -> KernelState:
    # A dense layer of vectors with a single one, of which the inner products are the moments.
    found = affine(Dense(layer.width, layer.w_std), state, layer.fans(context.place), context.place)
    return found.replace(shape=(*state.shape, layer.width))


@pairs_needed.register
def _(layer: WindowLayer, pairs: Pairs) -> Pairs:
    return max(pairs, Pairs.EQUAL)  # pixels rather than means


@propagate.register
def _(layer: WindowLayer, state: KernelState, context: LayerContext) -> KernelState:
    # Of two pixels p and p', 1/size sum_d K(p + d, p' + d); then as for `Dense`. Novak et al.
    # (2019), Bayesian deep convolutional networks with many channels are Gaussian processes. Of a
    # transposed convolution p + d may lie between pixels, where there are zeros.
    place, pixels = context.place, layer.pixels(state.shape)
    fans = layer.fans(state.shape, place)
    means = window_mean(state, layer.window.table(state.shape[:-1]))
    return affine(layer, means.replace(shape=(*pixels, layer.width)), fans, place)


@pairs_needed.register
def _(layer: ConvLocal, pairs: Pairs) -> Pairs:
    return Pairs.EQUAL  # those of unequal pixels are zero


@propagate.register
def _(layer: ConvLocal, state: KernelState, context: LayerContext) -> KernelState:
    equal = propagate.dispatch(WindowLayer)(layer, state.restricted(Pairs.EQUAL), context)
    return uncorrelated(equal) if context.pairs is Pairs.ALL else equal

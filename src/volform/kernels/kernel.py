"""NNGP and neural tangent kernels of a network."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from volform.compilation import steady
from volform.errors import NetworkError
from volform.kernels.checks import require_examples, require_pair
from volform.kernels.layers.rules import pairs_needed, propagate_needed
from volform.kernels.propagation.inputs import Examples
from volform.kernels.propagation.sizes import cut, filled, floats_as_arrays
from volform.kernels.propagation.state import LayerContext, Pairs, in_pairs, of_examples
from volform.kernels.propagation.tiles import Spread, matrices, require_tile, spread_of
from volform.networks.composition import Parallel, Serial
from volform.networks.conv import ConvLocal, ConvTranspose
from volform.networks.embedding import Embedding
from volform.networks.graph import Aggregate
from volform.networks.layer import Layer, Wide, whole
from volform.networks.parametrization import Parametrization

# Behind these layers there are more pixels, or more pairs of them, than before.
_WITH_MORE = (Aggregate, ConvLocal, ConvTranspose, Embedding)
_FEW = 2**14  # pairs, of which a gradient may keep what all layers give


class Kernel(NamedTuple):
    """The two kernels of an infinitely wide network.

    Attributes:
        nngp: covariance of an output under the prior, `E[f(x1) f(x2)]`, shape (n1, n2).
        ntk: neural tangent kernel `E[df(x1) G^-1 df(x2)]` of an output, with G the flat metric of
            the parametrization's coordinates, shape (n1, n2).
    """

    nngp: Float[Array, "n1 n2"]
    ntk: Float[Array, "n1 n2"]


def kernel(
    net: Layer,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None = None,
    *,
    parametrization: Parametrization | None = None,
    widths: Sequence[int] | None = None,
    tile: int | None = None,
) -> Kernel:
    """NNGP and neural tangent kernels of an output, to leading order in the width.

    A dense layer takes `(K, T)` to `(w_std^2 K + b_std^2, K' + w_std^2 T)` with K' its own
    NNGP in `NTP`; an activation f takes it to `(E[f(u) f(v)], T E[f'(u) f'(v)])`, (u, v)
    centered Gaussian with covariance K. The inputs' K is `x1 . x2 / features`. Of images, K and
    T are those of pairs of pixels, and `x1 . x2 / channels` to begin with.

    Under `NTP` both are limits, in which widths do not occur. Under `SP` the NNGP is the same,
    and the neural tangent kernel is the leading order at the layers' own widths, with which it
    grows. Under `MuP` the NNGP is of order 1 / width. The inputs count as given numbers: a
    parametrization looks at their number of features.

    Cost O(n1 n2 (features + layers)), half of it if x1 = x2. Memory is that of the result and
    of one tile. Images of P pixels take P times as much, and P^2 times in front of layers that
    look at all pairs (`GlobalAvgPool`). Where x1 is `volform.operators.sharded`, each device
    computes the rows of its examples, and holds them. Differentiable in
    inputs, `w_std` and `b_std`; where two inputs coincide the neural tangent kernel of a kinked
    activation has a kink, and the derivative given is the mean of both sides.

    Args:
        net: a network of layers that have kernels.
        x1: examples, shape (n1, features), or images, (n1, height, width, channels), or tokens for
            an `Embedding`, integers of shape (n1, tokens).
        x2: examples, of shape (n2, ...); x1 if left out, and then the kernels are symmetric
            to the last bit.
        parametrization: `NTP()` if left out.
        widths: numbers of units of the hidden layers, in place of their own; they matter where
            the parametrization makes them.
        tile: examples of each list that are worked on at once; by default few enough for the
            cache. The result does not depend on it but for rounding.

    Returns:
        Both kernels, of shape (n1, n2).

    Raises:
        DataError: when inputs are empty, not finite, of the wrong shape or kind of numbers.
        KernelError: when `tile` is no positive whole number.
        NetworkError: when an activation gets values that are not Gaussian, a layer gets inputs
            of another shape than it takes or has no kernel, `widths` are not one for each hidden
            layer, or the network ends in images.

    References:
        Lee et al. (2018), Deep neural networks as Gaussian processes; Jacot, Gabriel & Hongler
        (2018), Neural tangent kernel; Sohl-Dickstein et al. (2020).

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.Dense(64), nn.Relu(), nn.Dense(1))
    >>> k.kernel(net, jnp.array([[3.0, 4.0]])).nngp.tolist()
    [[6.25]]
    """
    is_same = x2 is None or x2 is x1
    x1 = require_examples(net, x1, "x1")
    x2 = x1 if x2 is None else require_examples(net, x2, "x2")
    require_pair(x1, x2)
    net = net if widths is None else _with_widths(net, widths)
    context = context_of(parametrization)
    side = tile_side(net, x1, tile)
    # To a program two arguments are two lists, and both would be prepared.
    lists = filled((x1,) if is_same else (x1, x2), side, net, context)
    found = _kernel(floats_as_arrays(net), context, lists, side, spread_of(x1))
    return Kernel(*(cut(part, len(x1), len(x2)) for part in found))


def context_of(parametrization: Parametrization | None) -> LayerContext:
    """The context of a whole network that ends in vectors; of `NTP()` if nothing is said."""
    return LayerContext(whole(parametrization), Pairs.NONE)


def tile_side(net: Layer, x: Float[Array, "n ..."], tile: int | None = None) -> int:
    """Examples along each side of a tile.

    Raises:
        KernelError: when `tile` is no positive whole number.
    """
    pixels = math.prod(x.shape[1:-1])
    if any(isinstance(layer, _WITH_MORE) for layer in _layers(net)):
        most = _most_pairs(net, x.shape[1:], context_of(None))  # takes milliseconds
    else:
        most = 1 if pixels == 1 else pixels ** int(pairs_needed(net, Pairs.NONE))
    return require_tile(tile, most)


def _layers(net: Layer) -> Iterator[Layer]:
    parts: tuple[Layer, ...] = ()
    match net:
        case Serial():
            parts = net.layers
        case Parallel():
            parts = net.branches
        case _:
            yield net
    for part in parts:
        yield from _layers(part)


def _most_pairs(net: Layer, shape: tuple[int, ...], context: LayerContext) -> int:
    """Pairs of pixels of two examples, in the layer whose inputs have most of them."""
    match net:
        case Serial(layers):
            pairs = [context.pairs]
            for layer in layers[:0:-1]:
                pairs.append(pairs_needed(layer, pairs[-1]))
            most = 1
            for layer, place, behind in zip(
                layers, net.places(context.place), pairs[::-1], strict=True
            ):
                most = max(most, _most_pairs(layer, shape, LayerContext(place, behind)))
                shape = layer.parameters(shape, place)[1]
                most = max(most, math.prod(shape[:-1]))  # of `Flatten`, which asks for none
            return most
        case Parallel():
            return max(_most_pairs(branch, shape, context) for branch in net.branches)
        case _:
            pixels = math.prod(shape if isinstance(net, Embedding) else shape[:-1])
            return pixels ** int(pairs_needed(net, context.pairs))


def lists_of(
    net: Layer, x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."]
) -> tuple[Examples, Examples]:
    """Two lists of examples of which `kernel_block` takes parts."""
    return in_pairs(x1, x2, pairs_needed(net, Pairs.NONE))


def kernel_block(
    net: Layer, x1: Examples, x2: Examples, context: LayerContext, *, is_same: Any
) -> Kernel:
    """Both kernels, all entries at once; `is_same` may be traced where n1 = n2.

    Raises:
        NetworkError: when the network ends in images.
    """
    state = of_examples(x1, x2, pairs_needed(net, context.pairs), is_same=is_same)
    end = propagate_needed(net, state, context)
    if end.has_pixels:
        raise NetworkError(
            f"`net` ends in images of shape {end.shape}, which have a kernel for each pair of "
            "pixels; end it in `Flatten()` or `GlobalAvgPool()`, and a `Dense(width)`."
        )
    found = Kernel(end.moments.cross, end.ntk)
    if isinstance(is_same, bool) and is_same:
        return Kernel(*((part + part.T) / 2 for part in found))
    return found


def _with_widths(net: Layer, widths: Sequence[int]) -> Layer:
    layers, structure = jax.tree.flatten(net, is_leaf=lambda layer: isinstance(layer, Wide))
    wide = [index for index, layer in enumerate(layers) if isinstance(layer, Wide)]
    if not isinstance(widths, Sequence) or len(widths) != len(wide) - 1:
        raise NetworkError(
            f"`widths` is {widths}, while the network has {len(wide) - 1} hidden layers; it "
            "should hold a number of units for each, and none for the last layer."
        )
    for index, width in zip(wide, widths, strict=False):
        layers[index] = dataclasses.replace(layers[index], width=width)
    return jax.tree.unflatten(structure, layers)


@steady
def _kernel(
    net: Layer,
    context: LayerContext,
    lists: Sequence[Array],
    tile: int,
    spread: Spread | None,
) -> Kernel:
    is_same, x1, x2 = len(lists) == 1, lists[0], lists[-1]
    if spread is None and max(len(x1), len(x2)) <= tile and len(x1) * len(x2) <= _FEW:
        return kernel_block(net, x1, x2, context, is_same=is_same)

    def block(rows: Examples, columns: Examples, is_same: Any) -> Kernel:
        return kernel_block(net, rows, columns, context, is_same=is_same)

    return matrices(block, *lists_of(net, x1, x2), tile, is_same=is_same, spread=spread)

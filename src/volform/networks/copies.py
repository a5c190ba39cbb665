"""Copies of a network that its units make by changing places and signs."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from volform.networks.activations import Activation
from volform.networks.composition import Serial
from volform.networks.conv import AvgPool, GlobalAvgPool
from volform.networks.dense import WeightLayer
from volform.networks.layer import Composite, Flatten, Identity, Layer
from volform.networks.normalization import Dropout, LayerNorm

# Behind which each unit's value is still its own, or channels' as a block.
_BETWEEN = (Activation, AvgPool, GlobalAvgPool, Flatten, Identity, Dropout, LayerNorm)


def equivalent_units(net: Layer) -> dict[str, int | None]:
    """Copies that the units of a layer make of a mode, by the name of the layer.

    They are known of the units between two layers with weights that follow each other with nothing
    but activations, pooling and normalization between, and None where a sum or an attention looks
    at them. The units of the last layer make none.
    """
    found, layers, number = dict[str, int | None](), _in_order(net), 0
    for i, layer in enumerate(layers):
        if not layer.has_weights:
            continue
        names = [f"layer{number + n}" for n in range(_count(layer))]
        number += len(names)
        behind = next((j for j in range(i + 1, len(layers)) if layers[j].has_weights), None)
        if not isinstance(layer, WeightLayer):
            found |= dict.fromkeys(names)
        elif behind is not None:
            between = layers[i + 1 : behind]
            is_known = isinstance(layers[behind], WeightLayer) and all(
                isinstance(part, _BETWEEN) for part in between
            )
            found |= dict.fromkeys(names, _copies(between, layer.width) if is_known else None)
    return found


def _in_order(net: Layer) -> list[Layer]:
    if not isinstance(net, Serial):
        return [net]
    return [part for layer in net.layers for part in _in_order(layer)]


def _count(layer: Layer) -> int:
    """Layers with weights of which a layer is made, which may be a tree of branches."""
    parts = jax.tree.leaves(layer, is_leaf=_is_single)
    return sum(part.has_weights for part in parts if isinstance(part, Layer))


def _is_single(part: object) -> bool:
    return isinstance(part, Layer) and not isinstance(part, Composite)


class _Parity(NamedTuple):
    """Symmetries of a function of one number."""

    is_odd: bool
    is_even: bool
    is_linear: bool


def _copies(between: list[Layer], units: int) -> int:
    """Number of parameters with the function and the prior of one: `units!`, or times `2^units`.

    Units may be exchanged; behind an odd activation (tanh) or an even one the sign of a unit may be
    turned too. A normalization subtracts the mean of the units: then signs of units turn in front
    of an even activation only, and otherwise all of them together. The scalings of units that leave
    the function as it is, behind a positively homogeneous activation (relu), do not leave the prior
    so, and do not count. Where all is linear, equivalent parameters form a continuum, of which none
    counts: 1.
    """
    norms = [i for i, part in enumerate(between) if isinstance(part, LayerNorm)]
    whole, first = _parity(between), _parity(between[: norms[0]] if norms else between)
    if whole.is_linear and not norms:
        return 1
    has_parity = whole.is_odd or whole.is_even
    if first.is_even or (has_parity and not norms):
        return math.factorial(units) * 2**units
    return math.factorial(units) * (2 if has_parity else 1)


def _parity(between: list[Layer]) -> _Parity:
    """Parity of the activations one after the other, asked on a grid as they act elementwise."""

    def activation(u: Array) -> Array:
        for part in between:
            u = part(u) if isinstance(part, Activation) else u
        return u

    def are_equal(a: Array, b: Array) -> bool:
        return bool(jnp.all(jnp.abs(a - b) <= 1e-5 * (jnp.abs(a) + jnp.abs(b))))

    with jax.ensure_compile_time_eval():  # under `jit` too
        grid = jnp.geomspace(0.1, 30.0, 32)
        value, mirrored = activation(grid), activation(-grid)
        is_odd = are_equal(mirrored, -value)
        is_homogeneous = are_equal(activation(2.0 * grid), 2.0 * value)
        return _Parity(is_odd, are_equal(mirrored, value), is_odd and is_homogeneous)

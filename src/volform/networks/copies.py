"""Copies of a network that its units make by changing places and signs."""

import math
from collections.abc import Callable

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


def _copies(between: list[Layer], units: int) -> int:
    activations = [part for part in between if isinstance(part, Activation)]

    def activation(u: Array) -> Array:
        for part in activations:
            u = part(u)
        return u

    if any(isinstance(part, LayerNorm) for part in between):
        return math.factorial(units)  # a sign moves the mean
    return _sign_and_place(activation, units)


def _sign_and_place(activation: Callable[[Array], Array], units: int) -> int:
    """Number of parameters with the function and the prior of one: `units!`, or times `2^units`.

    Units may be exchanged; behind an odd activation (tanh) or an even one the sign of a unit may be
    turned too. The scalings of units that leave the function as it is, behind a positively
    homogeneous activation (relu), do not leave the prior so, and do not count. Where the activation
    is linear, equivalent parameters form a continuum, of which none counts: 1.

    The activation is asked on a grid, as one that acts elementwise.
    """
    with jax.ensure_compile_time_eval():  # under `jit` too
        grid = jnp.linspace(0.1, 3.0, 16)
        value = activation(grid)
        mirrored = activation(-grid)
        is_odd = bool(jnp.allclose(mirrored, -value, atol=1e-6))
        is_even = bool(jnp.allclose(mirrored, value, atol=1e-6))
        is_homogeneous = bool(jnp.allclose(activation(2.0 * grid), 2.0 * value, atol=1e-6))
    if is_odd and is_homogeneous:
        return 1
    return math.factorial(units) * (2**units if is_odd or is_even else 1)

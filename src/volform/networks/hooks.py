"""Hooks on the layers of the networks in a model: records of their inputs, and perturbations."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float
from numpyro.primitives import Messenger

from volform.networks.dense import Affine, WeightLayer


class LayerRecord(eqx.Module):
    """One layer of a network as it was run.

    Attributes:
        layer: what it is.
        weight: the matrix that multiplies the features, shape (units, fan_in).
        bias: shape (units,), or None.
        x: its inputs, shape (n, ...).
        z: its outputs, shape (n, ..., units).
    """

    layer: WeightLayer
    weight: Float[Array, "units fan_in"]
    bias: Float[Array, " units"] | None
    x: Float[Array, "n ..."]
    z: Float[Array, "n ... units"]


class LayerHooks(Messenger):
    """Notes the layers of the networks that a model runs, and adds to their outputs.

    Args:
        added: what to add to the outputs of each layer, in the order in which they run; nothing
            if left out.
    """

    def __init__(self, added: Sequence[Float[Array, "n ... units"]] | None = None):
        super().__init__()
        self.added = added
        self.layers: list[LayerRecord] = []

    def process_message(self, msg: Any) -> None:
        """Run a layer in place of NumPyro."""
        affine = msg.get("fn")
        if not isinstance(affine, Affine):
            return
        weight, bias, x = msg["args"]
        z = affine(weight, bias, x)
        if self.added is not None:
            z = z + self.added[len(self.layers)]
        self.layers.append(LayerRecord(affine.layer, weight, bias, x, z))
        msg["value"] = z

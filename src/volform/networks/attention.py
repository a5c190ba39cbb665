"""Self-attention with a limit in closed form."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.errors import NetworkError
from volform.networks.dense import Dense
from volform.networks.layer import CenteredLayer, Place
from volform.networks.parametrization import Fans


class GlobalSelfAttention(CenteredLayer):
    """Every pixel sees all pixels of its image, by weights that depend on the image.

    With `K_pq` the covariance of two pixels of one example, `A = softmax_q(w_key_std^2 K_pq)`:
    the output's kernels are `A K A'^T` and `A T A'^T` of those of the values, A and A' those of the
    two examples, with dense layers before (the values) and behind.

    In one head, keys are queries, `k = W_key x`, and the logits are `k_p . k_q / key_width`:
    divided by the width, not by its root, so that for wide keys they are the numbers above. Divided
    by the root, logits stay random in the limit, and the kernels are an expectation over the
    softmax of Gaussian logits, which has no closed form. Values of heads go side by side into a
    dense layer.

    Needs the kernels of all pairs of pixels in the layers before it.

    Args:
        width: number of output channels.
        heads: number of heads.
        key_width: number of units of a key, in each head.
        value_width: number of units of a value, in each head.
        w_key_std: standard deviation of the weights of keys times sqrt(fan_in); zero is not
            allowed, but makes for a mean over all pixels as it is approached.
        w_value_std: of the weights of values.
        w_std: of the dense layer behind.
        b_std: standard deviation of its biases; no biases if None.

    Raises:
        NetworkError: when one of the numbers is no positive integer, a standard deviation is not
            positive, or `b_std` negative.

    References:
        Hron, Bahri, Sohl-Dickstein & Novak (2020), Infinite attention, section 3, with the scaling
        1/d of the logits.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> net = nn.serial(nn.GlobalSelfAttention(64, 4, 32, 32), nn.GlobalAvgPool(), nn.Dense(1))
    >>> round(float(k.kernel(net, jnp.eye(3)[None]).nngp[0, 0]), 6)
    0.111111
    """

    width: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    key_width: int = eqx.field(static=True)
    value_width: int = eqx.field(static=True)
    w_key_std: Any = 1.0
    w_value_std: Any = 1.0
    w_std: Any = 1.0
    b_std: Any = None

    def __check_init__(self) -> None:
        numbers = {"heads": self.heads, "key_width": self.key_width}
        for name, number in {**numbers, "value_width": self.value_width}.items():
            if not isinstance(number, int) or number < 1:
                raise NetworkError(
                    f"`{name}` of GlobalSelfAttention is {number!r}; it should be a positive "
                    "integer, such as 8 heads with keys and values of width 64."
                )
        _ = self.dense_layers  # checks the rest

    @property
    def dense_layers(self) -> dict[str, Dense]:
        """Its layers with weights."""
        return {
            "key": Dense(self.heads * self.key_width, self.w_key_std),
            "value": Dense(self.heads * self.value_width, self.w_value_std),
            "out": Dense(self.width, self.w_std, self.b_std),
        }

    def parameters(
        self, shape: tuple[int, ...], place: Place
    ) -> tuple[dict[str, Any], tuple[int, ...]]:
        """For "key", "value" and "out", what `Dense` has; heads one after the other."""
        sites = self.sites(shape, place)
        found = {name: layer.weights(*sites[name]) for name, layer in self.dense_layers.items()}
        return found, (*shape[:-1], self.width)

    def forward(
        self, params: dict[str, Any], x: Float[Array, "n ... channels"], place: Place
    ) -> Float[Array, "n ... width"]:
        """`softmax(k k^T / key_width) v` of each head, then a dense layer."""
        pixels = x.shape[1:-1]
        layers, sites = self.dense_layers, self.sites(x.shape[1:], place)
        x = x.reshape(len(x), math.prod(pixels), -1)

        def applied(name: str, x: Array) -> Array:
            return layers[name].affine(params[name], x, *sites[name])

        keys = applied("key", x).reshape(*x.shape[:2], self.heads, self.key_width)
        values = applied("value", x).reshape(*x.shape[:2], self.heads, self.value_width)
        logits = jnp.einsum("nphd,nqhd->nhpq", keys, keys) / self.key_width
        mixed_values = jnp.einsum("nhpq,nqhd->nphd", jax.nn.softmax(logits, -1), values)
        outputs = applied("out", mixed_values.reshape(*x.shape[:2], -1))
        return outputs.reshape(len(x), *pixels, self.width)

    def sites(self, shape: tuple[int, ...], place: Place) -> dict[str, tuple[Fans, Place]]:
        """Sizes and places of its dense layers.

        Raises:
            NetworkError: when examples of this shape have no pixels.
        """
        if len(shape) < 2:
            raise NetworkError(
                f"`GlobalSelfAttention({self.width})` got examples of shape {shape}; it takes "
                "sequences of shape (n, channels) or images: leave out a `Flatten()`."
            )
        inner, last = place._replace(is_last=False), place._replace(is_first=False)
        heads = self.heads * self.value_width
        sites = {"key": (shape[-1], inner), "value": (shape[-1], inner), "out": (heads, last)}
        return {
            name: (Fans(n, self.dense_layers[name].width, where.is_first, where.is_last), where)
            for name, (n, where) in sites.items()
        }

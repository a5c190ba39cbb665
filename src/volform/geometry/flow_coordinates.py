"""Coordinates of a normalizing flow, in which its metric is Euclidean."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class FlowCoordinates(eqx.Module):
    """Base coordinates z of a flow, as a chart of u.

    Attributes:
        transform: a bijection of NumPyro, from z to the entries of u in the flow's order.
        order: entry of u that each of these is.
    """

    transform: Any
    order: tuple[int, ...] = eqx.field(static=True)

    def base(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """z at u, by the inverse of the flow."""
        return self.transform.inv(u[np.array(self.order)])

    def pushed(self, z: Float[Array, " d"]) -> Float[Array, " d"]:
        """The point u at z."""
        x = self.transform(z)
        return jnp.zeros_like(x).at[np.array(self.order)].set(x)

    def derivative(self, z: Float[Array, " d"]) -> Float[Array, "d d"]:
        """du/dz at z."""
        return jax.jacfwd(self.pushed)(z)

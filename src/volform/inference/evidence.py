"""The evidence of a model, with the gauge of how far it can be trusted."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Evidence(eqx.Module):
    """Invariant Laplace evidence, log Z = log of the integral of p(data, theta).

    `log_z = log q^G(theta*) + d/2 log(2 pi) - 1/2 log det(G^-1 H)` at the mode theta* of q^G, and
    `log_z_second_order = log_z + log(1 + correction)`. Both are the same in every parametrization;
    both depend on the metric, at relative order 1/n.

    Attributes:
        log_z: first-order log evidence.
        correction: c, the built-in gauge: Laplace is good where |c| is small. None where it was
            not computed; `note` then says why.
        metric: the metric in words.
        dim: number of parameters d.
        note: what a reader must know, empty where there is nothing.
    """

    log_z: Float[Array, ""]
    correction: Float[Array, ""] | None
    metric: str = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    note: str = eqx.field(static=True, default="")

    @property
    def log_z_second_order(self) -> Float[Array, ""] | None:
        """`log_z + log(1 + c)`; NaN where c <= -1, None where c was not computed."""
        return None if self.correction is None else self.log_z + jnp.log1p(self.correction)

    def __repr__(self) -> str:
        text = f"log Z {float(self.log_z):.3f}"
        if self.correction is not None and self.log_z_second_order is not None:
            text += (
                f", second order {float(self.log_z_second_order):.3f}"
                f", correction c = {float(self.correction):+.3f}"
            )
        text += f", metric {self.metric.removesuffix('()')}, {self.dim} parameters"
        return text + (f"\n{self.note}" if self.note else "")

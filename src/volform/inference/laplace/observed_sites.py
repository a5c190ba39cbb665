"""The observed sites of a model, as functions of the parameters of their distributions."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

SiteOutputs = Any  # by site: the floating-point leaves of its distribution, and its value


class ObservedSites(NamedTuple):
    """The distributions of observed sites as functions of their parameters.

    Attributes:
        fixed: what of them, and of the data, does not move.
        scales: the factors of `numpyro.handlers.scale`.
    """

    fixed: Any
    scales: dict[str, Any]

    def sites(self, z: SiteOutputs) -> dict[str, tuple[Any, Any]]:
        """Distribution and datum of each site."""
        return eqx.combine(z, self.fixed)

    def weight(self, name: str) -> Any:
        """The factor of a site."""
        return 1.0 if self.scales[name] is None else self.scales[name]

    def loss(self, z: SiteOutputs) -> Float[Array, ""]:
        """`-log p(y | z)`."""
        first, *others = (
            jnp.asarray(jnp.sum(self.weight(name) * fn.log_prob(value)))
            for name, (fn, value) in self.sites(z).items()
        )
        return -sum(others, start=first)

    def of_examples(self, z: SiteOutputs, data: dict[str, Any]) -> list[Float[Array, " n"]]:
        """`log p(y_n | z)` of data along their first axis; of sites of one length together.

        Times the root of the sites' factors, so that the products of scores have the factors.
        """
        found: dict[int, Array] = {}
        for name, (fn, _) in self.sites(z).items():
            each = fn.log_prob(data[name])
            own = each.reshape(len(each), -1).sum(1) if each.ndim else each[None]
            own = jnp.sqrt(jnp.asarray(self.weight(name), own.dtype)) * own
            found[len(own)] = found[len(own)] + own if len(own) in found else own
        return list(found.values())

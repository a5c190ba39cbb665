"""Coordinates in which a Laplace approximation is Gaussian: those the metric is flat in."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from volform.geometry.questions import Coordinates, is_flat_in
from volform.models.posterior import Posterior


class GaussianChart(eqx.Module):
    """Coordinates w in which the draws are Gaussian."""

    @abc.abstractmethod
    def flatten(
        self, posterior: Posterior, u: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """w at u, and `log |det dw/du|`."""

    @abc.abstractmethod
    def unflatten(
        self, posterior: Posterior, w: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
        """u at w, and whether w is inside the support; where it is not, u means nothing."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """Description of the draws, for `repr`."""


class UnconstrainedChart(GaussianChart):
    """NumPyro's unconstrained coordinates; every point is inside the support."""

    reason: str = eqx.field(static=True)

    def flatten(
        self, posterior: Posterior, u: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The point unchanged, and log det of the identity."""
        return u, jnp.zeros((), u.dtype)

    def unflatten(
        self, posterior: Posterior, w: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
        """The point unchanged; all of R^d is inside."""
        return w, jnp.array(True)

    def __str__(self) -> str:
        return f"draws Gaussian in unconstrained coordinates ({self.reason})"


class FlatChart(GaussianChart):
    """Value coordinates of some sites, unconstrained ones of the others: the metric is flat."""

    in_values: tuple[str, ...] = eqx.field(static=True)

    def flatten(
        self, posterior: Posterior, u: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The values of sites that are flat in them, u elsewhere."""
        parts, log_det = [], jnp.zeros((), u.dtype)
        for site in posterior.layout.sites:
            part = site.part(u)
            if site.name in self.in_values:
                value = site.chart(part)
                log_det += jnp.sum(site.chart.log_abs_det_jacobian(part, value))
                part = value
            parts.append(jnp.ravel(part))
        return jnp.concatenate(parts), log_det

    def unflatten(
        self, posterior: Posterior, w: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
        """The inverse of the chart, for sites that are flat in their values."""
        parts, inside = [], jnp.array(True)
        for site in posterior.layout.sites:
            part = site.part(w)
            if site.name in self.in_values:
                allowed = jnp.all(site.chart.codomain(part))
                # Outside the support the inverse is undefined.
                safe = jnp.where(allowed, part, site.chart(jnp.zeros_like(part)))
                part, inside = site.chart.inv(safe), inside & allowed
            parts.append(jnp.ravel(part))
        u = jnp.concatenate(parts)
        return u, inside & jnp.all(jnp.isfinite(u))

    def __str__(self) -> str:
        flat = ", ".join(self.in_values)
        return f"draws Gaussian where the metric is flat (values of {flat or 'no site'})"


def sampling_chart(posterior: Posterior) -> GaussianChart:
    """The chart that the metric is flat in, where it is known to be flat."""
    in_values: list[str] = []
    seen: list[str] = []
    for part in posterior.parts:
        if part.site is None or part.site in seen:
            return UnconstrainedChart("no chart is known in which the metric is flat")
        seen.append(part.site)
        if is_flat_in(part.metric, Coordinates.UNCONSTRAINED):
            continue
        site = posterior.layout.site(part.site)
        is_flat = is_flat_in(part.metric, Coordinates.VALUE)
        if not is_flat or site.shape != site.coordinates:
            return UnconstrainedChart(f"the metric of {part.site} is curved or embedded")
        in_values.append(part.site)
    return FlatChart(tuple(in_values))

"""Draws from the Laplace approximation, through the chart that the metric is flat in."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from volform.errors import ConvergenceError
from volform.geometry import Euclidean
from volform.inference.local import Expansion
from volform.models import Posterior
from volform.models.binding import LocalPart, Unconstrained
from volform.models.layout import Site


class Chart(eqx.Module):
    """Coordinates in which the draws are Gaussian."""

    @abc.abstractmethod
    def spread(
        self, posterior: Posterior, mode: Float[Array, " d"], steps: Float[Array, "n d"]
    ) -> tuple[Float[Array, "n d"], Bool[Array, " n"]]:
        """Points u at tangent vectors `steps` from the mode, and which are inside the support."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """What `repr` says of the draws."""


class UnconstrainedChart(Chart):
    """NumPyro's unconstrained coordinates; every point is inside the support."""

    reason: str = eqx.field(static=True)

    def spread(
        self, posterior: Posterior, mode: Float[Array, " d"], steps: Float[Array, "n d"]
    ) -> tuple[Float[Array, "n d"], Bool[Array, " n"]]:
        """u* + step."""
        return mode + steps, jnp.ones(len(steps), bool)

    def __str__(self) -> str:
        return f"draws Gaussian in unconstrained coordinates ({self.reason})"


class FlatChart(Chart):
    """Value coordinates of some sites, unconstrained ones of the others: the metric is flat."""

    in_values: tuple[str, ...] = eqx.field(static=True)

    def spread(
        self, posterior: Posterior, mode: Float[Array, " d"], steps: Float[Array, "n d"]
    ) -> tuple[Float[Array, "n d"], Bool[Array, " n"]]:
        """chart^-1(v* + dv) for sites that are flat in their values."""
        parts, inside = [], jnp.ones(len(steps), bool)
        for site in posterior.layout.sites:
            step = steps[:, site.segment].reshape(-1, *site.coordinates)
            if site.name not in self.in_values:
                parts.append(mode[site.segment] + steps[:, site.segment])
                continue
            part, allowed = _in_values(site, site.part(mode), step)
            parts.append(part.reshape(len(steps), -1))
            inside &= allowed
        u = jnp.concatenate(parts, 1)
        return u, inside & jnp.all(jnp.isfinite(u), 1)

    def __str__(self) -> str:
        flat = ", ".join(self.in_values)
        return f"draws Gaussian where the metric is flat (values of {flat or 'no site'})"


class Samples(eqx.Module):
    """Draws from a Laplace approximation.

    Attributes:
        values: draws of the latent sites, each of shape (n, ...).
        u: draws in unconstrained coordinates, shape (n, d).
        outside: number of draws that fell outside the support and were replaced.
    """

    values: dict[str, Array]
    u: Float[Array, "n d"]
    outside: int

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {np.shape(v)}" for name, v in self.values.items())
        return f"{len(self.u)} draws ({shapes}), {self.outside} replaced outside the support"


def sampling_chart(posterior: Posterior) -> Chart:
    """The chart that the metric is flat in, where it is known to be flat."""
    in_values: list[str] = []
    seen: list[str] = []
    for part in posterior.parts:
        if not isinstance(part, LocalPart) or part.name in seen:
            return UnconstrainedChart("no chart is known in which the metric is flat")
        seen.append(part.name)
        if isinstance(part.metric, Unconstrained):
            continue
        site = posterior.layout.site(part.name)
        if not isinstance(part.metric, Euclidean) or site.shape != site.coordinates:
            return UnconstrainedChart(f"the metric of {part.name} is curved or embedded")
        in_values.append(part.name)
    return FlatChart(tuple(in_values))


def draw(
    posterior: Posterior, at: Expansion, chart: Chart, key: PRNGKeyArray, draws: int
) -> Samples:
    """`draws` draws inside the support, with a count of those that were not.

    Raises:
        ConvergenceError: when fewer than one in a thousand falls inside the support.
    """
    kept, outside, tried = [], 0, 0
    while sum(map(len, kept)) < draws:
        key, now = jax.random.split(key)
        u, inside = _proposals(posterior, at, chart, now, draws)
        kept.append(np.asarray(u)[np.asarray(inside)])
        outside += int(draws - inside.sum())
        tried += draws
        if tried > 1000 * (sum(map(len, kept)) + 1):
            raise ConvergenceError(
                f"Fewer than one in a thousand of {tried} draws lies inside the support; the "
                "Gaussian in `chart` does not fit it. Use a metric such as `Unconstrained()`."
            )
    u = jnp.asarray(np.concatenate(kept)[:draws])
    return Samples(jax.vmap(posterior.values)(u), u, outside)


@eqx.filter_jit
def _proposals(
    posterior: Posterior, at: Expansion, chart: Chart, key: PRNGKeyArray, draws: int
) -> Any:
    noise = jax.random.normal(key, (draws, posterior.dim), at.u.dtype)
    return chart.spread(posterior, at.u, noise / jnp.sqrt(at.eigenvalues) @ at.frame.T)


def _in_values(site: Site, center: Array, steps: Array) -> tuple[Array, Bool[Array, " n"]]:
    """Coordinates of v* + dv for tangents dv = J du, and which of them lie in the support."""
    value, push = jax.linearize(site.chart, center)
    moved = value + jax.vmap(push)(steps)
    allowed = jnp.asarray(site.chart.codomain(moved)).reshape(len(steps), -1).all(1)
    # Outside the support the inverse is undefined; such draws are dropped by the caller.
    safe = jnp.where(allowed.reshape(-1, *(1,) * (moved.ndim - 1)), moved, value)
    return jnp.asarray(site.chart.inv(safe)), allowed

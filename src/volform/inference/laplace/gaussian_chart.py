"""Coordinates in which a Laplace approximation is Gaussian: those the metric is flat in."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from volform.compilation import compiled
from volform.geometry.flow_coordinates import FlowCoordinates
from volform.geometry.questions import Coordinates, flat_coordinates, is_flat_in
from volform.models.posterior import Posterior

BATCH, BATCHES = 100, 10  # points evaluated at once, which bounds the memory, and in one call


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

    def placed(
        self, posterior: Posterior, w: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, ""], Bool[Array, ""]]:
        """u at w, `log |det dw/du|` there, and whether w is inside the support."""
        u, inside = self.unflatten(posterior, w)
        return u, self.flatten(posterior, u)[1], inside

    def tangent(
        self, posterior: Posterior, u: Float[Array, " d"]
    ) -> tuple[Array, Callable[[Array], Array], Callable[[Array], Array], Array]:
        """w at u, the derivatives dw/du and du/dw as maps, and `log |det dw/du|`."""
        (w, log_det), push = jax.linearize(lambda u: self.flatten(posterior, u), u)
        _, pull = jax.linearize(lambda w: self.unflatten(posterior, w)[0], w)
        return w, lambda v: push(v)[0], pull, log_det

    def pushed(
        self, posterior: Posterior, u: Float[Array, " d"]
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
        """w at u, and the Jacobian dw/du."""
        w, push = _pushed(posterior, self, u)
        return np.asarray(w, float), np.asarray(push, float)

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

    def pushed(
        self, posterior: Posterior, u: Float[Array, " d"]
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
        """The point unchanged, and the identity."""
        return np.asarray(u, float), np.eye(u.size)

    def __str__(self) -> str:
        return f"draws Gaussian in unconstrained coordinates ({self.reason})"


LEBESGUE = UnconstrainedChart("where NumPyro moves")


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


class FlowChart(GaussianChart):
    """Base coordinates of a normalizing flow, in which its metric is flat."""

    flow: FlowCoordinates
    name: str = eqx.field(static=True)

    def flatten(
        self, posterior: Posterior, u: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """z at u, by the inverse of the flow."""
        z = self.flow.base(u)
        return z, -jnp.linalg.slogdet(self.flow.derivative(z))[1]

    def unflatten(
        self, posterior: Posterior, w: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
        """u at z, by the flow."""
        u = self.flow.pushed(w)
        return u, jnp.all(jnp.isfinite(u))

    def __str__(self) -> str:
        return f"draws Gaussian in the base coordinates of {self.name}"


def sampling_chart(posterior: Posterior) -> GaussianChart:
    """The chart that the metric is flat in, where it is known to be flat."""
    if len(posterior.parts) == 1:
        flow = flat_coordinates(posterior.parts[0].metric)
        if flow is not None:
            return FlowChart(flow, posterior.metric_name)
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


def densities_at(
    posterior: Posterior, chart: GaussianChart, w: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Log joint density with respect to dw at points of a chart, and which are in the support.

    One program, of a fixed number of points, serves every estimator of the evidence.
    """
    # Reasons for a chart are no part of the program.
    chart = LEBESGUE if isinstance(chart, UnconstrainedChart) else chart
    found = []
    for start in range(0, len(w), BATCHES * BATCH):
        now = np.asarray(w[start : start + BATCHES * BATCH], jnp.result_type(float))
        padded = np.concatenate([now, np.repeat(now[:1], BATCHES * BATCH - len(now), axis=0)])
        batches = padded.reshape(BATCHES, BATCH, -1)
        values = _densities_at(posterior, chart, batches, np.asarray(-(-len(now) // BATCH)))
        found.append([np.asarray(part).ravel()[: len(now)] for part in values])
    log_p, inside = map(np.concatenate, zip(*found, strict=True))
    return log_p, inside


@compiled
def _densities_at(
    posterior: Posterior, chart: GaussianChart, batches: Float[Array, "b n d"], count: Array
) -> tuple[Float[Array, "b n"], Bool[Array, "b n"]]:
    """Of the first `count` batches; zeros of the others."""

    def log_p(w: Float[Array, " d"]) -> tuple[Array, Array]:
        u, log_det, inside = chart.placed(posterior, w)
        value = posterior.log_density_lebesgue(u) - log_det
        return jnp.where(inside, value, -jnp.inf), inside

    def step(i: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        new = jax.vmap(log_p)(batches[i])
        return jax.tree.map(lambda every, part: every.at[i].set(part), found, new)

    shape = batches.shape[:2]
    empty = jnp.zeros(shape, batches.dtype), jnp.zeros(shape, bool)
    return jax.lax.fori_loop(0, count, step, empty)


@compiled
def _pushed(posterior: Posterior, chart: GaussianChart, u: Float[Array, " d"]) -> tuple:
    def flat(u: Float[Array, " d"]) -> tuple[Array, Array]:
        w = chart.flatten(posterior, u)[0]
        return w, w

    push, w = jax.jacfwd(flat, has_aux=True)(u)
    return w, push

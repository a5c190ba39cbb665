"""Charts of the circle with their cut where the data are not."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.distributions import biject_to, constraints

from volform.compilation import steady
from volform.models.bound_model import BoundModel
from volform.models.layout import Layout

WeighedDraws = Callable[[BoundModel, Array], tuple[Array, Array]]


def centered_on_circles(model: BoundModel, draws: WeighedDraws) -> Layout:
    """The layout with each chart of a circle centered on the mean direction under the data.

    The mean is that of a thousand prior draws weighed by their likelihood; only the place of the
    cut depends on it, a half-turn away.

    Args:
        model: the model with its data.
        draws: `weighed_draws`, called where there is a circle.
    """
    layout = model.layout
    if not any(site.circular for site in layout.sites):
        return layout
    centers = _mean_directions(model, *draws(model, jax.random.key(0)))
    sites = [
        dataclasses.replace(site, chart=_chart_around(centers[site.name]))
        if site.circular
        else site
        for site in layout.sites
    ]
    return dataclasses.replace(layout, sites=tuple(sites))


@steady
def _mean_directions(
    model: BoundModel, draws: Float[Array, "n d"], fit: Float[Array, " n"]
) -> dict[str, Array]:
    weights = jax.nn.softmax(fit)
    angles = jax.vmap(model.layout.constrain)(draws)

    def direction(angle: Array) -> Array:
        sine, cosine = (jnp.tensordot(weights, f(angle), 1) for f in (jnp.sin, jnp.cos))
        return jnp.nan_to_num(jnp.arctan2(sine, cosine))

    return {s.name: direction(angles[s.name]) for s in model.layout.sites if s.circular}


def _chart_around(center: Array) -> Any:
    interval = constraints.interval(center - math.pi, center + math.pi)
    return biject_to(constraints.independent(interval, center.ndim))

"""Copies of modes under symmetries of the density, refined from their images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from volform.inference.modes.expansion import SecondOrder
from volform.inference.modes.mode import MAP
from volform.inference.modes.newton import newton_from
from volform.inference.modes.search import (
    DESCENT_RESOLUTION,
    NEWTON_STARTS,
    NEWTON_STEPS,
    is_strict_mode,
    lies_within,
)
from volform.models.symmetries import Symmetry, count_images, images

MOST_IMAGES = 256  # that are enumerated; 5! are 120, and 5! 2^5 are 3,840


def with_images(
    fit: MAP, symmetries: tuple[Symmetry, ...], modes: Sequence[SecondOrder]
) -> list[SecondOrder]:
    """The modes, and those of their images that were not found, where they are not too many.

    An image counts if Newton's method from it ends at a strict mode of the same height: what holds
    at a few prior draws is checked where it is used.
    """
    posterior, every = fit.posterior, list(modes)
    model = posterior.bound_model
    for mode in modes:
        if count_images(model, symmetries, mode.u) > MOST_IMAGES:
            continue
        missing = [
            u
            for u in map(jnp.asarray, images(model, symmetries, mode.u, MOST_IMAGES))
            if not any(lies_within(other, u, DESCENT_RESOLUTION) for other in every)
        ]
        # As many points at a time as the search had, whose program serves again.
        at_once = min(fit.starts, NEWTON_STARTS)
        for start in range(0, len(missing), at_once):
            points = missing[start : start + at_once]
            padded = jnp.stack(points + [mode.u] * (at_once - len(points)))
            ends = newton_from(posterior, padded, fit.tolerance, NEWTON_STEPS).at
            each = [jax.tree.map(lambda leaf, i=i: leaf[i], ends) for i in range(len(points))]
            every += [
                at
                for at in each
                if is_strict_mode(posterior, at) and bool(jnp.isclose(at.value, mode.value))
            ]
    return every

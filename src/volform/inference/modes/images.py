"""Copies of modes under symmetries of the density, refined from their images."""

from collections.abc import Sequence

import jax
import numpy as np

from volform.inference.modes.expansion import SecondOrder, lies_within
from volform.inference.modes.mode import MAP
from volform.inference.modes.newton import newton_from
from volform.inference.modes.search import (
    DESCENT_RESOLUTION,
    NEWTON_STEPS,
    is_strict_mode,
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
            for u in images(model, symmetries, mode.u, MOST_IMAGES)
            if not any(lies_within(other, u, DESCENT_RESOLUTION) for other in every)
        ]
        if missing:
            ends = newton_from(posterior, np.stack(missing), fit.tolerance, NEWTON_STEPS)
            every += [
                jax.device_put(end.at)
                for end in ends
                if is_strict_mode(posterior, end.at) and bool(np.isclose(end.at.value, mode.value))
            ]
    return every

"""Mass near an edge of the support, where numbers cannot tell a value from the edge."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from volform.compilation import compiled
from volform.models.bound_model import BoundModel
from volform.models.posterior import Posterior

# |u| beyond which NumPyro's charts of intervals are rounded: 1 - sigmoid(30) holds three digits of
# float64, and none beyond 36. Of Beta(.1, .1) 1.2 % of the mass lies there, and is lost.
FAR_OUT = 30.0
MOST_CUT = 1e-3  # share of the mass there
LEAST_CUT = 1e-13  # below it is rounding


def is_far_out(u: Float[Any, "... d"]) -> Bool[Any, "..."]:
    """Tell of points with a coordinate so large that a chart may be cut off."""
    return (abs(u) > FAR_OUT).any(-1)


def cut_off(posterior: Posterior, share: float) -> list[str]:
    """Reason why mass is missing, if any: of the share of it that is far out."""
    sites = _with_an_edge(posterior) if share > MOST_CUT else []
    if not sites:
        return []
    return [
        f"{share:.1%} of the mass is so near to an edge of {', '.join(sites[:3])} that numbers do "
        "not tell it from the edge, and some is lost beyond"
    ]


def lost_beyond(posterior: Posterior, share: float) -> float:
    """Error of log Z by what is lost beyond an edge, of the share of the mass that is far out.

    Of Beta(1/2, 1/2) the chart ends at u = 36.7, and 2e-8 of the mass lies beyond.
    """
    return share if share > LEAST_CUT and _with_an_edge(posterior) else 0.0


def _with_an_edge(posterior: Posterior) -> list[str]:
    """Coordinates whose chart loses its digits far out.

    Charts of the line or of positive numbers keep them: the way to values and back tells.
    """
    d = posterior.dim
    points = np.concatenate([s * (FAR_OUT + 10.0) * np.eye(d) for s in (1.0, -1.0)])
    back = np.asarray(_to_values_and_back(posterior.bound_model, points))
    with np.errstate(invalid="ignore"):
        is_kept = np.all(np.abs(back - points) < 0.01, axis=1)
    return sorted({posterior.layout.labels()[i % d] for i in np.flatnonzero(~is_kept)})


@compiled
def _to_values_and_back(model: BoundModel, points: Float[Array, "n d"]) -> Float[Array, "n d"]:
    return jax.vmap(lambda u: model.layout.unconstrain(model.layout.constrain(u)))(points)

"""Points that values were given for, judged as the end of a search would be."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from volform.errors import ConvergenceError
from volform.inference.modes import verdicts
from volform.inference.modes.expansion import Expand, FirstOrder, expand_first
from volform.inference.modes.mode import (
    MAP,
    ExpansionPoint,
    default_tolerance,
    require_room,
    warn_of_precision,
)
from volform.inference.modes.newton import SearchResult, expansions
from volform.models.posterior import Posterior
from volform.results import Cost, Regime


def map_at(posterior: Posterior, values: Mapping[str, Any]) -> MAP:
    """The point with the given latent values, judged as the end of a search would be.

    Raises:
        UnknownSiteError: when a latent site is missing.
        ConvergenceError: when log q^G is not finite there.
    """
    require_room(posterior)
    u = posterior.layout.unconstrain(values, "at")
    (at,) = jax.device_put(expansions(posterior, u[None]))
    _require_density(posterior, at)
    tolerance = default_tolerance(u.dtype)
    verdict = verdicts.classify(posterior, SearchResult(at, jnp.array(0)), tolerance, max_steps=1)
    if isinstance(verdict, verdicts.NotConverged):
        verdict = _not_level(at)
    warn_of_precision(at)
    cost = Cost(0, posterior.dim + 1)
    regime = Regime("dense Hessian")
    return MAP(posterior, at, verdict, cost, (), 1, (0, 0), tolerance, regime=regime)


def place_at(
    posterior: Posterior,
    values: Mapping[str, Any],
    expand: Expand = expand_first,
) -> ExpansionPoint:
    """The point with the given latent values; its Hessian, and so whether it is a mode, is open.

    Raises:
        UnknownSiteError: when a latent site is missing.
        ConvergenceError: when log q^G is not finite there.
    """
    at = expand(posterior, posterior.layout.unconstrain(values, "at"))
    _require_density(posterior, at)
    is_level = float(at.gradient_norm) < default_tolerance(at.u.dtype)
    verdict = verdicts.Stationary() if is_level else _not_level(at)
    return ExpansionPoint(posterior, at, verdict, Cost(0, 1), regime=Regime("no Hessian"))


def _not_level(at: FirstOrder) -> verdicts.NotConverged:
    gradient = f"its gradient norm is {float(at.gradient_norm):.2g}"
    return verdicts.NotConverged(f"the point was given, and {gradient}")


def _require_density(posterior: Posterior, at: FirstOrder) -> None:
    if not bool(jnp.isfinite(at.value)):
        verdicts.require_positive_definite_at(posterior, at.u)
        raise ConvergenceError(
            f"`log q^G` is {-float(at.value)} at the values that were given in `at`; give values "
            "inside the support, where the density is positive."
        )

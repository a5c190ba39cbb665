"""Draws of a posterior, out of whatever holds them."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array
from numpyro.infer import MCMC

from volform.errors import ModelError
from volform.inference.laplace.draws import draws_of_sites, located
from volform.inference.laplace.gaussian_chart import LEBESGUE
from volform.inference.laplace.samples import Samples
from volform.models.layout import Layout
from volform.models.posterior import Posterior
from volform.results import Evidence


def given_draws(
    target: Any, posterior: Posterior | None, function: str
) -> tuple[Samples, Posterior]:
    """The draws that a result holds, or draws that were given, and the posterior that they are of.

    Args:
        target: an evidence, draws, an `MCMC` of NumPyro or a dictionary of draws.
        posterior: of an `MCMC` or a dictionary; else it wins over that of the draws.
        function: of the user, named in errors.

    Raises:
        ModelError: without draws, without a posterior, or of draws outside of its support.
    """
    if isinstance(target, Evidence):
        if target.draws is None:
            raise ModelError(
                f"`target` of {function} is an evidence by {target.method}, which has no "
                "draws; give the approximation of `vf.laplace`, or an evidence by "
                "`vf.Importance()`."
            )
        target = target.draws
    if isinstance(target, Samples):
        posterior = target.posterior if posterior is None else posterior
        if posterior is None:
            raise ModelError(
                f"`target` of {function} was pickled, without its model; give `posterior=`."
            )
        return target, posterior
    if not isinstance(target, MCMC | Mapping):
        raise ModelError(
            f"`target` of {function} should be a result of `vf.laplace` or `vf.evidence`, "
            f"draws of one, an `MCMC` or a dictionary of draws; got {type(target).__name__}."
        )
    if posterior is None:
        raise ModelError(
            f"`target` of {function} has no model; give `posterior=`, the result of `vf.condition`."
        )
    if not isinstance(posterior, Posterior):
        raise ModelError(
            f"`posterior` of {function} should be the result of `vf.condition`; got "
            f"{type(posterior).__name__}."
        )
    if isinstance(target, MCMC) and target.post_warmup_state is None and target.last_state is None:
        raise ModelError(f"`target` of {function} is an `MCMC` that was not run; run it.")
    values = target.get_samples(group_by_chain=True) if isinstance(target, MCMC) else target
    flat, lead = draws_of_sites(posterior.layout, values)
    if not lead or 0 in lead or len(lead) > 2:
        found = f"axes {lead} before those" if 0 not in lead else "none"
        raise ModelError(
            f"`target` of {function} should hold draws, on a first axis of each site or two, "
            f"chains and draws; got {found if lead else 'one value'} of each."
        )
    u, inside = points_of(posterior, flat)
    if not inside.all():
        raise ModelError(
            f"`target` of {function} has {np.sum(~inside)} of {len(u)} draws outside of the "
            "support of the posterior; give draws of this posterior."
        )
    return Samples(posterior, LEBESGUE, u, chains=lead[0] if len(lead) > 1 else 1), posterior


def points_of(posterior: Posterior, values: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Points in u of values by site, and whether each is inside the support."""
    u, _, inside = map(np.asarray, _located(posterior.layout, values))
    return u, inside


@eqx.filter_jit
def _located(layout: Layout, values: dict[str, Any]) -> tuple[Array, Array, Array]:
    return jax.vmap(lambda values: located(layout, values))(values)

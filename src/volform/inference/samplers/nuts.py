"""Posterior draws in unconstrained coordinates: by NUTS, or those that the user has."""

from collections.abc import Mapping
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS

from volform.compilation import STEADY, Compiled
from volform.errors import DataError
from volform.limits import DENSE_MASS_UP_TO
from volform.models.posterior import Posterior
from volform.progress import Phase
from volform.results import Regime

STREAM = 2  # of the key, which searches and other draws fold other numbers into


class Chains(eqx.Module):
    """Draws in u from several chains.

    Attributes:
        u: the draws, shape (chains, n, d).
        divergent: number of divergent transitions; None where it is not known.
        gradients: gradient evaluations that NUTS spent, warm-up included.
        regimes: how NUTS was run where the number of parameters decided it.
    """

    u: Float[Array, "c n d"]
    divergent: int | None = None
    gradients: int = 0
    regimes: tuple[Regime, ...] = eqx.field(static=True, default=())

    def r_hat(self) -> Float[np.ndarray, " d"]:
        """Split R-hat of each coordinate."""
        return np.atleast_1d(split_gelman_rubin(np.asarray(self.u)))

    def effective(self) -> Float[np.ndarray, " d"]:
        """Effective number of draws of each coordinate."""
        return np.atleast_1d(effective_sample_size(np.asarray(self.u)))


class Density(Protocol):
    """A log density on R^d with respect to Lebesgue measure, such as a `Posterior`'s."""

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        ...

    def log_density_lebesgue(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at u."""
        ...


def run_nuts(
    posterior: Density,
    key: PRNGKeyArray,
    starts: Float[Array, "c d"],
    covariance: Float[Array, "d d"],
    warmup: int,
    draws: int,
    target_accept: float,
    phase: Phase,
) -> Chains:
    """NumPyro's NUTS on the unconstrained density, one chain from each start.

    Compiled once for each model and shape of data, which `numpyro.infer.MCMC` is not.

    Args:
        posterior: the posterior, or another density in a pytree.
        key: key of the chains.
        starts: starting points in u, dispersed.
        covariance: the inverse mass matrix to begin with; it is adapted.
        warmup: warm-up steps of each chain.
        draws: draws of each chain.
        target_accept: mean probability of acceptance that the step size is adapted to.
        phase: of `waiting`; it is told of each chain before it runs.
    """
    each = []
    for number, start in enumerate(np.asarray(starts)):
        phase(f"chains of NUTS in {posterior.dim} dimensions", number, len(starts))
        given = (key, np.asarray(number), start, covariance, np.asarray(target_accept, start.dtype))
        found = _chain(posterior, *given, warmup, draws)
        each.append(jax.tree.map(np.asarray, found))
    u, diverging, steps = (np.stack(part) for part in zip(*each, strict=True))
    diagonal = (Regime("NUTS with a diagonal mass matrix", DENSE_MASS_UP_TO),)
    regimes = () if posterior.dim <= DENSE_MASS_UP_TO else diagonal
    return Chains(jnp.asarray(u), int(diverging.sum()), int(steps.sum()), regimes)


def _one_chain(
    posterior: Density,
    key: PRNGKeyArray,
    number: Int[Array, ""],
    start: Float[Array, " d"],
    covariance: Float[Array, "d d"],
    target_accept: Float[Array, ""],
    warmup: int,
    draws: int,
) -> tuple[Array, Array, Array]:
    # Its trees hold the density's gradient in several places: as a call of one function.
    potential = jax.jit(lambda u: -posterior.log_density_lebesgue(u))
    is_dense = posterior.dim <= DENSE_MASS_UP_TO
    traced: Any = target_accept  # one program for every target
    kernel = NUTS(
        potential_fn=potential,
        target_accept_prob=traced,
        dense_mass=is_dense,
        inverse_mass_matrix=covariance if is_dense else jnp.diagonal(covariance),
    )
    own = jax.random.fold_in(jax.random.fold_in(key, STREAM), number)
    first = kernel.init(own, warmup, start, (), {})

    def step(i: Int[Array, ""], carry: Any) -> Any:
        state, u, diverging, steps = carry
        state = kernel.sample(state, (), {})
        # One body for both phases: those of the warm-up are written over.
        at = jnp.maximum(i - warmup, 0)
        u, diverging = u.at[at].set(state.z), diverging.at[at].set(state.diverging)
        return state, u, diverging, steps + state.num_steps

    empty = jnp.zeros((draws, start.size), start.dtype), jnp.zeros(draws, bool)
    carry = (first, *empty, jnp.zeros_like(first.num_steps))
    return jax.lax.fori_loop(0, warmup + draws, step, carry)[1:]


# One chain after the other: four under `vmap` were compiled in 7 s, for the loops of trees in them,
# and one in 1.5.
_chain = Compiled(_one_chain, STEADY)


def chains_of(posterior: Posterior, samples: Any) -> Chains:
    """Draws that the user has: an `MCMC`, an ArviZ object, or arrays by site name.

    Raises:
        DataError: when sites are missing, or their draws have the wrong shape or lie outside the
            support: then they are from another model.
    """
    values, divergent = _values(samples)
    missing = [name for name in posterior.names if name not in values]
    if missing:
        raise DataError(
            f"`samples` has no draws of the sites {missing}, it has {sorted(values)}; draws from "
            "another model cannot be bridged from. Give those of this one."
        )
    latent = {name: jnp.asarray(values[name]) for name in posterior.names}
    lead = latent[posterior.names[0]].shape[:2]
    for site in posterior.layout.sites:
        shape = latent[site.name].shape
        if len(shape) < 2 or shape[2:] != site.shape:
            raise DataError(
                f"`samples` of `{site.name}` have shape {shape}; it should be (chains, draws) and "
                f"then the site's own, {site.shape}. Are they draws from another model?"
            )
        if shape[:2] != lead:
            raise DataError(
                f"`samples` of `{posterior.names[0]}` and `{site.name}` are of different numbers "
                f"of chains or draws, {lead} and {shape[:2]}; give the same draws of every site."
            )
    u = _unconstrained(posterior, latent)
    if not bool(jnp.all(jnp.isfinite(u))):
        raise DataError(
            "Some draws in `samples` are NaN or outside the support of their sites; they are from "
            "another model, or the sampler failed."
        )
    return Chains(u, divergent)


@eqx.filter_jit
def _unconstrained(posterior: Posterior, values: dict[str, Array]) -> Float[Array, "c n d"]:
    return jax.vmap(jax.vmap(posterior.unconstrain))(values)


def _values(samples: Any) -> tuple[Mapping[str, Any], int | None]:
    """Arrays of shape (chains, draws, ...) by name, and the number of divergences."""
    if isinstance(samples, MCMC):
        diverging = samples.get_extra_fields().get("diverging")
        divergent = None if diverging is None else int(diverging.sum())
        return samples.get_samples(group_by_chain=True), divergent
    if isinstance(samples, Mapping) and all(hasattr(v, "ndim") for v in samples.values()):
        return samples, None
    try:
        group = samples["posterior"]
        values = {str(name): np.asarray(group[name]) for name in group.data_vars}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"`samples` should be a NumPyro MCMC, an ArviZ object with a posterior group, or a "
            f"dict of arrays of shape (chains, draws, ...); got {type(samples).__name__}."
        ) from error
    return values, _arviz_divergences(samples)


def _arviz_divergences(samples: Any) -> int | None:
    try:
        return int(np.sum(np.asarray(samples["sample_stats"]["diverging"])))
    except (KeyError, AttributeError):
        return None

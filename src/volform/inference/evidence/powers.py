"""Chains of NUTS at powers of the likelihood, `p(u) L(u)^power`: all of them by one program."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from volform.compilation import compiled
from volform.inference.evidence.bridge import DRAWS_AT_ONCE
from volform.inference.samplers.nuts import run_nuts
from volform.models.bound_model import BoundModel
from volform.models.posterior import Posterior
from volform.progress import Phase
from volform.results import Provenance


class PoweredDensity(eqx.Module):
    """The joint density with its likelihood to a power, which is an array: one program for all."""

    model: BoundModel
    power: Float[Array, ""]

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates."""
        return self.model.dim

    def log_density_lebesgue(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """log p(u) + power * log L(u)."""
        prior, fit = self.model.log_prior_and_likelihood(u)
        return prior + self.power * fit


class ChainSettings(NamedTuple):
    """Numbers of chains, and of the steps of each."""

    chains: int
    warmup: int
    each: int
    target_accept: float


class AtPower(NamedTuple):
    """Draws at one power of the likelihood.

    Attributes:
        power: of the likelihood.
        u: the draws, shape (chains, n, d).
        fit: log likelihood at them, shape (chains, n).
        gradients: evaluations that NUTS spent.
        divergent: number of divergent transitions.
    """

    power: float
    u: Float[np.ndarray, "c n d"]
    fit: Float[np.ndarray, "c n"]
    gradients: int = 0
    divergent: int = 0

    @property
    def r_hat(self) -> float:
        """Split R-hat of the log likelihood, which copies of a mode do not disturb."""
        return float(split_gelman_rubin(self.fit))

    @property
    def effective(self) -> float:
        """Effective number of draws of the log likelihood."""
        return float(np.clip(effective_sample_size(self.fit), 1.0, self.fit.size))

    @property
    def mean(self) -> float:
        """Mean log likelihood."""
        return float(self.fit.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return float(self.fit.std() / math.sqrt(self.effective))


def at_power(
    posterior: Posterior,
    power: float,
    key: PRNGKeyArray,
    starts: Float[np.ndarray, "c d"],
    covariance: Float[np.ndarray, "d d"],
    settings: ChainSettings,
    phase: Phase,
) -> AtPower:
    """NUTS at a power of the likelihood, from `starts` and a first inverse mass matrix."""
    model = posterior.bound_model
    density = PoweredDensity(model, jnp.asarray(power, starts.dtype))
    _, warmup, each, accept = settings
    first = jnp.asarray(starts), jnp.asarray(covariance)
    with jax.numpy_dtype_promotion("standard"):  # NumPyro's NUTS divides by whole numbers
        found = run_nuts(density, key, *first, warmup, each, accept, phase)
    u = np.asarray(found.u)
    fit = fits_at(model, u.reshape(-1, posterior.dim)).reshape(u.shape[:2])
    return AtPower(power, u, fit, found.gradients, found.divergent or 0)


def fits_at(model: BoundModel, u: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Log likelihood at points; minus infinity where it is not finite."""
    fit = np.asarray(_fits(model, jnp.asarray(u)))
    return np.where(np.isfinite(fit), fit, -np.inf)


@compiled
def _fits(model: BoundModel, u: Float[Array, "n d"]) -> Float[Array, " n"]:
    return jax.lax.map(model.log_likelihood, u, batch_size=min(len(u), DRAWS_AT_ONCE))


def observations_of(provenance: Provenance) -> int | None:
    """Number of observations: the longest first axis of what is observed; None where unknown."""
    lengths = [shape[0] for shape, _ in provenance.data if shape]
    return max(lengths, default=None)


def temperature_of(observations: int | None) -> float | None:
    """Watanabe's power of the likelihood, 1 / log n; None where that is not below one."""
    if observations is None or observations < 3:
        return None
    return 1.0 / math.log(observations)


def worst_r_hat(found: Sequence[AtPower]) -> AtPower:
    """The draws that have mixed the least."""
    return max(found, key=lambda each: each.r_hat if math.isfinite(each.r_hat) else math.inf)

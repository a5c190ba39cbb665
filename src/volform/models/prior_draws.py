"""Draws from the prior of a model, with their likelihood as weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from volform.compilation import compiled
from volform.models.bound_model import BoundModel

PRIOR_DRAWS = 1000
TEMPERED_DRAWS = 80.0  # effective number of prior draws under the likelihood's power, of 1,000
PRIOR_DRAWS_AT_ONCE = 100  # draws evaluated at once; bounds the memory
HALVINGS = 60


@compiled
def prior_draws(model: BoundModel, key: PRNGKeyArray, count: int) -> Float[Array, "n d"]:
    """Draws from the prior in u; of sites without a sampler as by `init_to_uniform`."""

    def draw(key: PRNGKeyArray) -> Float[Array, " d"]:
        u = model.layout.unconstrain(model.program.prior_draw(key))
        # A value that is rounded to the edge of its support has a likelihood, and lies this far.
        farthest = -math.log(jnp.finfo(u.dtype).tiny)
        return jnp.clip(u, -farthest, farthest)

    return jax.lax.map(draw, jax.random.split(key, count), batch_size=PRIOR_DRAWS_AT_ONCE)


def weighed_draws(
    model: BoundModel, key: PRNGKeyArray, fold: int | Int[np.ndarray, ""] = 0
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    """Prior draws in u, and the log likelihood at them; minus infinity where it is not finite.

    One program serves every fold.

    Args:
        model: the model with its data.
        key: key of the draws.
        fold: a number that is folded into the key; other draws for each.
    """
    return _weighed_draws(model, key, np.asarray(fold, np.int32))


@compiled
def _weighed_draws(
    model: BoundModel, key: PRNGKeyArray, fold: Int[Array, ""]
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    draws = prior_draws(model, jax.random.fold_in(key, fold), PRIOR_DRAWS)
    fit = jax.lax.map(model.log_likelihood, draws, batch_size=PRIOR_DRAWS_AT_ONCE)
    usable = jnp.isfinite(fit) & jnp.all(jnp.isfinite(draws), axis=1)
    return jnp.where(usable[:, None], draws, 0.0), jnp.where(usable, fit, -jnp.inf)


def tempered(fit: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Log weights of the highest power of the likelihood that leaves enough effective draws."""
    if not np.isfinite(fit).any():
        return fit
    return highest_power(fit, TEMPERED_DRAWS) * (fit - np.max(fit))


def highest_power(fit: Float[np.ndarray, " n"], enough: float) -> float:
    """The highest power of the likelihood, 1 at most, that leaves more effective draws.

    Args:
        fit: log likelihood of the draws, finite at one of them at least, shape (n,).
        enough: number of effective draws, `(sum w)^2 / sum w^2`.
    """
    shifted = fit[np.isfinite(fit)] - np.max(fit)

    def effective(power: float) -> float:
        weights = np.exp(power * shifted)
        return float(weights.sum() ** 2 / (weights**2).sum())

    if effective(1.0) > enough:
        return 1.0
    low, high = math.log(1e-300), 0.0  # of the logarithm of the power
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective(math.exp(middle)) > enough else (low, middle)
    return math.exp(low)

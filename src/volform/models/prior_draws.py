"""Draws from the prior of a model, with their likelihood as weights."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from volform.models.bound_model import BoundModel

PRIOR_DRAWS = 1000
TEMPERED_DRAWS = 80.0  # effective number of prior draws under the likelihood's power, of 1,000
PRIOR_DRAWS_AT_ONCE = 100  # draws evaluated at once; bounds the memory
HALVINGS = 60


@eqx.filter_jit
def prior_draws(model: BoundModel, key: PRNGKeyArray, count: int) -> Float[Array, "n d"]:
    """Draws from the prior in u; of sites without a sampler as by `init_to_uniform`."""

    def draw(key: PRNGKeyArray) -> Float[Array, " d"]:
        return model.layout.unconstrain(model.program.prior_draw(key))

    return jax.lax.map(draw, jax.random.split(key, count), batch_size=PRIOR_DRAWS_AT_ONCE)


@eqx.filter_jit
def weighed_draws(
    model: BoundModel, key: PRNGKeyArray
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    """Prior draws in u, and the log likelihood at them; minus infinity where it is not finite."""
    draws = prior_draws(model, key, PRIOR_DRAWS)
    fit = jax.lax.map(model.log_likelihood, draws, batch_size=PRIOR_DRAWS_AT_ONCE)
    usable = jnp.isfinite(fit) & jnp.all(jnp.isfinite(draws), axis=1)
    return jnp.where(usable[:, None], draws, 0.0), jnp.where(usable, fit, -jnp.inf)


def tempered(fit: Float[Array, " n"]) -> Float[Array, " n"]:
    """Log weights of the highest power of the likelihood that leaves enough effective draws."""
    shifted = jnp.where(jnp.isfinite(fit), fit - jnp.max(fit), -jnp.inf)

    def at(power: Array) -> Array:
        return jnp.where(jnp.isfinite(shifted), power * shifted, -jnp.inf)

    def effective(power: Array) -> Array:
        return jnp.exp(2 * jax.nn.logsumexp(at(power)) - jax.nn.logsumexp(2 * at(power)))

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # of the logarithm of the power
        middle = 0.5 * (low + high)
        enough = effective(jnp.exp(middle)) > TEMPERED_DRAWS
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    floor = jnp.full((), math.log(1e-12), fit.dtype)
    power, _ = jax.lax.fori_loop(0, HALVINGS, halve, (floor, jnp.zeros((), fit.dtype)))
    return at(jnp.exp(power))

"""Starting points of a search for modes: the best of many prior draws, and tempered ones."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from volform.models.posterior import Posterior
from volform.models.prior_draws import tempered, weighed_draws

# Of a sinusoid's frequency the best 40 of 1,000 draws lay around one of many modes, 67 nats below
# the best, and so did 40 random draws with a descent from them; draws apart, or tempered, did not.
# Distance of the best draws from each other, in standard deviations of the prior.
APART = 0.1
# A guard such as `where(abs(x) < eps, limit, formula)` has a seam at the origin, where its gradient
# is zero: the first start lies beside it.
OFF_ORIGIN = 1e-2
LAST = 1e30  # below every log likelihood


@eqx.filter_jit
def starting_points(posterior: Posterior, key: PRNGKeyArray, count: int) -> Float[Array, "n d"]:
    """Starts: near the origin of u, uniform on (-2, 2)^d as NumPyro starts, and prior draws.

    Half of the prior draws are those of the highest likelihood that lie apart from each other, the
    other half are drawn by a power of it. Sites without a sampler (improper priors) are drawn as by
    `init_to_uniform`.
    """
    near, wide, deep, noise = jax.random.split(key, 4)
    uniform = min((count - 1) // 4, 3)
    spread = (count - 1 - uniform) // 2
    best = count - 1 - uniform - spread
    origin = OFF_ORIGIN * jax.random.normal(near, (1, posterior.dim))
    points = [origin, jax.random.uniform(wide, (uniform, posterior.dim), minval=-2.0, maxval=2.0)]
    if best:
        draws, fit = weighed_draws(posterior.bound_model, deep)
        points.append(draws[_highest_apart(draws, fit, best)])
        # The highest log weights with Gumbel noise are drawn by the weights, none of them twice.
        noisy = tempered(fit) + jax.random.gumbel(noise, fit.shape, fit.dtype)
        points.append(draws[jax.lax.top_k(noisy, spread)[1]])
    return jnp.concatenate(points)


def _highest_apart(draws: Float[Array, "n d"], scores: Float[Array, " n"], count: int) -> Array:
    """Indices of the highest scores among draws that lie apart, each taken but once."""
    spread = jnp.std(draws, axis=0)
    scaled = draws / jnp.where(spread > 0.0, spread, 1.0)[None]

    def choose(scores: Array, _: None) -> tuple[Array, Array]:
        index = jnp.argmax(scores)
        near = jnp.sum((scaled - scaled[index][None]) ** 2, axis=1) < APART**2
        # Draws near one that was taken come after all others, and before those that are lost.
        return jnp.where(near, scores - LAST, scores).at[index].set(-jnp.inf), index

    return jax.lax.scan(choose, scores, None, length=count)[1]

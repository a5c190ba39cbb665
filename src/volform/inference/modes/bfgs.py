"""Starting points of a search for the mode, and BFGS from all of them at once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpyro import handlers
from numpyro.infer import init_to_sample

from volform.inference.modes.expansion import objective
from volform.models.posterior import Posterior


@eqx.filter_jit
def starting_points(posterior: Posterior, key: PRNGKeyArray, count: int) -> Float[Array, "n d"]:
    """Starts: the origin of u, then uniform on (-2, 2)^d as NumPyro starts, then prior draws.

    Sites without a sampler (improper priors) are drawn as by `init_to_uniform`.
    """
    wide, deep = jax.random.split(key)
    draws = (count - 1) // 2
    uniform = jax.random.uniform(wide, (count - 1 - draws, posterior.dim), minval=-2.0, maxval=2.0)
    points = [jnp.zeros((1, posterior.dim)), uniform]
    if draws:
        points.append(prior_draws(posterior, deep, draws))
    return jnp.concatenate(points)


@eqx.filter_jit
def prior_draws(posterior: Posterior, key: PRNGKeyArray, count: int) -> Float[Array, "n d"]:
    """Draws from the prior; of sites without a sampler as by `init_to_uniform`."""
    return jax.vmap(lambda key: _prior_draw(posterior, key))(jax.random.split(key, count))


def _prior_draw(posterior: Posterior, key: PRNGKeyArray) -> Float[Array, " d"]:
    seeded = handlers.seed(posterior.model, key)
    trace = posterior.program.trace(handlers.substitute(seeded, substitute_fn=init_to_sample))
    return posterior.unconstrain({name: trace[name]["value"] for name in posterior.names})


@eqx.filter_jit
def bfgs_from(
    posterior: Posterior, starts: Float[Array, "n d"], max_steps: int
) -> tuple[Float[Array, "n d"], Int[Array, " n"]]:
    """Optimistix's BFGS on -log q^G from every start at once: where it ends, and its steps."""
    # Newton's method takes over: it needs the basin, and not the digits.
    solver = optx.BFGS(rtol=1e-4, atol=1e-4)

    def run(start: Float[Array, " d"]) -> tuple[Float[Array, " d"], Int[Array, ""]]:
        found = optx.minimise(
            objective, solver, start, args=posterior, max_steps=max_steps, throw=False
        )
        is_finite = jnp.all(jnp.isfinite(found.value))
        return jnp.where(is_finite, found.value, start), found.stats["num_steps"]

    return jax.vmap(run)(starts)

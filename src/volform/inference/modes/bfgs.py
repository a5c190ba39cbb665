"""BFGS on -log q^G from all starts at once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from volform.compilation import compiled
from volform.inference.modes.expansion import objective
from volform.models.posterior import Posterior


@compiled
def bfgs_from(
    posterior: Posterior, starts: Float[Array, "n d"], max_steps: int
) -> tuple[Float[Array, "n d"], Int[Array, " n"]]:
    """Optimistix's BFGS on -log q^G from every start at once: where it ends, and its steps."""
    import optimistix as optx  # noqa: PLC0415 - .1 s, and only above 60 parameters

    # Newton's method takes over: it needs the basin, and not the digits.
    solver = optx.BFGS(rtol=1e-4, atol=1e-4)

    def rejected_unless_finite(u: Float[Array, " d"], posterior: Posterior) -> Float[Array, ""]:
        # Where a chart saturates det G vanishes, and -log q^G of minus infinity is no improvement.
        value = objective(u, posterior)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    def run(start: Float[Array, " d"]) -> tuple[Float[Array, " d"], Int[Array, ""]]:
        found = optx.minimise(
            rejected_unless_finite, solver, start, args=posterior, max_steps=max_steps, throw=False
        )
        is_finite = jnp.all(jnp.isfinite(found.value))
        return jnp.where(is_finite, found.value, start), found.stats["num_steps"]

    return jax.vmap(run)(starts)

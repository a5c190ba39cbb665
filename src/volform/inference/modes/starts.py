"""Starting points of a search for modes: the best of many prior draws, and tempered ones."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from volform.generators import generator
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


def starting_points(
    posterior: Posterior, key: PRNGKeyArray, number: int, count: int
) -> Float[np.ndarray, "n d"]:
    """Starts: near the origin of u, uniform on (-2, 2)^d as NumPyro starts, and prior draws.

    Half of the prior draws are those of the highest likelihood that lie apart from each other, the
    other half are drawn by a power of it. Sites without a sampler (improper priors) are drawn as by
    `init_to_uniform`.

    Args:
        posterior: the posterior.
        key: key of the search.
        number: of the round of starts, other ones for each.
        count: number of starts.
    """
    random = generator(key, number)
    uniform = min((count - 1) // 4, 3)
    spread = (count - 1 - uniform) // 2
    best = count - 1 - uniform - spread
    origin = OFF_ORIGIN * random.standard_normal((1, posterior.dim))
    points = [origin, random.uniform(-2.0, 2.0, (uniform, posterior.dim))]
    if best:
        draws, fit = map(np.asarray, weighed_draws(posterior.bound_model, key, number))
        points.append(draws[_highest_apart(draws, fit, best)])
        # The highest log weights with Gumbel noise are drawn by the weights, none of them twice.
        noisy = tempered(fit) + random.gumbel(size=fit.shape)
        points.append(draws[np.argsort(-noisy, kind="stable")[:spread]])
    return np.concatenate(points).astype(jnp.result_type(float))


def _highest_apart(
    draws: Float[np.ndarray, "n d"], scores: Float[np.ndarray, " n"], count: int
) -> list[int]:
    """Indices of the highest scores among draws that lie apart, each taken but once."""
    spread = draws.std(0)
    scaled = draws / np.where(spread > 0.0, spread, 1.0)
    scores, chosen = scores.astype(float), []
    for _ in range(count):
        index = int(np.argmax(scores))
        near = np.sum((scaled - scaled[index]) ** 2, axis=1) < APART**2
        # Draws near one that was taken come after all others, and before those that are lost.
        scores = np.where(near, scores - LAST, scores)
        scores[index] = -np.inf
        chosen.append(index)
    return chosen

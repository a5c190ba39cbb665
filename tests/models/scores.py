"""Model-wide Fisher metrics by brute force: expectations of outer products of scores.

Nothing is shared with the package except the values at u. For a sample site with density
p(x | z(u)) the score in the direction of u is the derivative of log p(x + x(u') - x(u) | z(u')) at
u' = u, where the value x moves only if it is latent. The expectation over x ~ p(. | z(u)) is
quadrature over unconstrained coordinates, or a sum over a discrete support.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to

COUNTS = 200  # a count above is improbable in these models


class LogRatio:
    """log(x_i / x_k) on the simplex, with the interface of a NumPyro transform."""

    def __call__(self, t: Any) -> Any:
        return jax.nn.softmax(jnp.concatenate([t, jnp.zeros_like(t[..., :1])], -1), -1)

    def inv(self, x: Any) -> Any:
        return jnp.log(x[..., :-1]) - jnp.log(x[..., -1:])

    def log_abs_det_jacobian(self, t: Any, x: Any) -> Any:
        return jnp.sum(jnp.log(x), -1)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] - 1)


def log_density(fn: Any, chart: Any, t: Any) -> Any:
    """Log density with respect to Lebesgue measure in t, one number for each element."""
    x = chart(t)
    jacobian = chart.log_abs_det_jacobian(t, x)
    extra = jnp.ndim(jacobian) - (jnp.ndim(x) - len(fn.event_shape))
    return fn.log_prob(x) + jnp.sum(jacobian, tuple(range(-extra, 0)) if extra else ())


def nodes(fn: Any) -> tuple[Any, Any]:
    """Values, shape (K, *shape of fn), and weights (K, *batch) that sum to one."""
    if fn.support.is_discrete:
        counts = jnp.arange(COUNTS).reshape(-1, *[1] * len(fn.batch_shape))
        counts = jnp.broadcast_to(counts, (COUNTS, *fn.batch_shape))
        possible = jax.vmap(fn.support)(counts)
        counts = jnp.where(possible, counts, 0)
        return counts, jnp.where(possible, jnp.exp(jax.vmap(fn.log_prob)(counts)), 0.0)
    chart = biject_to(fn.support)
    event = chart.inverse_shape(fn.event_shape)
    dim = int(np.prod(event))
    reach, step = {1: (36.0, 0.03), 2: (4.0, 0.08)}[dim]
    s = np.arange(-reach, reach, step)
    grid = np.stack(np.meshgrid(*[s] * dim), -1).reshape(-1, *event)
    t = jnp.sinh(grid).reshape(-1, *[1] * len(fn.batch_shape), *event)
    t = jnp.broadcast_to(t, (len(grid), *fn.batch_shape, *event))
    volume = jnp.prod(jnp.cosh(grid).reshape(len(grid), -1), -1) * step**dim
    weights = jnp.exp(jax.vmap(lambda t: log_density(fn, chart, t))(t))
    weights = jnp.where(jnp.isfinite(weights), weights, 0.0)
    return jax.vmap(chart)(t), weights * volume.reshape(-1, *[1] * len(fn.batch_shape))


# Families whose value is not its own coordinate.
LOGARITHMIC = (dist.Gamma, dist.Beta, dist.InverseGamma, dist.Uniform, dist.LKJCholesky)


def coordinate(fn: Any) -> Any:
    """The chart in which the score of a latent value is taken."""
    core = fn
    while isinstance(core, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        core = core.base_dist
    if isinstance(core, dist.Dirichlet):
        return LogRatio()
    is_mapped = type(core) is dist.TransformedDistribution or isinstance(core, LOGARITHMIC)
    return biject_to(fn.support) if is_mapped else None


def expected_gram(
    posterior: Any, model: Callable, args: tuple, *, latent: bool
) -> Callable[[Any], Any]:
    """The Gram matrix in u of observed sites, and of latent ones if `latent`."""

    def sites(u: Any) -> dict[str, Any]:
        fixed = handlers.substitute(handlers.seed(model, 0), data=posterior.values(u))
        trace = handlers.trace(fixed).get_trace(*args)
        silent = dist.Unit | dist.ImproperUniform
        return {
            name: site
            for name, site in trace.items()
            if site["type"] == "sample" and not isinstance(site["fn"], silent)
        }

    def state(site: dict[str, Any]) -> tuple[Any, Any]:
        fn, value = site["fn"], jnp.asarray(site["value"])
        while isinstance(fn, dist.Independent):
            fn = fn.base_dist
        batch = value.shape[: value.ndim - len(fn.event_shape)]
        return fn.expand(jnp.broadcast_shapes(batch, fn.batch_shape)), value

    def gram_of(name: str, u: Any) -> Any:
        here = sites(u)[name]
        fn, value = state(here)
        chart = None if here["is_observed"] else coordinate(fn)
        x, weights = nodes(fn)

        def density(moved: Any, x: Any) -> Any:
            fn, there = state(sites(moved)[name])
            if here["is_observed"]:
                return fn.log_prob(x)
            if chart is None:
                return fn.log_prob(x + there - value)
            return log_density(fn, chart, chart.inv(x) + chart.inv(there) - chart.inv(value))

        score = jax.vmap(lambda x: jax.jacfwd(functools.partial(density, x=x))(u))(x)
        score = jnp.where(weights[..., None] > 1e-30, score, 0.0)
        total = jnp.einsum("k...i,k...,k...j->ij", score, weights, score)
        return total * (1.0 if here["scale"] is None else here["scale"])

    def gram(u: Any) -> Any:
        found = sites(u)
        return sum(gram_of(n, u) for n, s in found.items() if latent or s["is_observed"])

    return gram

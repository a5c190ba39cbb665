"""A posterior as the arguments of blackjax's samplers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.errors import ConvergenceError, ModelError
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.modes.mode import MAP
from volform.models.posterior import Posterior
from volform.models.prior_draws import weighed_draws


class BlackjaxTarget(NamedTuple):
    """A posterior as the arguments of blackjax's samplers; built by `to_blackjax`.

    Attributes:
        logdensity: log joint density at u, with respect to Lebesgue measure in the unconstrained
            coordinates: the law that is drawn from, whatever the metric.
        mass_matrix: the metric's matrix at u, shape (d, d). A function is blackjax's mass matrix,
            where an array is its *inverse*.
        position: a point u to start at: the mode, or the most likely of 1,000 prior draws.
        values: values of the latent sites at u; `jax.vmap` it over draws.
    """

    logdensity: Callable[[Float[Array, " d"]], Float[Array, ""]]
    mass_matrix: Callable[[Float[Array, " d"]], Float[Array, "d d"]]
    position: Float[Array, " d"]
    values: Callable[[Float[Array, " d"]], dict[str, Any]]

    def __repr__(self) -> str:
        return f"BlackjaxTarget of {self.position.size} coordinates: {', '.join(self._fields)}"


def to_blackjax(target: Posterior | MAP | LaplaceApproximation) -> BlackjaxTarget:
    """Density, metric and starting point of a posterior, as blackjax's samplers take them.

    Args:
        target: a posterior from `condition`; its mode is the start where that is known.

    Raises:
        ModelError: when `target` is neither a posterior nor a mode of one.
        ConvergenceError: when no prior draw of a posterior has a likelihood.

    >>> import blackjax, jax, jax.numpy as jnp, numpyro, volform as vf
    >>> import numpyro.distributions as dist
    >>> def model(y):
    ...     sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    ...     numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)
    >>> found = vf.to_blackjax(
    ...     vf.condition(vf.attach(model, vf.JointFisher()), jnp.array([0.3, -0.5]))
    ... )
    >>> rmhmc = blackjax.rmhmc(found.logdensity, 0.3, found.mass_matrix, 5)
    >>> state, info = rmhmc.step(jax.random.key(0), rmhmc.init(found.position))
    >>> state.position.shape
    (1,)
    """
    if isinstance(target, LaplaceApproximation | MAP):
        posterior, position = target.posterior, target.at.u
    elif isinstance(target, Posterior):
        posterior, position = target, _likely(target)
    else:
        raise ModelError(
            f"`target` of to_blackjax is of the type {type(target).__name__}; give a posterior of "
            "`vf.condition`, or the result of `vf.find_map` or `vf.laplace`."
        )
    return BlackjaxTarget(
        posterior.log_density_lebesgue,
        lambda u: posterior.metric(u).as_matrix(),
        position,
        posterior.values,
    )


def _likely(posterior: Posterior) -> Float[Array, " d"]:
    draws, fit = map(np.asarray, weighed_draws(posterior.bound_model, jax.random.key(0)))
    if not np.isfinite(fit).any():
        raise ConvergenceError(
            f"None of {len(fit)} draws from the prior of `{posterior.program.name}` has a "
            "likelihood that is finite and not zero, to start at; give `to_blackjax` the mode of "
            "`vf.find_map`, or the model a prior that allows the data."
        )
    return jnp.asarray(draws[int(np.argmax(fit))])

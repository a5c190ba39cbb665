"""What NumPyro gives on the same models: AutoLaplaceApproximation, and AutoDelta with a Hessian.

Both are optimized by NumPyro's own means: Adam with a decaying step, then BFGS.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import optax
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoGuide, AutoLaplaceApproximation
from numpyro.infer.util import log_density


@dataclasses.dataclass(frozen=True)
class Answer:
    """Values at the mode, log Z by Laplace's method there, and NumPyro's warning if it gave one."""

    values: dict[str, Any]
    log_z: float
    warning: str = ""


def auto_laplace(model: Callable, *args: Any, **kwargs: Any) -> Answer:
    """AutoLaplaceApproximation: Laplace's method in NumPyro's unconstrained coordinates."""
    guide = AutoLaplaceApproximation(model)
    svi, found = _optimize(model, guide, args, kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lower = guide.get_transform(found.params).scale_tril
    log_p = -svi.evaluate(found.state, *args, **kwargs)
    # A singular Hessian comes back as a scale of zero, with a warning: log Z is then NaN.
    log_det = jnp.sum(jnp.log(jnp.diag(lower)))
    log_z = log_p + 0.5 * len(lower) * jnp.log(2 * jnp.pi) + log_det
    said = " ".join(str(warning.message) for warning in caught)
    values = guide.median(found.params)
    return Answer(values, float(log_z) if jnp.isfinite(log_z) else float("nan"), said)


def auto_delta(model: Callable, *args: Any, **kwargs: Any) -> Answer:
    """AutoDelta: the mode of the density in value coordinates; Laplace's method in them."""
    guide = AutoDelta(model)
    _, found = _optimize(model, guide, args, kwargs)
    names = [site.removesuffix("_auto_loc") for site in found.params]
    mode = {name: found.params[f"{name}_auto_loc"] for name in names}
    flat, unravel = ravel_pytree(mode)

    def log_p(v: jax.Array) -> jax.Array:
        return log_density(model, args, kwargs, unravel(v))[0]

    _, log_det = jnp.linalg.slogdet(-jax.jit(jax.hessian(log_p))(flat))
    log_z = log_p(flat) + 0.5 * flat.size * jnp.log(2 * jnp.pi) - 0.5 * log_det
    return Answer(mode, float(log_z))


def _optimize(model: Callable, guide: AutoGuide, args: tuple, kwargs: dict) -> tuple[SVI, Any]:
    key, start = jax.random.key(0), None
    adam = numpyro.optim.optax_to_numpyro(optax.adam(optax.exponential_decay(0.05, 500, 0.5)))
    # BFGS three times: its line search often gives up early, and a restart goes on.
    bfgs = numpyro.optim.Minimize(options={"maxiter": 300})
    for optimizer, steps in ((adam, 3000), (bfgs, 3)):
        svi = SVI(model, guide, optimizer, Trace_ELBO())
        found = svi.run(key, steps, *args, init_params=start, progress_bar=False, **kwargs)
        start = found.params
    return svi, found

"""The problems that are timed, each solved by volform and by NumPyro's AutoLaplaceApproximation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoLaplaceApproximation

STEPS = 200  # of Adam for NumPyro; volform's searches are bounded by the same number
PARAMETERS = 1000


def eight_schools(sigma: Any, y: Any = None) -> None:
    """Non-centered, since AutoLaplace finds no mode in the centered spelling."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def logistic(x: Any, y: Any = None) -> None:
    b = numpyro.sample("b", dist.Normal(0, 2).expand([PARAMETERS]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


def data(problem: str) -> tuple[Callable, tuple[Any, Any]]:
    """The model and its data."""
    if problem == "eight schools":
        y = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])
        return eight_schools, (jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18]), y)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, PARAMETERS)) / np.sqrt(PARAMETERS)
    p = 1 / (1 + np.exp(-x @ rng.normal(scale=2, size=PARAMETERS)))
    return logistic, (jnp.asarray(x), jnp.asarray(rng.uniform(size=2000) < p, float))


def by_numpyro(problem: str) -> Callable[[], Any]:
    """AutoLaplaceApproximation: Adam, then the Hessian at its end."""
    model, args = data(problem)

    def run() -> Any:
        guide = AutoLaplaceApproximation(model)
        svi = SVI(model, guide, numpyro.optim.Adam(0.05), Trace_ELBO())
        result = svi.run(jax.random.key(0), STEPS, *args, progress_bar=False)
        return jax.block_until_ready(guide.get_posterior(result.params).scale_tril)

    return run


def by_volform(problem: str) -> Callable[[], Any]:
    """Condition, invariant MAP from four starts, evidence; the metric is AutoLaplace's."""
    import volform as vf

    model, args = data(problem)

    def run() -> Any:
        posterior = vf.condition(vf.attach(model, vf.Unconstrained()), *args)
        fit = vf.find_map(posterior, key=jax.random.key(0), max_steps=STEPS, progress=False)
        return jax.block_until_ready(vf.laplace(fit, second_order=False).evidence.log_z)

    return run

"""ELBO of a guide by its number of steps: natural parameters beside Adam, in NumPyro's SVI.

    python benchmarks/guides.py

Both sides run NumPyro's own update, jitted, in double precision; an Adam step takes as many
densities as one by cubature. The ELBO is that of 20,000 draws with one key.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal

from volform.optimizers import CubatureELBO, natural_variational_inference

STEPS = 10, 30, 100, 300, 1000, 3000


def schools(y, error):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    theta = numpyro.sample("theta", dist.Normal(jnp.zeros(8), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(mu + tau * theta, error), obs=y)


def logistic(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([10]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def problems():
    y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    error = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 10)) @ random.normal(size=(10, 10))
    chance = 1.0 / (1.0 + np.exp(-x @ random.normal(size=10)))
    labels = (random.random(200) < chance).astype(int)
    return {
        "eight schools": (schools, (y, error)),
        "logistic regression, 10 correlated inputs": (logistic, (jnp.asarray(x), labels)),
    }


def main() -> None:
    """Print a table for each model."""
    jax.config.update("jax_enable_x64", True)
    for title, (model, data) in problems().items():
        guide = AutoMultivariateNormal(model)
        falling = optax.exponential_decay(0.5, 30, 0.8)
        ways = {
            "natural parameters, rate .5": (
                natural_variational_inference(guide, 0.5),
                CubatureELBO(),
            ),
            "natural parameters, rate falling from .5": (
                natural_variational_inference(guide, falling),
                CubatureELBO(),
            ),
            "Adam, rate .01": (optax.adam(0.01), Trace_ELBO(num_particles=21)),
            "Adam, rate .05": (optax.adam(0.05), Trace_ELBO(num_particles=21)),
            "Adam, rate .05, cubature": (optax.adam(0.05), CubatureELBO()),
        }
        print(f"{title}: -ELBO after {', '.join(map(str, STEPS))} steps; ms a step")
        for name, (optimizer, loss) in ways.items():
            svi = SVI(model, guide, optimizer, loss)
            state, update = svi.init(jax.random.key(0), *data), jax.jit(svi.update)
            jax.block_until_ready(update(state, *data))  # compiled
            found, taken, spent = [], 0, 0.0
            for stop in STEPS:
                begun = time.process_time()
                for _ in range(taken, stop):
                    state, _ = update(state, *data)
                jax.block_until_ready(state)
                spent, taken = spent + time.process_time() - begun, stop
                params = svi.get_params(state)
                assert params["auto_loc"].dtype == jnp.float64
                many = Trace_ELBO(num_particles=20_000)
                found.append(float(many.loss(jax.random.key(5), params, model, guide, *data)))
            numbers = " ".join(f"{value:8.3f}" for value in found)
            print(f"  {name:42} {numbers}   {1e3 * spent / taken:.2f}")


if __name__ == "__main__":
    main()

"""RMHMC beside NumPyro's NUTS on centered hierarchies: draws for the work, and whether right.

    python benchmarks/rmhmc.py --models funnel eight --keys 3 --draws 1000

For each model and sampler: the smallest bulk effective sample size of an unconstrained coordinate,
per 1,000 gradients, and per 1,000 gradients and metrics together (the metric of each gradient is
counted with it, those of implicit steps by themselves); divergences; and the slow coordinate
against its truth, in Monte Carlo standard errors. Seconds hold no compilation: a second run of the
same program after the warm-up.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS

import volform as vf


def funnel(n):
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    with numpyro.plate("n", n):
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2)))


def logistic(group, x, groups, y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 2.0))
    with numpyro.plate("group", groups):
        a = numpyro.sample("a", dist.Normal(mu, tau))
    numpyro.sample("y", dist.Bernoulli(logits=a[group] + b * x), obs=y)


def poisson_process(x, y):
    amplitude = numpyro.sample("amp", dist.HalfNormal(1.0))
    scale = numpyro.sample("ls", dist.InverseGamma(5.0, 1.0))
    square = (x[:, None] - x[None]) ** 2
    covariance = amplitude**2 * jnp.exp(-0.5 * square / scale**2) + 1e-4 * jnp.eye(x.size)
    f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(x.size), covariance))
    numpyro.sample("y", dist.Poisson(jnp.exp(1.0 + f)), obs=y)


def rosenbrock():
    x = numpyro.sample("x", dist.Normal(1.0, jnp.sqrt(10.0)))
    numpyro.sample("y", dist.Normal(x**2, jnp.sqrt(0.1)))


class Case(NamedTuple):
    """A model with its data, its slow coordinate, and mean and standard deviation of that."""

    model: Callable[..., Any]
    args: tuple[Any, ...]
    slow: Callable[[dict[str, Any]], Any]
    mean: float
    deviation: float


def cases() -> dict[str, Case]:
    from small_models import SCHOOLS, SIGMA, eight_schools  # arrays, made once x64 is on

    random = np.random.default_rng(7)
    group = np.repeat(np.arange(12), 4)
    x = random.normal(size=48)
    a = 0.5 + 0.4 * random.normal(size=12)
    label = (random.uniform(size=48) < 1 / (1 + np.exp(-(a[group] + 0.8 * x)))).astype(int)
    random = np.random.default_rng(7)
    grid = np.linspace(0, 1, 16)
    counts = random.poisson(np.exp(1 + np.sin(2 * np.pi * grid)))
    grouped = (jnp.array(group), jnp.array(x), 12, jnp.array(label))

    def log_tau(z):
        return z["tau"]

    return {
        # Truths in closed form; by marginalization and a grid of 20,001 points in log tau; and by
        # long runs of NUTS, at a target of .95, on the non-centered spellings.
        "funnel": Case(funnel, (9,), lambda z: z["v"], 0.0, 3.0),
        "eight": Case(eight_schools, (SIGMA, SCHOOLS), log_tau, 0.80214, 1.17121),
        "logistic": Case(logistic, grouped, log_tau, -1.243, 1.078),
        "poisson": Case(
            poisson_process, (jnp.array(grid), jnp.array(counts)), lambda z: z["ls"], np.nan, np.nan
        ),
        "rosenbrock": Case(rosenbrock, (), lambda z: z["x"], 1.0, 10.0**0.5),
    }


def measured(case: Case, sampler: str, key: int, warmup: int, draws: int) -> None:
    fields = ("num_steps",)
    args: tuple[Any, ...] = case.args
    if sampler == "RMHMC":
        posterior = vf.condition(vf.attach(case.model, vf.JointFisher()), *case.args)
        kernel, args, fields = vf.RMHMC(posterior), (), (*fields, "metric_evaluations")
        fields = (*fields, "nonreversible")
    else:
        kernel = NUTS(case.model)
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=draws,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    # Deterministic sites and values are left out: the effective size is of u.
    mcmc.postprocess_fn = lambda z: z
    mcmc.warmup(jax.random.key(key), *args)
    mcmc.run(mcmc.post_warmup_state.rng_key, *args, extra_fields=fields)
    began = time.perf_counter()
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key, *args, extra_fields=fields)
    seconds = time.perf_counter() - began
    z = {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    extra = {name: np.asarray(v) for name, v in mcmc.get_extra_fields(group_by_chain=True).items()}
    smallest = min(float(np.min(effective_sample_size(value))) for value in z.values())
    r_hat = max(float(np.max(split_gelman_rubin(value))) for value in z.values())
    gradients = extra["num_steps"].sum()
    metrics = extra.get("metric_evaluations", extra["num_steps"]).sum()
    slow = case.slow(z)
    error = slow.std() / np.sqrt(float(effective_sample_size(slow)))
    print(
        f"{case.model.__name__:16s}{sampler:7s}key {key:3d}"
        f"  per 1k {1e3 * smallest / gradients:6.2f} /{1e3 * smallest / metrics:6.2f}"
        f"  divergent {extra['diverging'].sum():5d}"
        f" nonreversible {extra.get('nonreversible', np.zeros(1)).sum():4.0f}  r-hat {r_hat:.3f}"
        f"  mean {slow.mean():7.3f} z {(slow.mean() - case.mean) / error:6.2f}"
        f"  sd {slow.std():.3f} ({case.deviation:.3f})  {smallest / seconds:7.1f} draws a second",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["funnel", "eight", "logistic"])
    parser.add_argument("--samplers", nargs="+", default=["RMHMC", "NUTS"])
    parser.add_argument("--keys", type=int, default=3)
    parser.add_argument("--first-key", type=int, default=100)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for name in given.models:
        for key in range(given.first_key, given.first_key + given.keys):
            for sampler in given.samplers:
                measured(cases()[name], sampler, key, given.warmup, given.draws)


if __name__ == "__main__":
    main()

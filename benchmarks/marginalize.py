"""NUTS on models with sites integrated out (`vf.marginalize`) beside NUTS on the joint models.

    python benchmarks/marginalize.py --models eight votes process --draws 1000

For each way of sampling: seconds of the first run, compilation and warm-up included; the smallest
bulk effective size of a hyperparameter, per second of a run that holds neither (all of them seconds
of the processor, so that others on the machine do not count); divergences; and
the posterior mean of each hyperparameter, less its truth in posterior standard deviations, with its
Monte Carlo error. Draws of `marginal.draws` are weighted, and their means stand in a line of their
own. Truths: eight schools by quadrature over tau of the closed form; the votes by Gauss-Hermite
quadrature for each group on a lattice of the three others; the process by `--truth` draws of NUTS
on the non-centered spelling.
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
from numpyro.diagnostics import effective_sample_size
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam

import volform as vf

Truth = dict[str, tuple[float, float]]  # mean and standard deviation of each hyperparameter
GROUPS, EACH = 50, 5


def votes(group, x, vote):
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    spread = numpyro.sample("spread", dist.HalfNormal(2.0))
    with numpyro.plate("group", GROUPS):
        effect = numpyro.sample("effect", dist.Normal(0.0, spread))
    numpyro.sample("vote", dist.Bernoulli(logits=level + slope * x + effect[group]), obs=vote)


def covariance(x, amplitude, length):
    square = (x[:, None] - x[None]) ** 2
    return amplitude**2 * (jnp.exp(-0.5 * square / length**2) + 1e-6 * jnp.eye(x.size))


def hyperparameters_of_process():
    amplitude = numpyro.sample("amplitude", dist.HalfNormal(1.0))
    return amplitude, numpyro.sample("length", dist.InverseGamma(5.0, 1.0))


def process(x, count):
    k = covariance(x, *hyperparameters_of_process())
    f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(x.size), k))
    numpyro.sample("count", dist.Poisson(jnp.exp(1.0 + f)), obs=count)


def process_noncentered(x, count):
    k = covariance(x, *hyperparameters_of_process())
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([x.size]).to_event(1))
    f = jnp.linalg.cholesky(k) @ z
    numpyro.sample("count", dist.Poisson(jnp.exp(1.0 + f)), obs=count)


class Case(NamedTuple):
    """A model with its data, what is integrated out, and other spellings of the joint model."""

    model: Callable[..., Any]
    args: tuple[Any, ...]
    sites: str
    joint: dict[str, Callable[..., Any]]
    truth: Callable[..., Truth]


def cases() -> dict[str, Case]:
    from small_models import SCHOOLS, SIGMA, eight_schools  # arrays, made once x64 is on

    random = np.random.default_rng(7)
    group = np.repeat(np.arange(GROUPS), EACH)
    x = random.normal(size=group.size)
    logits = 0.5 + x + random.normal(size=GROUPS)[group]
    vote = (random.uniform(size=group.size) < 1.0 / (1.0 + np.exp(-logits))).astype(float)
    grid = np.linspace(0.0, 1.0, 100)
    count = random.poisson(np.exp(1.0 + np.sin(2.0 * np.pi * grid)))
    data = (jnp.asarray(group), jnp.asarray(x), jnp.asarray(vote))
    return {
        "eight": Case(
            eight_schools,
            (SIGMA, SCHOOLS),
            "theta",
            spellings(eight_schools, "theta"),
            truth_of_schools,
        ),
        "votes": Case(votes, data, "effect", spellings(votes, "effect"), truth_of_votes),
        "process": Case(
            process,
            (jnp.asarray(grid), jnp.asarray(count, float)),
            "f",
            {"centered": process, "non-centered": process_noncentered},
            truth_by_draws,
        ),
    }


def spellings(model: Callable[..., Any], site: str) -> dict[str, Callable[..., Any]]:
    return {
        "centered": model,
        "non-centered": reparam(model, config={site: LocScaleReparam(centered=0)}),
    }


# --- Truths


def moments(log_weights: np.ndarray, **values: np.ndarray) -> Truth:
    """Means and standard deviations over a lattice."""
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    means = {name: float(np.sum(weights * x)) for name, x in values.items()}
    sds = {n: float(np.sum(weights * (x - means[n]) ** 2) ** 0.5) for n, x in values.items()}
    return {name: (means[name], sds[name]) for name in values}


def truth_of_schools(case: Case, draws: int) -> Truth:
    """y is Normal(mu, tau^2 + sigma^2), and mu Gaussian given tau."""
    sigma, y = map(np.asarray, case.args)
    log_tau, mu = np.meshgrid(np.linspace(-12.0, 9.0, 2001), np.linspace(-30.0, 40.0, 701))
    tau = np.exp(log_tau)
    variance = tau[..., None] ** 2 + sigma**2
    log_p = -0.5 * np.sum((y - mu[..., None]) ** 2 / variance + np.log(variance), -1)
    log_p += -0.5 * mu**2 / 25.0 - np.log(25.0 + tau**2) + log_tau
    return moments(log_p, mu=mu, log_tau=log_tau)


def truth_of_votes(case: Case, draws: int) -> Truth:
    """Each group's effect by 40 nodes of Gauss and Hermite, the others by a lattice."""
    _, x, vote = (np.asarray(part).reshape(GROUPS, EACH) for part in case.args)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    axes = np.linspace(-1.5, 2.5, 61), np.linspace(-0.5, 3.0, 61), np.linspace(-3.5, 1.5, 61)
    level, slope, log_spread = np.meshgrid(*axes, indexing="ij")

    @jax.jit
    def log_p(point):
        level, slope, log_spread = point
        eta = level + slope * x[..., None] + jnp.exp(log_spread) * nodes
        log_like = jnp.sum(-jax.nn.softplus((1.0 - 2.0 * vote[..., None]) * eta), 1)
        total = jnp.sum(jax.nn.logsumexp(log_like, 1, b=weights))
        prior = -(level**2 + slope**2 + jnp.exp(2.0 * log_spread)) / 8.0 + log_spread
        return total + prior

    points = jnp.stack([np.ravel(part) for part in (level, slope, log_spread)], 1)
    found = np.asarray(jax.lax.map(log_p, points, batch_size=500)).reshape(level.shape)
    return moments(found, level=level, slope=slope, log_spread=log_spread)


def truth_by_draws(case: Case, draws: int) -> Truth:
    mcmc = sampler(case.joint["non-centered"], draws)
    mcmc.run(jax.random.key(99), *case.args)
    found = logarithms(mcmc.get_samples())
    return {n: (float(x.mean()), float(x.std())) for n, x in found.items() if x.ndim == 1}


# --- Measurements


def sampler(model: Any, draws: int) -> MCMC:
    return MCMC(
        NUTS(model, target_accept_prob=0.9),
        num_warmup=draws,
        num_samples=draws,
        num_chains=2,
        chain_method="sequential",
        progress_bar=False,
    )


def logarithms(draws: dict[str, Any]) -> dict[str, np.ndarray]:
    """Scales by their logarithm."""
    positive = {"tau": "log_tau", "spread": "log_spread", "amplitude": "log_a", "length": "log_l"}
    named = {positive.get(name, name): (name, np.asarray(x)) for name, x in draws.items()}
    return {new: np.log(x) if new != old else x for new, (old, x) in named.items()}


def compared(means: dict[str, float], truth: Truth, errors: dict[str, float]) -> str:
    """Each mean less its truth in standard deviations, with the error of the mean."""
    parts = []
    for name, (mean, sd) in truth.items():
        off, error = (means[name] - mean) / sd, errors[name] / sd
        parts.append(f"{name} {off:+.2f} ± {error:.2f}")
    return ", ".join(parts)


def measured(case: Case, name: str, model: Any, draws: int, truth: Truth) -> None:
    mcmc = sampler(model, draws)
    began = time.process_time()
    mcmc.run(jax.random.key(0), *case.args, extra_fields=("diverging",))
    first = time.process_time() - began
    mcmc.post_warmup_state = mcmc.last_state
    began = time.process_time()
    mcmc.run(mcmc.post_warmup_state.rng_key, *case.args, extra_fields=("diverging",))
    seconds = time.process_time() - began
    found = logarithms(mcmc.get_samples(group_by_chain=True))
    sizes = {n: float(effective_sample_size(found[n])) for n in truth}
    errors = {n: found[n].std() / np.sqrt(sizes[n]) for n in truth}
    means = {n: float(found[n].mean()) for n in truth}
    diverging = int(mcmc.get_extra_fields()["diverging"].sum())
    smallest = min(sizes.values())
    print(
        f"{name:14s} first run {first:6.1f} s, {smallest:6.0f} effective, "
        f"{smallest / seconds:8.2f} a second, divergent {diverging:4d}; "
        f"{compared(means, truth, errors)}",
        flush=True,
    )
    if isinstance(model, vf.inference.Marginalized):
        drawn = model.draws(jax.random.key(1), mcmc, *case.args)
        of_values = logarithms(drawn.values)
        means = {n: float(np.sum(drawn.weights * of_values[n])) for n in truth}
        title = f"  weighted, k-hat {drawn.k_hat:.2f}, {drawn.effective:,.0f} by weights"
        print(f"{title}; {compared(means, truth, errors)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["eight", "votes", "process"])
    parser.add_argument("--draws", type=int, default=1000, help="of each of two chains")
    parser.add_argument("--truth", type=int, default=10_000, help="draws for the process")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for name in arguments.models:
        case = cases()[name]
        truth = case.truth(case, arguments.truth)
        print(name, {key: (round(m, 3), round(s, 3)) for key, (m, s) in truth.items()}, flush=True)
        ways = {"marginal": vf.marginalize(case.model, case.sites)} | case.joint
        for way, model in ways.items():
            measured(case, way, model, arguments.draws, truth)


if __name__ == "__main__":
    main()

"""Hyperparameters of an infinitely wide network: by the maximum of the evidence, and by NUTS.

Sixteen noisy points of a curve, a network with one hidden layer of erf units, log-normal priors on
`w_std`, `b_std` and the noise. The exact evidence of the network's Gaussian process stands in the
model as the density of the observations.

    python examples/kernel_hyperparameters.py [--quick]
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optimistix as optx
from numpyro.infer import MCMC, NUTS
from rich.console import Console
from rich.table import Table

from volform import kernels as k, networks as nn

NAMES = ("w_std", "b_std", "noise")
TRUE_NOISE = 0.1


def data() -> tuple[np.ndarray, np.ndarray]:
    """Inputs (16, 1) and targets (16,)."""
    x = np.linspace(-2.0, 2.0, 16)[:, None]
    noise = np.random.default_rng(0).normal(size=16)
    return x, np.sin(2.0 * x[:, 0]) + TRUE_NOISE * noise


def network(w_std: jax.Array, b_std: jax.Array) -> nn.Layer:
    """One hidden layer of infinitely many erf units."""
    return nn.serial(nn.Dense(1, w_std, b_std), nn.Erf(), nn.Dense(1, w_std))


def model(x: np.ndarray, y: np.ndarray | None = None) -> None:
    """The network's Gaussian process, its hyperparameters sampled."""
    w_std = numpyro.sample("w_std", dist.LogNormal(0.0, 1.0))
    b_std = numpyro.sample("b_std", dist.LogNormal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(-2.0, 1.0))
    numpyro.sample("y", k.gaussian_process(network(w_std, b_std), x, noise=noise), obs=y)


def by_evidence(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """The values of greatest evidence, and their log evidence."""

    def loss(logs: jax.Array, _: None) -> jax.Array:
        w_std, b_std, noise = jnp.exp(logs)
        return -k.evidence(network(w_std, b_std), x, y, noise=noise).log_z

    solver = optx.BFGS(rtol=1e-8, atol=1e-8)
    found = optx.minimise(loss, solver, jnp.array([0.0, 0.0, -2.0]), max_steps=500)
    return np.exp(found.value), -float(loss(found.value, None))


def by_nuts(x: np.ndarray, y: np.ndarray, samples: int) -> dict[str, np.ndarray]:
    """Draws from the posterior of the hyperparameters."""
    mcmc = MCMC(NUTS(model), num_warmup=samples, num_samples=samples, progress_bar=False)
    mcmc.run(jax.random.key(0), x, y)
    return {name: np.asarray(mcmc.get_samples()[name]) for name in NAMES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 draws for 1000")
    quick = parser.parse_args().quick
    jax.config.update("jax_enable_x64", True)
    x, y = data()
    best, log_z = by_evidence(x, y)
    draws = by_nuts(x, y, 200 if quick else 1000)
    table = Table("", "greatest evidence", "posterior mean ± sd")
    for name, value in zip(NAMES, best, strict=True):
        table.add_row(name, f"{value:.3f}", f"{draws[name].mean():.2f} ± {draws[name].std():.2f}")
    console = Console()
    console.print(table)
    console.print(f"log evidence at the maximum {log_z:.4f}; the noise of the data is {TRUE_NOISE}")


if __name__ == "__main__":
    main()

"""Laplace approximations of a classifier of digits, by what each keeps of the curvature.

One hidden layer of 32 tanh units on scikit-learn's digits, trained by Adam on the posterior itself;
then one Laplace approximation for each structure, at the same weights: log evidence, and how well
the linearized predictive does on digits that were held out, beside the weights alone.

    python examples/structures.py
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import volform as vf
from volform import networks as nn
from volform.inference import GGN, BySite, Diagonal, Full, Kronecker, LastLayer, Linearized, LowRank

STRUCTURES = (Full(), BySite(), Kronecker(), Diagonal(), LowRank(100), LastLayer())
NETWORK = nn.MLP(widths=(32,), outputs=10, parametrization=nn.NTP(), w_std=3.0, b_std=1.0)


class Row(NamedTuple):
    """What one structure gives: its evidence, and scores on held-out digits."""

    structure: str
    log_z: float
    log_density: float
    accuracy: float
    seconds: float


def digits(train: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Pixels from 0 to 1 and labels, for training and held out."""
    x, y = load_digits(return_X_y=True)
    order = jax.random.permutation(jax.random.key(0), len(y))
    x, y = jnp.asarray(x / 16.0)[order], jnp.asarray(y)[order]
    return (x[:train], y[:train]), (x[train:], y[train:])


def trained(posterior: vf.models.Posterior, steps: int) -> dict[str, Array]:
    """The end of a training: Adam on -log q^G, with a step that falls to zero."""
    start = NETWORK.init(jax.random.key(1), 64)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        u, state = carry
        slope = jax.grad(lambda u: -posterior.log_density(u))(u)
        change, state = optimizer.update(slope, state, u)
        return (u + change, state), None

    u = posterior.unconstrain(start)
    (u, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, steps))((u, optimizer.init(u)))
    return posterior.values(u)


def rows(train: int = 1000, steps: int = 2000, structures: tuple = STRUCTURES) -> Iterator[Row]:
    """The weights alone, then one row for each structure."""
    (x, y), (x_new, y_new) = digits(train)
    posterior = vf.condition(nn.classification(NETWORK), x, y)
    weights = trained(posterior, steps)
    logits = NETWORK.apply(weights, x_new)
    yield Row("weights alone", jnp.nan, *scores(logits, y_new), 0.0)
    for structure in structures:
        begin = time.perf_counter()
        approx = vf.laplace(posterior, at=weights, curvature=GGN(), structure=structure)
        log_z = float(approx.evidence.log_z)
        logits = approx.predictive(x_new, by=Linearized())["y"].logits
        yield Row(repr(structure), log_z, *scores(logits, y_new), time.perf_counter() - begin)


def scores(logits: Array, y: Array) -> tuple[float, float]:
    """Mean log density and accuracy."""
    each = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)
    return float(each.mean()), float((logits.argmax(1) == y).mean())


def main() -> None:
    """Prints the table."""
    jax.config.update("jax_enable_x64", True)
    table = Table(title="Digits, 1,000 for training and 797 held out, 2,410 parameters")
    table.add_column("kept of the curvature")
    for heading in ("log Z, one mode", "held out: log density", "accuracy", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows():
        log_z = "" if row.log_z != row.log_z else f"{row.log_z:.1f}"
        held_out = f"{row.log_density:.4f}", f"{row.accuracy:.3f}"
        table.add_row(row.structure, log_z, *held_out, f"{row.seconds:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

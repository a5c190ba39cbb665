"""Densities on a line that are known up to a factor: their integrals, and draws from them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)
_FAR = 25.0  # where tails begin: sigmoid(25) is one but for 1e-11, of which five digits are left
TAIL_OVER = 5.0  # length over which their rates are measured
SLOWEST = 0.02  # rate of a tail below which its integral counts as infinite
_CELLS, _ROUNDS = 200, 30  # cells to begin with, and how often those that need it are halved


class LineLaw(eqx.Module):
    """A density on the line with exponential tails, integrated by Gauss-Legendre over cells.

    Attributes:
        edges: of the cells, from -25 to 25, shape (k + 1,).
        masses: of the lower tail, the cells and the upper tail, which sum to one, shape (k + 2,).
        rates: of the tails, shape (2,).
        log_integral: log of the integral of the density.
    """

    edges: Float[Array, " k+1"]
    masses: Float[Array, " k+2"]
    rates: Float[Array, " 2"]
    log_integral: Float[Array, ""]

    def sample(
        self,
        log_density: Callable[[Float[Array, ""]], Float[Array, ""]],
        key: PRNGKeyArray,
        draws: int,
    ) -> Float[Array, " n"]:
        """Draws by the inverse of the distribution function, to 1e-9 of a cell.

        Args:
            log_density: the density that the law was made of.
            key: key of the draws.
            draws: number of draws n.
        """
        one, two = jax.random.split(key)
        cell = jax.random.categorical(one, jnp.log(self.masses), shape=(draws,))
        level = jax.random.uniform(two, (draws,), self.edges.dtype)
        inner = jnp.clip(cell - 1, 0, self.edges.size - 2)
        low, high = self.edges[inner], self.edges[inner + 1]
        density = jax.vmap(lambda s: jnp.exp(log_density(s) - self.log_integral))

        def below(low: Array, s: Array) -> Float[Array, ""]:
            nodes = low + (s - low) * 0.5 * (jnp.asarray(_NODES, low.dtype) + 1.0)
            return 0.5 * (s - low) * jnp.sum(jnp.asarray(_WEIGHTS, low.dtype) * density(nodes))

        whole = jax.vmap(below)(low, high)

        def halved(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = 0.5 * (ends[0] + ends[1])
            is_below = jax.vmap(below)(low, middle) < level * whole
            return jnp.where(is_below, middle, ends[0]), jnp.where(is_below, ends[1], middle)

        ends = jax.lax.fori_loop(0, 30, halved, (low, high))
        beyond = -jnp.log1p(-level)
        found = jnp.where(cell == 0, -_FAR - beyond / self.rates[0], 0.5 * (ends[0] + ends[1]))
        return jnp.where(cell == self.masses.size - 1, _FAR + beyond / self.rates[1], found)


def line_law(log_density: Callable[[Any], Float[Array, " n"]]) -> LineLaw | None:
    """The law of a density given up to a factor; None where its integral is infinite.

    Cells are halved until the rules over a cell and over its halves agree to 1e-13 of the whole.

    Args:
        log_density: log of the density at points, vectorized.
    """

    def log_f(s: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        flat = np.ravel(s)
        size = -(-flat.size // 1000) * 1000  # few shapes, few programs
        padded = np.concatenate([flat, np.full(size - flat.size, flat[0])])
        found = [np.asarray(log_density(part)) for part in padded.reshape(-1, 1000)]
        return np.concatenate(found)[: flat.size].reshape(np.shape(s)).astype(float)

    ends = log_f(np.array([-_FAR, TAIL_OVER - _FAR, _FAR - TAIL_OVER, _FAR]))
    rates = np.array([ends[1] - ends[0], ends[2] - ends[3]]) / TAIL_OVER
    edges = np.linspace(-_FAR, _FAR, _CELLS + 1)
    peak = np.max(log_f(edges))
    if not np.isfinite(peak) or np.any(rates < SLOWEST) or np.any(np.isnan(ends)):
        return None

    def masses(edges: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, " k"]:
        half = 0.5 * np.diff(edges, axis=1)
        f = np.exp(log_f(edges[:, :1] + half * (_NODES + 1.0)) - peak)
        return half[:, 0] * (f @ _WEIGHTS)

    tails = np.exp(ends[[0, 3]] - peak) / rates
    cells = np.stack([edges[:-1], edges[1:]], axis=1)
    done, found = [], masses(cells)
    for _ in range(_ROUNDS):
        middle = cells.mean(axis=1)
        halves = np.stack([cells[:, 0], middle, middle, cells[:, 1]], axis=1).reshape(-1, 2)
        parts = masses(halves)
        total = tails.sum() + sum(m.sum() for _, m in done) + parts.sum()
        wrong = np.abs(found - parts.reshape(-1, 2).sum(axis=1)) > 1e-13 * total
        keep = np.repeat(~wrong, 2)
        done.append((halves[keep], parts[keep]))
        cells, found = halves[~keep], parts[~keep]
        if not len(cells):
            break
    every = np.concatenate([c for c, _ in done] + [cells])
    mass = np.concatenate([m for _, m in done] + [found])
    order = np.argsort(every[:, 0])
    mass = np.concatenate([tails[:1], mass[order], tails[1:]])
    edges = np.append(every[order, 0], _FAR)
    real = jnp.result_type(float)
    log_integral = peak + np.log(mass.sum())
    parts = (edges, mass / mass.sum(), np.maximum(rates, SLOWEST), log_integral)
    return LineLaw(*(jnp.asarray(x, real) for x in parts))

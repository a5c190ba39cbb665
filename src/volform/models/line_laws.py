"""Densities on a line that are known up to a factor: their integrals, and draws from them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from volform.errors import ModelError

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)
TAIL_FROM = 25.0  # sigmoid(25) is one but for 1e-11, of which five digits are left
TAIL_OVER = 5.0  # length over which their rates are measured
SLOWEST = 0.02  # rate of a tail below which its integral counts as infinite
_CELLS, _ROUNDS = 200, 30  # cells to begin with, and how often those that need it are halved
_MOST = 8_000  # cells that are halved at once: noise is in every cell
_ZOOMS = np.linspace(-1.0, 1.0, 21)  # points around a peak, ten times closer each round
_ROUNDS_OF_ZOOM = 14
_DROP = 0.5  # from a node to the next, above which a peak between them is not resolved by them
_PEAKS = 64
_SHELLS = 50.0 * 2.0 ** -np.arange(1.0, 46.0)  # around a peak, of whatever width it is
_DRAWN_AT_ONCE = 1000  # which bounds the memory
_SETTLED = 1e-6  # share of the integral that may be in doubt


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
        real = self.edges.dtype
        upto = jnp.cumsum(self.masses)
        chosen = jax.random.uniform(one, (draws,), real) * upto[-1]
        cell = jnp.minimum(jnp.searchsorted(upto, chosen, side="right"), upto.size - 1)
        level = jax.random.uniform(two, (draws,), real)

        def drawn(cell: Array, level: Array) -> Array:
            return self._within(log_density, cell, level)

        batch = min(draws, _DRAWN_AT_ONCE)
        return jax.lax.map(lambda each: drawn(*each), (cell, level), batch_size=batch)

    def _within(
        self,
        log_density: Callable[[Float[Array, ""]], Float[Array, ""]],
        cell: Array,
        level: Float[Array, ""],
    ) -> Float[Array, ""]:
        """The point of a cell below which it has the share `level` of its mass."""
        inner = jnp.clip(cell - 1, 0, self.edges.size - 2)
        low, high = self.edges[inner], self.edges[inner + 1]
        density = jax.vmap(lambda s: jnp.exp(log_density(s) - self.log_integral))

        def below(low: Array, s: Array) -> Float[Array, ""]:
            nodes = low + (s - low) * 0.5 * (jnp.asarray(_NODES, low.dtype) + 1.0)
            return 0.5 * (s - low) * jnp.sum(jnp.asarray(_WEIGHTS, low.dtype) * density(nodes))

        whole = below(low, high)

        within = bisected(lambda s: below(low, s) < level * whole, low, high, 30)
        beyond = -jnp.log1p(-level)
        found = jnp.where(cell == 0, -TAIL_FROM - beyond / self.rates[0], within)
        return jnp.where(cell == self.masses.size - 1, TAIL_FROM + beyond / self.rates[1], found)


def bisected(
    is_below: Callable[[Array], Bool[Array, ""]],
    low: Float[Array, ""],
    high: Float[Array, ""],
    halvings: int,
) -> Float[Array, ""]:
    """The point between two where a condition that holds below it ceases to hold."""

    def halved(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = 0.5 * (ends[0] + ends[1])
        below = is_below(middle)
        return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)

    low, high = jax.lax.fori_loop(0, halvings, halved, (low, high))
    return 0.5 * (low + high)


def line_law(
    log_density: Callable[[Any], Float[Array, " n"]],
    value_at: Callable[[float], Any],
    seeds: Float[np.ndarray, " k"],
) -> LineLaw:
    """The law of a density given up to a factor.

    Peaks that nodes or seeds see from afar are closed in on, whatever their width. Cells are halved
    until the rules over a cell and over its halves agree to 1e-13 of the whole.

    Args:
        log_density: log of the density at points, vectorized.
        value_at: the value at a point, for messages.
        seeds: points where mass may be, beside the nodes.

    Raises:
        ModelError: when the integral is infinite, or not settled.
    """

    def log_f(s: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        flat = np.ravel(s)
        size = -(-flat.size // 1000) * 1000  # few shapes, few programs
        padded = np.concatenate([flat, np.full(size - flat.size, flat[0])])
        found = [np.asarray(log_density(part)) for part in padded.reshape(-1, 1000)]
        return np.concatenate(found)[: flat.size].reshape(np.shape(s)).astype(float)

    def finite(s: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        found = log_f(s)
        bad = np.isnan(found) | (found == np.inf)
        if np.any(bad):
            raise _unsettled(f"its log is {found[bad][0]} at {value_at(s[bad][0])}")
        return found

    grid = np.linspace(-TAIL_FROM, TAIL_FROM, _CELLS + 1)
    peaks, peak = _peaks(log_f, finite, _nodes_of(_cells(grid)).ravel(), seeds)
    if not np.isfinite(peak):
        raise _unsettled("it is zero at all nodes")
    rates, tails, doubt = _tails(finite, value_at, peak)
    shells = np.concatenate([peaks, *(peaks + side * w for side in (-1, 1) for w in _SHELLS)])
    edges = np.unique(np.clip([*grid, *shells], -TAIL_FROM, TAIL_FROM))
    with np.errstate(over="ignore", invalid="ignore"):  # of a peak that was not found
        cells, mass, left = _halved(lambda s: np.exp(finite(s) - peak), _cells(edges), tails.sum())
    # Of a peak that no node has seen, all that is known is its height.
    unseen = _at(cells, peaks) @ np.exp(finite(peaks) - peak) if peaks.size else 0.0
    total = tails.sum() + mass.sum()
    if not 0.0 < total < np.inf:
        raise _unsettled("there is mass between the nodes")
    for share, what in (
        (
            doubt,
            f"the tails towards {value_at(-TAIL_FROM)} and {value_at(TAIL_FROM)} are not "
            "exponential",
        ),
        (left, "a rule and one of half the step disagree"),
        (unseen, "there is mass between the nodes"),
    ):
        if not share <= max(_SETTLED, 1e3 * _eps()) * total:
            raise _unsettled(what)
    mass = np.concatenate([tails[:1], mass, tails[1:]]) / total
    parts = (np.append(cells[:, 0], TAIL_FROM), mass, rates, peak + np.log(total))
    return LineLaw(*(jnp.asarray(x, jnp.result_type(float)) for x in parts))


def _eps() -> float:
    return float(np.finfo(jnp.result_type(float)).eps)


def _unsettled(what: str) -> ModelError:
    return ModelError(
        f"The integral of the density over `support` is not settled by quadrature: {what}. Where "
        "it is known give it, `normalized(log_integral=...)`."
    )


def _cells(edges: Float[np.ndarray, " k+1"]) -> Float[np.ndarray, "k 2"]:
    return np.stack([edges[:-1], edges[1:]], axis=1)


def _nodes_of(cells: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "k 10"]:
    return cells[:, :1] + 0.5 * np.diff(cells, axis=1) * (_NODES + 1.0)


def _peaks(
    log_f: Any, finite: Any, nodes: Float[np.ndarray, " n"], seeds: Float[np.ndarray, " k"]
) -> tuple[np.ndarray, float]:
    """Peaks that are narrower than the nodes are apart, and the log of the highest density."""
    points, index = np.unique([*nodes, *seeds], return_index=True)
    heights = finite(points)
    low, top, high = heights[:-2], heights[1:-1], heights[2:]
    is_narrow = (index[1:-1] >= nodes.size) | (top > np.minimum(low, high) + _DROP)
    is_peak = (top > low) & (top >= high) & is_narrow
    chosen = 1 + np.flatnonzero(is_peak)
    chosen = chosen[np.argsort(-heights[chosen])[:_PEAKS]]
    at, best = points[chosen], heights[chosen]
    reach = np.maximum(points[chosen + 1] - at, at - points[chosen - 1])
    for _ in range(_ROUNDS_OF_ZOOM if at.size else 0):
        near = np.clip(at[:, None] + reach[:, None] * _ZOOMS, -TAIL_FROM, TAIL_FROM)
        found = log_f(near)
        found = np.where(np.isfinite(found), found, -np.inf)  # a pole is no place of a node
        pick = np.argmax(found, axis=1)[:, None]
        better = np.take_along_axis(found, pick, 1)[:, 0] > best
        at = np.where(better, np.take_along_axis(near, pick, 1)[:, 0], at)
        best, reach = np.maximum(best, found.max(axis=1)), 0.1 * reach
    return at, float(max(heights.max(), *best)) if at.size else float(heights.max())


def _tails(finite: Any, value_at: Any, peak: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Rates and masses of the tails, and how much of the masses is in doubt."""
    steps = np.arange(3.0) * TAIL_OVER - TAIL_FROM
    out, middle, inner = finite(np.stack([steps, -steps])).T
    is_zero = out == -np.inf
    out, middle = np.where(is_zero, 0.0, out), np.where(is_zero, 1e9, middle)
    inner = np.where(is_zero, 2e9, inner)
    rates = (middle - out) / TAIL_OVER
    for rate, end in zip(rates, (-TAIL_FROM, TAIL_FROM), strict=True):
        if rate < -SLOWEST:
            raise _unsettled(f"it still grows at {value_at(end)}")
    if np.any(rates < SLOWEST):
        raise ModelError(
            "The integral of the density over `support` is infinite: it is an improper prior, "
            "which has no evidence. A PC prior, `vf.PCPrior`, is proper."
        )
    masses = np.where(is_zero, 0.0, np.exp(out - peak) / rates)
    drift = np.abs((inner - middle) / TAIL_OVER / rates - 1.0)
    return rates, masses, float(np.sum(np.where(masses > 0.0, masses * drift, 0.0)))


def _halved(density: Any, cells: Any, tails: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Cells and their masses, and the sum of what two rules differ by where they still do."""

    def masses(cells: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, " k"]:
        return 0.5 * np.diff(cells, axis=1)[:, 0] * (density(_nodes_of(cells)) @ _WEIGHTS)

    done, found, left = [], masses(cells), 0.0
    for _ in range(_ROUNDS):
        halves = _cells_of_halves(cells)
        parts = masses(halves)
        total = tails + sum(m.sum() for _, m in done) + parts.sum()
        gaps = np.abs(found - parts.reshape(-1, 2).sum(axis=1))
        wrong = gaps > max(1e-13, 10.0 * _eps()) * total
        keep, left = np.repeat(~wrong, 2), gaps[wrong].sum()
        done.append((halves[keep], parts[keep]))
        cells, found = halves[~keep], parts[~keep]
        if not len(cells) or len(cells) > _MOST:
            break
    every, mass = (np.concatenate(x) for x in zip(*done, (cells, found), strict=True))
    order = np.argsort(every[:, 0])
    return every[order], mass[order], left


def _cells_of_halves(cells: Float[np.ndarray, "k 2"]) -> Float[np.ndarray, "m 2"]:
    middle = cells.mean(axis=1)
    return np.stack([cells[:, 0], middle, middle, cells[:, 1]], axis=1).reshape(-1, 2)


def _at(cells: Float[np.ndarray, "k 2"], points: Float[np.ndarray, " n"]) -> np.ndarray:
    """Widths of the cells that begin at points, or hold them."""
    index = np.searchsorted(cells[:, 0], points, side="right") - 1
    return np.diff(cells, axis=1)[np.clip(index, 0, len(cells) - 1), 0]

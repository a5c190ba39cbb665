"""Quantiles and angles of weighted draws and of nodes, and what weights do to an error."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

WIDENED_FROM = 0.3  # k-hat, from which on the error of the mean is more than the sample tells


def notes_on_angles(names: Sequence[str], columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Note on angles whose interval goes beyond the cut at pi, where the draws begin again."""
    beyond = [
        name
        for name in names
        if max(np.max(np.abs(columns[end][name]), initial=0.0) for end in ("lower", "upper"))
        > np.pi
    ]
    text = f"{', '.join(beyond)}: angles around their mean direction, to be taken modulo 2 pi"
    return [text] if beyond else []


def widening(k_hat: float, draws: int) -> float:
    """Factor of the standard error of a mean by weights whose tail has the shape `k_hat`.

    The variance of such weights has itself no variance above 1/4, and that of a sample falls short
    of it. Of a change point's weights, k-hat .33 to .48 in 24 runs, the estimates of log Z were 1.3
    errors low in the mean and 3.9 in one, without the factor.
    """
    return draws ** min(0.5 * max(k_hat - WIDENED_FROM, 0.0), 0.5)


def around_direction(
    x: Float[np.ndarray, "n k"], weights: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n k"]:
    """Angles within half a turn of their mean direction, each column by itself."""
    center = np.arctan2(weights @ np.sin(x), weights @ np.cos(x))
    return center + np.mod(x - center + np.pi, 2.0 * np.pi) - np.pi


def weighted_quantiles(
    x: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], at: Sequence[float]
) -> Float[np.ndarray, " q"]:
    """Quantiles of weighted draws, linear between the middles of their weights."""
    order = np.argsort(x)
    below = np.cumsum(weights[order]) - 0.5 * weights[order]
    return np.interp(at, below / weights.sum(), x[order])


def quantiles_of_cells(
    x: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    cells: Float[np.ndarray, " n"],
    at: Sequence[float],
) -> Float[np.ndarray, " q"]:
    """Quantiles of nodes, the weight of each spread evenly over its cell.

    The columns of a grid are steps otherwise, which in two dimensions moved the ends of 90 %
    intervals by .016 standard deviations. The variance that is added is taken off again by
    Richardson's rule, from cells of twice the width.
    """
    widths = np.maximum(math.sqrt(12.0) * cells, 1e-9 * np.ptp(x))

    def spread(half: Float[np.ndarray, " n"]) -> np.ndarray:
        ends = np.concatenate([x - half, x + half])
        steps = np.concatenate([weights / half, -weights / half])
        order = np.argsort(ends)
        ends, density = ends[order], np.cumsum(steps[order])
        below = np.cumsum(density[:-1] * np.diff(ends))
        return np.interp(at, below / below[-1], ends[1:])

    return (4.0 * spread(0.5 * widths) - spread(widths)) / 3.0

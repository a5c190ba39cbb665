"""Second-order term of the invariant Laplace expansion, by differences of the exact Hessian.

The program of the Hessian is there from the search for the mode; fourth derivatives are one of
their own, ten times as large, that runs once. Of eight schools the differences take .05 s, and the
program 5 to compile; they agree to 10^-12.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from volform.inference.laplace.near_points import POINTS, WIDEST
from volform.inference.modes.expansion import SecondOrder
from volform.inference.modes.newton import expansions
from volform.models.posterior import Posterior

STEP_SIZES = 3  # that are tried, each half of the one before
GOOD_ENOUGH = 1e-10  # relative to 1 + |c|; of the nine the error was a tenth of its estimate


class Differences(NamedTuple):
    """The coefficient c by finite differences.

    Attributes:
        c: its value.
        error: an estimate of its error, by the order of the differences and their symmetry.
        hessians: number of Hessians that were evaluated.
        losses: -log q^G at the points of the first step, on each axis from the lowest on.
    """

    c: float
    error: float
    hessians: int
    losses: Float[np.ndarray, "d n"]

    @property
    def is_accurate(self) -> bool:
        """Tell whether c has the digits of the exact one."""
        return self.error <= GOOD_ENOUGH * (1.0 + abs(self.c))


def correction_by_differences(posterior: Posterior, at: SecondOrder) -> Differences:
    """The coefficient c that `correction` contracts, from Hessians near the mode.

    In coordinates z with H = I, along each axis i, the first difference of the Hessian is T_ijk for
    all j and k, and the second of its trace sum_j Q_iijj; no other component enters c. The step is
    halved until orders 12 and 14 agree and T is symmetric in i and j, as it is not at a kink.

    Args:
        posterior: densities and metric in u.
        at: the expansion at the mode of q^G.
    """
    best = first = _with_step(posterior, at, WIDEST)
    used = first.hessians
    for halvings in range(1, STEP_SIZES):
        if best.is_accurate:
            break
        found = _with_step(posterior, at, WIDEST / 2**halvings)
        used += found.hessians
        # Beyond an edge it is NaN.
        best = found if found.error < best.error or math.isnan(best.error) else best
    return best._replace(hessians=used, losses=first.losses)


def _with_step(posterior: Posterior, at: SecondOrder, step: float) -> Differences:
    whitener, u = np.asarray(at.whitener), np.asarray(at.u)
    d = u.size
    offsets = step * np.concatenate([np.arange(1, POINTS + 1), -np.arange(1, POINTS + 1)])
    # Row i of W^T moves along axis i of z.
    points = u + (offsets[None, :, None] * whitener.T[:, None, :]).reshape(-1, d)
    found = expansions(posterior, points)
    hessians = np.stack([whitener.T @ end.hessian @ whitener for end in found])
    hessians = hessians.reshape(d, 2, POINTS, d, d)
    volumes = np.reshape([end.log_volume for end in found], (d, 2, POINTS))
    center = float(np.trace(whitener.T @ np.asarray(at.hessian) @ whitener)), float(at.log_volume)
    with np.errstate(invalid="ignore"):  # beyond an edge, where c is NaN
        c, error = _contracted(hessians, volumes, center, step, POINTS)
        lower, _ = _contracted(hessians, volumes, center, step, POINTS - 1)
    losses = np.reshape([end.value for end in found], (d, 2, POINTS))
    losses = np.concatenate([losses[:, 1, ::-1], losses[:, 0]], axis=1)
    return Differences(c, error + abs(c - lower), len(points), losses)


def _contracted(
    hessians: Float[np.ndarray, "d two k d d"],
    volumes: Float[np.ndarray, "d two k"],
    center: tuple[float, float],
    step: float,
    points: int,
) -> tuple[float, float]:
    """The coefficient c by so many points on either side, and by how much T fails its symmetry."""
    first, second = _weights(points)
    inner = slice(None, points)

    def slopes(values: np.ndarray) -> np.ndarray:
        odd = values[:, 0, inner] - values[:, 1, inner]
        return np.tensordot(odd, first / step, axes=(1, 0))

    def curvatures(values: np.ndarray, middle: float) -> np.ndarray:
        even = values[:, 0, inner] + values[:, 1, inner] - 2.0 * middle
        return even @ (second / step**2)

    third = slopes(hessians)
    fourth = curvatures(np.trace(hessians, axis1=3, axis2=4), center[0])
    b_slope, b_curvature = slopes(volumes), curvatures(volumes, center[1])
    t = np.trace(third, axis1=1, axis2=2)
    square = np.sum(third**2)
    asymmetry = abs(square - np.sum(third * third.transpose(1, 0, 2))) / 12.0
    c = (
        -fourth.sum() / 8.0
        + t @ t / 8.0
        + square / 12.0
        + 0.5 * (b_curvature.sum() + b_slope @ b_slope)
        - 0.5 * b_slope @ t
    )
    return float(c), float(asymmetry)


def _weights(points: int) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Weights of central differences of order 2k, first and second (Fornberg 1988).

    Of `f(k h) - f(-k h)` in h f', and of `f(k h) + f(-k h) - 2 f(0)` in h^2 f''.
    """
    k = np.arange(1, points + 1)
    shares = [
        (-1) ** (j + 1) * math.comb(2 * points, points - j) / math.comb(2 * points, points)
        for j in range(1, points + 1)
    ]
    return np.array(shares) / k, 2.0 * np.array(shares) / k**2

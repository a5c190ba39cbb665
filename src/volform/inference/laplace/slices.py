"""Slices of q^G through a mode, that tell of what no derivative there can."""

import math

import jax
import numpy as np
from jaxtyping import Array, Float

from volform.compilation import compiled
from volform.inference.modes.expansion import SecondOrder
from volform.models.posterior import Posterior

# Points on either side near the mode, for derivatives along each axis: differences of order 14.
POINTS = 7
# Their distance, in standard deviations: the error of truncation falls as its 14th power, and of
# rounding grows as 10^-13 / h^2. Of nine models (Student t, LKJ, negative binomial, Dirichlet,
# logistic, ...) eight had c to 10^-12 here, and a Cauchy likelihood of four data at the half of it.
WIDEST = 0.12
# Points on either side for the integral, in standard deviations as far from each other as the last
# near point is from the mode: of a Gaussian the sum is right to 10^-12.
FAR, FAR_STEP = 6, POINTS * WIDEST
SLICE_POINTS = 2 * (POINTS + FAR)
_BATCH = 100  # points evaluated at once; bounds the memory


def slice_gap(posterior: Posterior, at: SecondOrder) -> float:
    """Error of the second-order expansion, summed over slices along the axes with H = I.

    With T and Q the third and fourth derivatives of -log q^G along an axis, the integral of q^G
    along it is `sqrt(2 pi) (1 + 5 T^2 / 24 - Q / 8)` to second order, and by the trapezoidal rule
    to all. They differ where a kink, a step or an edge lies within some standard deviations, which
    leaves no trace in derivatives at the mode, and where the tails are not those that they promise.
    Of N(0, 1) times exp(-5 max(x - w, 0)) the gap is 1.2, .10 and .066 at w = 10^-6, .9 and 1.5,
    and log Z off by .55, .15 and .05; of smooth densities of c < .1 it is below .01 + |c|/2.

    Args:
        posterior: the posterior.
        at: the expansion at the mode of q^G.

    Returns:
        The sum over the axes, in nats; infinite where q^G is not smooth enough to have an
        expansion.
    """
    whitener, u = np.asarray(at.whitener), np.asarray(at.u)
    far = FAR_STEP * np.concatenate([np.arange(-FAR, 0), np.arange(1, FAR + 1)])
    near = WIDEST * np.concatenate([np.arange(-POINTS, 0), np.arange(1, POINTS + 1)])
    offsets = np.concatenate([near, far])
    points = u + (offsets[None, :, None] * whitener.T[:, None, :]).reshape(-1, u.size)
    log_q = np.asarray(_log_densities(posterior, np.concatenate([u[None], points])))
    rest = (log_q[1:] - log_q[0]).reshape(u.size, -1)
    close = np.insert(rest[:, : 2 * POINTS], POINTS, 0.0, axis=1)
    with np.errstate(all="ignore"):
        second, third, fourth = -_derivatives() @ close.T
        expanded = np.log1p(5.0 * third**2 / second**3 / 24.0 - fourth / second**2 / 8.0)
        tails = np.where(np.isnan(rest[:, 2 * POINTS :]), -np.inf, rest[:, 2 * POINTS :])
        whole = np.log(1.0 + np.exp(tails).sum(1)) + math.log(FAR_STEP / math.sqrt(2.0 * math.pi))
        gap = float(np.abs(whole + 0.5 * np.log(second) - expanded).sum())
    return math.inf if math.isnan(gap) else gap


@compiled
def _log_densities(posterior: Posterior, points: Float[Array, "n d"]) -> Float[Array, " n"]:
    return jax.lax.map(posterior.log_density, points, batch_size=_BATCH)


def _derivatives() -> Float[np.ndarray, "3 n"]:
    """Weights of derivatives 2 to 4 of the interpolating polynomial at the middle."""
    nodes = np.arange(-POINTS, POINTS + 1) / POINTS
    powers = np.vander(nodes, increasing=True)
    orders = np.arange(2, 5)
    factorials = np.array([math.factorial(order) for order in orders])
    scale = factorials / FAR_STEP**orders
    return scale[:, None] * np.linalg.inv(powers)[orders]

"""Values of q^G away from a mode, that tell of what no derivative there can."""

import math
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from volform.compilation import compiled
from volform.inference.laplace.gaussian_chart import LEBESGUE, densities_at
from volform.inference.laplace.near_points import NEAR_OFFSETS, POINTS, WIDEST
from volform.inference.modes.expansion import SecondOrder
from volform.inference.modes.newton import expansions, has_quick_hessians
from volform.limits import DIFFERENCES_UP_TO
from volform.models.posterior import Posterior
from volform.results import Cost

# Points on either side for the integral, in standard deviations as far from each other as the last
# near point is from the mode: of a Gaussian the sum is right to 10^-12.
FAR, FAR_STEP = 6, POINTS * WIDEST
# Draws of the tangent Gaussian, half of them the others' mirror images.
DRAWS = 1000
_BATCH = 100  # points evaluated at once; bounds the memory


class Gap(NamedTuple):
    """Error of the second-order expansion, in nats, and what it took to find."""

    nats: float
    cost: Cost


def gap_of_expansion(
    posterior: Posterior, at: SecondOrder, c: float, near: Float[np.ndarray, "d n"] | None = None
) -> Gap:
    """Error of the second-order expansion, by values of q^G within some standard deviations.

    It is the larger of two, each blind to some of what the other sees: of slices along the axes
    with H = I, exact but for what lies between axes, and of draws.

    Args:
        posterior: the posterior.
        at: the expansion at the mode of q^G.
        c: its second-order coefficient.
        near: -log q^G at the near points of each axis, as differences of the Hessian find them.

    Returns:
        The error; infinite where q^G is not smooth enough to have an expansion.
    """
    whitener, u = np.asarray(at.whitener), np.asarray(at.u)
    offsets = FAR_STEP * np.concatenate([np.arange(-FAR, 0), np.arange(1, FAR + 1)])
    if near is None:
        offsets = np.concatenate([NEAR_OFFSETS, offsets])
    # Row i of W^T moves along axis i of z.
    points = u + (offsets[None, :, None] * whitener.T[:, None, :]).reshape(-1, u.size)
    losses, spent = _losses(posterior, points)
    losses = losses.reshape(u.size, -1)
    if near is not None:
        losses = np.concatenate([near, losses], axis=1)
    one_side = np.random.default_rng(0).standard_normal((DRAWS // 2, u.size))
    z = np.concatenate([one_side, -one_side])
    log_p, _ = densities_at(posterior, LEBESGUE, u + z @ whitener.T)
    with np.errstate(all="ignore"):
        slices = _gap_of_slices(float(at.value) - losses)
        rest = log_p - (float(at.log_volume) - float(at.value)) + 0.5 * (z**2).sum(1)
        draws = _gap_of_draws(rest, c)
    nats = math.inf if math.isnan(slices + draws) else max(slices, draws)
    return Gap(nats, spent + Cost(DRAWS))


def _losses(
    posterior: Posterior, points: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, " n"], Cost]:
    """-log q^G, and what it took.

    By Hessians where their program is there, since the search used it, and runs in less time than
    another one is compiled in: of a correlation matrix 4 s, for .1 s of Hessians.
    """
    if has_quick_hessians(posterior) and posterior.dim <= DIFFERENCES_UP_TO:
        found = [end.value for end in expansions(posterior, points)]
        return np.array(found), Cost(0, len(points) * (posterior.dim + 1))
    count = len(points)
    # Of a number that the batches do not divide, the rest would be a program of its own.
    padded = np.concatenate([points, np.repeat(points[:1], -count % _BATCH, axis=0)])
    return -np.asarray(_log_densities(posterior, padded))[:count], Cost(count)


def _gap_of_slices(rest: Float[np.ndarray, "d n"]) -> float:
    """Sum over axes of what the integral along one differs by from the expansion's.

    With T and Q the third and fourth derivatives of -log q^G along an axis, the integral of q^G
    along it is `sqrt(2 pi) (1 + 5 T^2 / 24 - Q / 8)` to second order, and by the trapezoidal rule
    to all. They differ where a kink, a step or an edge lies within some standard deviations, which
    leaves no trace in derivatives at the mode, and where the tails are not those that they promise.
    Of N(0, 1) times exp(-5 max(x - w, 0)) the gap is 1.2, .10 and .066 at w = 10^-6, .9 and 1.5,
    and log Z off by .55, .15 and .05; of smooth densities of c < .1 it is below .01 + |c|/2.
    """
    close = np.insert(rest[:, : 2 * POINTS], POINTS, 0.0, axis=1)
    second, third, fourth = -_derivatives() @ close.T
    expanded = np.log1p(5.0 * third**2 / second**3 / 24.0 - fourth / second**2 / 8.0)
    tails = np.where(np.isnan(rest[:, 2 * POINTS :]), -np.inf, rest[:, 2 * POINTS :])
    whole = np.log(1.0 + np.exp(tails).sum(1)) + math.log(FAR_STEP / math.sqrt(2.0 * math.pi))
    return float(np.abs(whole + 0.5 * np.log(second) - expanded).sum())


def _gap_of_draws(log_weights: Float[np.ndarray, " n"], c: float) -> float:
    """Difference of 1 + c and the mean of the weights p / N(u*, H^-1), if beyond their noise.

    Of N(0, I) in 2 to 25 dimensions times exp(-5 max(x - w, 0)), with x along the diagonal, times
    exp(-5) in a corner, or beyond a sphere, log Z was off by .02 to 1.1 nats. Of the corner
    and, in 25 dimensions, of half of the others slices showed nothing; by draws the gap was within
    a third of it.
    """
    weights = np.exp(np.where(np.isnan(log_weights), -np.inf, log_weights))
    pairs = weights.reshape(2, -1).mean(0)
    error = pairs.std(ddof=1) / math.sqrt(pairs.size) / pairs.mean()
    # A heavy tail holds more than was drawn of it, as much perhaps as the largest weight: in eight
    # schools, centered, the mean is a third too small, by 3.8 standard errors.
    unseen = pairs.max() / pairs.sum()
    gap = float(abs(np.log(pairs.mean()) - np.log1p(c)))
    return 0.0 if gap < 3.0 * (error + unseen) else gap


@compiled
def _log_densities(posterior: Posterior, points: Float[Array, "n d"]) -> Float[Array, " n"]:
    """log q^G."""
    return jax.lax.map(posterior.log_density, points, batch_size=_BATCH)


def _derivatives() -> Float[np.ndarray, "3 n"]:
    """Weights of derivatives 2 to 4 of the interpolating polynomial at the middle."""
    nodes = np.arange(-POINTS, POINTS + 1) / POINTS
    powers = np.vander(nodes, increasing=True)
    orders = np.arange(2, 5)
    factorials = np.array([math.factorial(order) for order in orders])
    scale = factorials / FAR_STEP**orders
    return scale[:, None] * np.linalg.inv(powers)[orders]

"""Distances from a base model in a table, where each of them is a quadrature."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpyro.distributions import biject_to

from volform.compilation import QUICK, Compiled
from volform.models.model_distances import ModelDistance

_AT_ONCE = 200  # quadratures at once, which bounds the memory
_TERMS = 25  # of a Chebyshev series in a cell and as much again on either side
_ORDERS = 8  # of derivatives: Laplace's second order takes five of the distance
_REACH = float(np.arcsinh(400.0))  # of the table, in t
_WIDTHS = (0.25, 0.1)  # of cells in t, the second where the first is too wide
_BETWEEN = np.array([-0.5, -0.27, 0.04, 0.31, 0.5])  # where series are checked, in widths
# Error of log d: a tenth of that of the quadrature in third derivatives, 25^3 times as large.
_TOLERANCE = 3e-11
# Of the prior outside of the table: far from the base, and near it, where a power is right.
_FARTHER, _NEARER = 1e-6, 1e-3


class TabulatedDistance(eqx.Module):
    """A signed distance as Chebyshev series on cells of `t = arcsinh(u - start)`.

    u is the unconstrained coordinate. Of a base at an end the logarithm is kept, which is smooth
    there. Each series is of a range twice as wide as its cell, so that its derivatives keep their
    digits. Beyond the table it goes on along a line in u: as a power of the value does.

    Attributes:
        support: of the value.
        start: u at the middle.
        low: t at the lower end.
        width: of a cell in t.
        series: coefficients of each derivative on each cell, shape (orders, cells, terms).
        slopes: derivatives in u at both ends.
        sign: of the distance where its logarithm is kept, else zero.
    """

    support: Any
    start: Float[Array, ""]
    low: Float[Array, ""]
    width: Float[Array, ""]
    series: Float[Array, "k m n"]
    slopes: Float[Array, "2"]
    sign: Float[Array, ""]

    def signed(self, value: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The signed distance, and its derivative."""
        return jax.value_and_grad(self.quick)(value)

    def quick(self, value: Float[Array, ""]) -> Float[Array, ""]:
        """The signed distance."""
        u = biject_to(self.support).inv(value)
        cells = self.series.shape[1]
        high = self.low + cells * self.width
        t = jnp.clip(jnp.arcsinh(u - self.start), self.low, high)
        place = (t - self.low) / self.width
        cell = jnp.clip(jax.lax.stop_gradient(place).astype(int), 0, cells - 1)
        kept = _sum(0, self.series, cell, place - cell.astype(place.dtype) - 0.5)
        beyond = u - self.start - jnp.sinh(t)  # zero but for rounding inside of the table
        is_beyond = (t <= self.low) | (t >= high)
        slope = jnp.where(beyond < 0.0, self.slopes[0], self.slopes[1])
        kept += jnp.where(is_beyond, slope * beyond, 0.0)
        is_log = self.sign != 0.0
        return jnp.where(is_log, self.sign * jnp.exp(jnp.where(is_log, kept, 0.0)), kept)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sum(
    order: int, series: Float[Array, "k m n"], cell: Int[Array, ""], x: Float[Array, ""]
) -> Float[Array, ""]:
    """A derivative of a Chebyshev series at x: one short program for each order."""
    degrees = jnp.arange(series.shape[2], dtype=x.dtype)
    return series[order, cell] @ jnp.cos(degrees * jnp.arccos(x))


@_sum.defjvp
def _(order: int, primals: Any, tangents: Any) -> Any:
    value, is_last = _sum(order, *primals), order + 1 == len(primals[0])
    slope = jnp.full_like(value, jnp.nan) if is_last else _sum(order + 1, *primals)
    return value, slope * tangents[2]


def tabulated(
    distance: ModelDistance, support: Any, start: Any, rate: Any, is_two_sided: bool
) -> TabulatedDistance | None:
    """The distance in a table, to 3e-11; None where its numbers do not allow that.

    Args:
        distance: of which nothing is traced.
        support: of the value.
        start: a value in the middle.
        rate: of the prior, of which hardly anything may be outside of the table.
        is_two_sided: whether the base is inside the support.
    """
    middle = float(biject_to(support).inv(jnp.asarray(start, float)))
    for width in _WIDTHS:
        cells = 2 * int(np.ceil(_REACH / width))
        centers = width * (np.arange(cells) - 0.5 * (cells - 1))
        kept, series, sign = _series(distance, support, middle, centers, width, is_two_sided)
        if kept is None:
            continue
        low, high = kept
        ends = [_value_and_slope(series[i], x) for i, x in ((low, -0.5), (high - 1, 0.5))]
        edges = width * (np.array([low, high]) - 0.5 * cells)
        reached = [float(np.exp(v) if sign else abs(v)) for v, _ in ends]
        if _is_enough(reached, float(rate), is_two_sided):
            slopes = [slope / width / np.cosh(t) for (_, slope), t in zip(ends, edges, strict=True)]
            each = _derivatives(series[low:high])
            numbers = middle, edges[0], width, each, np.array(slopes), sign
            return TabulatedDistance(support, *(jnp.asarray(x) for x in numbers))
    return None


def _is_enough(reached: list[float], rate: float, is_two_sided: bool) -> bool:
    """Tell whether hardly anything of the prior lies beyond these distances."""
    left_out = [float(np.exp(-rate * d)) for d in reached]
    if is_two_sided:
        return max(left_out) < _FARTHER
    return min(left_out) < _FARTHER and 1.0 - max(left_out) < _NEARER


def _series(
    distance: ModelDistance,
    support: Any,
    middle: float,
    centers: Float[np.ndarray, " m"],
    width: float,
    is_two_sided: bool,
) -> tuple[tuple[int, int] | None, np.ndarray, float]:
    """The cells around the middle whose series are right, all series, and the sign of logs."""
    nodes = np.cos(np.pi * (np.arange(_TERMS) + 0.5) / _TERMS)
    x = np.concatenate([nodes, _BETWEEN])
    u = middle + np.sinh(centers[:, None] + width * x)
    signed = np.asarray(_signed_in_u(distance, support, u.ravel())).reshape(u.shape)
    sign = 0.0 if is_two_sided else float(np.sign(signed[len(centers) // 2, 0]))
    waves, between = (np.polynomial.chebyshev.chebvander(x, _TERMS - 1) for x in (nodes, _BETWEEN))
    with np.errstate(invalid="ignore", divide="ignore"):  # of distances that are none, far out
        wanted = np.log(sign * signed) if sign else signed
        series = wanted[:, :_TERMS] @ waves * (2.0 / _TERMS)
        series[:, 0] *= 0.5
        found = series @ between.T
    holds = np.all(np.abs(found - wanted[:, _TERMS:]) <= _TOLERANCE, axis=1)
    half = len(centers) // 2
    low = half - int(np.cumprod(holds[:half][::-1]).sum())
    high = half + int(np.cumprod(holds[half:]).sum())
    return ((low, high) if low < half < high else None), series, sign


def _derivatives(series: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "k m n"]:
    each = [series]
    for _ in range(_ORDERS):
        slope = np.polynomial.chebyshev.chebder(each[-1], axis=1)
        each.append(np.pad(slope, ((0, 0), (0, 1))))
    return np.array(each)


def _value_and_slope(series: np.ndarray, x: float) -> tuple[float, float]:
    slope = np.polynomial.chebyshev.chebder(series)
    return tuple(float(np.polynomial.chebyshev.chebval(x, c)) for c in (series, slope))  # pyright: ignore[reportReturnType]


def _in_u(distance: ModelDistance, support: Any, u: Float[Array, " n"]) -> Float[Array, " n"]:
    chart = biject_to(support)
    return jax.lax.map(lambda u: distance.signed(chart(u))[0], u, batch_size=_AT_ONCE)


_signed_in_u = Compiled(_in_u, QUICK)

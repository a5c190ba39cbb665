"""Distances of the models of a family from a simpler one, `sqrt(2 KL)`, and their slopes."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, Bool, Float
from numpyro.distributions import biject_to
from numpyro.distributions.distribution import validation_enabled

from volform.errors import ModelError
from volform.geometry.score_quadrature import has_quadrature, line_nodes
from volform.geometry.scores import unwrapped

_NODES = 202  # on each side of the mode: the divergence of a Student t from a normal to 1e-13
_NEAR = 0.1  # distance below which 2 KL loses digits (2e-16 / _NEAR^2), and is integrated instead
# Steps from a start, in unconstrained coordinates, at which distances are looked at.
_STEPS = 2.0 ** np.arange(-2.0, 10.0)
_AT = np.concatenate([-_STEPS[::-1], [0.0], _STEPS])
_START = len(_STEPS)
_ENOUGH = 1e-4  # of the distance of `upper`, below which a way to the base ends
_CONVERGED = 0.03  # relative change over the last doubling, below which a distance has a limit
_NEARBY = (-2.0, -1.0, 1.0, 2.0)  # places close by, where distances differ by rounding
_NOISE = 0.01  # relative rounding of a distance above which it is not told
_LOST = 1e-6  # mass outside of the base's support that is no rounding
_HELD = 1e-2  # mass by which the nodes may miss a family
_LOG_2_PI = float(np.log(2.0 * np.pi))
# Gauss-Legendre on (0, 1): of the second derivative over a stretch as short as _NEAR.
_POINTS, _WEIGHTS = (0.5 * x for x in np.polynomial.legendre.leggauss(12))
_POINTS = _POINTS + 0.5


class ModelDistance(eqx.Module):
    """Distance of `family(value)` from a base model, `sqrt(2 KL(family(value) || base))`.

    Attributes:
        family: from a value, one number, to a NumPyro distribution.
        base: the value of the base model, or its distribution.
        is_limit: whether the base is a normal distribution of scale zero. The divergence is then
            infinite, and the distance its limit up to a factor, `sqrt(E |y - base|^2)`.
    """

    family: Callable[[Any], dist.Distribution]
    base: Any
    is_limit: bool = eqx.field(static=True)

    def signed(self, value: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The distance, negative below a base value inside the support, and its derivative.

        Near the base, where the divergence is a difference of nearly equal numbers, both are
        integrals of its second derivative: `KL = delta^2 int_0^1 (1 - s) KL''(base + s delta) ds`.
        """
        if self.is_limit:
            return jax.value_and_grad(self._spread)(value)
        two_kl, slope = jax.value_and_grad(self._two_kl)(value)
        if isinstance(self.base, dist.Distribution):
            # An end of the support: the derivative of the root at zero is never asked for.
            positive = two_kl > 0.0
            root = jnp.sqrt(jnp.where(positive, two_kl, 1.0))
            return jnp.where(positive, root, 0.0), 0.5 * slope / root
        delta = value - jnp.asarray(self.base, value.dtype)
        near = jnp.isfinite(delta) & (two_kl < _NEAR**2)
        root = jnp.sqrt(jnp.where(near, 1.0, two_kl))
        side = jnp.where(delta < 0.0, -1.0, 1.0)
        short = jnp.where(near, delta, 0.0)
        steps, weights = (jnp.asarray(x, value.dtype) for x in (_POINTS, _WEIGHTS))
        bends = jax.vmap(jax.grad(jax.grad(self._two_kl)))(value - (1.0 - steps) * short)
        bends = jnp.where(near, bends, 1.0)
        scale = jnp.sqrt(jnp.sum(weights * (1.0 - steps) * bends))
        signed = jnp.where(near, delta * scale, side * root)
        slope = 0.5 * side * slope / root
        return signed, jnp.where(near, 0.5 * jnp.sum(weights * bends) / scale, slope)

    def quick(self, value: Float[Array, ""]) -> Float[Array, ""]:
        """The signed distance, to half of the digits where it is small, and a tenth of the cost."""
        if self.is_limit:
            return self._spread(value)
        root = jnp.sqrt(jnp.maximum(self._two_kl(value), 0.0))
        if isinstance(self.base, dist.Distribution):
            return root
        return jnp.where(value < jnp.asarray(self.base, value.dtype), -root, root)

    def _two_kl(self, value: Float[Array, ""]) -> Float[Array, ""]:
        return 2.0 * divergence(self.family(value), self.base_model)

    def _spread(self, value: Float[Array, ""]) -> Float[Array, ""]:
        fn, base = _core(self.family(value)), _core(self.base_model)
        return jnp.sqrt(jnp.sum(fn.scale**2 + (fn.loc - base.loc) ** 2))

    @property
    def base_model(self) -> dist.Distribution:
        """The distribution of the base model."""
        return base_model(self.family, self.base)


class Way(NamedTuple):
    """Distances on the way from a start to both ends of the support.

    Attributes:
        u: unconstrained coordinates, increasing.
        rising: the signed distance there, times the sign that makes it increase; infinite beyond
            what the numbers of the family can tell.
        ends: its limits at both ends, infinite where it has none.
        sign: that sign.
        is_ordered: whether it increases.
        beyond: the distance of the start.
    """

    u: Float[Array, " n"]
    rising: Float[Array, " n"]
    ends: tuple[Float[Array, ""], Float[Array, ""]]
    sign: Float[Array, ""]
    is_ordered: Bool[Array, ""]
    beyond: Float[Array, ""]


class Quick(Protocol):
    """A distance whose value is had without its slope."""

    def quick(self, value: Float[Array, ""]) -> Float[Array, ""]:
        """The signed distance."""
        ...


def way_of(distance: Quick, support: Any, start: Any, sign: Any, is_two_sided: Any) -> Way:
    """Distances on the way from `start` to both ends of the support; `sign` is found for None."""
    chart = biject_to(support)
    u = chart.inv(jnp.asarray(start, jnp.result_type(float)))
    u = u + jnp.asarray(_AT, u.dtype)
    value = chart(u)
    value = value.at[_START].set(start)
    signed = jax.vmap(distance.quick)(value)
    rises = is_two_sided | (signed[_START + 1] > signed[_START - 1])
    sign = jnp.where(rises, 1.0, -1.0).astype(u.dtype) if sign is None else sign
    rising = sign * signed
    moves = jnp.diff(value) > 0.0  # which values do not that are rounded to a bound
    moves = jnp.concatenate([moves[:_START], jnp.array([True]), moves[_START:]])
    usable = moves & jnp.isfinite(rising) & jnp.isfinite(value)
    # Closed forms cancel far out, as those of the gamma function do: how much is seen close by.
    apart = 64.0 * jnp.finfo(u.dtype).eps * jnp.maximum(jnp.abs(u), 1.0)
    nearby = [jax.vmap(distance.quick)(chart(u + step * apart)) for step in _NEARBY]
    noise = jnp.max(jnp.abs(jnp.stack(nearby) - signed), 0)
    told = noise <= _NOISE * jnp.maximum(jnp.abs(rising), jnp.abs(rising[_START]))
    usable &= told | jnp.asarray(_AT == 0.0)
    # At a base that is an end the distance falls to zero, and then to rounding.
    usable &= is_two_sided | (jnp.abs(rising) > _ENOUGH * jnp.abs(rising[_START]))
    low, high = _outwards(usable[_START::-1])[::-1], _outwards(usable[_START:])
    usable = jnp.concatenate([low, high[1:]])
    outside = jnp.where(jnp.asarray(_AT) < 0.0, -jnp.inf, jnp.inf).astype(u.dtype)
    rising = jnp.where(usable, rising, outside)
    gaps, rounding = jnp.diff(rising), 1e-6 * jnp.abs(rising[1:]) + noise[1:] + noise[:-1]
    is_ordered = jnp.all((gaps >= -rounding) | ~(usable[1:] & usable[:-1]))
    ends = _limit(rising[_START::-1], low[::-1]), _limit(rising[_START:], high)
    beyond = jnp.abs(rising[_START])
    return Way(u, jax.lax.cummax(rising), ends, sign, is_ordered, beyond)


def _outwards(usable: Bool[Array, " n"]) -> Bool[Array, " n"]:
    """Up to the first that is not."""
    return jnp.cumprod(usable.astype(int)).astype(bool)


def _limit(rising: Float[Array, " n"], usable: Bool[Array, " n"]) -> Float[Array, ""]:
    last = jnp.sum(usable) - 1
    then, before = rising[last], rising[jnp.maximum(last - 1, 0)]
    is_there = jnp.abs(then - before) <= _CONVERGED * jnp.abs(then)
    return jnp.where(is_there, then, jnp.sign(then) * jnp.inf)


def base_model(family: Callable[[Any], dist.Distribution], base: Any) -> dist.Distribution:
    """The distribution of a base, also where it is a limit that NumPyro's checks refuse."""
    if isinstance(base, dist.Distribution):
        return base
    with validation_enabled(False):
        return family(base)


def is_point(fn: Any) -> bool:
    """Tell whether a model is a normal distribution of scale zero, which is known."""
    core = _core(fn)
    if not isinstance(core, dist.Normal) or isinstance(core.scale, Tracer):
        return False
    return bool(np.all(np.asarray(core.scale) == 0.0))


def _core(fn: Any) -> Any:
    """The distribution under wrappers, and under charts that are the same for all of a family."""
    fn = unwrapped(fn)
    while isinstance(fn, dist.TransformedDistribution) and not jax.tree.leaves(fn.transforms):
        fn = unwrapped(fn.base_dist)
    return fn


def divergence(fn: Any, base: Any) -> Float[Array, ""]:
    """Divergence of Kullback and Leibler `KL(fn || base)`, summed over the batch.

    By NumPyro's closed form where it has one, else by enumeration of a finite support, or by
    quadrature on the line; where the two are close of `log r + 1 / r - 1`, r the ratio of the
    densities, which is nowhere negative and keeps its digits.

    Raises:
        ModelError: of other families.
    """
    fn, base = unwrapped(fn), unwrapped(base)
    charts = [getattr(x, "transforms", None) for x in (fn, base)]
    if charts[0] and charts[1] and _are_one(*charts):  # which change nothing
        return divergence(fn.base_dist, base.base_dist)
    try:
        return jnp.sum(dist.kl_divergence(fn, base))
    except NotImplementedError:
        pass
    if fn.has_enumerate_support and base.has_enumerate_support:
        return _by_enumeration(fn, base)
    if has_quadrature(fn) and has_quadrature(base):
        return _by_quadrature(fn, base)
    raise ModelError(
        f"The divergence of `family`, {type(fn).__name__}, from the base model, "
        f"{type(base).__name__}, has no closed form in NumPyro, and these are no densities on the "
        "line; register one by `numpyro.distributions.kl.kl_divergence.register`."
    )


def is_by_quadrature(fn: Any, base: Any) -> bool:
    """Tell whether `divergence` has no closed form and is no sum over a finite support."""
    fn, base = unwrapped(fn), unwrapped(base)
    charts = [getattr(x, "transforms", None) for x in (fn, base)]
    if charts[0] and charts[1] and _are_one(*charts):
        return is_by_quadrature(fn.base_dist, base.base_dist)
    try:
        jax.eval_shape(lambda: dist.kl_divergence(fn, base))
    except NotImplementedError:
        return not (fn.has_enumerate_support and base.has_enumerate_support)
    return False


def _are_one(a: Any, b: Any) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and not jax.tree.leaves(a)


def _by_enumeration(fn: Any, base: Any) -> Float[Array, ""]:
    support = fn.enumerate_support(expand=True)
    log_p, log_q = fn.log_prob(support), base.log_prob(support)
    is_there = log_p > -jnp.inf
    gap = jnp.where(is_there, log_p, 0.0) - jnp.where(is_there, log_q, 0.0)
    return jnp.sum(jnp.exp(log_p) * gap)


def _log_slopes(chart: Any, t: Array, x: Array) -> Array:
    return jax.vmap(chart.log_abs_det_jacobian)(t, x)


def _by_quadrature(fn: Any, base: Any) -> Float[Array, ""]:
    t, dt = line_nodes(fn, _NODES)
    chart = biject_to(fn.support)

    def at(fn: Any, base: Any, t: Array) -> tuple[Array, Array, Array]:
        x = jax.vmap(chart)(t)
        log_p, log_q = fn.log_prob(x), base.log_prob(x)
        return log_p, log_p - log_q, dt * jnp.exp(log_p + _log_slopes(chart, t, x))

    # Far out the weights are zero, and what they multiply infinite, or its derivatives are: such
    # nodes are taken elsewhere, since zero times an infinite derivative is none.
    still = jax.lax.stop_gradient((fn, base))
    _, gap, weights = at(*still, t)
    holds = (weights > 0.0) & jnp.isfinite(gap)
    safe = jnp.take_along_axis(t, jnp.argmax(jnp.where(holds, weights, 0.0), 0)[None], 0)
    # Where the base has no density the divergence is infinite; it is not told where the nodes do
    # not hold the family, as of a mixture.
    outside = (weights > 0.0) & ((gap == jnp.inf) | ~base.support(jax.vmap(chart)(t)))
    is_outside = jnp.sum(jnp.where(outside, weights, 0.0)) > _LOST
    is_held = jnp.all(jnp.abs(jnp.sum(jnp.where(weights > 0.0, weights, 0.0), 0) - 1.0) < _HELD)
    log_p, gap, weights = at(fn, base, jnp.where(holds, t, safe))
    p, gap = jnp.where(holds, weights, 0.0), jnp.where(holds, gap, 0.0)
    plain = jnp.sum(p * gap)
    if isinstance(base, dist.Normal):  # whose part is known, however slowly the tails of fn fall
        log_p = jnp.where(holds, log_p, 0.0)
        scale = jnp.asarray(base.scale)
        spread = (fn.variance + (fn.mean - base.loc) ** 2) / scale**2
        plain = jnp.sum(p * log_p)
        plain += jnp.sum(0.5 * spread + jnp.log(scale)) + 0.5 * spread.size * _LOG_2_PI
    ratio = jnp.expm1(-jnp.maximum(gap, -1.0))
    beyond = jnp.where(gap < -1.0, p * jnp.exp(-jnp.maximum(gap, -600.0)) - p, p * ratio)
    # Only of densities that are close do the nodes of one hold all of the other's mass.
    found = jnp.where(plain < _NEAR**2, jnp.sum(p * gap + beyond), plain)
    return jnp.where(is_held, jnp.where(is_outside, jnp.inf, found), jnp.nan)

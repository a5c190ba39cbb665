"""Priors that are exponential in the distance from a simpler model."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, Bool, Float
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform

from volform.checks import is_positive_number
from volform.compilation import QUICK, STEADY, Compiled
from volform.errors import ModelError
from volform.models.distance_tables import TabulatedDistance, tabulated
from volform.models.hidden_leaves import HiddenLeaves
from volform.models.line_laws import bisected
from volform.models.model_distances import (
    ModelDistance,
    base_model,
    is_by_quadrature,
    is_point,
    way_of,
)

AnyDistance = ModelDistance | TabulatedDistance
_BESIDE = 0.25  # unconstrained distance from the base of values on both sides
_CLOSE = 32  # halvings of a step before one of Newton's: of a step of 4 to 1e-9, and that squared
_HALVINGS = 60
_AT_ONCE = 200  # values at once, which bounds the memory


class DistanceTransform(Transform):
    """The value of a family as a function of its signed distance from the base model.

    The inverse is `sqrt(2 KL)` in closed form, or by quadrature in a table; forwards it is solved
    for by bisection, to rounding.

    Args:
        distance: the distance.
        support: of the value.
        start: a value inside the support.
        sign: 1 where the distance increases with the value, else -1.
        is_two_sided: whether the base is inside the support.
    """

    def __init__(
        self, distance: AnyDistance, support: Any, start: Any, sign: Any, is_two_sided: bool
    ):
        self._hidden, self._support = HiddenLeaves.of(distance), support
        self._start, self._sign, self._is_two_sided = start, sign, is_two_sided

    @property
    def distance(self) -> AnyDistance:
        """The distance."""
        return self._hidden.shown()

    @property
    def domain(self) -> Any:
        """The line for a base inside the support, else the half line."""
        return constraints.real if self._is_two_sided else constraints.positive

    @property
    def codomain(self) -> Any:
        """The support of the value."""
        return self._support

    @property
    def sign(self) -> Any:
        """1, or -1 where the distance decreases."""
        return self._sign

    def __call__(self, x: Any) -> Any:
        """Values at signed distances."""
        given = jnp.ravel(jnp.asarray(x, jnp.result_type(float)))
        facts = self._support, self._start, self._sign, self._is_two_sided
        return _values_at(self.distance, *facts, given).reshape(jnp.shape(x))

    def _inverse(self, y: Any) -> Any:
        return self._at(y)[0]

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        """`-log |d distance / d value|`."""
        return -jnp.log(jnp.abs(self._at(y)[1]))

    def _at(self, y: Any) -> tuple[Array, Array]:
        y = jnp.asarray(y, jnp.result_type(float))
        signed, slope = _signed_at(self.distance, jnp.ravel(y))
        return signed.reshape(y.shape), slope.reshape(y.shape)

    def tree_flatten(self) -> Any:
        """Arrays, and what is none."""
        names = ("_hidden", "_support", "_start", "_sign")
        static = {"_is_two_sided": self._is_two_sided}
        return tuple(getattr(self, name) for name in names), (names, static)


def _signed(distance: AnyDistance, values: Float[Array, " n"]) -> Any:
    return _mapped(distance.signed, values)


def _mapped(f: Callable[[Any], Any], x: Float[Array, " n"]) -> Any:
    """`jax.vmap`, in pieces of many: jaxlib 0.10 hangs on factors of 4,000 matrices in a loop."""
    return jax.vmap(f)(x) if x.size <= _AT_ONCE else jax.lax.map(f, x, batch_size=_AT_ONCE)


_signed_at = Compiled(_signed, QUICK)


def _solved(
    distance: AnyDistance,
    support: Any,
    start: Any,
    sign: Any,
    is_two_sided: bool,
    given: Float[Array, " n"],
) -> Float[Array, " n"]:
    chart = biject_to(support)
    way = way_of(distance, support, start, sign, is_two_sided)

    def solved(given: Float[Array, ""]) -> Float[Array, ""]:
        cell = jnp.clip(jnp.searchsorted(way.rising, sign * given), 1, way.u.size - 1)

        def is_below(u: Float[Array, ""]) -> Bool[Array, ""]:
            return sign * distance.quick(chart(u)) < sign * given

        middle = bisected(is_below, way.u[cell - 1], way.u[cell], _CLOSE)
        value = jax.lax.stop_gradient(chart(middle))
        # A step of Newton's, with the derivatives in the distance and in what the family holds.
        found, slope = distance.signed(value)
        moved = value + (given - found) / jax.lax.stop_gradient(slope)
        return jnp.where(support(moved), moved, value)

    return _mapped(solved, given)


_values_at = Compiled(_solved, STEADY)


def PCPrior(
    family: Callable[[Any], dist.Distribution],
    base: Any,
    upper: Any,
    tail: Any,
    *,
    support: constraints.Constraint = constraints.positive,
) -> dist.Distribution:
    """Penalized-complexity prior: exponential in the distance from a simpler model.

    `p(v) ~ rate exp(-rate d(v)) |d'(v)|`, `d(v) = sqrt(2 KL(family(v) || base))`, with the rate at
    which `P(d > d(upper)) = tail`. It is invariant as a volume is: the same law in every
    parametrization of the family. For the scale of a normal distribution with base 0 it is the
    exponential distribution. Where d is bounded it is truncated; where the base is inside the
    support both sides have the same height at it. Near a base value, `|d'|` is the root of the
    Fisher information.

    Args:
        family: from a value, one number, to a NumPyro distribution.
        base: the value of the base model, inside the support or at an end of it, or its
            distribution, at an end. A normal base of scale zero is taken as a limit, of all other
            families the divergence from the base should be finite.
        upper: a value that few models should be farther away than.
        tail: the probability of these, between 0 and 1.
        support: NumPyro constraint of the value.

    Returns:
        A NumPyro distribution, normalized, with a sampler: the `TransformedDistribution` of a
        signed distance. Evaluations cost one divergence of the family each; where it is neither
        closed in NumPyro nor of a finite support, one polynomial, of a table that is computed once
        by some 6,000 quadratures; quadratures themselves, and forty of them for a draw, where what
        `family` holds is traced, in single precision, or where the table is not right to 3e-11.

    Raises:
        ModelError: when `upper` or `tail` are outside their ranges, when the divergence at `upper`
            is not finite and positive or unknown, when the distance is not monotone on either side
            of the base, or bounded so that more than `tail` is beyond `upper` at every rate.

    References:
        Simpson, Rue, Riebler, Martins & Sorbye (2017), Penalising model component complexity,
        https://doi.org/10.1214/16-STS576.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> prior = vf.PCPrior(lambda sigma: dist.Normal(0.0, sigma), base=0.0, upper=2.0, tail=0.05)
    >>> float(prior.log_prob(1.0))  # Exponential(-log(0.05) / 2)
    -1.0938...
    """
    _require_arguments(family, base, upper, tail, support)
    with jax.ensure_compile_time_eval():  # of constants, also inside `jit`
        model = base_model(family, base)
        base = base if isinstance(base, dist.Distribution) else jnp.asarray(base, float)
        distance = ModelDistance(family, base, is_point(model))
        is_two_sided = not distance.is_limit and _is_inside(base, support)
        is_known = not isinstance(upper, Tracer)
        start = jnp.asarray(upper, float) if is_known else biject_to(support)(jnp.zeros(()))
        facts = _facts_of(distance, support, start, is_two_sided)
    if not _is_traced(facts):
        facts = jax.tree.map(np.asarray, facts)  # which stay known inside `jit`
        _require_distance(facts)
        with jax.ensure_compile_time_eval():
            _require_slopes(distance, support, start, is_two_sided)
    if not is_known:
        facts = facts._replace(beyond=jnp.abs(_signed_at(distance, jnp.reshape(upper, 1))[0][0]))
    rate = _rate(facts, jnp.asarray(tail, facts.beyond.dtype), is_two_sided)
    is_still = not distance.is_limit and not _is_traced(start, rate, facts)
    if is_still and is_by_quadrature(family(start), model):
        with jax.ensure_compile_time_eval():
            table = tabulated(distance, support, start, rate, is_two_sided)
        distance = distance if table is None else table
    transform = DistanceTransform(distance, support, start, facts.sign, is_two_sided)
    return dist.TransformedDistribution(_of_distance(facts, rate, is_two_sided), transform)


def _is_traced(*values: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def _is_inside(base: Any, support: Any) -> bool:
    if isinstance(base, dist.Distribution):
        return False
    return bool(jnp.isfinite(biject_to(support).inv(base)))


class _Facts(NamedTuple):
    """Facts of a distance that its prior depends on.

    Attributes:
        beyond: the distance of `upper`.
        sign: 1, or -1 where it decreases with the value.
        ends: distances at the lower and the upper end of the support.
        far: that at the end which is not the base.
        is_ordered: whether it is monotone.
    """

    beyond: Float[Array, ""]
    sign: Float[Array, ""]
    ends: tuple[Float[Array, ""], Float[Array, ""]]
    far: Float[Array, ""]
    is_ordered: Bool[Array, ""]


def _facts(
    distance: ModelDistance, support: Any, upper: Float[Array, ""], is_two_sided: bool
) -> _Facts:
    way = way_of(distance, support, upper, None, is_two_sided)
    ends = jnp.abs(way.ends[0]), jnp.abs(way.ends[1])
    far = jnp.where(way.sign > 0.0, ends[1], ends[0])
    return _Facts(way.beyond, way.sign, ends, far, way.is_ordered)


_facts_of = Compiled(_facts, QUICK)


def _sides(facts: _Facts, is_two_sided: bool) -> tuple[Float[Array, ""], ...]:
    """Limits of the distance on each side of the base."""
    return facts.ends if is_two_sided else (facts.far,)


def _rate(facts: _Facts, tail: Float[Array, ""], is_two_sided: bool) -> Float[Array, ""]:
    """The rate at which the probability beyond `upper` is `tail`."""
    sides, beyond = _sides(facts, is_two_sided), facts.beyond
    plain = -jnp.log(tail) / beyond
    if _are_unbounded(sides):
        return plain
    sides = [jnp.minimum(m, 1e6 * beyond) for m in sides]  # where all that is exponential is zero

    def excess(rate: Float[Array, ""], beyond: Any, tail: Any) -> Float[Array, ""]:
        """log of the probability beyond, less that of the tail."""
        whole = sum(-jnp.expm1(-rate * m) for m in sides)
        part = sum(jnp.exp(-rate * jnp.minimum(beyond, m)) - jnp.exp(-rate * m) for m in sides)
        return jnp.log(part / whole) - jnp.log(tail)

    # Truncation leaves less beyond, so that the plain rate is too high.
    still = jax.lax.stop_gradient((beyond, tail))
    most = sum(jnp.maximum(m - beyond, 0.0) for m in sides) / sum(sides)
    is_known = not isinstance(most, Tracer) and not isinstance(tail, Tracer)
    if is_known and not tail < most:
        raise ModelError(
            f"`tail` of PCPrior is {float(tail):.3g}, but the distance from the base is bounded, "
            f"and an even law of it has {float(most):.3g} beyond `upper`; take less, or "
            "an `upper` nearer to the base."
        )

    most_rate = jax.lax.stop_gradient(plain)
    rate = bisected(lambda r: excess(r, *still) > 0.0, 0.0 * still[0], most_rate, _HALVINGS)
    slope = jax.grad(excess)(rate, *still)
    return rate - excess(rate, beyond, tail) / slope


def _are_unbounded(sides: tuple[Any, ...]) -> bool:
    return not any(isinstance(m, Tracer) for m in sides) and all(bool(m == jnp.inf) for m in sides)


def _of_distance(facts: _Facts, rate: Float[Array, ""], is_two_sided: bool) -> dist.Distribution:
    """The law of the signed distance."""
    sides = _sides(facts, is_two_sided)
    if _are_unbounded(sides):
        return dist.Laplace(0.0, 1.0 / rate) if is_two_sided else dist.Exponential(rate)
    # No end that is infinite: e^-200 of the mass is beyond.
    ends = [jnp.minimum(m, 200.0 / rate) for m in sides]
    low = -ends[0] if is_two_sided else 0.0 * rate
    return dist.TruncatedDistribution(dist.Laplace(0.0, 1.0 / rate), low, ends[-1])


def _require_arguments(family: Any, base: Any, upper: Any, tail: Any, support: Any) -> None:
    if not callable(family) or isinstance(family, dist.Distribution):
        raise ModelError(
            f"`family` of PCPrior is {family!r}; it should be a function from a value to a NumPyro "
            "distribution, such as `lambda sigma: dist.Normal(0.0, sigma)`."
        )
    if not isinstance(base, dist.Distribution) and (
        isinstance(base, Tracer) or np.asarray(base).dtype.kind not in "fiu" or np.ndim(base)
    ):
        raise ModelError(
            f"`base` of PCPrior is {base!r}; it should be one number that is known, the value of "
            "the base model, or a NumPyro distribution."
        )
    if not isinstance(support, constraints.Constraint) or support.event_dim or support.is_discrete:
        raise ModelError(
            f"`support` of PCPrior is {support!r}; it should be a NumPyro constraint of one real "
            "number, such as `constraints.interval(-1.0, 1.0)`."
        )
    if not isinstance(tail, Tracer) and not (is_positive_number(tail) and float(tail) < 1.0):
        raise ModelError(
            f"`tail` of PCPrior is {tail!r}; it should be a probability between 0 and 1, that of "
            "models farther from the base than `upper`."
        )
    if isinstance(upper, Tracer):
        return
    number = np.asarray(upper)
    if number.dtype.kind not in "fiu" or number.shape or not bool(support(number.astype(float))):
        raise ModelError(
            f"`upper` of PCPrior is {upper!r}; it should be one number inside the support, "
            f"{support}."
        )


def _require_distance(facts: _Facts) -> None:
    beyond = float(facts.beyond)
    if not (math.isfinite(beyond) and beyond > 0.0):
        raise ModelError(
            f"The distance of `upper` from the base of PCPrior is {beyond}; it should be finite "
            "and positive. A base that the family only tends to is a limit for normal families of "
            "scale zero; give other bases as a distribution, `base=dist.Normal(0.0, 1.0)`."
        )
    if not bool(facts.is_ordered):
        raise ModelError(
            "The distance from the `base` of PCPrior is not monotone on the support, as if the "
            "base were inside: give its value, and not its distribution, or a narrower `support`."
        )


def _require_slopes(distance: ModelDistance, support: Any, start: Any, is_two_sided: bool) -> None:
    """The distance and its slope, beyond the base and on both sides of it."""
    chart, values = biject_to(support), [start]
    if is_two_sided:
        u = chart.inv(jnp.asarray(distance.base, jnp.result_type(float)))
        values += [chart(u - _BESIDE), chart(u + _BESIDE)]
    for value in values:
        signed, slope = (np.asarray(x)[0] for x in _signed_at(distance, jnp.reshape(value, 1)))
        if not (np.isfinite(signed) and np.isfinite(slope) and slope != 0.0):
            raise ModelError(
                f"The distance from the `base` of PCPrior is {signed:.4g} with slope {slope:.4g} "
                f"at {float(value):.6g}; both should be finite, and on both sides of a base inside "
                "the support. Register the divergence by "
                "`numpyro.distributions.kl.kl_divergence.register`, or narrow `support`."
            )

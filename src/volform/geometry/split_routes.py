"""Information of families in two parts: of an event, and of the value given the event.

An event of probability P(z) informs by (dP)^2 / (P (1 - P)) = (d log P)^2 P / (1 - P).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from volform.errors import MetricError
from volform.geometry.scores import (
    Route,
    ScoreTangents,
    root_of,
    shifted,
    square,
    sum_to,
    weighted,
)


class AtZero(Route):
    """Zero-inflated and hurdle families: the event of a zero, and the rest of the base given none.

    With f the base, I_f = I(f(0)) + (1 - f(0)) I(x | x > 0), since what x tells is whether it is
    zero, and its value if not. So the family has I(P(0)) + (1 - P(0)) (I_f - I(f(0))) / (1 - f(0));
    a base with a density has f(0) = 0.

    Attributes:
        base: the route of the base.
    """

    base: Route

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Gram matrix of both parts."""
        move = move.elements()
        fn: Any = move.fn
        log_p, dlog_p = _log_probability_of_zero(fn, move.dfn)
        factor, within = -jnp.expm1(log_p), 0.0
        if fn.base_dist.support.is_discrete:
            log_f, dlog_f = _log_probability_of_zero(fn.base_dist, move.dfn.base_dist)
            factor = jnp.expm1(log_p) / jnp.expm1(log_f)
            within = square(_event(log_f, dlog_f, move.weight * factor))
        weight = jnp.broadcast_to(move.weight * factor, fn.batch_shape)
        base = ScoreTangents(None, None, None, fn.base_dist, move.dfn.base_dist, weight)
        whole = self.base.gram(base.reduced())
        return square(_event(log_p, dlog_p, move.weight)) + (whole - within)

    def root(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Root by the eigenvectors of G."""
        return root_of(self.gram(move))

    def __str__(self) -> str:
        return f"two parts, zero or not and {self.base}"


class Censored(Route):
    """A censored datum is an event, one that is not has the base for its family.

    Attributes:
        base: the route of the base.
        name: what to call the site in an error.
    """

    base: Route
    name: str = eqx.field(static=True)

    def gram(self, move: ScoreTangents) -> Float[Array, "d d"]:
        """Gram matrix of both parts."""
        return square(self.root(move))

    def root(self, move: ScoreTangents) -> Float[Array, "d m"]:
        """Events of the censored data, then the root of the base for the others."""
        move = move.elements()
        fn: Any = move.fn
        if move.x is None:
            raise MetricError(
                f"What a censored datum of `{self.name}`, {type(fn).__name__}, tells of its family "
                "depends on where it is censored, which a family alone does not say. Use "
                "`LikelihoodFisher()` or `JointFisher()`, which know the data."
            )
        happened = _is_event(fn, move.x)
        log_p, dlog_p = _log_prob_along(fn, move.dfn, move.x)
        log_p = jnp.where(happened, log_p, -1.0)
        events = _event(log_p, jnp.where(happened, dlog_p, 0.0), move.weight)
        weight = jnp.where(happened, 0.0, jnp.broadcast_to(move.weight, log_p.shape))
        base, dbase = _of_own_batch(fn.base_dist, move.dfn.base_dist)
        weight = sum_to(weight, base.batch_shape)
        seen = ScoreTangents(None, None, None, base, dbase, weight).reduced()
        return jnp.concatenate([events, self.base.root(seen)], -1)

    def __str__(self) -> str:
        return f"two parts, censored or not and {self.base}"


def _event(log_p: Array, dlog_p: Array, weight: Any) -> Float[Array, "d n"]:
    """d log P sqrt(P / (1 - P)) of each element; a sure event tells nothing."""
    is_open = log_p < 0.0
    log_p = jnp.where(is_open, log_p, -1.0)
    odds = jnp.where(is_open, jnp.exp(0.5 * log_p) / jnp.sqrt(-jnp.expm1(log_p)), 0.0)
    return weighted((odds * dlog_p)[..., None], weight)


def _log_prob_along(fn: Any, dfn: Any, x: Any) -> tuple[Array, Float[Array, "d *batch"]]:
    def slope(step: Any) -> Array:
        def moved(eps: Any) -> Array:
            return shifted(fn, jax.tree.map(lambda v: eps * v, step)).log_prob(x)

        return jax.jvp(moved, (0.0,), (1.0,))[1]

    return fn.log_prob(x), jax.vmap(slope)(dfn)


def _log_probability_of_zero(fn: Any, dfn: Any) -> tuple[Array, Float[Array, "d *batch"]]:
    kind = int if fn.support.is_discrete else float
    return _log_prob_along(fn, dfn, jnp.zeros(fn.batch_shape, jnp.result_type(kind)))


def _is_event(fn: Any, x: Any) -> Array:
    """Tell of each datum whether its likelihood is a probability rather than a density."""
    if not isinstance(fn, dist.IntervalCensoredDistribution):
        return fn.censored
    is_point = jnp.isclose(x[..., 0], x[..., 1])
    return fn.left_censored | fn.right_censored | ~is_point


def _of_own_batch(fn: Any, dfn: Any) -> tuple[Any, Any]:
    # NumPyro pads the parameters of the base to the rank of the flags, and not its batch shape
    def own(leaf: Any) -> Any:
        shape = jnp.shape(leaf)
        extra = max(0, len(shape) - len(fn.batch_shape))
        return jnp.reshape(leaf, shape[extra:]) if set(shape[:extra]) <= {1} else leaf

    return jax.tree.map(own, fn), jax.tree.map(jax.vmap(own), dfn)

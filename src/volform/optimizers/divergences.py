"""Divergences of Bregman, and of Kullback and Leibler."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jax.scipy.special import xlogy
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpyro.distributions import kl_divergence

from volform.checks import require_key
from volform.errors import OptimizerError
from volform.geometry import call_at, name_of
from volform.linalg import Point
from volform.optimizers.dissimilarities import Dissimilarity


class Bregman(Dissimilarity):
    """Divergence of Bregman, `D(u, w) = phi(u) - phi(w) - d phi(w) (u - w)`, of a convex phi.

    Args:
        generator: phi, from a point to a number, convex.
        inverse: the inverse of `d phi`, from covectors to points, where it is known: the slope of
            the convex conjugate. Mirror descent is then in closed form.

    References:
        Bregman (1967); Amari (2016), Information Geometry and Its Applications, chapter 1.

    >>> import jax.numpy as jnp, volform as vf
    >>> rho = vf.optimizers.Bregman(lambda x: jnp.sum(jnp.exp(x)))
    >>> round(float(rho(jnp.array([1.0]), jnp.array([0.0]))), 6)  # e - 2
    0.718282
    """

    generator: Callable[[Any], Float[Array, ""]]
    inverse: Callable[[Any], Any] | None = None

    def __check_init__(self) -> None:
        """Check that both are functions."""
        if not callable(self.generator) or not (self.inverse is None or callable(self.inverse)):
            raise OptimizerError(
                f"`generator` and `inverse` of Bregman are {self.generator!r} and "
                f"{self.inverse!r}; they should be functions: phi of a point, and the inverse of "
                "its slope."
            )

    def __call__(self, u: Point, w: Point) -> Float[Array, ""]:
        """`D(u, w)`."""
        value, slope = jax.value_and_grad(self.generator)(w)
        apart = jax.tree.map(jnp.subtract, u, w)
        along = jnp.vdot(ravel_pytree(slope)[0], ravel_pytree(apart)[0])
        return self.generator(u) - value - along

    @property
    def is_explicit(self) -> bool:
        """True with an inverse."""
        return self.inverse is not None

    def move(self, w: Point, covector: PyTree) -> Point:
        """The point u with `d phi(u) = d phi(w) + covector`."""
        if self.inverse is None:
            return super().move(w, covector)
        slope = jax.grad(self.generator)(w)
        return self.inverse(jax.tree.map(jnp.add, slope, covector))

    def __repr__(self) -> str:
        return f"Bregman({name_of(self.generator)})"


def log_sum_exp() -> Bregman:
    """Divergence of Bregman of the log-partition function of logits, `log sum exp u`.

    It is `KL(p_w || p_u)` of the categorical distributions with these logits: the arguments change
    places. Where logits are compared that differ by a constant it is zero.

    References:
        Amari (2016), Information Geometry and Its Applications, section 2.2.

    >>> import jax.numpy as jnp, volform as vf
    >>> rho = vf.optimizers.log_sum_exp()
    >>> round(float(rho(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0]))), 6)
    0.120115
    """
    return Bregman(jax.nn.logsumexp)


class NegativeEntropy(Bregman):
    """The divergence of Bregman that `negative_entropy` gives."""

    def __init__(self):
        super().__init__(_entropy)

    @property
    def is_explicit(self) -> bool:
        """True."""
        return True

    def contains(self, point: Point) -> Array:
        """Tell whether each row is a distribution, to rounding."""
        p = _rows(point)
        rounding = 16 * p.shape[-1] * jnp.finfo(p.dtype).eps
        return jnp.all(p >= 0.0) & jnp.all(jnp.abs(jnp.sum(p, -1) - 1.0) <= rounding)

    def move(self, w: Point, covector: PyTree) -> Point:
        """`w exp(covector) / Z`; a probability of zero stays."""
        return jax.nn.softmax(jnp.log(_rows(w)) + covector)


def negative_entropy() -> Bregman:
    """Divergence of Bregman of `sum p log p` on probabilities: that of Kullback and Leibler.

    Its mirror descent stays on the simplex and is the exponentiated gradient,
    `p <- p exp(-rate g) / Z`. The rows of an array, along its last axis, are distributions of their
    own: write a joint distribution as one row. Mirror descent refuses a start with other sums.

    References:
        Kivinen & Warmuth (1997), Exponentiated gradient versus gradient descent for linear
        predictors.

    >>> import jax.numpy as jnp, volform as vf
    >>> rho = vf.optimizers.negative_entropy()
    >>> round(float(rho(jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75]))), 6)
    0.143841
    """
    return NegativeEntropy()


def _rows(p: Any) -> Array:
    if not isinstance(p, jax.Array | np.ndarray) or p.ndim == 0:
        raise OptimizerError(
            f"`params` of negative_entropy are {jax.tree.map(jnp.shape, p)}; they should be one "
            "array of probabilities, whose rows along the last axis sum to one."
        )
    return jnp.asarray(p)


def _entropy(p: Float[Array, "*rows n"]) -> Float[Array, ""]:
    return jnp.sum(xlogy(_rows(p), p))


class KullbackLeibler(Dissimilarity):
    """Divergence of Kullback and Leibler, `KL(family(u) || family(w))`, summed over the batch.

    NumPyro's closed form where it has one; by the sum over a finite support; else over draws from
    `family(w)` as the mean of `r log r - r + 1`, r the ratio of the densities: never negative, and
    zero where they are equal.

    Args:
        family: from a point to a NumPyro distribution, called as by `volform.Fisher`.
        key: key of the draws, where they are needed.
        draws: number of them.

    References:
        Kullback & Leibler (1951), On information and sufficiency.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> rho = vf.optimizers.KullbackLeibler(dist.Normal)
    >>> float(rho((jnp.array(1.0), jnp.array(1.0)), (jnp.array(0.0), jnp.array(1.0))))
    0.5
    """

    family: Callable[..., dist.Distribution]
    key: PRNGKeyArray | None = None
    draws: int = eqx.field(static=True, default=1024)

    def __check_init__(self) -> None:
        """Check both."""
        if not callable(self.family):
            raise OptimizerError(
                f"`family` of KullbackLeibler is {self.family!r}; it should map a point to a "
                "NumPyro distribution, as `numpyro.distributions.Normal` does."
            )
        if self.key is not None:
            require_key(self.key, "key", "KullbackLeibler", OptimizerError)

    def __call__(self, u: Point, w: Point) -> Float[Array, ""]:
        """`KL(family(u) || family(w))`."""
        p, q = self._member(u), self._member(w)
        try:
            return jnp.sum(kl_divergence(p, q))
        except NotImplementedError:
            return self._summed(p, q)

    def _member(self, point: Point) -> Any:
        try:
            return call_at(self.family, point)
        except TypeError as error:
            raise OptimizerError(
                f"`family` of KullbackLeibler, {name_of(self.family)}, cannot be called at "
                f"`params`: {error}. It gets the entries of a dict by their names, those of a "
                "tuple one after the other, and anything else as it is."
            ) from error

    def contains(self, point: Point) -> Array:
        """Tell whether the arguments of the distribution are as NumPyro constrains them."""
        member, holds = self._member(point), jnp.ones((), bool)
        while member is not None:
            for name, constraint in member.arg_constraints.items():
                if name in vars(member) and not constraint.is_discrete:
                    value = getattr(member, name)
                    holds &= jnp.all(constraint(value)) & jnp.all(jnp.isfinite(value))
            member = getattr(member, "base_dist", None)
        return holds

    def _summed(self, p: Any, q: Any) -> Float[Array, ""]:
        if q.has_enumerate_support and not q.event_shape:
            x = q.enumerate_support(expand=True)
            a, b = p.log_prob(x), q.log_prob(x)
            return jnp.sum(jnp.exp(a) * (a - b))
        if self.key is None:
            raise OptimizerError(
                f"`family` of KullbackLeibler gives {type(q).__name__}, for which NumPyro has no "
                "closed form and whose support is not finite; give a `key` to estimate it by "
                "draws."
            )
        x = jax.lax.stop_gradient(q.sample(self.key, (self.draws,)))
        log_ratio = p.log_prob(x) - q.log_prob(x)
        return jnp.sum(jnp.mean(jnp.exp(log_ratio) * log_ratio - jnp.expm1(log_ratio), 0))

    def __repr__(self) -> str:
        return f"KullbackLeibler({name_of(self.family)})"

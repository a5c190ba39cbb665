"""Dissimilarities of two points as values: divergences of Bregman, Kullback and Leibler, distances.

Each is zero where its points are equal and positive elsewhere, and the Hessian at equal points is a
metric: the one in which small steps of a proximal point or of mirror descent are steepest.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import numpyro.distributions as dist
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jax.scipy.special import xlogy
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpyro.distributions import kl_divergence

from volform.checks import require_key
from volform.compilation import is_traced
from volform.errors import OptimizerError
from volform.geometry import Euclidean, Metric, call_at, is_symmetric, name_of, sharp
from volform.linalg import DenseOperator, Point
from volform.optimizers.update_checks import require_metric_function


class Dissimilarity(eqx.Module):
    """A dissimilarity `rho(u, w) >= 0` of two points, zero where they are equal.

    To define your own, subclass and write `__call__`.
    """

    @abc.abstractmethod
    def __call__(self, u: Point, w: Point) -> Float[Array, ""]:
        """`rho(u, w)`."""

    @property
    def metric(self) -> Metric:
        """The metric `d_u^2 rho(u, w)` at u = w.

        >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
        >>> rho = vf.optimizers.KullbackLeibler(dist.Normal)
        >>> rho.metric((jnp.array(0.0), jnp.array(2.0))).as_matrix().tolist()  # that of Fisher
        [[0.25, 0.0], [0.0, 0.5]]
        """
        return DissimilarityMetric(self)

    def move(self, w: Point, covector: PyTree) -> Point:
        """The point u with `d_u rho(u, w) = covector`, by Newton's method from w.

        Args:
            w: a point.
            covector: laid out like it. NaN comes back where no u was found.
        """
        start, unravel = ravel_pytree(w)
        wanted = ravel_pytree(covector)[0]
        # Newton's method from w goes by a step of the metric first; the rest in ten of them.
        method = optx.Newton(*_tolerances(start))

        def missed(u: Float[Array, " n"], _: Any) -> Float[Array, " n"]:
            return ravel_pytree(jax.grad(self.__call__)(unravel(u), w))[0] - wanted

        found = optx.root_find(missed, method, start, max_steps=64, throw=False)
        solved = found.result == optx.RESULTS.successful
        return unravel(jnp.where(solved, found.value, jnp.nan))


def _tolerances(x: Array) -> tuple[float, float]:
    rtol = 1e-12 if jnp.finfo(x.dtype).eps < 1e-10 else 1e-5
    return rtol, rtol


class DissimilarityMetric(Metric):
    """The Hessian of a dissimilarity at equal points, as a metric; its `.metric`."""

    dissimilarity: Dissimilarity

    def __call__(self, point: Point) -> lx.AbstractLinearOperator:
        """`d_u^2 rho(u, point)` at u = point."""
        return DenseOperator(_hessian(self.dissimilarity, point), point)

    def __repr__(self) -> str:
        return f"{self.dissimilarity}.metric"


@eqx.filter_jit
def _hessian(dissimilarity: Dissimilarity, point: Point) -> Float[Array, "n n"]:
    x, unravel = ravel_pytree(point)
    matrix = jax.hessian(lambda u: dissimilarity(unravel(u), point))(x)
    return 0.5 * (matrix + matrix.T)


@is_symmetric.register
def _(metric: DissimilarityMetric) -> bool:
    return True


class SquaredDistance(Dissimilarity):
    """Half the squared distance of Mahalanobis, `1/2 (u - w)^T G(w) (u - w)`.

    Args:
        metric: G, `Euclidean()` by default. Straight across the coordinates: where G is not
            constant in them, it is a squared distance of the metric to the second order only.

    >>> import jax.numpy as jnp, volform as vf
    >>> rho = vf.optimizers.SquaredDistance(4.0 * vf.Euclidean())
    >>> float(rho(jnp.array(3.0), jnp.array(1.0)))
    8.0
    """

    base: Metric

    def __init__(self, metric: Metric | None = None):
        self.base = Euclidean() if metric is None else metric
        require_metric_function(self.base, "metric", "SquaredDistance")

    def __call__(self, u: Point, w: Point) -> Float[Array, ""]:
        """`1/2 |u - w|^2` in G(w)."""
        apart = jax.tree.map(jnp.subtract, u, w)
        lowered = self.base(w).mv(apart)
        return 0.5 * jnp.vdot(ravel_pytree(apart)[0], ravel_pytree(lowered)[0])

    @property
    def metric(self) -> Metric:
        """G itself."""
        return self.base

    def move(self, w: Point, covector: PyTree) -> Point:
        """`w + G^-1 covector`."""
        return jax.tree.map(jnp.add, w, sharp(self.base, w, covector))

    def __repr__(self) -> str:
        return f"SquaredDistance({name_of(self.base)})"


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


def negative_entropy() -> Bregman:
    """Divergence of Bregman of `sum p log p` on probabilities: that of Kullback and Leibler.

    Its mirror descent stays on the simplex and is the exponentiated gradient,
    `p <- p exp(-rate g) / Z`.

    References:
        Kivinen & Warmuth (1997), Exponentiated gradient versus gradient descent for linear
        predictors.

    >>> import jax.numpy as jnp, volform as vf
    >>> rho = vf.optimizers.negative_entropy()
    >>> round(float(rho(jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75]))), 6)
    0.143841
    """
    return Bregman(_entropy, jax.nn.softmax)


def _entropy(p: Float[Array, " n"]) -> Float[Array, ""]:
    return jnp.sum(xlogy(p, p))


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
        p, q = call_at(self.family, u), call_at(self.family, w)
        try:
            return jnp.sum(kl_divergence(p, q))
        except NotImplementedError:
            return self._summed(p, q)

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


class PulledBack(Dissimilarity):
    """A dissimilarity of outputs as one of parameters, `rho(f(u), f(w))`.

    Args:
        dissimilarity: rho, of values of f.
        f: `f(params)`; with inputs `f(params, x)` for *one* input.
        inputs: examples along each leading axis, over which the mean is taken.

    >>> import jax.numpy as jnp, volform as vf
    >>> rho = vf.optimizers.PulledBack(vf.optimizers.SquaredDistance(), jnp.exp)
    >>> round(float(rho(jnp.log(3.0), jnp.log(1.0))), 6)
    2.0
    """

    dissimilarity: Dissimilarity
    f: Callable[..., Any]
    inputs: PyTree = None

    def __call__(self, u: Point, w: Point) -> Float[Array, ""]:
        """`rho(f(u), f(w))`, the mean of it over the inputs."""
        if self.inputs is None:
            return self.dissimilarity(self.f(u), self.f(w))
        each = jax.vmap(lambda x: self.dissimilarity(self.f(u, x), self.f(w, x)))(self.inputs)
        return jnp.mean(each)

    def __repr__(self) -> str:
        return f"PulledBack({self.dissimilarity}, {name_of(self.f)})"


def require_convex(dissimilarity: Dissimilarity, point: Point, function: str) -> None:
    """Check that the Hessian of a dissimilarity at a point is positive, where it can be seen.

    Raises:
        OptimizerError: when it is not: the generator of Bregman's is not convex there.
    """
    if is_traced(point):
        return
    matrix = np.asarray(dissimilarity.metric(point).as_matrix())
    lowest = np.linalg.eigvalsh(matrix)[0] if np.isfinite(matrix).all() else np.nan
    rounding = 1e3 * len(matrix) * np.finfo(matrix.dtype).eps * np.abs(matrix).max()
    if not lowest >= -rounding:
        raise OptimizerError(
            f"`dissimilarity` of {function}, {dissimilarity}, is not convex at `params`: its "
            f"Hessian has the eigenvalue {lowest:.2g} there. A generator should be convex, and "
            "the point inside of its domain."
        )

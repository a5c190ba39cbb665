"""Dissimilarities of two points as values: what they are, distances, and those of outputs.

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
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.compilation import is_traced
from volform.errors import OptimizerError
from volform.geometry import Euclidean, Metric, is_symmetric, name_of, sharp
from volform.linalg import DenseOperator, Point
from volform.optimizers.update_checks import (
    require_definite_at,
    require_matrix_fits,
    require_metric_function,
)


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

    @property
    def is_explicit(self) -> bool:
        """Tell whether `move` is in closed form, which needs no matrix."""
        return False

    def contains(self, point: Point) -> Array:
        """Tell whether a point is in the domain; a dissimilarity is finite in it."""
        return jnp.isfinite(self(point, point))

    def move(self, w: Point, covector: PyTree) -> Point:
        """The point u with `d_u rho(u, w) = covector`, by Newton's method from w.

        Each step is halved until the equation is better satisfied than before, in the domain.

        Args:
            w: a point.
            covector: laid out like it. NaN comes back where no u was found.
        """
        start, unravel = ravel_pytree(w)
        wanted = ravel_pytree(covector)[0]

        def missed(u: Float[Array, " n"]) -> Float[Array, " n"]:
            return ravel_pytree(jax.grad(self.__call__)(unravel(u), w))[0] - wanted

        def allowed(u: Float[Array, " n"]) -> Array:
            return self.contains(unravel(u)) & jnp.isfinite(self(unravel(u), w))

        return unravel(_root(missed, allowed, start))


_MOST_STEPS, _LEAST_FRACTION = 64, 1e-9


def _root(
    missed: Callable[[Array], Array], allowed: Callable[[Array], Array], start: Float[Array, " n"]
) -> Float[Array, " n"]:
    """The root of a gradient field by Newton's method with halved steps; NaN where none is found.

    Along directions that change nothing (a constant added to logits) no step is taken.
    """
    tolerance = 1e-12 if jnp.finfo(start.dtype).eps < 1e-10 else 1e-5

    def size(u: Array) -> Array:
        length = jnp.linalg.norm(missed(u))
        return jnp.where(allowed(u) & jnp.isfinite(length), length, jnp.inf)

    def improved(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        u, _, steps = carry
        slope = jax.jacfwd(missed)(u)
        diagonal = jnp.abs(jnp.diagonal(slope))
        unit = 1.0 / jnp.sqrt(jnp.where(diagonal > 0.0, diagonal, 1.0))
        scaled = 0.5 * jnp.outer(unit, unit) * (slope + slope.T)
        step = -unit * (jnp.linalg.pinv(scaled, hermitian=True) @ (unit * missed(u)))
        is_last = jnp.all(jnp.abs(step) <= tolerance * (1.0 + jnp.abs(u)))
        enough = (1.0 - 1e-4) * size(u)  # nearer by some of it: Armijo's condition

        def too_far(fraction: Array) -> Array:
            far = ~(size(u + fraction * step) <= enough) & (fraction > _LEAST_FRACTION)
            return far & ~is_last

        fraction = jax.lax.while_loop(too_far, lambda t: 0.5 * t, jnp.ones((), u.dtype))
        stuck = fraction <= _LEAST_FRACTION
        # Without a slope along what is missed, the least-norm step is short and solves nothing.
        left = jnp.linalg.norm(slope @ step + missed(u))
        solves = left <= tolerance**0.5 * (1.0 + jnp.linalg.norm(missed(start)))
        done = jnp.where(is_last & solves, 1, jnp.where(stuck | is_last, 2, 0))
        return u + fraction * step, done, steps + 1

    def should_continue(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[1] == 0) & (carry[2] < _MOST_STEPS)

    begin = (start, jnp.zeros((), int), jnp.zeros((), int))
    found, done, _ = jax.lax.while_loop(should_continue, improved, begin)
    return jnp.where((done == 1) & allowed(found), found, jnp.nan)


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

    def contains(self, point: Point) -> Array:
        """Tell whether a point is in the domain: all are."""
        return jnp.ones((), bool)

    @property
    def is_explicit(self) -> bool:
        """True."""
        return True

    @property
    def metric(self) -> Metric:
        """G itself."""
        return self.base

    def move(self, w: Point, covector: PyTree) -> Point:
        """`w + G^-1 covector`."""
        return jax.tree.map(jnp.add, w, sharp(self.base, w, covector))

    def __repr__(self) -> str:
        return f"SquaredDistance({name_of(self.base)})"


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

    def contains(self, point: Point) -> Array:
        """Tell whether the outputs are in the domain."""
        if self.inputs is None:
            return self.dissimilarity.contains(self.f(point))
        each = jax.vmap(lambda x: self.dissimilarity.contains(self.f(point, x)))(self.inputs)
        return jnp.all(each)

    def __repr__(self) -> str:
        return f"PulledBack({self.dissimilarity}, {name_of(self.f)})"


def require_convex(dissimilarity: Dissimilarity, point: Point, function: str) -> None:
    """Check a point of the domain, and that the Hessian there is positive, where it can be seen.

    Raises:
        OptimizerError: outside of the domain, and where the generator of Bregman's is not convex.
        SingularMetricError: where the metric of a squared distance is indefinite.
        SizeError: where the Hessian would not fit into memory.
    """
    if is_traced(point):
        return
    if not _contains(dissimilarity, point):
        raise OptimizerError(
            f"`params` of {function} are outside of the domain of {dissimilarity}: start inside of "
            "it, as with a positive scale, or with probabilities whose rows sum to one."
        )
    if isinstance(dissimilarity, SquaredDistance):
        base = dissimilarity.base
        require_definite_at(base, point, "dissimilarity", function, strictly=False)
    if dissimilarity.is_explicit:
        return
    x = ravel_pytree(point)[0]
    remedy = "give an `inverse` to `Bregman`, or take `SquaredDistance`, for steps in closed form"
    require_matrix_fits(x.size, x.dtype, function, remedy)
    matrix = np.asarray(dissimilarity.metric(point).as_matrix())
    lowest = np.linalg.eigvalsh(matrix)[0] if np.isfinite(matrix).all() else np.nan
    rounding = 1e3 * len(matrix) * np.finfo(matrix.dtype).eps * np.abs(matrix).max()
    if not lowest >= -rounding:
        raise OptimizerError(
            f"`dissimilarity` of {function}, {dissimilarity}, is not convex at `params`: its "
            f"Hessian has the eigenvalue {lowest:.2g} there. A generator should be convex, and "
            "the point inside of its domain."
        )


@eqx.filter_jit  # outside of it NumPyro's validation raises an error of its own
def _contains(dissimilarity: Dissimilarity, point: Point) -> Array:
    return dissimilarity.contains(point)

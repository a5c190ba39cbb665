"""The local expansion of -log q^G: gradient, Hessian, metric, spectrum of E = G^-1 H."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.compilation import Remembering, remembered, steady
from volform.geometry.fisher_routes import MonteCarlo
from volform.geometry.jacobians import lacks_forward_mode
from volform.linalg.generalized import cholesky_or_nan, generalized_eigh, solve_lower
from volform.linalg.structured import exact_logdet, whiten
from volform.models.posterior import Posterior

# Step of differences of the gradient, in standard deviations. Of a logistic curve by `odeint` with
# its tolerance of 1.4e-8 the Hessian is off by 3e-7, relative, with .01 to .2 alike: by the solver.
DIFFERENCE = 0.05


class FirstOrder(eqx.Module):
    """l = -log q^G at u to first order.

    Attributes:
        u: the point, shape (d,).
        value: -log q^G(u).
        gradient: partial derivatives of l in u, shape (d,).
        gradient_norm: norm of dl in the metric, sqrt(dl^T G^-1 dl).
        log_volume: 1/2 log det G.
    """

    u: Float[Array, " d"]
    value: Float[Array, ""]
    gradient: Float[Array, " d"]
    gradient_norm: Float[Array, ""]
    log_volume: Float[Array, ""]

    @classmethod
    def of(
        cls, posterior: Posterior, u: Float[Array, " d"], value: Array, gradient: Array
    ) -> "FirstOrder":
        """With what the metric at u makes of value and gradient."""
        metric = posterior.metric(u)
        norm, volume = jnp.linalg.norm(whiten(metric, gradient)), 0.5 * exact_logdet(metric)
        return cls(u, value, gradient, norm, volume)


class SecondOrder(FirstOrder, Remembering):
    """l = -log q^G at u to second order.

    What follows from the matrices is computed when it is first asked for: a Cholesky factor
    costs little where an eigenbasis of a thousand parameters costs more than the search.

    Attributes:
        hessian: second partial derivatives of l in u, shape (d, d).
        gram: the metric in u, shape (d, d).
    """

    hessian: Float[Array, "d d"]
    gram: Float[Array, "d d"]

    @remembered
    def log_det(self) -> Float[Array, ""]:
        """log det E = log det H - log det G; NaN where H is not positive definite."""
        units, lower = self._root
        half = np.sum(np.log(np.diagonal(lower))) + np.sum(np.log(units))
        return jax.device_put(2.0 * (half - np.asarray(self.log_volume)))

    @remembered
    def whitener(self) -> Float[Array, "d d"]:
        """W with W^T H W = I; NaN where H is not positive definite."""
        units, lower = self._root
        eye = np.eye(units.size, dtype=units.dtype)
        return jax.device_put(solve_lower(lower, eye).T / units[:, None])

    @remembered
    def decrement(self) -> Float[Array, ""]:
        """Newton decrement sqrt(dl^T |H|^-1 dl): distance to the mode in standard deviations."""
        units, lower = self._root
        slope = np.asarray(self.gradient) / units
        if np.isfinite(lower).all():
            return jax.device_put(np.linalg.norm(solve_lower(lower, slope)))
        scaled = np.asarray(self.hessian) / np.outer(units, units)
        if not np.isfinite(scaled).all():
            return jnp.full_like(self.value, jnp.nan)
        values, vectors = np.linalg.eigh(scaled)
        with np.errstate(divide="ignore", invalid="ignore"):  # at a flat direction
            return jax.device_put(np.linalg.norm(vectors.T @ slope / np.sqrt(np.abs(values))))

    @remembered
    def _root(self) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
        """Units s and lower triangular L with `H = diag(s) L L^T diag(s)`."""
        hessian = np.asarray(self.hessian)
        units = np.sqrt(np.abs(np.diagonal(hessian)))
        units = np.where(units > 0.0, units, np.ones_like(units))
        return units, cholesky_or_nan(hessian / np.outer(units, units))

    @property
    def eigenvalues(self) -> Float[Array, " d"]:
        """Eigenvalues of E in ascending order."""
        return self._spectrum[0]

    @property
    def frame(self) -> Float[Array, "d d"]:
        """Eigenvectors of E as columns, orthonormal in the metric, in u. Not differentiable."""
        return self._spectrum[1]

    @remembered
    def _spectrum(self) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
        return generalized_eigh(self.hessian, self.gram)


class OnOrbit(SecondOrder):
    """A mode along an orbit: its flat directions have the curvature that the orbit's volume asks.

    Attributes:
        orbit: the `verdicts.Orbit`.
    """

    orbit: Any = eqx.field(static=True, kw_only=True)


Expand = Callable[[Posterior, Float[Array, " d"]], FirstOrder]


def objective(u: Float[Array, " d"], posterior: Posterior) -> Float[Array, ""]:
    """l(u) = -log q^G(u)."""
    return -posterior.log_density(u)


def hessian_of(
    function: Any,
    u: Float[Array, " d"],
    batch: int = 64,
    deviations: Callable[[], Float[Array, " d"]] | None = None,
    has_aux: bool = False,
) -> tuple[Any, ...]:
    """Value, gradient and Hessian, by forward over reverse, `batch` columns at a time.

    By reverse over reverse where the function has a reverse derivative of its own and no forward
    one, as solvers of differential equations have. By differences of the gradient where that breaks
    too: JAX's `odeint` has two derivatives in reverse, of which a Fisher metric takes one.

    Args:
        function: function of u.
        u: point, shape (d,).
        batch: number of columns at once.
        deviations: gives standard deviations, in which differences go; None for no differences.
        has_aux: whether the function returns something beside its value, which then comes last.
    """
    eye = jnp.eye(u.size, dtype=u.dtype)

    def columns_by(column: Any) -> Float[Array, "d d"]:
        if u.size <= batch:
            return jax.vmap(column)(eye)
        return jax.lax.map(column, eye, batch_size=batch)

    def slope(u: Float[Array, " d"]) -> tuple[Any, Any]:
        (value, aux), gradient = jax.value_and_grad(with_aux, has_aux=True)(u)
        return (value, gradient), aux

    with_aux = function if has_aux else lambda u: (function(u), None)
    try:  # it is only products with the linearized function that find no forward derivative
        (value, gradient), push, aux = jax.linearize(slope, u, has_aux=True)
        columns = columns_by(lambda direction: push(direction)[1])
    except (TypeError, NotImplementedError) as error:
        if not lacks_forward_mode(error):
            raise
        try:
            (value, gradient), pull, aux = jax.vjp(slope, u, has_aux=True)
            columns = columns_by(lambda direction: pull((jnp.zeros_like(value), direction))[0])
        except (TypeError, ValueError, NotImplementedError):  # JAX has no message for it
            if deviations is None:
                raise
            value, gradient, columns = _by_differences(lambda u: with_aux(u)[0], u, deviations())
            aux = with_aux(u)[1]
    hessian = 0.5 * (columns + columns.T)
    return (value, gradient, hessian, aux) if has_aux else (value, gradient, hessian)


def _by_differences(
    function: Any, u: Float[Array, " d"], scale: Float[Array, " d"]
) -> tuple[Any, Any, Any]:
    """Value, gradient, and differences of it of fourth order; one program for all points."""
    ends = jnp.array([-2.0, -1.0, 1.0, 2.0], u.dtype)
    steps = DIFFERENCE * jnp.diag(scale)
    points = u + (ends[:, None, None] * steps).reshape(-1, u.size)
    values, gradients = jax.lax.map(jax.value_and_grad(function), jnp.vstack([u, points]))
    weights = jnp.array([1.0, -8.0, 8.0, -1.0], u.dtype) / 12.0
    moves = jnp.tensordot(weights, gradients[1:].reshape(4, u.size, u.size), 1)
    return values[0], gradients[0], moves / jnp.diagonal(steps)[:, None]


def expand_second(posterior: Posterior, u: Float[Array, " d"]) -> SecondOrder:
    """Expand -log q^G to second order at u."""

    def with_metric(u: Float[Array, " d"]) -> tuple[Array, Any]:
        metric = posterior.metric(u)
        volume = 0.5 * exact_logdet(metric)
        return volume - posterior.log_density_lebesgue(u), (metric, volume)

    def deviations() -> Float[Array, " d"]:
        return jax.lax.rsqrt(jnp.diagonal(posterior.metric(u).as_matrix()))

    found = hessian_of(with_metric, u, deviations=deviations, has_aux=True)
    value, gradient, hessian, (metric, volume) = found
    norm = jnp.linalg.norm(whiten(metric, gradient))
    return SecondOrder(u, value, gradient, norm, volume, hessian, metric.as_matrix())


@steady
def expand_first(posterior: Posterior, u: Float[Array, " d"]) -> FirstOrder:
    """-log q^G to first order at u: no matrix is formed where the metric is none."""
    return FirstOrder.of(posterior, u, *jax.value_and_grad(objective)(u, posterior))


def volume_error(posterior: Posterior, u: Float[Array, " d"], keys: int = 8) -> Any:
    """Standard error of log sqrt(det G) at u from Monte Carlo in the metric; None without any.

    The spread over fresh keys of the Monte Carlo routes, each with the metric's number of draws.
    """
    if not any(map(_is_sampled, jax.tree.leaves(posterior, is_leaf=_is_sampled))):
        return None
    return _volume_error(posterior, u, keys)


@steady
def _volume_error(posterior: Posterior, u: Float[Array, " d"], keys: int) -> Float[Array, ""]:
    leaves, treedef = jax.tree.flatten(posterior, is_leaf=_is_sampled)
    sampled = [index for index, leaf in enumerate(leaves) if _is_sampled(leaf)]

    def log_volume(fold: Array) -> Float[Array, ""]:
        fresh = list(leaves)
        for index in sampled:
            route = leaves[index]
            fresh[index] = MonteCarlo(jax.random.fold_in(route.key, fold), route.draws)
        return jax.tree.unflatten(treedef, fresh).log_volume(u)

    return jnp.std(jax.vmap(log_volume)(jnp.arange(keys)), ddof=1)


def _is_sampled(leaf: Any) -> bool:
    return isinstance(leaf, MonteCarlo)


def lies_within(at: SecondOrder, u: Any, deviations: float) -> bool:
    """Tell whether u lies within so many standard deviations of the expansion's point."""
    gap = np.asarray(u) - np.asarray(at.u)
    return 0.0 <= float(gap @ np.asarray(at.hessian) @ gap) < deviations**2

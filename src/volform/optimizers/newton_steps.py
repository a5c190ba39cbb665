"""Newton's method: damped by a metric, and inside of a region of trust that a metric measures."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.checks import require_positive
from volform.compilation import is_traced
from volform.errors import OptimizerError
from volform.geometry import christoffel_along, sharp
from volform.linalg import DenseOperator, Point, generalized_eigh
from volform.operators import hessian
from volform.optimizers.damping import Damping, gain_ratio, rate_under
from volform.optimizers.preconditioning import chained, transformation
from volform.optimizers.update_checks import (
    Loss,
    MetricFunction,
    as_params,
    is_finite,
    operator_at,
    pair,
    require_definite_at,
    require_finite_leaves,
    require_matrix_fits,
    require_metric_function,
    require_value_fn,
    update_from,
)

# Nocedal & Wright (2006), Numerical Optimization, algorithm 4.1.
_SUFFICIENT, _POOR, _GOOD, _SHRINKAGE, _GROWTH = 1e-4, 0.25, 0.75, 0.25, 2.0
# Half of a range as wide as the floating-point numbers of single precision, to rounding.
_MOST_BISECTIONS = 300


def damped_newton(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    damping: Damping = None,
    connection: MetricFunction | None = None,
    solve: lx.AbstractLinearSolver | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Newton's method, `-(H + D)^-1 dL`, H the Hessian of the loss and D a metric.

    Without damping it is Newton's; under much damping the natural gradient of D. The matrix of
    second derivatives transforms as a form under affine maps only. With `connection=G` H is the
    covariant Hessian of G, and the step is a vector in all coordinates; with `along_geodesics` the
    iterates are the same points.

    Args:
        learning_rate: a number or a schedule of optax; 1 with `AdaptiveDamping`.
        damping: as for `precondition`. `AdaptiveDamping` raises it until H + D is positive
            definite and the loss falls.
        connection: a metric whose Levi-Civita connection makes the Hessian covariant.
        solve: a solver of lineax. The default is LU of the matrix, O(n^3), which takes an
            indefinite H too, and goes to a saddle with it; with products only `lineax.GMRES`, or
            `lineax.CG` under `AdaptiveDamping`.

    Returns:
        An optimizer of optax; its `update` needs `params` and `value_fn`.

    Raises:
        OptimizerError: without `value_fn`; and as `precondition`.
        MetricError: as for `precondition`.

    References:
        Nocedal & Wright (2006), Numerical Optimization, chapter 3; Kristiadi, Dangel & Hennig
        (2023), section 3.2.

    >>> import jax, jax.numpy as jnp, optax, volform as vf
    >>> loss = lambda x: 2.0 * x**2
    >>> tx, x = vf.optimizers.damped_newton(damping=4.0 * vf.Euclidean()), jnp.array(3.0)
    >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)
    >>> float(optax.apply_updates(x, updates))  # half of Newton's step
    1.5
    """
    rate = rate_under(damping, learning_rate, "damped_newton")
    if connection is not None:
        require_metric_function(connection, "connection", "damped_newton")

    def form(params: Point, extra: Any) -> lx.AbstractLinearOperator:
        loss = require_value_fn(extra.get("value_fn"), params, "damped_newton")
        if connection is None:
            return hessian(loss, params)
        operator_at(connection, params, "connection", "damped_newton")
        _require_matrix(params, "damped_newton with a connection")
        return covariant_form(loss, connection, params)

    newton = transformation(form, damping, solve, "damped_newton")
    return chained(newton, optax.scale_by_learning_rate(rate))


def _require_matrix(params: Point, function: str) -> None:
    x = ravel_pytree(params)[0]
    remedy = "take `damped_newton(damping=..., solve=...)`, which can do with products"
    require_matrix_fits(x.size, x.dtype, function, remedy)


@eqx.filter_jit
def covariant_form(loss: Loss, connection: MetricFunction | None, params: Point) -> DenseOperator:
    """The matrix of second derivatives, or the covariant Hessian `d_i d_j L - Gamma^k_ij d_k L`."""
    x, unravel = ravel_pytree(params)
    matrix = jax.hessian(lambda x: loss(unravel(x)))(x)
    if connection is not None:
        # Not `covariant_hessian`, whose functions take the entries of a dict by name.
        metric: Any = connection
        direction = sharp(metric, params, jax.grad(loss)(params))
        matrix = matrix - christoffel_along(connection, params, direction)
    return DenseOperator(matrix, params)


class TrustRegionState(NamedTuple):
    """State of `trust_region`.

    Attributes:
        radius: of the next step, a length in the metric.
        gain_ratio: decrease of the loss over the predicted one at the last step; NaN before.
        multiplier: lambda of the last step, that of `damped_newton` with `damping=lambda G`.
    """

    radius: Float[Array, ""]
    gain_ratio: Float[Array, ""]
    multiplier: Float[Array, ""]


def trust_region(
    metric: MetricFunction,
    radius: Any = 1.0,
    *,
    connection: MetricFunction | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Newton's method in a region of trust: least `dL d + 1/2 d^T H d` with `|d|_G <= radius`.

    The step solves `(H + lambda G) d = -dL` with `lambda >= 0` and H + lambda G positive
    semi-definite: that of `damped_newton` for this lambda. It is found exactly, by the eigenvalues
    of the pencil (H, G), at O(n^3). It is taken where the loss falls, and the radius follows the
    gain ratio. The radius is a length, and the gain ratio a function: neither depends on the
    coordinates.

    Args:
        metric: the metric G that measures the step; a function as for `precondition`.
        radius: the first.
        connection: as for `damped_newton`.

    Returns:
        An optimizer of optax, whose updates are whole steps; `update` needs `params` and
        `value_fn`.

    Raises:
        OptimizerError: without `value_fn`; and as `precondition`.
        MetricError: as for `precondition`.
        SizeError: where the matrix would not fit.

    References:
        More & Sorensen (1983), Computing a trust region step; Nocedal & Wright (2006), Numerical
        Optimization, chapter 4.

    >>> import jax, jax.numpy as jnp, optax, volform as vf
    >>> loss = lambda x: 2.0 * x**2
    >>> tx, x = vf.optimizers.trust_region(vf.Euclidean(), radius=0.5), jnp.array(3.0)
    >>> updates, state = tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)
    >>> float(optax.apply_updates(x, updates)), float(state.radius)
    (2.5, 1.0)
    """
    require_metric_function(metric, "metric", "trust_region")
    require_positive(radius, "radius", "a length in the metric", OptimizerError)
    if connection is not None:
        require_metric_function(connection, "connection", "trust_region")

    def init(params: PyTree) -> TrustRegionState:
        params = as_params(params, "params", "trust_region")
        _require_matrix(params, "trust_region")
        require_definite_at(metric, params, "metric", "trust_region")
        dtype = ravel_pytree(params)[0].dtype
        return TrustRegionState(*(jnp.asarray(x, dtype) for x in (radius, jnp.nan, jnp.nan)))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> Any:
        w, at = pair(updates, params, "trust_region")
        loss = require_value_fn(extra.get("value_fn"), params, "trust_region")
        _require_matrix(at, "trust_region")
        gram = operator_at(metric, at, "metric", "trust_region")
        step, after = _trusted(gram, connection, w, at, loss, state)
        if not is_traced(step) and not is_finite(step):
            require_definite_at(metric, at, "metric", "trust_region")
            remedy = "the loss or its Hessian is not finite at `params`: go on from where it is"
            require_finite_leaves(step, "the step of updates", "trust_region", remedy)
        return update_from(step, updates, params), after

    return optax.GradientTransformationExtraArgs(init, update)


@eqx.filter_jit
def _trusted(
    gram: lx.AbstractLinearOperator,
    connection: MetricFunction | None,
    covector: PyTree,
    params: PyTree,
    loss: Loss,
    state: TrustRegionState,
) -> tuple[PyTree, TrustRegionState]:
    form = covariant_form(loss, connection, params)
    flat, unravel = ravel_pytree(covector)
    move, multiplier = region_step(form.matrix, gram.as_matrix(), flat, state.radius)
    step = unravel(move)
    ratio, blind = gain_ratio(form, covector, step, params, loss)
    length = jnp.sqrt(move @ ravel_pytree(gram.mv(step))[0])
    taken = (ratio > _SUFFICIENT) | blind
    wider = jnp.where((ratio > _GOOD) & (multiplier > 0.0), _GROWTH * length, state.radius)
    radius = jnp.where((ratio < _POOR) & ~blind, _SHRINKAGE * length, wider)
    unknown = jnp.isnan(ratio) | ~jnp.isfinite(length)
    otherwise = jnp.where(unknown, jnp.nan, jnp.zeros_like(length))
    after = TrustRegionState(radius, jnp.where(blind, state.gain_ratio, ratio), multiplier)
    kept = jax.tree.map(lambda new, old: jnp.where(unknown, old, new), after, state)
    return jax.tree.map(lambda s: jnp.where(taken & ~unknown, s, otherwise), step), kept


def region_step(
    form: Float[Array, "n n"],
    gram: Float[Array, "n n"],
    covector: Float[Array, " n"],
    radius: Float[Array, ""],
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """The step d with `(H + lambda G) d = -w`, `|d|_G <= radius`, and its lambda.

    In the basis of the pencil, where G is the identity and H diagonal, the length of the step falls
    in lambda. The unknown is `mu = lambda + h`, h the lowest eigenvalue: near a saddle mu is tiny
    beside lambda, and would be lost in it. Where the gradient has nothing along the lowest
    eigenvector and the rest is short (the hard case), the rest of the radius is gone along it.
    """
    values, basis = generalized_eigh(form, gram)
    tiny = jnp.finfo(basis.dtype).tiny
    w = basis.T @ covector
    w = jnp.where(jnp.abs(w) < tiny, 0.0, w)
    gaps = values - values[0]
    newton = jnp.maximum(values[0], 0.0)  # mu of lambda = 0, if that is allowed

    def parts(mu: Float[Array, ""]) -> Float[Array, " n"]:
        total = gaps + mu
        usable = total > 0.0
        return jnp.where(usable, -w / jnp.where(usable, total, 1.0), jnp.where(w == 0, 0, jnp.inf))

    def excess(mu: Float[Array, ""], _: Any) -> Float[Array, ""]:
        length = jnp.linalg.norm(parts(mu))
        return 1.0 / radius - 1.0 / jnp.maximum(length, tiny)  # nearly linear, and falls

    # One part alone is no longer than the radius, and all together would be at the other end.
    lower = jnp.maximum(jnp.maximum(newton, jnp.abs(w[0]) / radius), tiny)
    upper = jnp.maximum(lower, jnp.linalg.norm(w) / radius)
    found = optx.root_find(
        excess,
        optx.Bisection(rtol=2.0 * float(jnp.finfo(w.dtype).eps), atol=0.0, flip=True),
        0.5 * (lower + upper),
        options={"lower": lower, "upper": upper},
        max_steps=_MOST_BISECTIONS,
        throw=False,
    ).value
    inside = (values[0] >= 0.0) & (jnp.linalg.norm(parts(newton)) <= radius)
    short = jnp.linalg.norm(parts(lower)) <= radius
    mu = jnp.where(inside, newton, jnp.where(short, lower, found))
    step = parts(mu)
    rest = jnp.sqrt(jnp.maximum(radius**2 - jnp.sum(step[1:] ** 2), 0.0))
    hard = short & ~inside & (values[0] < 0.0)
    step = step.at[0].set(jnp.where(hard, jnp.where(w[0] > 0.0, -rest, rest), step[0]))
    return basis @ step, mu - values[0]

"""Steps that a dissimilarity holds back: proximal point, mirror descent, descent of outputs."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.checks import require_positive
from volform.compilation import is_traced
from volform.errors import ConvergenceError, OptimizerError
from volform.limits import MATRIX_UP_TO
from volform.linalg import Point
from volform.optimizers.dissimilarities import Dissimilarity, SquaredDistance, require_convex
from volform.optimizers.preconditioning import chained
from volform.optimizers.update_checks import (
    Loss,
    as_params,
    is_finite,
    pair,
    rate_of,
    require_value_fn,
    update_from,
)

_MOST_STEPS, _MOST_CORRECTIONS = 1000, 8
_ROUNDINGS = 64.0  # of the objective, by which it may seem to rise at a minimum


def proximal_point(
    dissimilarity: Dissimilarity,
    strength: Any,
    *,
    solver: optx.AbstractMinimiser | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Proximal point method: `argmin_u loss(u) + strength * rho(u, params)`.

    The step that gradient descent, natural gradient and mirror descent approximate: with a large
    strength it is the natural gradient in the metric of rho at the learning rate 1 / strength.
    The loss does not rise, whatever the strength; and with a rho that is a function of the two
    points, as `PulledBack`, the iterates do not depend on the coordinates.

    Args:
        dissimilarity: rho.
        strength: lambda, positive; the reciprocal of a learning rate.
        solver: minimizer of optimistix. BFGS by default, and on up to 1,000 parameters Newton's
            method after it, so that `d(loss + strength rho) = 0` to rounding.

    Returns:
        An optimizer of optax, whose updates are whole steps and do not use the gradient; its
        `update` needs `params` and `value_fn`.

    Raises:
        OptimizerError: without `value_fn`, for a dissimilarity that is none or not convex at the
            parameters, parameters outside of its domain, and as `precondition`.
        ConvergenceError: when no minimum was found, as at a kink, a saddle, or of an objective that
            is not bounded below; NaN under `jit`.

    References:
        Rockafellar (1976), Monotone operators and the proximal point algorithm.

    >>> import jax, jax.numpy as jnp, optax, volform as vf
    >>> loss, x = (lambda x: 0.5 * x**2), jnp.array(3.0)
    >>> tx = vf.optimizers.proximal_point(vf.optimizers.SquaredDistance(), 2.0)
    >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)
    >>> round(float(optax.apply_updates(x, updates)), 6)  # 3 * 2 / (1 + 2)
    2.0
    """
    _require_dissimilarity(dissimilarity, "proximal_point")
    require_positive(strength, "strength", "the weight of the dissimilarity", OptimizerError)
    if solver is not None and not isinstance(solver, optx.AbstractMinimiser):
        raise OptimizerError(
            f"`solver` of proximal_point is {solver!r}; it should be a minimizer of optimistix, "
            "such as `optimistix.BFGS(1e-8, 1e-8)`."
        )

    def init(params: PyTree) -> optax.EmptyState:
        require_convex(
            dissimilarity, as_params(params, "params", "proximal_point"), "proximal_point"
        )
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> Any:
        _, at = pair(updates, params, "proximal_point")
        loss = require_value_fn(extra.get("value_fn"), params, "proximal_point")
        weight = jnp.asarray(strength, ravel_pytree(at)[0].dtype)
        move = _proximal(loss, dissimilarity, weight, solver, at)
        _require_found(move, dissimilarity, at, "proximal_point")
        return update_from(move, updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def implicit_gradient_descent(
    learning_rate: Any, *, solver: optx.AbstractMinimiser | None = None
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with the gradient at the end of the step, `u = w - rate d loss(u)`.

    The proximal point method with half the squared Euclidean distance, and so stable on convex
    functions for every learning rate.

    Args:
        learning_rate: a positive number.
        solver: as for `proximal_point`.

    Returns:
        As of `proximal_point`.

    Raises:
        VolformError: as `proximal_point`.

    References:
        Hairer & Wanner (1996), Solving Ordinary Differential Equations II, section IV.3.

    >>> import jax, jax.numpy as jnp, optax, volform as vf
    >>> loss, x = (lambda x: 50.0 * x**2), jnp.array(3.0)
    >>> tx = vf.optimizers.implicit_gradient_descent(1.0)
    >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, value_fn=loss)
    >>> round(float(optax.apply_updates(x, updates)), 6)  # 3 / 101
    0.029703
    """
    rate = "the learning rate"
    require_positive(learning_rate, "learning_rate", rate, OptimizerError)
    return proximal_point(SquaredDistance(), 1.0 / learning_rate, solver=solver)


@eqx.filter_jit
def _proximal(
    loss: Loss,
    dissimilarity: Dissimilarity,
    strength: Float[Array, ""],
    solver: optx.AbstractMinimiser | None,
    params: PyTree,
) -> PyTree:
    """The move to the minimum; NaN where none was found."""
    start, unravel = ravel_pytree(params)
    is_double = jnp.finfo(start.dtype).eps < 1e-10
    coarse, fine = (1e-6, 1e-12) if is_double else (1e-3, 1e-6)

    def objective(u: Float[Array, " n"], _: Any) -> Float[Array, ""]:
        point = unravel(u)
        return loss(point) + strength * dissimilarity(point, params)

    method = optx.BFGS(coarse, coarse) if solver is None else solver
    found = optx.minimise(objective, method, start, max_steps=_MOST_STEPS, throw=False).value
    if solver is None and start.size <= MATRIX_UP_TO:
        slope = jax.grad(objective)
        newton = optx.Newton(fine, fine)
        exact = optx.root_find(slope, newton, found, max_steps=_MOST_CORRECTIONS, throw=False).value
        least, rough = (jnp.sum(slope(u, None) ** 2) for u in (exact, found))
        found = jnp.where(least < rough, exact, found)
    minimal = _is_minimum(objective, start, found)
    return unravel(jnp.where(minimal, found - start, jnp.nan))


def _is_minimum(
    objective: Callable[..., Array], start: Float[Array, " n"], found: Float[Array, " n"]
) -> Array:
    """Tell whether a search ended in a local minimum, no higher than its start.

    Up to 1,000 parameters by Newton's decrement, what another step would gain: less than a
    hundredth of what was gained, and by a Hessian without negative eigenvalues. This refuses kinks,
    saddles, maxima, and searches that run off. Beyond, the gradient fell to a tenth.
    """
    before, after = objective(start, None), objective(found, None)
    eps = jnp.finfo(start.dtype).eps
    rounding = _ROUNDINGS * eps * (1.0 + jnp.abs(before))
    lower = after <= before + rounding
    slope = jax.grad(objective)(found, None)
    if start.size > MATRIX_UP_TO:
        first = jnp.linalg.norm(jax.grad(objective)(start, None))
        return lower & (jnp.linalg.norm(slope) <= 0.1 * first + rounding)
    matrix = jax.hessian(objective)(found, None)
    # Directions along which nothing changes are allowed: lifted by more than rounding.
    lift = 1e2 * start.size * eps * jnp.max(jnp.abs(matrix))
    factor = jnp.linalg.cholesky(matrix + lift * jnp.eye(start.size, dtype=matrix.dtype))
    gain = 0.5 * jnp.sum(jax.scipy.linalg.solve_triangular(factor, slope, lower=True) ** 2)
    return lower & (gain <= 0.01 * (before - after) + rounding)


def mirror_descent(
    dissimilarity: Dissimilarity, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """Mirror descent: the u with `d_u rho(u, params) = -learning_rate d loss`.

    With a divergence of Bregman `d phi(u) = d phi(params) - learning_rate d loss`: with
    `SquaredDistance()` gradient descent, with `negative_entropy()` the exponentiated gradient, both
    exactly. It is the proximal point method with the loss replaced by its tangent in the
    coordinates at hand, and so invariant under affine changes of them, and to the first order in
    the learning rate under others.

    Args:
        dissimilarity: rho; in closed form where it has one, else by Newton's method, O(n^3).
        learning_rate: a number or a schedule of optax.

    Returns:
        An optimizer of optax, whose updates are whole steps; `update` needs `params`.

    Raises:
        OptimizerError: for a dissimilarity that is none or not convex at the parameters, parameters
            outside of its domain, and as `precondition`.
        ConvergenceError: when there is no such u, or none was found; NaN under `jit`.

    References:
        Beck & Teboulle (2003), Mirror descent and nonlinear projected subgradient methods for
        convex optimization; Raskutti & Mukherjee (2015), The information geometry of mirror
        descent.

    >>> import jax.numpy as jnp, optax, volform as vf
    >>> tx = vf.optimizers.mirror_descent(vf.optimizers.negative_entropy(), jnp.log(2.0))
    >>> p = jnp.array([0.5, 0.5])
    >>> updates, _ = tx.update(jnp.array([1.0, 0.0]), tx.init(p), p)
    >>> optax.apply_updates(p, updates).round(6).tolist()
    [0.333333, 0.666667]
    """
    _require_dissimilarity(dissimilarity, "mirror_descent")
    rate = rate_of(learning_rate, "mirror_descent")

    def init(params: PyTree) -> optax.EmptyState:
        require_convex(
            dissimilarity, as_params(params, "params", "mirror_descent"), "mirror_descent"
        )
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> Any:
        covector, at = pair(updates, params, "mirror_descent")
        move = _mirrored(dissimilarity, at, covector)
        _require_found(move, dissimilarity, at, "mirror_descent")
        return update_from(move, updates, params), state

    mirror = optax.GradientTransformationExtraArgs(init, update)
    return chained(optax.scale_by_learning_rate(rate), mirror)


@eqx.filter_jit
def _mirrored(dissimilarity: Dissimilarity, params: Point, covector: PyTree) -> PyTree:
    return jax.tree.map(jnp.subtract, dissimilarity.move(params, covector), params)


def output_space_descent(
    f: Callable[[Any], Any],
    loss: Callable[[Any], Float[Array, ""]],
    learning_rate: optax.ScalarOrSchedule,
    *,
    solver: optx.AbstractLeastSquaresSolver | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent of the outputs: parameters whose outputs are `z - learning_rate dL/dz`.

    The natural gradient of the Euclidean metric of the outputs, without its error of the first
    order in the parameters: where f can be inverted, the iterates are those of gradient descent on
    L itself, in whatever coordinates f is written. Where it cannot, the nearest outputs are taken.

    Args:
        f: the outputs of the parameters, for all examples at once.
        loss: L, of the outputs; the loss of the parameters is `loss(f(params))`.
        learning_rate: a number or a schedule of optax.
        solver: of least squares in optimistix; Levenberg and Marquardt's method by default.

    Returns:
        An optimizer of optax, whose updates are whole steps and do not use the gradient; its
        `update` needs `params`.

    Raises:
        OptimizerError: as `precondition`.
        ConvergenceError: when the least squares were not found; NaN under `jit`.

    >>> import jax.numpy as jnp, optax, volform as vf
    >>> tx = vf.optimizers.output_space_descent(jnp.exp, lambda z: 0.5 * (z - 5.0) ** 2, 1.0)
    >>> x = jnp.array(0.0)
    >>> updates, _ = tx.update(x, tx.init(x), x)
    >>> round(float(jnp.exp(optax.apply_updates(x, updates))), 6)
    5.0
    """
    descent = optax.sgd(rate_of(learning_rate, "output_space_descent"))

    def init(params: PyTree) -> Any:
        return descent.init(f(as_params(params, "params", "output_space_descent")))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> Any:
        _, at = pair(updates, params, "output_space_descent")
        move, state = _in_outputs(f, loss, descent, solver, at, state)
        if not is_traced(move) and not is_finite(move):
            raise ConvergenceError(
                "No `params` were found by output_space_descent whose outputs are a step further: "
                "the least squares did not converge. Take a smaller `learning_rate`, or another "
                "`solver`."
            )
        return update_from(move, updates, params), state

    return optax.GradientTransformationExtraArgs(init, update)


@eqx.filter_jit
def _in_outputs(
    f: Callable[[Any], Any],
    loss: Callable[[Any], Float[Array, ""]],
    descent: optax.GradientTransformation,
    solver: optx.AbstractLeastSquaresSolver | None,
    params: PyTree,
    state: Any,
) -> tuple[PyTree, Any]:
    z = f(params)
    moves, state = descent.update(jax.grad(loss)(z), state)
    wanted = jax.tree.map(jnp.add, z, moves)
    start, unravel = ravel_pytree(params)
    tolerance = 1e-12 if jnp.finfo(start.dtype).eps < 1e-10 else 1e-5
    method = optx.LevenbergMarquardt(tolerance, tolerance) if solver is None else solver

    def missed(u: Float[Array, " n"], _: Any) -> Float[Array, " k"]:
        apart = jax.tree.map(jnp.subtract, f(unravel(u.astype(start.dtype))), wanted)
        return ravel_pytree(apart)[0].astype(u.dtype)

    # optimistix has the damping in the widest precision there is, and the rest has to fit to it.
    wide = start.astype(jnp.zeros(()).dtype)
    found = optx.least_squares(missed, method, wide, max_steps=_MOST_STEPS, throw=False)
    solved = found.result == optx.RESULTS.successful
    move = found.value.astype(start.dtype) - start
    return unravel(jnp.where(solved, move, jnp.nan)), state


def _require_dissimilarity(dissimilarity: Any, function: str) -> None:
    if not isinstance(dissimilarity, Dissimilarity):
        raise OptimizerError(
            f"`dissimilarity` of {function} is {dissimilarity!r}; it should be one such as "
            "`SquaredDistance(metric)`, `Bregman(phi)` or `KullbackLeibler(family)` of "
            "`vf.optimizers`."
        )


def _require_found(move: PyTree, dissimilarity: Dissimilarity, at: Point, function: str) -> None:
    """Check that a move was found, unless it is traced.

    Raises:
        OptimizerError: where the dissimilarity is not convex, so that there may be none.
        ConvergenceError: when it was not.
    """
    if is_traced(move) or is_finite(move):
        return
    require_convex(dissimilarity, at, function)
    raise ConvergenceError(
        f"No step of {function} was found from `params` by {dissimilarity}: the equation for it "
        "has no solution in its domain, or its solver did not get there. Take shorter steps (a "
        "smaller learning rate, a larger `strength`), or look whether the loss is bounded below."
    )

"""Searches for the mode of q^G, and for points where its gradient vanishes."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.errors import ModelError
from volform.inference.modes import verdicts
from volform.inference.modes.bfgs import bfgs_from, prior_draws, starting_points
from volform.inference.modes.expansion import expand_first, objective
from volform.inference.modes.mode import (
    MAP,
    ExpansionPoint,
    Mode,
    default_tolerance,
    require_room,
    warn_of_precision,
)
from volform.inference.modes.newton import SearchResult, newton_from
from volform.inference.modes.newton_cg import NewtonCGState, newton_cg, newton_cg_from
from volform.limits import BFGS_UP_TO, HESSIAN_UP_TO, NEWTON_FROM_ALL_UP_TO
from volform.models.posterior import Posterior
from volform.progress import waiting
from volform.results import Cost, Regime

# Of a search without Hessians, each start of which may take minutes: the origin, where weights are
# small, and two draws of the prior; 500 steps end any search that converges superlinearly.
STARTS, STEPS = 3, 500
# Of a strict mode, in standard deviations: its Newton decrement, and the distance of two ends that
# are one mode. A thousandth moves log q^G by 10^-6 / 2.
RESOLUTION = 1e-3


def find_map(
    posterior: Posterior,
    *,
    key: PRNGKeyArray | None = None,
    starts: int = 4,
    initial: dict[str, Any] | None = None,
    tolerance: float | None = None,
    max_steps: int = 200,
    progress: bool = True,
) -> MAP:
    """Find the mode of q^G = p / sqrt(det G), the invariant maximum a posteriori.

    BFGS (optimistix) from several starts at once, above 1,000 parameters Newton's method by
    conjugate gradients; then Newton's method with the exact Hessian of -log q^G in a trust region.
    The mode is one and the same point of the parameter manifold however the model is parametrized.
    Compiled once for each model and shape of data.

    Args:
        posterior: from `condition`.
        key: key of the random starts; `jax.random.key(0)` by default.
        starts: number of starts: the origin of u, uniform on (-2, 2)^d, and prior draws.
        initial: values of the latent sites to start from as well.
        tolerance: bound on the gradient norm in the metric's norm, or on the Newton decrement
            (the distance to the mode in standard deviations), whichever is met first; 1e-8 in
            float64, 1e-3 in float32.
        max_steps: bound on the steps of each method.
        progress: whether to show a spinner when it takes long.

    Returns:
        A `MAP`. Where no strict maximum was reached it says so (`converged`, `verdict`), and
        `laplace` refuses it.

    Raises:
        ModelError: when `posterior` is none.
        ConvergenceError: when log q^G is NaN or infinite at every start; names the sites.
        SingularMetricError: when the metric is not positive definite; names sites and rank.
        UnknownSiteError: when `initial` lacks a latent site.
        SizeError: when the Hessian would take more than 8 GiB, from 32,768 parameters on.

    References:
        Kristiadi, Dangel & Hennig (2023), section 3.3.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model():
    ...     numpyro.sample("x", dist.Gamma(3.0, 1.0))
    >>> fit = vf.find_map(vf.condition(model), key=jax.random.key(0))
    >>> round(float(fit.values["x"]), 4)  # in any chart; the mode of log x would be 3
    2.0
    """
    if not isinstance(posterior, Posterior):
        raise ModelError(
            f"`posterior` should be a Posterior from `vf.condition(model, *data)`; got "
            f"{type(posterior).__name__}."
        )
    require_room(posterior)
    key = jax.random.key(0) if key is None else key
    with waiting("find_map", progress) as phase:
        points = starting_points(posterior, key, starts)
        if initial is not None:
            points = jnp.concatenate(
                [posterior.layout.unconstrain(initial, "initial")[None], points]
            )
        tolerance = default_tolerance(points.dtype) if tolerance is None else tolerance
        phase(f"descent from {len(points)} starts in {posterior.dim} dimensions")
        if posterior.dim > BFGS_UP_TO:
            states = newton_cg_from(posterior, points, 1e-4, max_steps)
            ends, counts = states.u, states.gradients
        else:
            ends, counts = bfgs_from(posterior, points, max_steps)
        values = np.asarray(_objectives(posterior, ends))
        if not np.any(np.isfinite(values)):
            verdicts.explain_no_start(posterior, points)
        phase("Newton")
        ends = ends[np.isfinite(values)]
        regime = _regime(posterior.dim, len(ends))
        if posterior.dim > NEWTON_FROM_ALL_UP_TO:
            ends = ends[np.nanargmin(values[np.isfinite(values)])][None]
        found = newton_from(posterior, ends, tolerance, max_steps)
    ends, modes = _ranked(found), []
    for end in ends:
        _gather(modes, posterior, end)
    best = next((end for end in ends if modes and bool(jnp.all(end.at.u == modes[0].u))), ends[0])
    verdict = verdicts.classify(posterior, best, tolerance, max_steps)
    warn_of_precision(best.at)
    steps = int(counts.sum()), int(found.steps.sum())
    cost = Cost(0, steps[0] + steps[1] * (posterior.dim + 1))
    count = len(ends)
    return MAP(
        posterior, best.at, verdict, cost, tuple(modes), count, steps, tolerance, regime=regime
    )


def _regime(dim: int, starts: int) -> Regime:
    """The way in which `find_map` computes."""
    if dim > BFGS_UP_TO:
        return Regime("conjugate gradients from every start, dense Hessian at the best", BFGS_UP_TO)
    if dim > NEWTON_FROM_ALL_UP_TO and starts > 1:
        return Regime(
            "dense Hessian from the best start only, other modes not seen", NEWTON_FROM_ALL_UP_TO
        )
    return Regime("dense Hessian")


def stationary_point(posterior: Posterior, key: PRNGKeyArray, *, progress: bool) -> ExpansionPoint:
    """A point where the gradient of log q^G vanishes, the highest that was found.

    Starts are the origin of u and draws from the prior. Memory O(d): no Hessian is formed, so that
    the point is not known for a mode.

    Args:
        posterior: from `condition`.
        key: key of the random starts.
        progress: whether to show a spinner when it takes long.

    Raises:
        ConvergenceError: when log q^G is NaN or infinite at every start; names the sites.
    """
    with waiting("laplace", progress) as phase:
        draws = prior_draws(posterior, key, STARTS - 1)
        points = jnp.concatenate([jnp.zeros_like(draws[:1]), draws])
        tolerance = default_tolerance(points.dtype)
        ends = []
        for number, point in enumerate(points, 1):
            phase(f"start {number} of {STARTS} in {posterior.dim:,} dimensions")
            ends.append(newton_cg(posterior, point, tolerance, STEPS))
        finite = [end for end in ends if bool(jnp.isfinite(end.value))]
        if not finite:
            verdicts.explain_no_start(posterior, points)
        end = min(finite, key=lambda end: float(end.value))
        at = expand_first(posterior, end.u)
    cost = Cost(0, sum(int(end.gradients) for end in ends))
    verdict = _judged(end, float(at.gradient_norm), tolerance)
    above = HESSIAN_UP_TO if posterior.dim > HESSIAN_UP_TO else 0
    regime = Regime("conjugate gradients, no Hessian", above)
    return ExpansionPoint(posterior, at, verdict, cost, regime=regime)


def _judged(end: NewtonCGState, gradient_norm: float, tolerance: float) -> verdicts.Verdict:
    if min(gradient_norm, float(end.trial.decrement)) < tolerance:
        return verdicts.Stationary()
    size = f"its gradient norm is {gradient_norm:.2g}"
    if end.u.dtype != jnp.float64:
        size += f" in `{end.u.dtype}`, which may hold too few digits"
    if int(end.trial.steps) >= STEPS:
        return verdicts.NotConverged(f"{STEPS} steps of Newton's method taken, and {size}")
    return verdicts.NotConverged(
        f"no step improves log q^G, though {size}; it may have a kink there"
    )


def _ranked(found: SearchResult) -> list[SearchResult]:
    """The ends of the searches, the highest q^G first."""
    values = np.asarray(found.at.value)
    order = np.argsort(np.where(np.isnan(values), np.inf, values))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in order]


def _gather(modes: list[Mode], posterior: Posterior, end: SearchResult) -> None:
    """Count `end` to its mode, if it is a strict one.

    Toward points where the metric is singular q^G is unbounded (a mixture with equal components
    under its Fisher metric); ends there, and at the edge of the support, are no modes. Ends within
    1e-3 posterior standard deviations of each other are one.
    """
    at = end.at
    is_strict = bool(jnp.isfinite(at.log_det)) and float(at.decrement) < RESOLUTION
    if not is_strict or not verdicts.is_regular(np.asarray(at.gram), at.u.dtype):
        return
    if verdicts.at_the_edge(posterior, at.u):
        return
    for position, mode in enumerate(modes):
        gap = mode.u - at.u
        if float(gap @ at.hessian @ gap) < RESOLUTION**2:
            modes[position] = Mode(mode.at, mode.starts + 1)
            return
    modes.append(Mode(at, 1))


@eqx.filter_jit
def _objectives(posterior: Posterior, points: Float[Array, "n d"]) -> Float[Array, " n"]:
    return jax.vmap(lambda u: objective(u, posterior))(points)

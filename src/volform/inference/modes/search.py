"""Searches for the mode of q^G, and for points where its gradient vanishes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import (
    ONE_BY_ONE,
    key_of,
    require_positive,
    require_untraced,
    require_whole,
)
from volform.compilation import steady
from volform.errors import ModelError, UnknownSiteError
from volform.inference.modes import verdicts
from volform.inference.modes.bfgs import bfgs_from
from volform.inference.modes.branches import summands
from volform.inference.modes.expansion import (
    OnOrbit,
    SecondOrder,
    expand_first,
    lies_within,
    objective,
)
from volform.inference.modes.mode import (
    MAP,
    SEEN_ONCE,
    ExpansionPoint,
    Mode,
    default_tolerance,
    require_room,
    seen_once,
    warn_of_precision,
)
from volform.inference.modes.newton import AT_ONCE, SearchResult, newton_from
from volform.inference.modes.newton_cg import NewtonCGState, newton_cg, newton_cg_from
from volform.inference.modes.orbits import merged_along_orbits
from volform.inference.modes.starts import starting_points
from volform.limits import BFGS_UP_TO, HESSIAN_UP_TO, NEWTON_FROM_ALL_UP_TO
from volform.models.posterior import Posterior
from volform.models.prior_draws import prior_draws
from volform.progress import Phase, waiting
from volform.results import Cost, Regime

# Of a search without Hessians, each start of which may take minutes: the origin, where weights are
# small, and two draws of the prior; 500 steps end any search that converges superlinearly.
STARTS, STEPS = 3, 500
# Of a strict mode, in standard deviations: its Newton decrement, and the distance of two ends that
# are one mode. A thousandth moves log q^G by 10^-6 / 2.
RESOLUTION = 1e-3
# Starts by default. Newton's method from 40 finds the best mode of a sinusoid's frequency in 18 of
# 18 searches, by BFGS from 8 none did in 6; run .002 s in 3 dimensions, .56 s in 60.
NEWTON_STARTS, DESCENT_STARTS = 40, 8
SUMMAND_STARTS = 8  # of the search in each summand of a density, which is simpler than their sum
NEWTON_STEPS = 200  # of each method, by default
MORE_ROUNDS = 3  # of starts, where modes that one start alone found hold much of the evidence
# Nats. Of 40 starts for NumPyro's sparse regression, a Gaussian process of 14 parameters under
# half-Cauchy priors, all end within 1e-6 where eta1 goes to 0; three further rounds took 300 s.
SAME_HEIGHT = 0.01
# Of two ends of a descent that are taken for one, in standard deviations: BFGS stops at 1e-4 of l.
DESCENT_RESOLUTION = 0.1
TIE = 1e-9  # relative, of copies of a mode: a search ends within 10^-12, or is stuck a little above


def find_map(
    posterior: Posterior,
    *,
    key: PRNGKeyArray | None = None,
    starts: int | None = None,
    initial: dict[str, Any] | None = None,
    tolerance: float | None = None,
    max_steps: int = NEWTON_STEPS,
    progress: bool = True,
) -> MAP:
    """Find the mode of q^G = p / sqrt(det G), the invariant maximum a posteriori.

    Newton's method with the exact Hessian of -log q^G in a trust region, up to 60 parameters from
    every start; above from the distinct ends of BFGS (optimistix), and above 1,000 from the best
    end of Newton's method by conjugate gradients. The mode is one and the same point of the
    parameter manifold however the model is parametrized. Compiled once for each model and shape of
    data.

    Starts are taken from 1,000 draws of the prior: half of them the most likely that lie apart,
    half by a power of the likelihood; and a few as NumPyro starts. Of a density with
    `jnp.logaddexp(a, b)`, each summand is searched too. Where modes that one start alone
    found hold more than a twentieth of the evidence (by Laplace), there are likely to be more, and
    by default three more rounds of starts look for them.

    Args:
        posterior: from `condition`.
        key: key of the random starts; `jax.random.key(0)` by default.
        starts: number of starts, exactly; by default 40 up to 60 parameters, and 8 above.
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
        UnknownSiteError: when `initial` lacks a latent site, or holds a name that is no site.
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
    if starts is not None:
        require_whole(starts, "starts", "find_map", ModelError)
    require_whole(max_steps, "max_steps", "find_map", ModelError)
    if tolerance is not None:
        require_positive(tolerance, "tolerance", "or None for that of the dtype", ModelError)
    require_untraced(posterior, "posterior", "find_map", ONE_BY_ONE, ModelError)
    require_room(posterior)
    key = key_of(key, "find_map", ModelError)
    tolerance = default_tolerance(jnp.zeros(()).dtype) if tolerance is None else tolerance
    first = None if initial is None else _initial_point(posterior, initial)
    by_newton = posterior.dim <= NEWTON_FROM_ALL_UP_TO
    count = (NEWTON_STARTS if by_newton else DESCENT_STARTS) if starts is None else starts
    rounds = 1 + MORE_ROUNDS if starts is None and by_newton else 1
    ends: list[SearchResult] = []
    modes: list[Mode] = []
    continuum: verdicts.Flat | None = None
    gradients = newton_steps = 0
    with waiting("find_map", progress) as phase:
        for number in range(rounds):
            points = starting_points(posterior, key, number, count)
            if number == 0:
                inside = _ends_in_summands(posterior, points[:SUMMAND_STARTS], tolerance, max_steps)
                points = np.concatenate([inside, points])
            if first is not None and number == 0:
                points = np.concatenate([first, points])
            search = _newton_from_all if by_newton else _newton_from_ends
            found, descent = search(posterior, points, tolerance, max_steps, phase)
            ends, gradients = ends + found, gradients + descent
            newton_steps += sum(int(end.steps) for end in found)
            strict = [(mode.at, mode.starts) for mode in _modes(posterior, ends)]
            merged, continuum = merged_along_orbits(posterior, strict, ends, tolerance)
            modes = [Mode(at, count) for at, count in merged]
            if continuum is not None:
                break
            if modes and seen_once(modes) <= SEEN_ONCE:
                break
            if not modes and (number > 0 or _agree_on_no_mode(found)):
                break
    modes = _converged_first(modes, tolerance)
    if modes and isinstance(modes[0].at, OnOrbit):
        best, verdict = modes[0], modes[0].at.orbit
    else:
        best = _best(posterior, ends, modes)
        verdict = continuum or verdicts.classify(posterior, best, tolerance, max_steps)
        warn_of_precision(best.at)
    modes = [Mode(jax.device_put(mode.at), mode.starts) for mode in modes]
    cost = Cost(0, gradients + newton_steps * (posterior.dim + 1))
    return MAP(
        posterior,
        modes[0].at if modes else jax.device_put(best.at),
        verdict,
        cost,
        tuple(modes),
        sum(end.starts for end in ends),
        (gradients, newton_steps),
        tolerance,
        regime=_regime(posterior.dim),
    )


def _agree_on_no_mode(ends: list[SearchResult]) -> bool:
    """Tell whether no end is finite, or most are as high as the best: at an edge, more would be."""
    values = np.array([float(end.at.value) for end in ends])
    finite = values[np.isfinite(values)]
    return not finite.size or 2 * np.sum(finite < finite.min() + SAME_HEIGHT) > len(values)


def _initial_point(posterior: Posterior, initial: dict[str, Any]) -> Float[Array, "1 d"]:
    unknown = [name for name in initial if name not in posterior.known]
    if unknown:
        raise UnknownSiteError(
            f"`initial` holds {unknown}, which are no sites of the model; its latent sites are "
            f"{list(posterior.names)}."
        )
    return posterior.layout.unconstrain(initial, "initial")[None]


def _ends_in_summands(
    posterior: Posterior, points: Float[np.ndarray, "n d"], tolerance: float, max_steps: int
) -> Float[np.ndarray, "k d"]:
    parts: list[Any] = summands(posterior)
    each = [newton_from(part, points, tolerance, max_steps) for part in parts]
    ends = [end.at.u for found in each for end in found if np.isfinite(end.at.value)]
    return np.concatenate([points[:0], *(u[None] for u in ends)])


def _newton_from_all(
    posterior: Posterior,
    points: Float[np.ndarray, "n d"],
    tolerance: float,
    max_steps: int,
    phase: Phase,
) -> tuple[list[SearchResult], int]:
    found: list[SearchResult] = []
    while len(found) < len(points):
        phase(f"starts in {posterior.dim} dimensions", len(found), len(points))
        now = points[len(found) : len(found) + AT_ONCE]
        found += newton_from(posterior, now, tolerance, max_steps)
    return found, 0


def _newton_from_ends(
    posterior: Posterior,
    points: Float[np.ndarray, "n d"],
    tolerance: float,
    max_steps: int,
    phase: Phase,
) -> tuple[list[SearchResult], int]:
    """Newton's method from the distinct ends of a descent; above 1,000 parameters from the best."""
    phase(f"descent from {len(points)} starts in {posterior.dim:,} dimensions")
    if posterior.dim > BFGS_UP_TO:
        states = newton_cg_from(posterior, jnp.asarray(points), 1e-4, max_steps)
        left, counts = list(states.u), states.gradients
    else:
        left, counts = bfgs_from(posterior, jnp.asarray(points), max_steps)
        left = list(left)
    values = np.asarray(_objectives(posterior, jnp.asarray(np.stack(left))))
    left = [left[i] for i in np.argsort(_or_infinite(values))]
    found: list[SearchResult] = []
    while left and not (found and posterior.dim > BFGS_UP_TO):
        phase(
            f"ends of a descent in {posterior.dim:,} dimensions",
            len(values) - len(left),
            len(values),
        )
        (end,) = newton_from(posterior, left[0][None], tolerance, max_steps)
        rest = left[1:]
        if is_strict_mode(posterior, end.at):
            rest = [u for u in rest if not lies_within(end.at, u, DESCENT_RESOLUTION)]
        found.append(dataclasses.replace(end, starts=len(left) - len(rest)))
        left = rest
    if left:
        found[0] = dataclasses.replace(found[0], starts=found[0].starts + len(left))
    return found, int(counts.sum())


def _regime(dim: int) -> Regime:
    """The way in which `find_map` computes."""
    if dim > BFGS_UP_TO:
        return Regime(
            "conjugate gradients from every start, dense Hessian at the best, other modes not seen",
            BFGS_UP_TO,
        )
    if dim > NEWTON_FROM_ALL_UP_TO:
        return Regime(
            "BFGS from every start, dense Hessian at distinct ends", NEWTON_FROM_ALL_UP_TO
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
        draws = prior_draws(posterior.bound_model, key, STARTS - 1)
        points = jnp.concatenate([jnp.zeros_like(draws[:1]), draws])
        tolerance = default_tolerance(points.dtype)
        ends = []
        for number, point in enumerate(points, 1):
            phase(f"descent in {posterior.dim:,} dimensions", number, STARTS)
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


def _modes(posterior: Posterior, ends: list[SearchResult]) -> list[Mode]:
    """The distinct strict modes among the ends, the highest q^G first, with their starts counted.

    Toward points where the metric is singular q^G is unbounded (a mixture with equal components
    under its Fisher metric); ends there, and at the edge of the support, are no modes. Ends within
    1e-3 posterior standard deviations of each other are one.
    """
    order = np.argsort(_or_infinite(np.array([float(end.at.value) for end in ends])))
    modes: list[Mode] = []
    for end in (ends[index] for index in order):
        # First: by the Hessian of an end where q^G is flat, every mode is near.
        if not is_strict_mode(posterior, end.at):
            continue
        alike = next((i for i, m in enumerate(modes) if lies_within(end.at, m.u, RESOLUTION)), None)
        if alike is None:
            modes.append(Mode(end.at, end.starts))
        else:
            modes[alike] = Mode(modes[alike].at, modes[alike].starts + end.starts)
    return modes


def _converged_first(modes: list[Mode], tolerance: float) -> list[Mode]:
    """The modes, one that a search converged to before others that are as high to rounding."""

    def distance(mode: Mode) -> float:
        return min(float(mode.at.gradient_norm), float(mode.at.decrement))

    if not modes or distance(modes[0]) < tolerance:
        return modes
    highest = float(modes[0].at.value)
    tie = TIE * (1.0 + abs(highest))
    tied = [i for i, mode in enumerate(modes) if float(mode.at.value) - highest < tie]
    first = min(tied, key=lambda i: distance(modes[i]))
    return [modes[first], *modes[:first], *modes[first + 1 :]]


def is_strict_mode(posterior: Posterior, at: SecondOrder) -> bool:
    """Tell whether a search that ended here found a mode, away from edges and singularities."""
    is_strict = bool(np.isfinite(at.log_det)) and float(at.decrement) < RESOLUTION
    is_regular = is_strict and verdicts.is_regular(np.asarray(at.gram), at.u.dtype)
    return is_regular and not verdicts.at_the_edge(posterior, at)


def _best(posterior: Posterior, ends: list[SearchResult], modes: list[Mode]) -> SearchResult:
    """The end at the best mode; where there is none, the highest end of finite density."""
    if modes:
        return next(end for end in ends if end.at is modes[0].at)
    values = [float(end.at.value) for end in ends]
    best = ends[int(np.argmin(_or_infinite(np.array(values))))]
    if not np.isfinite(best.at.value):
        verdicts.explain_no_start(posterior, [end.at.u for end in ends])
    return best


def _or_infinite(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    # Where a chart saturates det G is zero, and -log q^G minus infinity: no mode either.
    return np.where(np.isfinite(values), values, np.inf)


@steady
def _objectives(posterior: Posterior, points: Float[Array, "n d"]) -> Float[Array, " n"]:
    return jax.vmap(lambda u: objective(u, posterior))(points)

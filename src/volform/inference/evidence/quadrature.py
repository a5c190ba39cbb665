"""Evidence by quadrature, for up to three parameters."""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float

from volform.compilation import QUICK, STEADY, Compiled
from volform.errors import ModelError
from volform.inference.evidence.edges import cut_off, is_far_out, lost_beyond
from volform.inference.evidence.estimator import Estimator, Problem
from volform.inference.laplace.gaussian_chart import LEBESGUE
from volform.inference.laplace.samples import Samples
from volform.inference.modes.expansion import SecondOrder
from volform.inference.modes.newton import expansions
from volform.limits import AUTOMATIC_QUADRATURE_UP_TO, QUADRATURE_UP_TO
from volform.linalg.generalized import cholesky_or_nan
from volform.models.posterior import Posterior
from volform.models.prior_draws import tempered, weighed_draws
from volform.results import Cost, Evidence, Level, Trust

RANGE = 3.5  # of t: |z| up to sinh(pi/2 sinh(3.5)) = 1e11 standard deviations
# Nats by which log q^G may be higher at a node than at the best mode that was found: rounding of a
# factor that cancels its prior far out was 350.
ABOVE_MODE = 10.0
NEAR = 1.5  # of t: 14 standard deviations
# Of the heaviest node from the nearest mode, in its standard deviations: of a Cauchy density it is
# 3. Where a factor cancels its prior, q^G is 1 at e^354, and rounding was the whole of the sum.
ASTRAY = 100.0
SPACING = 0.5  # of nodes at a mode, in its standard deviations
MOST_FOR_MODES = 1e6  # nodes, to reach it
NEGLIGIBLE_TERM = -40.0  # log of a term over the heaviest, 4e-18, that no draw is kept of
NODES_AT_ONCE = 10_000  # nodes evaluated at once; bounds the memory
FOLD = 4  # of the key, of its draws


class Quadrature(Estimator):
    """Double-exponential quadrature in coordinates that the Laplace approximation chooses.

    `u = u* + W z` with `W^T H W = I` at the mode of q^G, and `z_i = sinh(pi/2 sinh t_i)`, which
    takes Gaussian, exponential and power tails alike; the trapezoidal rule in t then converges
    exponentially. Its step is halved until log Z changes by less than `tolerance`.

    Attributes:
        tolerance: change of log Z at which the step is halved no more.
        nodes: bound on the number of evaluations.

    References:
        Takahasi & Mori (1974), double exponential formulas for numerical integration.

    >>> import volform as vf
    >>> vf.Quadrature()
    Quadrature()
    """

    tolerance: float = 1e-9
    nodes: int = 20_000_000

    def estimate(self, problem: Problem) -> Evidence:
        """The trapezoidal sum, its step halved until it converges."""
        posterior = problem.posterior
        if posterior.dim > QUADRATURE_UP_TO:
            raise ModelError(
                f"Quadrature takes at most {QUADRATURE_UP_TO} parameters, the `posterior` has "
                f"{posterior.dim}; use `vf.Importance()` or `vf.Bridge()`."
            )
        center, whitener = _center(problem)
        finest = _step_for_modes(problem, center, whitener)
        # A grid that is fine enough for a needle everywhere is too fine.
        asked = max(finest, 2.0 * RANGE / MOST_FOR_MODES ** (1.0 / posterior.dim))
        found = _refined(posterior, center, whitener, self.tolerance, asked, self.nodes)
        bad, lost = found.undefined, lost_beyond(posterior, found.cut)
        return problem.estimated(
            found.log_z,
            found.change + lost,
            method="quadrature",
            trust=_trust(found.change, lost, _astray(problem, found.top))
            .but(["nodes are sparse at another mode"] if found.step > finest else [])
            .but(cut_off(posterior, found.cut))
            .given("if no needle lies between the nodes"),
            diagnostics={"change_at_last_refinement": found.change, "nodes": float(found.nodes)},
            cost=Cost(densities=found.nodes),
            notes=[f"{bad} nodes with a density of NaN, counted as zero"] if bad else [],
            draws=found.draws(posterior, center, whitener),
        )


def _center(problem: Problem) -> tuple[Any, Any]:
    """A center and a scale of the nodes: of the mode, or where there is none of prior draws.

    A box, a ring or a plateau has no strict mode. The rule takes any tail, so that it needs the
    place and the scale to a factor only: those of a thousand draws under a power of the likelihood.
    """
    if problem.known_modes:
        at = problem.known_modes[0]
        return np.asarray(at.u, float), np.asarray(at.whitener, float)
    model = problem.posterior.bound_model
    draws, fit = map(np.asarray, weighed_draws(model, problem.key, FOLD))
    weights = scipy.special.softmax(tempered(fit))
    center = weights @ draws
    scatter = (draws - center).T @ (weights[:, None] * (draws - center))
    return center, cholesky_or_nan(scatter)


class Trapezoids(NamedTuple):
    """The trapezoidal sum.

    Attributes:
        log_z: its logarithm.
        change: by how much the last refinement changed it.
        step: its step in t.
        nodes: number of nodes.
        undefined: those of density NaN.
        top: u and log density of the node of the largest term.
        cut: share of it from nodes where the chart of a bounded site may be cut off.
        kept: u of the nodes that are not negligible, shape (k, d).
        terms: log of their terms in the sum, shape (k,).
    """

    log_z: float
    change: float
    step: float
    nodes: int
    undefined: int
    top: tuple[Any, float]
    cut: float
    kept: Float[np.ndarray, "k d"]
    terms: Float[np.ndarray, " k"]

    def draws(self, posterior: Posterior, center: Any, whitener: Any) -> Samples | None:
        """The nodes as draws with weights; None where the sum is zero."""
        if not len(self.terms):
            return None
        weights = self.terms - np.logaddexp.reduce(self.terms)
        z = np.linalg.solve(whitener, (self.kept - center).T).T
        # Cells are boxes in t: sides along the columns of W, with the variance of even densities.
        cells = np.sqrt(_spacing(z) ** 2 @ whitener.T**2 / 12.0) * self.step
        return Samples(posterior, LEBESGUE, self.kept, log_weights=weights, cells=cells)


def _refined(
    posterior: Posterior, center: Any, whitener: Any, tolerance: float, finest: float, most: int
) -> Trapezoids:
    """The sum with a step, `finest` at most, that half of it changes by less than `tolerance`."""
    d, step = posterior.dim, 0.5
    total, far, undefined, used, heaviest, top = -np.inf, -np.inf, 0, 0, -np.inf, (center, -np.inf)
    change, before, last = math.inf, math.nan, math.nan
    kept: list[Any] = []
    for level in itertools.count():
        new = _grid(step, d, level > 0)
        if used + len(new) > most:
            break
        part, beyond, bad, term, at, seen = _sum(posterior, center, whitener, new)
        used, undefined = used + len(new), undefined + int(bad)
        heaviest, top = (term, at) if term > heaviest else (heaviest, top)
        kept = _heavy([*kept, *seen], heaviest)
        total, far = np.logaddexp(total, part), np.logaddexp(far, beyond)
        log_z = total + d * math.log(step)
        change, before, last = abs(log_z - before), log_z, step
        if level > 1 and change < max(tolerance, _rounding(before)) and step <= finest:
            break
        step *= 0.5
    with np.errstate(invalid="ignore"):  # where all is zero
        cut = float(np.exp(far - total))
    change = max(float(change), _rounding(before))
    nodes, terms = (np.concatenate(part) for part in zip(*kept, strict=True))
    return Trapezoids(float(before), change, last, used, undefined, top, cut, nodes, terms)


def _heavy(pieces: list[Any], heaviest: float) -> list[Any]:
    """The nodes of each piece whose terms are no rounding of the heaviest, and these terms."""
    heavy = [terms > heaviest + NEGLIGIBLE_TERM for _, terms in pieces]
    return [(u[is_so], terms[is_so]) for (u, terms), is_so in zip(pieces, heavy, strict=True)]


def _rounding(log_z: float) -> float:
    """Rounding of log densities of this size, of which no step is free."""
    return 10.0 * float(jnp.finfo(jnp.result_type(float)).eps) * max(1.0, abs(log_z))


def _grid(step: float, d: int, only_new: bool) -> Float[np.ndarray, "n d"]:
    """Nodes of the grid in t; those that the grid of twice the step has not, if asked."""
    count = math.floor(RANGE / step)
    axis = np.arange(-count, count + 1)
    index = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d)
    if only_new:
        index = index[(index % 2 != 0).any(1)]
    return index * step


def _sum(
    posterior: Posterior, center: Any, whitener: Any, nodes: Float[np.ndarray, "n d"]
) -> tuple[float, float, int, float, Any, list[Any]]:
    """Log of the sum over nodes, of that far out, those of NaN, the heaviest term, where and what.

    And the nodes themselves with their terms. In pieces of equal shape, so that one program serves
    all.
    """
    batch = min(NODES_AT_ONCE, 1 << (len(nodes) - 1).bit_length())
    padding = -len(nodes) % batch
    padded = np.concatenate([nodes, np.full((padding, nodes.shape[1]), np.nan)])
    dtype = jnp.result_type(float)
    pieces = padded.reshape(-1, batch, nodes.shape[1]).astype(dtype)
    run = _short if posterior.dim <= AUTOMATIC_QUADRATURE_UP_TO else _long
    given = posterior, center.astype(dtype), whitener.astype(dtype)
    sums, seen = [], []
    for piece in pieces:
        *summed, u, terms = jax.tree.map(np.asarray, run(*given, piece))
        sums.append(summed)
        seen += _heavy([(u, terms)], float(summed[3]))
    totals, beyond, bad, heaviest, at, log_p = map(np.asarray, zip(*sums, strict=True))
    top = int(np.argmax(heaviest))
    total, far = (float(np.logaddexp.reduce(part)) for part in (totals, beyond))
    return total, far, int(bad.sum()), float(heaviest[top]), (at[top], log_p[top]), seen


def _piece(
    posterior: Posterior,
    center: Float[Array, " d"],
    whitener: Float[Array, "d d"],
    nodes: Float[Array, "n d"],
) -> tuple[Array, ...]:
    log_scale = jnp.linalg.slogdet(whitener)[1]

    def term(t: Float[Array, " d"]) -> tuple[Array, ...]:
        inner = 0.5 * jnp.pi * jnp.sinh(t)
        log_jacobian = jnp.sum(jnp.log(0.5 * jnp.pi * jnp.cosh(t)) + _log_cosh(inner))
        u = center + whitener @ jnp.sinh(inner)
        log_p = posterior.log_density_lebesgue(u)
        used = jnp.all(jnp.isfinite(t))
        good = used & ~jnp.isnan(log_p)
        # Far out charts overflow, and NaN stands for a density of zero.
        bad = used & ~good & (jnp.max(jnp.abs(t)) < NEAR)
        value = jnp.where(good, log_p + log_jacobian + log_scale, -jnp.inf)
        return value, jnp.where(is_far_out(u), value, -jnp.inf), bad, u, log_p

    terms, far, bad, u, log_p = jax.vmap(term)(nodes)
    top, total = jnp.argmax(terms), jax.nn.logsumexp
    return total(terms), total(far), jnp.sum(bad), terms[top], u[top], log_p[top], u, terms


# Ten million nodes in three dimensions are worth a program that runs fast, 10^4 are not.
_short, _long = Compiled(_piece, QUICK), Compiled(_piece, STEADY)


def _log_cosh(x: Array) -> Array:
    return jnp.abs(x) + jnp.log1p(jnp.exp(-2.0 * jnp.abs(x))) - math.log(2.0)


def _step_for_modes(problem: Problem, center: Any, whitener: Any) -> float:
    """Step in t at which nodes around each mode are half of its standard deviation apart.

    Of six needles beside a broad mode those that nodes were .4 of a deviation apart at were found
    to 10^-15, and those at 18 and more were missed.
    """
    steps = [math.inf]
    for mode in problem.known_modes:
        z = np.linalg.solve(whitener, np.asarray(mode.u) - center)
        deviations = np.sqrt(np.diagonal(whitener.T @ np.asarray(mode.hessian) @ whitener))
        steps.append(SPACING / np.max(_spacing(z) * deviations))
    return min(steps)


def _spacing(z: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Distance of nodes at z for a step of one in t, `dz/dt = pi/2 cosh(t) cosh(pi/2 sinh t)`."""
    t = np.arcsinh(np.arcsinh(z) / (0.5 * np.pi))
    return 0.5 * np.pi * np.cosh(t) * np.sqrt(1.0 + z**2)


def _astray(problem: Problem, top: tuple[Any, float]) -> str:
    """Reason why the heaviest node is no part of the posterior; empty where there is none."""
    modes = problem.known_modes
    if not modes:
        return ""
    u, log_p = top
    (there,) = expansions(problem.posterior, np.asarray(u, jnp.result_type(float))[None])
    # Its log density is that which was summed: rounding is another in every program.
    above = float(log_p - there.log_volume + modes[0].value)
    if not above < ABOVE_MODE:
        return f"log q^G is {above:.0f} higher at a node than at the best mode"
    away = min(float(np.max(np.abs(_in_deviations(mode, u)))) for mode in modes)
    if away > ASTRAY:
        return f"the heaviest node lies {away:.0f} standard deviations from every mode"
    return ""


def _in_deviations(mode: SecondOrder, u: Any) -> Float[np.ndarray, " d"]:
    # W^-1 = W^T H, of W^T H W = I.
    back = np.asarray(mode.whitener).T @ np.asarray(mode.hessian)
    return back @ (np.asarray(u) - np.asarray(mode.u))


def _trust(change: float, lost: float, astray: str) -> Trust:
    text, error = f"the last refinement changed log Z by {change:.1g}", change + lost
    if lost > change:
        text += f", and about {lost:.1g} lies beyond an edge"
    if astray:
        return Trust(Level.POOR, f"{text}; {astray}: a mode was missed, or rounding is summed")
    if error < 1e-6:
        return Trust(Level.GOOD, text)
    return Trust(Level.FAIR if error < 0.01 else Level.POOR, text)

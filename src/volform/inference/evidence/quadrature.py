"""Evidence by quadrature, for up to three parameters."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float

from volform.compilation import QUICK, STEADY, Compiled
from volform.errors import ModelError, VolformError
from volform.inference.evidence.estimator import Estimator, Problem
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
FAR = 20.0  # standard deviations, beyond which nodes may be too sparse to notice a mode
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
        log_z, error, used, undefined, top = _refined(
            posterior, center, whitener, self.tolerance, self.nodes
        )
        notes = [f"{undefined} nodes with a density of NaN, counted as zero"] if undefined else []
        return problem.estimated(
            log_z,
            error,
            method="quadrature",
            trust=_trust(error, _astray(problem, top))
            .but(_far_modes(problem))
            .given("if no needle lies between the nodes"),
            diagnostics={"change_at_last_refinement": error, "nodes": float(used)},
            cost=Cost(densities=used),
            notes=notes,
        )


def _center(problem: Problem) -> tuple[Any, Any]:
    """A center and a scale of the nodes: of the mode, or where there is none of prior draws.

    A box, a ring or a plateau has no strict mode. The rule takes any tail, so that it needs the
    place and the scale to a factor only: those of a thousand draws under a power of the likelihood.
    """
    try:
        at = problem.modes[0]
    except VolformError:
        model = problem.posterior.bound_model
        draws, fit = map(np.asarray, weighed_draws(model, problem.key, FOLD))
        weights = scipy.special.softmax(tempered(fit))
        center = weights @ draws
        scatter = (draws - center).T @ (weights[:, None] * (draws - center))
        return center, cholesky_or_nan(scatter)
    return np.asarray(at.u, float), np.asarray(at.whitener, float)


def _refined(
    posterior: Posterior, center: Any, whitener: Any, tolerance: float, most: int
) -> tuple[float, float, int, int, Any]:
    """Log Z, its last change, nodes used, those of NaN, the heaviest's u and log density."""
    d, step = posterior.dim, 0.5
    total, undefined, used, heaviest, top = -np.inf, 0, 0, -np.inf, (center, -np.inf)
    change, before = math.inf, math.nan
    for level in itertools.count():
        new = _grid(step, d, level > 0)
        if used + len(new) > most:
            break
        part, bad, term, at = _sum(posterior, center, whitener, new)
        used, undefined = used + len(new), undefined + int(bad)
        heaviest, top = (term, at) if term > heaviest else (heaviest, top)
        total = np.logaddexp(total, float(part))
        log_z = total + d * math.log(step)
        change, before = abs(log_z - before), log_z
        if level > 1 and change < tolerance:
            break
        step *= 0.5
    return float(before), float(change), used, undefined, top


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
) -> tuple[float, int, float, Any]:
    """Log of the sum over nodes, those of NaN, the heaviest term, its u and log density.

    In pieces of equal shape, so that one program serves all.
    """
    batch = min(NODES_AT_ONCE, 1 << (len(nodes) - 1).bit_length())
    padding = -len(nodes) % batch
    padded = np.concatenate([nodes, np.full((padding, nodes.shape[1]), np.nan)])
    dtype = jnp.result_type(float)
    pieces = padded.reshape(-1, batch, nodes.shape[1]).astype(dtype)
    run = _short if posterior.dim <= AUTOMATIC_QUADRATURE_UP_TO else _long
    given = posterior, center.astype(dtype), whitener.astype(dtype)
    sums = [jax.tree.map(np.asarray, run(*given, piece)) for piece in pieces]
    totals, bad, heaviest, at, log_p = map(np.asarray, zip(*sums, strict=True))
    top = int(np.argmax(heaviest))
    total = float(np.logaddexp.reduce(totals))
    return total, int(bad.sum()), float(heaviest[top]), (at[top], log_p[top])


def _piece(
    posterior: Posterior,
    center: Float[Array, " d"],
    whitener: Float[Array, "d d"],
    nodes: Float[Array, "n d"],
) -> tuple[Array, ...]:
    log_scale = jnp.linalg.slogdet(whitener)[1]

    def term(t: Float[Array, " d"]) -> tuple[Array, Array, Array]:
        inner = 0.5 * jnp.pi * jnp.sinh(t)
        log_jacobian = jnp.sum(jnp.log(0.5 * jnp.pi * jnp.cosh(t)) + _log_cosh(inner))
        log_p = posterior.log_density_lebesgue(center + whitener @ jnp.sinh(inner))
        used = jnp.all(jnp.isfinite(t))
        good = used & ~jnp.isnan(log_p)
        # Far out charts overflow, and NaN stands for a density of zero.
        bad = used & ~good & (jnp.max(jnp.abs(t)) < NEAR)
        return jnp.where(good, log_p + log_jacobian + log_scale, -jnp.inf), bad, log_p

    terms, bad, log_p = jax.vmap(term)(nodes)
    top = jnp.argmax(terms)
    at = center + whitener @ jnp.sinh(0.5 * jnp.pi * jnp.sinh(nodes[top]))
    return jax.nn.logsumexp(terms), jnp.sum(bad), terms[top], at, log_p[top]


# Ten million nodes in three dimensions are worth a program that runs fast, 10^4 are not.
_short, _long = Compiled(_piece, QUICK), Compiled(_piece, STEADY)


def _log_cosh(x: Array) -> Array:
    return jnp.abs(x) + jnp.log1p(jnp.exp(-2.0 * jnp.abs(x))) - math.log(2.0)


def _far_modes(problem: Problem) -> list[str]:
    """Modes between which and the one that the nodes are dense at they are sparse."""
    try:
        first = problem.modes[0]
    except VolformError:
        return []
    gaps = [float(np.max(np.abs(_in_deviations(first, mode.u)))) for mode in problem.modes]
    farthest = max(gaps)
    if farthest < FAR:
        return []
    return [f"another mode lies {farthest:.0f} standard deviations away, where nodes are sparse"]


def _astray(problem: Problem, top: tuple[Any, float]) -> str:
    """Reason why the heaviest node is no part of the posterior; empty where there is none."""
    try:
        modes = problem.modes
    except VolformError:
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


def _trust(error: float, astray: str) -> Trust:
    text = f"the last refinement changed log Z by {error:.1g}"
    if astray:
        return Trust(Level.POOR, f"{text}; {astray}: a mode was missed, or rounding is summed")
    if error < 1e-6:
        return Trust(Level.GOOD, text)
    return Trust(Level.FAIR if error < 0.01 else Level.POOR, text)

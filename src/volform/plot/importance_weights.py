"""Weights of importance sampling: Pareto's k-hat by the number of draws, and their tail."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from volform.errors import ModelError
from volform.inference.arviz_compat import smoothed
from volform.inference.laplace.samples import Samples
from volform.plot import canvas
from volform.results import Evidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST, POINTS = 50, 24  # draws of the first point, and points
LIMITS = (0.5, 0.7)  # up to which trust is good, and above which it is poor


def k_hat(found: Evidence | Samples | Any, *, axes: "Sequence[Axes] | None" = None) -> "list[Axes]":
    """Draw Pareto's k-hat of the first n draws against n, and the largest weights by their rank.

    Weights whose tail is too heavy show in two ways: k-hat grows with the draws, as rarer and
    larger weights come in; and the largest lie on a straight line of slope -k in the logarithms.
    Above the dashed lines, 0.5 and 0.7, trust is fair and poor.

    Args:
        found: an evidence by importance sampling, its draws, or draws of a Laplace approximation.
        axes: two matplotlib axes to draw on; by default a new figure.

    Returns:
        The two axes.

    Raises:
        ModelError: draws that are not from a known density, fewer than 50, or axes that are not
            two.

    Cost: a density for each draw, where it is not known yet.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    ...     numpyro.sample("y", dist.Normal(0.0, scale), obs=y)
    >>> posterior = vf.condition(model, jnp.array([0.3, -0.5]))
    >>> left, right = vf.plot.k_hat(vf.evidence(posterior, by=vf.Importance()))
    >>> left.get_ylabel(), right.get_ylabel()
    ('k-hat', 'weight / mean weight')
    """
    log_weights = _log_weights(found)
    wanted = "two, for example `plt.subplots(1, 2)[1]`"
    panels = (
        canvas.new_axes(2, 2.9, 2.7)
        if axes is None
        else canvas.given_axes(axes, 2, "k_hat", wanted)
    )
    _by_number(panels[0], log_weights)
    _by_rank(panels[1], log_weights)
    for ax in panels:
        canvas.plain(ax)
    return panels


def _log_weights(found: Any) -> Float[np.ndarray, " n"]:
    """Log weights as they were before they were smoothed."""
    draws = found.draws if isinstance(found, Evidence) else found
    if not isinstance(draws, Samples) or draws.log_q_points is None:
        kind = f"of the type {type(found).__name__}"
        if isinstance(found, Evidence):
            kind = f"an evidence by {found.method}"
        raise ModelError(
            f"`found` of plot.k_hat is {kind}, without draws from a density that is known; give "
            "`vf.evidence(posterior, by=vf.Importance())`, or draws of `approx.sample(key)`."
        )
    if len(draws.points) < FEWEST:
        raise ModelError(
            f"`found` of plot.k_hat has {len(draws.points)} draws; give {FEWEST} or more, since a "
            "tail of fewer says nothing."
        )
    if draws.posterior is None and "log_p_points" not in vars(draws):
        raise ModelError(
            "`found` of plot.k_hat was pickled, without its model or densities; give the result "
            "itself."
        )
    log_weights = np.asarray(draws.log_p_points, float) - np.asarray(draws.log_q_points, float)
    return np.where(np.isfinite(log_weights), log_weights, -np.inf)


def _by_number(ax: "Axes", log_weights: Float[np.ndarray, " n"]) -> None:
    n = len(log_weights)
    numbers = np.unique(np.geomspace(min(FEWEST, n), n, POINTS).astype(int))
    shapes = [smoothed(log_weights[:number])[1] for number in numbers]
    known = np.isfinite(shapes)
    ax.plot(numbers[known], np.array(shapes)[known], "o-", color=canvas.BLUE, markersize=3.5)
    for limit in LIMITS:
        ax.axhline(limit, color=canvas.FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, 0.0) if known.any() else 0.0, max(high, 0.85))
    ax.set_xscale("log")
    ax.set_xlabel("draws", color=canvas.INK)
    ax.set_ylabel("k-hat", color=canvas.INK)
    last = canvas.number(shapes[-1]) if math.isfinite(shapes[-1]) else "none: equal weights"
    ax.set_title(f"k-hat {last}", fontsize=10, loc="left", color=canvas.INK)


def _by_rank(ax: "Axes", log_weights: Float[np.ndarray, " n"]) -> None:
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    n = len(log_weights)
    shift = np.max(log_weights)
    shown = math.ceil(min(0.2 * n, 3.0 * math.sqrt(n)))  # the tail that is smoothed
    rank = np.arange(1, shown + 1)
    raw = np.sort(np.exp(log_weights - shift))[::-1]
    fitted = np.sort(np.exp(smoothed(log_weights)[0] - shift))[::-1]
    raw, fitted = raw[:shown] / raw.mean(), fitted[:shown] / raw.mean()
    ax.plot(rank, raw, "o", color=canvas.BLUE, markersize=3.5, label="raw")
    ax.plot(rank, fitted, color=canvas.VERMILION, linewidth=1.5, label="smoothed")
    ax.set_xscale("log")
    if raw[0] > 3.0 * raw[-1] > 0.0:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
    ax.set_xlabel("rank from the largest", color=canvas.INK)
    ax.set_ylabel("weight / mean weight", color=canvas.INK)
    ax.legend(frameon=False, fontsize=9, loc="lower left")

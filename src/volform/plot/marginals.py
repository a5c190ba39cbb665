"""Marginal densities of parameters, of one result or several, beside the prior's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float

from volform.errors import ModelError
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.laplace.marginals import marginal_densities
from volform.inference.laplace.samples import Samples
from volform.models.posterior import Posterior
from volform.models.prior_draws import prior_draws
from volform.plot import canvas
from volform.plot.drawn import Drawn, Element, Result, elements_of, labeled, middle_and_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 0.99  # probability of the interval that a panel shows of each result
LEVELS = np.linspace(0.0005, 0.9995, 500)  # of quantiles that nodes of a quadrature are drawn by
COLUMNS, DRAWS = 3, 10_000

Curve = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]  # values, and densities there


def marginals(
    results: "Result | dict[str, Result]",
    sites: Sequence[str] | None = None,
    *,
    prior: bool = False,
    axes: "Sequence[Axes] | None" = None,
) -> "list[Axes]":
    """Draw the marginal densities of parameters: those of several results on the same axes.

    Of a Laplace approximation the curve, in closed form where there is one; of draws a histogram
    of their weights, which no bandwidth smooths over an edge. Densities are with respect to the
    value: those of another coordinate look otherwise.

    Args:
        results: a Laplace approximation, an evidence with draws, draws, an `MCMC`, or a dictionary
            of draws; or several by their labels.
        sites: names of sites, or of single numbers such as "theta[3]"; all by default.
        prior: whether to draw the prior beside them, by 10,000 draws of the first result's.
        axes: matplotlib axes to draw on, one for each number; by default a new figure.

    Returns:
        The axes, one for each number.

    Raises:
        ModelError: a result without draws, an improper prior, too many numbers or too few axes.
        UnknownSiteError: a site that a result does not have.
        DataError: draws that are empty or not finite.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> approx = vf.laplace(vf.condition(model, jnp.array([0.5, 1.5])))
    >>> (ax,) = vf.plot.marginals(approx)
    >>> round(float(max(ax.lines[0].get_ydata())), 3)  # sqrt(3 / (2 pi))
    0.691
    """
    drawn = labeled(results, "marginals")
    elements = elements_of(drawn, sites, "marginals")
    before = _prior(drawn, "marginals") if prior else None
    panels = _panels(elements, axes)
    curves = {
        label: marginal_densities(part.gaussian)
        for label, part in drawn.items()
        if isinstance(part, LaplaceApproximation)
    }
    ends = {label: middle_and_ends(part, (SHOWN,)) for label, part in drawn.items()}
    drawn = {label: _with_draws(part) for label, part in drawn.items()}
    for ax, element in zip(panels, elements, strict=True):
        shown = [found[element.site][1:, element.place] for found in ends.values()]
        low, high = min(low for low, _ in shown), max(high for _, high in shown)
        span = low - 0.05 * (high - low), high + 0.05 * (high - low)
        if before is not None:
            _fill(ax, _steps(before, element, span), "prior")
        for number, (label, part) in enumerate(drawn.items()):
            color = canvas.COLORS[number % len(canvas.COLORS)]
            if element.site in curves.get(label, {}):
                x, density = _curve(curves[label][element.site], element)
                ax.plot(x, density, color=color, linewidth=1.8, label=label)
            else:
                edges, heights = _steps(part, element, span)
                ax.stairs(heights, edges, color=color, linewidth=1.3, label=label)
        ax.set_xlim(*span)
        ax.set_ylim(bottom=0.0)
        ax.set_yticks([])
        ax.locator_params(axis="x", nbins=4)
        ax.set_xlabel(element.label, color=canvas.INK)
        canvas.plain(ax)
        ax.spines["left"].set_visible(False)
    canvas.legend_above(panels[0], len(panels) if axes is None else 1)
    return panels


def _panels(elements: Sequence[Element], axes: "Sequence[Axes] | None") -> "list[Axes]":
    if axes is None:
        wide, high = (
            (3.6, 2.6) if len(elements) == 1 else (2.0, 2.1 if len(elements) <= COLUMNS else 1.7)
        )
        return canvas.new_axes(len(elements), wide, high, COLUMNS)
    wanted = f"{len(elements)}, one for each of {[e.label for e in elements][:12]}"
    return canvas.given_axes(axes, len(elements), "marginals", wanted)


def _prior(drawn: dict[str, Drawn], function: str) -> dict[str, np.ndarray]:
    """Draws from the prior of the first result that has a model.

    Raises:
        ModelError: when none has, or a prior is improper.
    """
    posteriors = [p for part in drawn.values() if (p := getattr(part, "posterior", None))]
    if not posteriors:
        raise ModelError(
            f"`prior` of plot.{function} needs a model, and `results` holds draws alone; give a "
            "result of `vf.laplace` or `vf.evidence` beside them."
        )
    posterior: Posterior = posteriors[0]
    if improper := posterior.provenance.improper:
        raise ModelError(
            f"`prior` of plot.{function} is improper at `{'`, `'.join(improper)}`, so that there "
            "are no draws of it; leave `prior` out."
        )
    u = prior_draws(posterior.bound_model, jax.random.key(0), DRAWS)
    values = jax.jit(jax.vmap(posterior.values))(u)
    return {name: np.asarray(x, float) for name, x in values.items()}


def _with_draws(part: Drawn) -> Samples | dict[str, np.ndarray]:
    if isinstance(part, LaplaceApproximation):
        return part.sample(jax.random.key(0), DRAWS)
    return part


def _curve(curve: Any, element: Element) -> Curve:
    x, density = (part.reshape(len(part), -1)[:, element.place] for part in curve)
    return x, density


def _steps(
    drawn: Samples | dict[str, np.ndarray], element: Element, span: tuple[float, float]
) -> Curve:
    """Edges and heights of a histogram of the density; all draws count, also beyond the span.

    It begins and ends with the draws, so that it does not go over an edge of the support.
    """
    if isinstance(drawn, Samples) and drawn.cells is not None:
        at = drawn.quantiles(element.site, LEVELS.tolist()).reshape(len(LEVELS), -1)[
            :, element.place
        ]
        edges = np.linspace(max(span[0], at[0]), min(span[1], at[-1]), 41)
        below = np.interp(edges, at, LEVELS, left=0.0, right=1.0)
        return edges, np.diff(below) / np.diff(edges)
    if isinstance(drawn, Samples):
        x, weights = drawn.marginal(element.site)
    else:
        x = drawn[element.site]
        weights = np.full(len(x), 1.0 / len(x))
    x = x.reshape(len(x), -1)[:, element.place]
    count = 1.0 / np.sum(weights**2)
    bins = int(np.clip(2.0 * count ** (1.0 / 3.0), 8, 40))  # Rice's rule
    within = max(span[0], x.min()), min(span[1], x.max())
    heights, edges = np.histogram(x, bins, within, weights=weights)
    return edges, heights / np.diff(edges)


def _fill(ax: "Axes", steps: Curve, label: str) -> None:
    edges, heights = steps
    ax.stairs(heights, edges, fill=True, color=canvas.FAINT, alpha=0.35, label=label)

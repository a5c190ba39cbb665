"""Intervals of many parameters, of one result or several."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from volform.inference.summary import require_probability
from volform.plot import canvas
from volform.plot.drawn import Result, elements_of, labeled, middle_and_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW, GAP = 0.17, 0.13  # inches of an interval, and between parameters
INNER = 0.5  # probability of the thick part


def forest(
    results: "Result | dict[str, Result]",
    sites: Sequence[str] | None = None,
    *,
    probability: float = 0.9,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw means and credible intervals of parameters, of one result or of several by their labels.

    Thin lines lie between the quantiles that leave out as much on either side, thick ones hold one
    half, dots are means. All are in values of the sites, as in `summary`.

    Args:
        results: a Laplace approximation, an evidence with draws, draws, an `MCMC`, or a dictionary
            of draws; or several by their labels.
        sites: names of sites, or of single numbers such as "theta[3]"; all by default.
        probability: of the thin intervals.
        ax: matplotlib axes to draw on; by default a new figure.

    Returns:
        The axes.

    Raises:
        ModelError: a result without draws, a probability that is none, too many numbers.
        UnknownSiteError: a site that a result does not have.
        DataError: draws that are empty or not finite.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)
    >>> ax = vf.plot.forest(vf.laplace(vf.condition(model, jnp.array([0.5, 1.5]))))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['mu[0]', 'mu[1]']
    """
    require_probability(probability, "plot.forest")
    drawn = labeled(results, "forest")
    elements = elements_of(drawn, sites, "forest")
    height = len(drawn) * ROW + GAP
    if ax is None:
        ax = canvas.new_axes(1, 4.8, 1.0 + height * len(elements) + ROW * len(drawn))[0]
    for number, (label, result) in enumerate(drawn.items()):
        ends = middle_and_ends(result, (INNER, float(probability)))
        color: Any = canvas.COLORS[number % len(canvas.COLORS)]
        for row, element in enumerate(elements):
            mean, low, high, lowest, highest = ends[element.site][:, element.place]
            y = -(row * height + number * ROW)
            ax.plot([lowest, highest], [y, y], color=color, linewidth=1.2)
            ax.plot([low, high], [y, y], color=color, linewidth=3.4, solid_capstyle="butt")
            ax.plot(mean, y, "o", color=color, markersize=5.5, mec="white", mew=0.8)
        ax.plot([], [], "o-", color=color, label=label)
    middle = 0.5 * (len(drawn) - 1) * ROW
    ax.set_yticks([-(row * height + middle) for row in range(len(elements))],
                  [element.label for element in elements])  # fmt: skip
    ax.set_ylim(-height * len(elements) + 0.5 * GAP, ROW)
    ax.set_xlabel(_quantity([e.site for e in elements]), color=canvas.INK)
    canvas.plain(ax)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=canvas.FAINT, alpha=0.25)
    if len(drawn) > 1:
        canvas.legend_above(ax)
    else:
        text = f"mean, {100 * INNER:g} % and {100 * probability:g} % intervals"
        canvas.title(ax, f"{next(iter(drawn))}: {text}", 9.5)
    return ax


def _quantity(sites: Sequence[str]) -> str:
    return sites[0] if len(set(sites)) == 1 else "value"

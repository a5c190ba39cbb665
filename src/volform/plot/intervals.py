"""Intervals of one parameter, each with the measure in which it is the shortest."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from volform.errors import UnknownSiteError
from volform.geometry.metric import Euclidean, Metric, pullback
from volform.geometry.questions import name_of
from volform.inference.credible import CredibleRegion
from volform.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW = 0.13  # height of an interval below the histogram, of the histogram's


def credible(
    region: CredibleRegion,
    site: str,
    measures: Sequence[Metric] = (Euclidean(), pullback(Euclidean(), jnp.log)),
    *,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the draws of a parameter, and intervals of one probability below them.

    First the one between quantiles, which is the same in every parametrization; then the shortest
    in each measure. ArviZ's `hdi` is that of `Euclidean()` in the coordinate as it is written.

    Args:
        region: from `vf.credible_region`.
        site: a scalar latent site.
        measures: metrics of one number; lengths of x and of log x by default.
        ax: axes to draw on; by default a new figure.

    Returns:
        The axes.

    Raises:
        UnknownSiteError: when `site` is no scalar latent site.
        MetricError: when a measure is no metric of one number, as the logarithm of a negative one.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    ...     numpyro.sample("y", dist.Normal(0.0, scale), obs=y)
    >>> region = vf.credible_region(vf.laplace(vf.condition(model, jnp.array([0.3, -0.5]))))
    >>> ax = vf.plot.credible(region, "scale", [vf.Euclidean()])
    >>> [text.get_text() for text in ax.texts]
    ['between quantiles', 'shortest in Euclidean()']
    """
    sites = {s.name: s for s in region.posterior.layout.sites}
    if site not in sites or sites[site].shape:
        scalars = [name for name, s in sites.items() if not s.shape]
        raise UnknownSiteError(f"`site` of plot.credible should be one of {scalars}; got {site!r}.")
    rows = [("between quantiles", region.interval(site))]
    rows += [(f"shortest in {name_of(m)}", region.interval(site, m)) for m in measures]
    axes = canvas.new_axes(1, 6.0, 3.2 + 0.2 * len(rows))[0] if ax is None else ax
    low = min(float(lower) for _, (lower, _) in rows)
    high = max(float(upper) for _, (_, upper) in rows)
    margin = 0.25 * (high - low)
    x, weights = region.draws(site)
    heights, edges = np.histogram(x, 60, (low - margin, high + margin), weights=weights)
    keep = edges[1:] > x.min()
    axes.stairs(heights / heights.max(), edges, fill=True, color=canvas.FAINT, alpha=0.35)
    for i, (label, (lower, upper)) in enumerate(rows):
        y, color = -ROW * (i + 1), canvas.BLUE if i == 0 else canvas.VERMILION
        axes.plot([float(lower), float(upper)], [y, y], color=color, linewidth=3.5, marker="|")
        axes.text(float(upper) + 0.06 * margin, y, label, va="center", fontsize=8.5, color=color)
    axes.set_xlim(edges[:-1][keep][0], edges[-1] + 2.0 * margin)
    axes.set_yticks([])
    axes.set_xlabel(site, color=canvas.INK)
    percent = f"{100 * region.probability:g} %"
    axes.set_title(f"{percent} intervals of {site}", fontsize=10.5, color=canvas.INK, loc="left")
    canvas.plain(axes)
    axes.spines["left"].set_visible(False)
    return axes

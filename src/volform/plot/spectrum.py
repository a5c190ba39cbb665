"""The spectrum of E = G^-1 H at the mode."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from volform.inference.modes.mode import MAP
from volform.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def spectrum(target: canvas.Target, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the eigenvalues of E = G^-1 H in ascending order, with the sites behind the extremes.

    The eigenvalues are invariant. So are the shares by which sites are named, as long as sites are
    reparametrized one by one: the share of site s in an eigenvector e with e^T G e = 1 is
    `sum_{k in s} e_k (G e)_k`; the shares of all sites sum to one. Under a Fisher metric an
    eigenvalue of one says that the curvature of -log q^G is the information; a small one, that
    the posterior is wider than the metric promises.

    Args:
        target: a `MAP`, a `LaplaceApproximation`, or a `Posterior`, whose mode is found first.
        ax: matplotlib axes to draw on; by default a new figure.

    Returns:
        The axes.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> ax = vf.plot.spectrum(vf.condition(model, jnp.array([0.5, 1.5])))
    >>> ax.get_ylabel()
    'eigenvalue of E'
    """
    fit = canvas.mode_of(target)
    ax = canvas.new_axes(1, 5.2, 3.6)[0] if ax is None else ax
    eigenvalues = np.asarray(fit.eigenvalues)
    order = np.arange(1, len(eigenvalues) + 1)
    positive = eigenvalues > 0
    base = _scale(ax, eigenvalues)
    stems = len(order) <= 60
    for mask, color in ((positive, canvas.BLUE), (~positive, canvas.VERMILION)):
        if stems:
            ax.vlines(order[mask], base, eigenvalues[mask], color=color, linewidth=1, alpha=0.4)
        ax.plot(order[mask], eigenvalues[mask], "o", color=color, markersize=6 if stems else 3)
    if ax.get_ylim()[0] < 1.0 < ax.get_ylim()[1]:
        ax.axhline(1.0, color=canvas.FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    _name_extremes(ax, eigenvalues, _shares(fit))
    ax.set_xlim(0.3, len(order) + 0.7)
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("rank, from the lowest", color=canvas.INK)
    ax.set_ylabel("eigenvalue of E", color=canvas.INK)
    metric = fit.posterior.metric_name
    canvas.plain(ax)
    canvas.title(ax, f"$E=G^{{-1}}H$ at the mode of $q^G$, G = {metric}")
    return ax


def _scale(ax: "Axes", eigenvalues: Float[np.ndarray, " d"]) -> float:
    """A logarithmic axis where the eigenvalues ask for one; returns where stems begin."""
    low, high = eigenvalues[0], eigenvalues[-1]
    if low > 0 and high > 5 * low:
        room = (high / low) ** 0.15
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
        ax.set_ylim(low / room, high * room)
        return float(low / room)
    room = 0.15 * (max(high, 0.0) - min(low, 0.0))
    ax.set_ylim(min(low - room, 0.0) if low < 0 else 0.0, high + room)
    return 0.0


def _shares(fit: MAP) -> dict[str, Float[np.ndarray, " d"]]:
    """Share of each site in each eigenvector."""
    frame, gram = np.asarray(fit.at.frame), np.asarray(fit.at.gram)
    terms = frame * (gram @ frame)
    return {site.name: terms[site.segment].sum(0) for site in fit.posterior.layout.sites}


def _name_extremes(
    ax: "Axes", eigenvalues: Float[np.ndarray, " d"], shares: dict[str, Float[np.ndarray, " d"]]
) -> None:
    last = len(eigenvalues) - 1
    for rank, side, drop in ((0, "left", -13), (last, "right", 13)):
        names = sorted(shares, key=lambda name, i=rank: -abs(shares[name][i]))
        shown = [name for name in names if abs(shares[name][rank]) > 0.1]
        ax.annotate(
            f"{canvas.number(eigenvalues[rank])}: {', '.join(shown[:4])}",
            (rank + 1, eigenvalues[rank]),
            xytext=(0, drop),
            textcoords="offset points",
            ha=side if last else "center",
            va="center",
            fontsize=9,
            color=canvas.INK,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.5},
        )
        if not last:
            break

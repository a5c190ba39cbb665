"""Reliability of the probabilities that a classifier gives."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from volform.checks import require_whole
from volform.errors import DataError
from volform.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def reliability(
    probabilities: Any, labels: Any, *, bins: int = 10, ax: "Axes | None" = None
) -> "Axes":
    """Draw how often what is predicted with a probability comes true, with standard errors.

    Data are put in bins of equal numbers by their probability. The bars on the diagonal are two
    standard errors of the frequency if the probabilities are right, `sqrt(sum p (1 - p)) / n`: a
    dot beyond its bar, which is open, tells that they are not. Of several classes the probability
    is that of the most likely one, and comes true where the label is that.

    The calibration error is the mean distance of the dots from the diagonal. It is not zero where
    the probabilities are right; what it is then, stands beside it.

    Args:
        probabilities: of the label 1, shape (n,), or of all classes, shape (n, k); such as the
            mean over the draws of a posterior.
        labels: whole numbers from 0, shape (n,).
        bins: number of bins; fewer where probabilities are equal.
        ax: matplotlib axes to draw on; by default a new figure.

    Returns:
        The axes.

    Raises:
        DataError: shapes that do not fit, numbers that are no probabilities, labels of no class.
        OperatorError: `bins` that is no positive whole number.

    References:
        Broecker & Smith (2007), Increasing the reliability of reliability diagrams, Weather and
        Forecasting 22, 651.

    >>> import numpy as np, volform as vf
    >>> random = np.random.default_rng(0)
    >>> p = random.uniform(size=1000)
    >>> ax = vf.plot.reliability(p, random.uniform(size=1000) < p)
    >>> ax.get_xlabel()
    'predicted probability'
    """
    require_whole(bins, "bins", "plot.reliability")
    chance, happened = _chance_and_outcome(probabilities, labels)
    ax = canvas.new_axes(1, 3.6, 3.6)[0] if ax is None else ax
    ax.plot([0.0, 1.0], [0.0, 1.0], color=canvas.FAINT, linewidth=1, linestyle=(0, (4, 3)))
    error, expected = 0.0, 0.0
    for own in _bins(chance, bins):
        p, share = chance[own], happened[own].mean()
        deviation = math.sqrt(np.sum(p * (1.0 - p))) / len(p)
        gap = abs(share - p.mean())
        error += gap * len(p) / len(chance)
        expected += math.sqrt(2.0 / math.pi) * deviation * len(p) / len(chance)
        color = canvas.BLUE if gap <= 2.0 * deviation else canvas.VERMILION
        ends = np.clip([p.mean() - 2.0 * deviation, p.mean() + 2.0 * deviation], 0.0, 1.0)
        ax.plot([p.mean()] * 2, ends, color=canvas.FAINT, linewidth=4, alpha=0.6, zorder=1)
        face = color if color == canvas.BLUE else "white"
        ax.plot(p.mean(), share, "o", color=color, mfc=face, markersize=6, zorder=3)
    several = np.ndim(probabilities) == 2
    ax.set_xlabel("probability of the likeliest class" if several else "predicted probability",
                  color=canvas.INK)  # fmt: skip
    ax.set_ylabel("frequency", color=canvas.INK)
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_aspect("equal")
    canvas.plain(ax)
    canvas.title(ax, f"calibration error {error:.3f}, {expected:.3f} if right", 10)
    return ax


def _bins(chance: Float[np.ndarray, " n"], bins: int) -> list[np.ndarray]:
    """Numbers of the data in each bin; equal probabilities share one."""
    edges = np.unique(np.quantile(chance, np.linspace(0.0, 1.0, bins + 1)[1:-1]))
    where = np.searchsorted(edges, chance, side="left")
    return [np.flatnonzero(where == number) for number in np.unique(where)]


def _chance_and_outcome(
    probabilities: Any, labels: Any
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    chance, truth = np.asarray(probabilities, float), np.asarray(labels, float)
    classes = chance.shape[1] if chance.ndim == 2 else 2
    if chance.ndim not in (1, 2) or truth.shape != chance.shape[:1] or not truth.size:
        raise DataError(
            f"`probabilities` and `labels` of plot.reliability have the shapes {chance.shape} and "
            f"{truth.shape}; expected were (n,) or (n, k) and (n,), with a datum or more. Of draws "
            "take the mean over them first."
        )
    sums = chance.sum(1) if chance.ndim == 2 else np.ones(1)
    if not ((chance >= 0.0) & (chance <= 1.0)).all() or abs(sums - 1.0).max() > 1e-3:
        raise DataError(
            "`probabilities` of plot.reliability should lie between 0 and 1, and sum to one over "
            f"classes; got numbers from {chance.min():.4g} to {chance.max():.4g}."
        )
    if not np.isin(truth, np.arange(classes)).all():
        raise DataError(
            f"`labels` of plot.reliability should be whole numbers from 0 to {classes - 1}; got "
            f"{np.unique(truth)[:8].tolist()}."
        )
    if chance.ndim == 1:
        return chance, truth
    return chance.max(1), (chance.argmax(1) == truth).astype(float)

"""The evidence of compared models."""

from typing import TYPE_CHECKING

import numpy as np

from volform.inference.evidence.comparison import Comparison
from volform.plot import canvas
from volform.results import Level

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def evidence(table: Comparison, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the log evidences of compared models with two standard errors, the best on top.

    Filled marks can be trusted; open ones are no better than fair, and say why in the table.
    Dashed lines at log Bayes factors 1, 3, 5 bound the words of Kass & Raftery (1995).

    Models whose evidence is NaN are left out.

    Args:
        table: from `volform.compare`.
        ax: matplotlib axes to draw on; by default a new figure.

    Returns:
        The axes.

    >>> import jax.numpy as jnp, volform as vf
    >>> from volform import kernels as k, networks as nn
    >>> x, y = jnp.eye(2), jnp.array([0.5, 1.5])
    >>> models = {f"w_std {s}": k.evidence(nn.Dense(1, s), x, y, noise=1.0) for s in (1.0, 9.0)}
    >>> ax = vf.plot.evidence(vf.compare(models))
    >>> ax.get_xlabel()
    'log evidence'
    """
    rows = [row for row in table.rows if np.isfinite(float(row.evidence.log_z))]
    ax = canvas.new_axes(1, 6.0, 1.2 + 0.42 * len(rows))[0] if ax is None else ax
    values = np.array([float(row.evidence.log_z) for row in rows])
    errors = np.nan_to_num([float(row.evidence.error) for row in rows])
    heights = np.arange(len(rows))[::-1]
    room = max(1.0, 0.15 * (values.max() - values.min()))
    left = (values - 2.0 * errors).min() - room
    right = (values + 2.0 * errors).max() + 0.5 * room
    ax.set_xlim(left, right)
    for bound in (1.0, 3.0, 5.0):
        if values[0] - bound > left:
            ax.axvline(values[0] - bound, color=canvas.FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
            ax.annotate(
                f"{bound:.0f}",
                (values[0] - bound, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=canvas.FAINT,
            )
    for height, value, error, row in zip(heights, values, errors, rows, strict=True):
        good = row.evidence.trust.level is Level.GOOD
        color = canvas.BLUE if good else canvas.VERMILION
        ax.plot([value - 2.0 * error, value + 2.0 * error], [height, height], color=color)
        ax.plot(value, height, "o", color=color, markerfacecolor=color if good else "white")
    ax.set_yticks(heights, [row.name for row in rows])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_xlabel("log evidence", color=canvas.INK)
    canvas.plain(ax)
    text = "two standard errors; filled: trust is good; dashed: log BF 1, 3, 5"
    canvas.title(ax, text, 9.5, pad=14.0)  # above the numbers of the dashed lines
    return ax

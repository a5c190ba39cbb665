"""Weights into and out of each hidden unit, over the draws of a posterior."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from volform.errors import DataError
from volform.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colors, with markers for a gray print.
_MARKERS = "os^Dv<>P"
_NAMED = 12  # units that a legend names


def units(
    draws: Mapping[str, Any],
    into: str,
    out_of: str,
    *,
    feature: int = 0,
    output: int = 0,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the weight into each unit against the weight out of it, a color for each unit.

    As sampled, each unit visits the places of all others, with all signs. Of representatives, each
    has a cloud of its own, and clouds that touch are of units whose place the data do not tell.

    Args:
        draws: by site, `(chains, draws, ...)` or `(draws, ...)`: `equivalence.representatives`, or
            draws as they are.
        into: site of the weights into the units, a row for each unit.
        out_of: site of the weights out of the units, a column for each unit.
        feature: number of the input that is shown.
        output: number of the output that is shown.
        ax: matplotlib axes to draw on; by default a new figure.

    Returns:
        The axes.

    Raises:
        DataError: when a site is missing, or their numbers of units differ.

    >>> import numpy as np, volform as vf
    >>> draws = {"layer0.w": np.ones((2, 9, 3, 1)), "layer1.w": np.ones((2, 9, 1, 3))}
    >>> len(vf.plot.units(draws, "layer0.w", "layer1.w").collections)
    3
    """
    missing = [name for name in (into, out_of) if name not in draws]
    if missing:
        raise DataError(f"`draws` of units lacks {missing}; it has the sites {sorted(draws)}.")
    before, after = np.asarray(draws[into]), np.asarray(draws[out_of])
    fits = min(before.ndim, after.ndim) > 2 and before.shape[:-2] == after.shape[:-2]
    if not fits or before.shape[-2] != after.shape[-1]:
        raise DataError(
            f"`{into}` and `{out_of}` have draws of shapes {before.shape} and {after.shape}; the "
            "first should end in (units, features) and the second in (outputs, units)."
        )
    ax = canvas.new_axes(1, 4.2, 3.6)[0] if ax is None else ax
    count = before.shape[-2]
    xs = before[..., feature].reshape(-1, count)
    ys = after[..., output, :].reshape(-1, count)
    ax.axhline(0.0, color=canvas.FAINT, linewidth=0.6, alpha=0.5, zorder=0)
    ax.axvline(0.0, color=canvas.FAINT, linewidth=0.6, alpha=0.5, zorder=0)
    for unit in range(count):
        ax.scatter(
            xs[:, unit],
            ys[:, unit],
            s=9,
            color=canvas.COLORS[unit % len(canvas.COLORS)],
            marker=_MARKERS[unit % len(_MARKERS)],
            alpha=0.35,
            linewidths=0,
            rasterized=True,
            label=f"unit {unit}",
        )
    ax.set_xlabel("weight into the unit", color=canvas.INK)
    ax.set_ylabel("weight out of the unit", color=canvas.INK)
    if count <= _NAMED:
        legend = ax.legend(frameon=False, fontsize=9, loc="best", handletextpad=0.1, markerscale=2)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)
    canvas.plain(ax)
    return ax

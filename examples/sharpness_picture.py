"""The picture of sharpness.py: the paper's figure 5, and what its comparison depends on."""

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

from volform.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from sharpness import Measured

# What the ratios are of; a is the learning rate.
LABELS = {
    "tr E / tr H": "tr $G^{-1}H$ over tr $H$\n(two scales)",
    "tr H": "tr $H$ at both",
    "tr, Adam's G": "tr $G^{-1}H$ at both,\nAdam's $G$",
    "a tr E": "learning rate\n× tr $G^{-1}H$",
    "a lambda_max": "learning rate × largest\neigenvalue of $G^{-1}H$",
    "of threshold": "the same, as a part of its\nthreshold with momentum",
}


def draw(
    found: "dict[tuple[int, str], Measured]", ratios: dict[str, list[float]], path: Path
) -> None:
    """Left the traces that the paper compares, right the ratio of Adam to SGD on each scale."""
    mpl.use("Agg")
    left, right = canvas.new_axes(2, 5.2, 4.0)
    _traces(left, found)
    _ratios(right, ratios)
    canvas.figure_of(left).savefig(path, dpi=110)


def _traces(ax: "Axes", found: "dict[tuple[int, str], Measured]") -> None:
    columns = (
        ("SGD\ntr $H$", "SGD", "plain"),
        ("Adam\ntr $H$", "Adam", "plain"),
        ("Adam\ntr $G^{-1}H$", "Adam", "own"),
    )
    for place, (_, optimizer, field) in enumerate(columns):
        of = [getattr(m, field) for (_, name), m in found.items() if name == optimizer]
        color = canvas.BLUE if optimizer == "SGD" else canvas.VERMILION
        values = [float(e.value) for e in of]
        ax.plot([place] * len(values), values, "o", color=color, markersize=7, alpha=0.8)
        mean = sum(values) / len(values)
        ax.annotate(
            f"{mean:,.3g}" if mean < 1000 else f"{mean:,.0f}", (place, mean), xytext=(9, 0),
            textcoords="offset points", va="center", fontsize=9, color=canvas.INK,
        )  # fmt: skip
    ax.set_yscale("log")
    ax.set_xlim(-0.5, 2.7)
    ax.margins(y=0.15)
    ax.set_xticks(range(3), [label for label, *_ in columns])
    ax.set_title("As in the paper: one axis, two scales", fontsize=10, loc="left")
    canvas.plain(ax)


def _ratios(ax: "Axes", ratios: dict[str, list[float]]) -> None:
    ax.axvline(1.0, color=canvas.FAINT, linewidth=1)
    for row, values in enumerate(ratios.values()):
        color = canvas.FAINT if row == 0 else canvas.INK
        ax.plot(values, [row] * len(values), "o", color=color, markersize=7, alpha=0.8)
        mean = sum(values) / len(values)
        ax.annotate(
            f"{mean:.3g} ×", (max(values), row), xytext=(9, 0), textcoords="offset points",
            va="center", fontsize=9, color=color,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.margins(x=0.2, y=0.12)
    ax.set_xlabel("ratio, one mark for each seed, and its mean", color=canvas.INK)
    ax.set_yticks(range(len(ratios)), [LABELS[name] for name in ratios])
    ax.invert_yaxis()
    ax.set_title("Adam over SGD: above 1, Adam's end is sharper", fontsize=10, loc="left")
    canvas.plain(ax)
    ax.tick_params(axis="y", length=0)

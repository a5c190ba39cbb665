"""The picture of calibration.py: one panel an estimator, one mark an estimate."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from calibration import ESTIMATORS, LEVELS, is_number
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from volform.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colors; marks differ in shape too. "good" lies on top.
MARKS = {"good": ("#0072B2", "o"), "fair": ("#E69F00", "^"), "poor": ("#333333", "x")}
LOWEST, HIGHEST = 1e-9, 1e2  # nats; beyond, a mark lies on the edge
SHOWN = (LOWEST / 2.0, HIGHEST * 2.0)


def draw(records: "Sequence[dict[str, Any]]", path: Path) -> None:
    """Absolute errors against claimed errors, both logarithmic, and the lines of one and three."""
    mpl.use("Agg")
    names = [by for by in ESTIMATORS if any(r["by"] == by for r in records)]
    figure = Figure(figsize=(11.0, 7.6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    for ax, by in zip(axes, names, strict=False):
        _panel(ax, by, [r for r in records if r["by"] == by and is_number(r)])
    for ax in axes[len(names) :]:
        ax.axis("off")
    for number, ax in enumerate(axes[: len(names)]):
        if number % 3 == 0:
            ax.set_ylabel("absolute error of log Z, nats", color=canvas.INK)
        if number + 3 >= len(names):
            ax.set_xlabel("claimed error, nats", color=canvas.INK)
            ax.tick_params(labelbottom=True)
    place = axes[-1] if len(names) < len(axes) else figure
    place.legend(handles=_legend(), loc="center", fontsize=11, frameon=False, labelspacing=0.9)
    figure.savefig(path, dpi=110)


def _panel(ax: "Axes", by: str, records: "Sequence[dict[str, Any]]") -> None:
    ends = np.array(SHOWN)
    ax.fill_between(ends, 3.0 * ends, SHOWN[1], color="#D55E00", alpha=0.09, linewidth=0)
    ax.plot(ends, ends, color="#666666", linewidth=1.0)
    ax.plot(ends, 3.0 * ends, color="#D55E00", linewidth=1.0, linestyle="--")
    for level in reversed(LEVELS):
        color, marker = MARKS[level]
        of = [r for r in records if r["level"] == level]
        x, y = (np.clip([abs(r[n]) for r in of], LOWEST, HIGHEST) for n in ("claimed", "gap"))
        ax.plot(
            x, y, marker, color=color, markersize=4.5, alpha=0.75, linestyle="",
            markeredgewidth=1.2 if marker == "x" else 0.0,
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=SHOWN, ylim=SHOWN)
    ticks = 10.0 ** np.arange(-9, 3, 2)
    ax.set_xticks(ticks)
    ax.set_yticks(ticks)
    ax.minorticks_off()
    ax.set_title(by, loc="left", fontsize=12, color=canvas.INK)
    canvas.plain(ax)


def _legend() -> list[Line2D]:
    marks = [
        Line2D([], [], color=color, marker=marker, linestyle="", markersize=7, label=f'"{level}"')
        for level, (color, marker) in MARKS.items()
    ]
    return [
        *marks,
        Line2D([], [], color="#666666", linewidth=1.0, label="error = claimed error"),
        Line2D([], [], color="#D55E00", linewidth=1.0, linestyle="--",
               label="error = 3 claimed errors\n(shaded: beyond)"),
        Line2D([], [], linestyle="", label="on the axes at $10^{-9}$: that or less"),
    ]  # fmt: skip

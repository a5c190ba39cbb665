"""The picture of evidence_study.py: one row a model, one mark an estimator."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.lines import Line2D

from volform.plot import canvas

if TYPE_CHECKING:
    from evidence_study import Study
    from matplotlib.axes import Axes

# Okabe and Ito's colors; marks differ in shape too, and each has a lane of its own.
MARKS = {
    "AutoLaplace": ("#333333", "X"),
    "Euclidean": ("#E69F00", "s"),
    "Unconstrained": ("#009E73", "D"),
    "LikelihoodFisher": ("#0072B2", "^"),
    "JointFisher": ("#D55E00", "o"),
    "Importance": ("#56B4E9", "P"),
    "Bridge": ("#CC79A7", "*"),
}
LOWEST, HIGHEST = 1e-5, 30.0  # nats; beyond, a mark lies on the edge


def draw(studies: "list[Study]", path: Path) -> None:
    """Absolute errors in nats on a logarithmic axis."""
    mpl.use("Agg")
    ax = canvas.new_axes(1, 8.6, 1.5 + 0.98 * len(studies))[0]
    ax.set_xscale("log")
    ax.set_xlim(LOWEST / 1.5, HIGHEST * 1.5)
    for row, of in enumerate(studies):
        if row % 2 == 0:
            ax.axhspan(row - 0.5, row + 0.5, color="#F3F3F3", linewidth=0, zorder=0)
        if of.exact.error > LOWEST:
            ax.fill_betweenx(
                [row - 0.5, row + 0.5], LOWEST / 1.5, of.exact.error, color="#DDDDDD",
                linewidth=0, zorder=1,
            )  # fmt: skip
        for lane, name in enumerate(MARKS):
            _lane(ax, of, name, row - 0.39 + 0.13 * lane)
    ax.set_yticks(
        range(len(studies)), [f"{of.name}\nd = {of.dim}" for of in studies], linespacing=1.4
    )
    ax.set_ylim(len(studies) - 0.5, -0.5)
    ax.set_xlabel("absolute error of log Z in nats (gray: within the reference's own error)")
    ax.xaxis.label.set_color(canvas.INK)
    canvas.plain(ax)
    ax.tick_params(axis="y", length=0)
    figure = canvas.figure_of(ax)
    figure.legend(handles=_legend(), loc="outside upper center", ncols=4, fontsize=8.5,
                  frameon=False, handletextpad=0.3)  # fmt: skip
    figure.savefig(path, dpi=110)


def _lane(ax: "Axes", of: "Study", name: str, height: float) -> None:
    """The marks of one estimator: open for first order, filled for second order and for draws."""
    color, marker = MARKS[name]
    size = 8.0 if marker == "*" else 5.5
    orders = (1,) if name == "AutoLaplace" else (1, 2, 0)
    entries = [entry for order in orders if (entry := of.entry(name, order)) is not None]
    shown = [(entry, abs(entry.gap)) for entry in entries if not entry.why]
    places = [min(max(gap, LOWEST), HIGHEST) for _, gap in shown]
    ax.plot(places, [height] * len(places), color=color, linewidth=0.9, zorder=2)
    for (entry, _), place in zip(shown, places, strict=True):
        hollow = entry.order == 1 and name != "AutoLaplace"
        ax.plot(place, height, marker, color=color, markersize=size, zorder=3,
                markerfacecolor="white" if hollow else color)  # fmt: skip
    reasons = list(dict.fromkeys(entry.why for entry in entries if entry.why))
    if reasons and not shown:
        ax.annotate(
            f"{name}: {reasons[0]}", (1.0, height), xycoords=("axes fraction", "data"),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=7, color=canvas.INK,
        )  # fmt: skip
    if any(math.isfinite(gap) and gap > HIGHEST for _, gap in shown):
        ax.annotate(
            f"{name}: off the scale", (1.0, height), xycoords=("axes fraction", "data"),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=7, color=canvas.INK,
        )  # fmt: skip


def _legend() -> list[Line2D]:
    handles = []
    for name, (color, marker) in MARKS.items():
        size = 9.0 if marker == "*" else 6.0
        handles.append(
            Line2D([], [], color=color, marker=marker, linestyle="", markersize=size, label=name)
        )
    hollow = Line2D([], [], color=canvas.INK, marker="o", linestyle="", markerfacecolor="white",
                    markersize=6.0, label="open: first order")  # fmt: skip
    return [*handles, hollow]

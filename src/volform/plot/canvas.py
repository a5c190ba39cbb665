"""Elements that the pictures share: colors told apart by everybody, plain axes, the mode."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from volform.errors import ModelError
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.modes.mode import MAP
from volform.inference.modes.search import find_map
from volform.models.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's blue and vermilion differ in lightness too, so they survive a gray print.
BLUE, VERMILION, INK, FAINT = "#0072B2", "#D55E00", "#333333", "#999999"
COLORS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

Target = MAP | LaplaceApproximation | Posterior


def mode_of(target: Target) -> MAP:
    """The MAP that a result holds; that of a bare posterior is found, from `jax.random.key(0)`."""
    match target:
        case MAP():
            return target
        case LaplaceApproximation():
            return target.fit
    return find_map(target, key=jax.random.key(0))


def new_axes(count: int, width: float, height: float, columns: int | None = None) -> "list[Axes]":
    """Axes in a new figure, `width` and `height` inches each, in rows of `columns` or in one."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    columns = count if columns is None else min(count, columns)
    rows = -(-count // columns)
    figure = plt.figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.remove()
    return list(axes[:count])


def given_axes(axes: Any, count: int, function: str, wanted: str) -> "list[Axes]":
    """The axes that a user gave.

    Raises:
        ModelError: when they are not `count`; `wanted` says how many they should be, and for what.
    """
    found = list(np.ravel(np.asarray(axes, object)))
    if len(found) != count:
        raise ModelError(
            f"`axes` of plot.{function} holds {len(found)} axes; it should hold {wanted}."
        )
    return found


def figure_of(ax: "Axes") -> "Figure":
    """The figure that holds `ax`, sub-figures looked through."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def title(ax: "Axes", text: str, size: float = 10.5, pad: float | None = None) -> None:
    """A title from the left edge of the axes, in as many lines as the figure has room for.

    Words wider than the room make all of it smaller.
    """
    figure = figure_of(ax)
    shown = ax.set_title(text, fontsize=size, loc="left", color=INK, pad=pad)
    figure.draw_without_rendering()  # which places the axes
    # Ticks may be others once the title has its lines, and move the edge by a letter; and letters
    # are hinted: saved with 80 dots an inch a line is 11 % wider than with 100.
    room = 0.9 * (figure.bbox.x1 - ax.get_window_extent().x0 - 0.14 * figure.dpi)

    def width(line: str) -> float:
        shown.set_text(line)
        return shown.get_window_extent().width

    widest = max(text.split(), key=width)
    while width(widest) > room and size > 4.0:  # hinted letters do not shrink in proportion
        size *= 0.95
        shown.set_fontsize(size)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    shown.set_text("\n".join(lines))


def legend_above(ax: "Axes", panels: int = 1) -> None:
    """A legend above the axes; above all panels of the figure where there are several."""
    look: Any = {"frameon": False, "fontsize": 9}
    if panels > 1:
        handles, labels = ax.get_legend_handles_labels()
        figure_of(ax).legend(handles, labels, loc="outside upper left", ncols=2, **look)
    else:
        ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), **look)


def plain(ax: "Axes") -> None:
    """Only the two spines that carry a scale, and all in one ink."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(INK)
    ax.tick_params(colors=INK, labelsize=9)


def number(value: Any) -> str:
    """A value to three significant digits, as a reader would write it."""
    return f"{float(value):#.3g}".rstrip(".").replace("-", "\N{MINUS SIGN}")

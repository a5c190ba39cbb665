"""Elements that the pictures share: colors told apart by everybody, plain axes, the mode."""

from typing import TYPE_CHECKING, Any

import jax

from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.modes.mode import MAP
from volform.inference.modes.search import find_map
from volform.models.posterior import Posterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's blue and vermilion differ in lightness too, so they survive a gray print.
BLUE, VERMILION, INK, FAINT = "#0072B2", "#D55E00", "#333333", "#999999"

Target = MAP | LaplaceApproximation | Posterior


def mode_of(target: Target) -> MAP:
    """The MAP that a result holds; that of a bare posterior is found, from `jax.random.key(0)`."""
    match target:
        case MAP():
            return target
        case LaplaceApproximation():
            return target.fit
    return find_map(target, key=jax.random.key(0))


def new_axes(count: int, width: float, height: float) -> "list[Axes]":
    """Axes side by side in a new figure, `width` and `height` inches each."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure = plt.figure(figsize=(width * count, height), layout="constrained")
    return list(figure.subplots(1, count, squeeze=False)[0])


def figure_of(ax: "Axes") -> "Figure":
    """The figure that holds `ax`, sub-figures looked through."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def plain(ax: "Axes") -> None:
    """Only the two spines that carry a scale, and all in one ink."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(INK)
    ax.tick_params(colors=INK, labelsize=9)


def number(value: Any) -> str:
    """A value to three significant digits, as a reader would write it."""
    return f"{float(value):#.3g}".rstrip(".").replace("-", "\N{MINUS SIGN}")

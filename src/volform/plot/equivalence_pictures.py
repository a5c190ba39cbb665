"""Parameters of the same function: planes through them, ranks, and the parameters that data see."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.checks import require_whole
from volform.equivalence import FunctionalDimension, OnInputs, Slice, function_on
from volform.errors import NetworkError
from volform.inference import LearningCoefficient
from volform.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOWEST, HIGHEST = -4.0, 1.0  # of log10 of the relative loss: a change of 1 % in size, and of 300 %
ROOM = 0.7  # beside the ends and the path, relative to the distance of the ends


def equivalents(
    f: Callable[[Any, Any], Any],
    params: Any,
    x: Any,
    *,
    plane: Slice,
    names: Sequence[str] = ("a", "b"),
    side: int = 121,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw how much a function changes in a plane of its parameters, on a scale of powers of ten.

    The relative loss is `mean |f - f*|^2 / mean |f*|^2` on x, f* the function at `params`. White
    and dashed is the path that the plane was laid through, seen from straight above: in the plane
    are its ends and the point farthest from their line.

    Args:
        f: function of parameters and inputs.
        params: pytree of floating-point arrays, to whose function others are compared.
        x: inputs, shape (n, ...), or a pytree of such.
        plane: from `volform.equivalence.through`.
        names: of the two parameters that the plane goes through.
        side: points a side.
        ax: matplotlib axes to draw on; by default a new figure.

    Returns:
        The axes.

    Raises:
        NetworkError: a plane of the parameters of another network.
        DataError: a function that is zero on all inputs.

    >>> import jax.numpy as jnp, volform as vf
    >>> from volform import equivalence
    >>> product = lambda p, x: p[0] * p[1] * x
    >>> a, b = jnp.array([1.0, 2.0]), jnp.array([2.0, 1.0])
    >>> plane = equivalence.through(a, b, jnp.full(2, 2.0**0.5))  # on the hyperbola
    >>> ax = vf.plot.equivalents(product, a, jnp.ones(3), plane=plane)
    >>> ax.get_xlabel()
    'from a to b'
    """
    require_whole(side, "side", "equivalents", NetworkError)
    outputs = function_on(f, params, x, "equivalents")
    outputs.require_outputs("equivalents")
    if not isinstance(plane, Slice) or plane.origin.shape != outputs.point.shape:
        raise NetworkError(
            f"`plane` is {type(plane).__name__}, or a plane of other parameters than the "
            f"{outputs.point.size} of `params`; take `volform.equivalence.through(a, b, path)`."
        )
    ax = canvas.new_axes(1, 5.6, 4.4)[0] if ax is None else ax
    shown = np.concatenate([plane.ends, plane.path])
    room = ROOM * np.ptp(plane.ends[:, 0])
    middle, half = 0.5 * (shown.max(0) + shown.min(0)), 0.5 * np.ptp(shown, axis=0).max() + room
    ticks = [np.linspace(center - half, center + half, side) for center in middle]
    points = np.stack(np.meshgrid(*ticks), -1).reshape(-1, 2)
    losses = np.asarray(_losses(outputs, plane, jnp.asarray(points))).reshape(side, side)
    with np.errstate(divide="ignore"):
        logs = np.clip(np.log10(losses), LOWEST - 1.0, HIGHEST + 1.0)
    levels = np.linspace(LOWEST, HIGHEST, 21)
    filled = ax.contourf(*ticks, logs, levels=levels, cmap="cividis", extend="both")
    label = r"log$_{10}$ of the relative loss"
    bar = canvas.figure_of(ax).colorbar(filled, ax=ax, label=label, ticks=np.arange(-4, 2))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    if len(plane.path) > 1:
        ax.plot(*plane.path.T, color="white", linestyle=(0, (4, 2)), linewidth=1.6)
    ax.plot(*plane.ends.T, "o", color=canvas.VERMILION, markersize=8, markeredgecolor="white")
    for name, point in zip(names, plane.ends, strict=True):
        ax.annotate(name, point, xytext=(0, -8), textcoords="offset points", color="white",
                    ha="center", va="top", fontsize=11)  # fmt: skip
    ax.set_xlabel(f"from {names[0]} to {names[1]}", color=canvas.INK)
    ax.set_ylabel("toward the middle of the path", color=canvas.INK)
    ax.set_aspect("equal")
    canvas.plain(ax)
    return ax


@eqx.filter_jit
def _losses(outputs: OnInputs, plane: Slice, points: Float[Array, "m 2"]) -> Float[Array, " m"]:
    one = lambda point: outputs.relative_loss(plane.flat(point))  # noqa: E731
    return jax.lax.map(one, points, batch_size=512)


def rank(found: FunctionalDimension, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the singular values of the outputs' derivative in the parameters, and the gap in them.

    Args:
        found: from `volform.equivalence.functional_dimension`.
        ax: matplotlib axes to draw on; by default a new figure.

    Returns:
        The axes.

    >>> import jax.numpy as jnp, volform as vf
    >>> from volform import equivalence
    >>> product = lambda p, x: p[0] * p[1] * x
    >>> found = equivalence.functional_dimension(product, jnp.array([1.0, 2.0]), jnp.ones(3))
    >>> vf.plot.rank(found).get_title()
    '1 of 2 directions change the function'
    """
    ax = canvas.new_axes(1, 5.2, 3.6)[0] if ax is None else ax
    values = found.singular_values / max(found.singular_values[0], 1e-300)
    floor = 0.1 * np.finfo(values.dtype).eps
    order, shown = np.arange(1, len(values) + 1), np.maximum(values, floor)
    cut = found.rank
    for part, color in ((slice(cut), canvas.BLUE), (slice(cut, None), canvas.VERMILION)):
        ax.plot(order[part], shown[part], "o", color=color, markersize=6 if len(order) < 60 else 3)
    ax.set_yscale("log")
    ax.set_ylim(0.3 * floor, 5.0)
    ax.set_xlim(0.3, len(order) + 0.7)
    if found.is_clear and found.nullity:
        low, high = max(shown[cut], found.tolerance), shown[cut - 1]
        ax.axhspan(low, high, color=canvas.FAINT, alpha=0.2, linewidth=0)
        text, at = f"a gap of {np.log10(found.gap):.0f} powers of ten", np.sqrt(low * high)
    elif found.is_clear:
        text, at = "no direction is lost", 3.0 * found.tolerance
    else:
        ax.axhline(found.tolerance, color=canvas.FAINT, linestyle=(0, (4, 3)))
        text, at = "no gap: the rank depends on the tolerance", 1.0
    ax.text(0.5, at, text, transform=ax.get_yaxis_transform(), ha="center", va="center",
            color=canvas.INK, fontsize=9.5)  # fmt: skip
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("direction of the parameters", color=canvas.INK)
    ax.set_ylabel("change of the function", color=canvas.INK)
    ax.set_title(f"{cut} of {found.parameters} directions change the function", fontsize=10.5)
    canvas.plain(ax)
    return ax


def learning(found: LearningCoefficient, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the number of parameters that the data see, twice the learning coefficient.

    Args:
        found: from `volform.inference.learning_coefficient`, at several powers.
        ax: matplotlib axes to draw on; by default a new figure.

    Returns:
        The axes; bars are two standard errors.

    >>> import numpy as np, volform as vf
    >>> one = np.ones(2)
    >>> found = vf.inference.LearningCoefficient(
    ...     np.array([0.1, 1.0]), 2.4 * one, 0.1 * one, one, 500 * one, 12, 0.0
    ... )
    >>> vf.plot.learning(found).get_ylabel()
    'parameters that the data see'
    """
    ax = canvas.new_axes(1, 5.2, 3.6)[0] if ax is None else ax
    ax.errorbar(found.powers, 2.0 * found.mean, 4.0 * found.error, fmt="o", color=canvas.VERMILION,
                label="tempered NUTS, ± 2 standard errors")  # fmt: skip
    ax.axhline(found.parameters, color=canvas.INK, linestyle=(0, (4, 3)), linewidth=1)
    text = f"{found.parameters} parameters: what Laplace's method and BIC charge for"
    ax.annotate(text, (0.02, found.parameters), xycoords=("axes fraction", "data"), xytext=(0, -5),
                textcoords="offset points", va="top", fontsize=9, color=canvas.INK)  # fmt: skip
    ax.set_xscale("log")
    ax.set_ylim(0.0, 1.08 * found.parameters)
    ax.set_xlabel("power of the likelihood", color=canvas.INK)
    ax.set_ylabel("parameters that the data see", color=canvas.INK)
    canvas.plain(ax)
    return ax

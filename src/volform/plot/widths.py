"""Pictures over the width of a network: of its evidence, and its kernels."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.architectures.architecture import Architecture
from volform.architectures.width_scaling import ntk_by_layer
from volform.checks import key_of, require_whole
from volform.errors import KernelError
from volform.kernels.empirical import empirical_ntk
from volform.kernels.kernel import kernel
from volform.networks.composition import Serial
from volform.networks.inputs import require_inputs
from volform.networks.parametrization import NTP, SP, MuP, Parametrization
from volform.plot import canvas
from volform.results import Level

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from volform.architectures.entry import Entry
    from volform.architectures.survey import Survey

STYLES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
MARKS = ("o", "s", "D", "^")


def evidence_by_width(survey: "Survey", *, ax: "Axes | None" = None) -> "Axes":
    """Draw log evidence against width, the limit last, with two standard errors.

    One line for each activation (color), depth (dashes) and prior; parametrizations of one prior
    are one line. Priors that have no limit (`MuP`) are left out where the limit is drawn. Open
    marks cannot be trusted. The axis is that of what can be trusted: others may lie outside of it.

    Args:
        survey: from `volform.architectures.survey`.
        ax: matplotlib axes to draw on; by default a new figure.

    Returns:
        The axes.

    >>> import math
    >>> import jax.numpy as jnp, volform as vf
    >>> from volform import kernels as k, networks as nn
    >>> x = jnp.linspace(-2.0, 2.0, 10)[:, None]
    >>> survey = vf.architectures.survey(
    ...     x, x[:, 0] ** 2, activations={"erf": nn.Erf()}, depths=(1,), widths=(math.inf,),
    ...     parametrizations=(nn.NTP(),), learned=False,
    ... )
    >>> print(*(tick.get_text() for tick in vf.plot.evidence_by_width(survey).get_xticklabels()))
    ∞
    """
    ax = canvas.new_axes(1, 7.2, 4.2)[0] if ax is None else ax
    widths = sorted({entry.width for entry in survey.entries})
    names = sorted({entry.candidate.activation for entry in survey.entries})
    depths = sorted({entry.candidate.depth for entry in survey.entries})
    for label, line in _lines(survey).items():
        color = canvas.COLORS[names.index(line[0].candidate.activation) % len(canvas.COLORS)]
        depth = depths.index(line[0].candidate.depth)
        values = [float(e.evidence.log_z) for e in line if e.evidence is not None]
        at = [widths.index(entry.width) for entry in line]
        ax.plot(at, values, color=color, linestyle=STYLES[depth % 4], linewidth=1.6, zorder=1)
        for place, value, entry in zip(at, values, line, strict=True):
            trusted = _is_trusted(entry)
            face = color if trusted else "white"
            ax.plot(place, value, MARKS[depth % 4], color=color, mfc=face, markersize=6, zorder=3)
            error = 2 * float(entry.evidence.error) if entry.evidence is not None else 0.0
            if trusted and error > 0:
                ax.plot([place, place], [value - error, value + error], color=color, zorder=2)
        ax.plot([], [], MARKS[depth % 4], color=color, linestyle=STYLES[depth % 4], label=label)
    shown = [e for line in _lines(survey).values() for e in line if _is_trusted(e)]
    if shown:
        low = min(float(e.evidence.log_z - 2 * e.evidence.error) for e in shown if e.evidence)
        high = max(float(e.evidence.log_z + 2 * e.evidence.error) for e in shown if e.evidence)
        room = 0.08 * (high - low) + 0.1
        ax.set_ylim(low - room, high + room)
    ax.set_xlim(-0.3, len(widths) - 0.7)
    ax.set_xticks(range(len(widths)), ["∞" if math.isinf(w) else str(w) for w in widths])
    ax.set_xlabel("units of each hidden layer", color=canvas.INK)
    ax.set_ylabel("log evidence", color=canvas.INK)
    ax.set_title(
        "Evidence by width: exact at ∞, else ± 2 standard errors", fontsize=10.5, loc="left"
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8.5)
    canvas.plain(ax)
    return ax


def _lines(survey: "Survey") -> "dict[str, list[Entry]]":
    """Entries by candidate and prior, in the order of their widths; each evidence once."""
    priors: dict[int, list[Entry]] = {}
    for entry in survey.entries:
        if entry.evidence is not None:
            priors.setdefault(id(entry.evidence), []).append(entry)
    lines: dict[str, list[Entry]] = {}
    for same in sorted(priors.values(), key=lambda same: (str(same[0].candidate), same[0].width)):
        scalings = " = ".join(type(entry.parametrization).__name__ for entry in same)
        lines.setdefault(f"{same[0].candidate}, {scalings}", []).append(same[0])
    last = max(entry.width for entry in survey.entries)
    return {name: line for name, line in lines.items() if line[-1].width == last}


def _is_trusted(entry: "Entry") -> bool:
    return entry.evidence is not None and entry.evidence.trust.level in {Level.GOOD, Level.FAIR}


def tangent_growth(
    architecture: Architecture,
    x: Float[Array, "n features"],
    *,
    widths: Sequence[int] = (16, 64, 256, 1024, 4096),
    parametrizations: Sequence[Parametrization] = (SP(), NTP(), MuP()),
) -> "list[Axes]":
    """Draw the layers' parts of the neural tangent kernel against the width.

    The mean of the diagonal over the examples, to leading order, one panel for each
    parametrization. Under `SP` all layers but the first grow like the width.

    Args:
        architecture: depth, activation and prior.
        x: examples, shape (n, features).
        widths: numbers of units of each hidden layer.
        parametrizations: one panel each.

    Returns:
        The axes, from left to right.

    >>> import jax.numpy as jnp, volform as vf
    >>> from volform import networks as nn
    >>> net = vf.architectures.Architecture(1, nn.Relu())
    >>> axes = vf.plot.tangent_growth(net, jnp.eye(3), widths=(16, 64))
    >>> print(*(ax.get_title() for ax in axes))
    SP NTP MuP
    """
    axes = canvas.new_axes(len(parametrizations), 3.2, 3.4)
    for ax, scaling in zip(axes, parametrizations, strict=True):
        parts = np.array(
            [
                jnp.mean(
                    jnp.diagonal(
                        ntk_by_layer(architecture.layers(width), x, parametrization=scaling),
                        axis1=1,
                        axis2=2,
                    ),
                    axis=1,
                )
                for width in widths
            ]
        )
        for layer, part in enumerate(parts.T):
            ax.loglog(
                widths,
                part,
                color=canvas.COLORS[layer % len(canvas.COLORS)],
                marker=MARKS[layer % 4],
                linestyle=STYLES[layer % 4],
                markersize=9 - 2 * min(layer, 3),  # parts that coincide stay visible
                markerfacecolor="white",
                label=f"layer {layer + 1}",
            )
        ax.set_title(type(scaling).__name__, fontsize=10.5)
        ax.set_xlabel("units of each hidden layer", color=canvas.INK)
        ax.set_xticks(widths, [str(width) for width in widths])
        ax.minorticks_off()
        canvas.plain(ax)
    low = min(ax.get_ylim()[0] for ax in axes)
    high = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(low / 1.5, high * 1.5)
    axes[0].set_ylabel("tangent kernel, mean of the diagonal", color=canvas.INK)
    axes[-1].legend(frameon=False, fontsize=8.5)
    return axes


def kernel_convergence(
    architecture: Architecture,
    x: Float[Array, "n features"],
    *,
    widths: Sequence[int] = (16, 64, 256, 1024),
    draws: int = 20,
    key: PRNGKeyArray | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw how far the kernels of networks of finite width are from their limits.

    The root of the mean of `|K_width - K|^2 / |K|^2` over draws from the prior in `NTP`: of the
    covariance of the outputs given the hidden layers (NNGP), and of the empirical tangent kernel
    (NTK). Both fall like `width^(-1/2)`, which is drawn beside them.

    Args:
        architecture: depth, activation and prior.
        x: examples, shape (n, features).
        widths: numbers of units of each hidden layer.
        draws: number of networks of each width.
        key: a random key; `jax.random.key(0)` if left out.
        ax: matplotlib axes to draw on; by default a new figure.

    Returns:
        The axes.

    Raises:
        DataError: when `x` is empty, not finite, of integers or of the wrong shape.
        KernelError: when there is no width.
        NetworkError: when a width is no positive integer.
        OperatorError: when `draws` is below one.

    References:
        Hanin & Nica (2020), Finite depth and width corrections to the neural tangent kernel.

    >>> import jax.numpy as jnp, volform as vf
    >>> from volform import networks as nn
    >>> one = vf.architectures.Architecture(1, nn.Erf())
    >>> ax = vf.plot.kernel_convergence(one, jnp.eye(2), widths=(4, 16), draws=2)
    >>> ax.get_ylabel()
    'relative distance from the limit'
    """
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    x = require_inputs(x, "x")
    require_whole(draws, "draws", "kernel_convergence")
    if not widths:
        raise KernelError(f"`widths` is {widths!r}; it should hold at least one number of units.")
    ax = canvas.new_axes(1, 4.6, 3.6)[0] if ax is None else ax
    keys = jax.random.split(key_of(key, "kernel_convergence"), draws)
    squares = jnp.stack([_squares(architecture.layers(width), x, keys) for width in widths])
    distances = np.sqrt(squares.mean(1))
    for column, name in enumerate(("NNGP", "NTK")):
        ax.loglog(
            widths,
            distances[:, column],
            color=canvas.COLORS[column],
            marker=MARKS[column],
            linestyle=STYLES[column],
            label=name,
        )
    rate = distances[0].max() * np.sqrt(widths[0] / np.array(widths))
    ax.loglog(widths, rate, color=canvas.INK, linewidth=0.8, label="$width^{-1/2}$", zorder=0)
    ax.set_xticks(widths, [str(width) for width in widths])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.set_xlabel("units of each hidden layer", color=canvas.INK)
    ax.set_ylabel("relative distance from the limit", color=canvas.INK)
    ax.legend(frameon=False, fontsize=8.5)
    canvas.plain(ax)
    return ax


@eqx.filter_jit
def _squares(
    net: Serial, x: Float[Array, "n features"], keys: PRNGKeyArray
) -> Float[Array, "draws 2"]:
    """`|K_width - K|^2 / |K|^2` of both kernels, for each key."""
    limits = kernel(net, x)

    def one(key: PRNGKeyArray) -> Float[Array, "2"]:
        params = net.init(key, x.shape)

        def outer(last: Any, x: Array) -> Array:
            return net.apply((*params[:-1], last), x)

        # In NTP the last layer's parameters have unit variance.
        found = empirical_ntk(outer, params[-1], x), empirical_ntk(net.apply, params, x)
        pairs = zip(found, limits, strict=True)
        return jnp.stack(
            [jnp.sum((part - limit) ** 2) / jnp.sum(limit**2) for part, limit in pairs]
        )

    return jax.lax.map(one, keys)

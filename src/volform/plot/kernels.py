"""Pictures of kernels and of the priors behind them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from volform.architectures.architecture import Architecture
from volform.checks import key_of
from volform.kernels.kernel import kernel
from volform.networks.activations import Activation
from volform.networks.parametrization import NTP, SP, Fans, Scaling, WithPrior
from volform.plot import canvas
from volform.plot.widths import STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 121


def kernel_by_angle(
    activation: Activation,
    *,
    depths: Sequence[int] = (1, 2, 4, 8),
    w_std: float = math.sqrt(2.0),
    b_std: float | None = None,
) -> "list[Axes]":
    """Draw both kernels of two inputs against the angle between them, by depth.

    Inputs of two features and unit variance, `x . x / 2 = 1`. Each kernel is divided by its value
    at angle zero. At `w_std = sqrt(2)` relu networks keep the variance of their inputs; the deeper
    they are, the less their NNGP tells angles apart.

    Args:
        activation: of the hidden units.
        depths: numbers of hidden layers.
        w_std: standard deviation of the weights times `sqrt(fan_in)`.
        b_std: standard deviation of the biases; None for none.

    Returns:
        The axes of the NNGP and of the tangent kernel.

    >>> import volform as vf
    >>> from volform import networks as nn
    >>> nngp, ntk = vf.plot.kernel_by_angle(nn.Relu(), depths=(1, 3))
    >>> print(*(text.get_text() for text in ntk.get_legend().get_texts()))
    depth 1 depth 3
    """
    axes = canvas.new_axes(2, 4.0, 3.4)
    angles = np.linspace(0.0, np.pi, POINTS)
    x = jnp.asarray(math.sqrt(2.0) * np.stack([np.cos(angles), np.sin(angles)], 1))
    for i, depth in enumerate(depths):
        found = kernel(Architecture(depth, activation, w_std, b_std).layers(), x[:1], x)
        for ax, values in zip(axes, found, strict=True):
            ax.plot(
                np.degrees(angles),
                values[0] / values[0, 0],
                color=canvas.COLORS[i % len(canvas.COLORS)],
                linestyle=STYLES[i % 4],
                linewidth=1.8,
                label=f"depth {depth}",
            )
    for ax, name in zip(axes, ("NNGP", "neural tangent kernel"), strict=True):
        ax.set_xlabel("angle between the inputs, in degrees", color=canvas.INK)
        ax.set_title(name, fontsize=10.5)
        ax.set_xticks(range(0, 181, 45))
        ax.set_xlim(0, 180)
        canvas.plain(ax)
    axes[0].set_ylabel("kernel / its value at angle 0", color=canvas.INK)
    axes[1].legend(frameon=False, fontsize=8.5)
    return axes


def prior_functions(
    architecture: Architecture,
    *,
    width: int = 256,
    key: PRNGKeyArray | None = None,
    draws: int = 8,
    reach: float = 3.0,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw functions of one input from the prior of a network, over the limit's two deviations.

    Args:
        architecture: depth, activation and prior.
        width: number of units of each hidden layer.
        key: key of the draws; `jax.random.key(0)` by default.
        draws: number of functions.
        reach: inputs go from -reach to reach.
        ax: matplotlib axes to draw on; by default a new figure.

    Returns:
        The axes.

    >>> import volform as vf
    >>> from volform import networks as nn
    >>> net = vf.architectures.Architecture(1, nn.Erf(), 2.0, 1.0)
    >>> ax = vf.plot.prior_functions(net, width=32, draws=3)
    >>> len(ax.lines)
    3
    """
    ax = canvas.new_axes(1, 5.2, 3.4)[0] if ax is None else ax
    x = jnp.linspace(-reach, reach, POINTS)[:, None]
    network = architecture.network(width)
    keys = jax.random.split(key_of(key, "prior_functions"), draws)
    functions = jax.vmap(lambda key: network.apply(network.init(key, 1), x)[:, 0])(keys)
    spread = 2 * np.sqrt(np.diagonal(np.asarray(kernel(architecture.layers(), x).nngp)))
    inputs = np.asarray(x)[:, 0]
    ax.fill_between(
        inputs, -spread, spread, color=canvas.FAINT, alpha=0.25, label="limit, 2 deviations"
    )
    for i, function in enumerate(np.asarray(functions)):
        ax.plot(inputs, function, color=canvas.COLORS[i % len(canvas.COLORS)], linewidth=1.3)
    biases = "no biases" if architecture.b_std is None else f"b_std {architecture.b_std:g}"
    ax.set_title(
        f"Prior draws at width {width}, depth {architecture.depth}, "
        f"w_std {architecture.w_std:g}, {biases}",
        fontsize=10,
        loc="left",
    )
    ax.set_xlim(-reach, reach)
    ax.set_xlabel("input", color=canvas.INK)
    ax.set_ylabel("output", color=canvas.INK)
    ax.legend(loc="upper left", frameon=False, fontsize=8.5)
    canvas.plain(ax)
    return ax


def prior_readings(*, fan_in: int = 4, w_std: float = 1.0) -> "list[Axes]":
    """Draw the prior of a weight in `SP`, carried to `NTP`, and as the source reads it.

    On the left each coordinate's own density, which is what is printed; on the right that of the
    weight `W = multiplier * coordinate` by which the function is computed. `SP` and `NTP` are one
    prior. The source's reading, `WithPrior(NTP(), SP())`, has the variance `w_std^4 / fan_in^2`.

    Args:
        fan_in: number of inputs of the unit.
        w_std: standard deviation of the weights times `sqrt(fan_in)`.

    Returns:
        The axes of the coordinates and of the weight.

    References:
        Kristiadi, Dangel & Hennig (2023), figure 4 and section 5.1.

    >>> import volform as vf
    >>> coordinates, weight = vf.plot.prior_readings()
    >>> weight.get_xlabel()
    'weight W of the function'
    """
    fans = Fans(fan_in, 1)
    readings: dict[str, Scaling] = {
        "SP": SP().weight(fans, w_std),
        "NTP: the prior of SP, carried": NTP().weight(fans, w_std),
        "the source: form of NTP, prior of SP": WithPrior(NTP(), SP()).weight(fans, w_std),
    }
    axes = canvas.new_axes(2, 4.4, 3.6)
    for i, (name, scaling) in enumerate(readings.items()):
        for ax, deviation in zip(axes, (scaling.deviation, scaling.weight_deviation), strict=True):
            grid = np.linspace(-3.2, 3.2, 401) * w_std
            density = np.exp(-((grid / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))
            ax.plot(
                grid,
                density,
                color=canvas.COLORS[i],
                linestyle=STYLES[i],
                linewidth=2 if i else 5,  # curves that coincide are seen one through the other
                alpha=1.0 if i else 0.45,
                label=f"{name}: variance {deviation**2:.4g}",
            )
    names = ("coordinate, as printed", "weight W of the function")
    for ax, name in zip(axes, names, strict=True):
        ax.set_xlabel(name, color=canvas.INK)
        ax.set_xlim(-3.2 * w_std, 3.2 * w_std)
        ax.set_ylim(bottom=0.0)
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), frameon=False, fontsize=8.5)
        canvas.plain(ax)
    axes[0].set_ylabel("prior density", color=canvas.INK)
    return axes

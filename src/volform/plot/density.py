"""The density of one parameter in two coordinate systems, for p and for q^G."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import transforms

from volform.errors import UnknownSiteError, VolformError
from volform.inference.modes.mode import MAP
from volform.models.posterior import Posterior
from volform.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 1001
REACH = 8.0  # first half-width of the curve, in standard deviations; doubled while p is not small

_UNCONSTRAINED = {
    transforms.ExpTransform: "log {}",
    transforms.SigmoidTransform: "logit {}",
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """Log densities along the coordinate line of one entry of u through the mode.

    Attributes:
        u: the entry of u, shape (n,).
        value: the site's value there, shape (n,).
        slope: d value / d u, shape (n,).
        lebesgue: log p_u there, up to a constant, shape (n,).
        volume: log q^G there, shape (n,).
    """

    u: Float[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]
    slope: Float[np.ndarray, " n"]
    lebesgue: Float[np.ndarray, " n"]
    volume: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Coordinate:
    """A coordinate along a curve: its name, its values x, and dx/du."""

    name: str
    x: Float[np.ndarray, " n"]
    slope: Float[np.ndarray, " n"]


def density(
    target: canvas.Target,
    site: str,
    *,
    transform: Callable[[Any], Any] | None = None,
    axes: "Sequence[Axes] | None" = None,
) -> "Figure":
    """Draw p and q^G of a scalar parameter in two coordinate systems, each with its mode.

    p is the density with respect to Lebesgue measure in the panel's coordinate; it picks up a
    Jacobian on the way from one panel to the other, and its mode moves. q^G is the density with
    respect to dV_G; it is a function on the manifold, and its mode is the same point in both.

    Both are drawn along one curve: the coordinate line of `site` through the mode of q^G, all other
    latent sites held at their values there (a conditional, not a marginal). Each is divided by its
    own maximum, since densities with respect to different measures have different units.

    Args:
        target: a `MAP`, a `LaplaceApproximation`, or a `Posterior`, whose mode is found first.
        site: a scalar latent site, or one entry of a vector site such as "theta[3]".
        transform: the second panel's coordinate as a strictly monotonic JAX function of the value,
            for example `jnp.log`. By default it is the unconstrained coordinate u, or, where that
            is the value itself, asinh of the value over its standard deviation.
        axes: two matplotlib axes to draw on; by default a new figure.

    Returns:
        The figure.

    Raises:
        UnknownSiteError: when `site` is no scalar latent parameter.
        VolformError: when `transform` is not strictly monotonic along the curve.

    >>> import numpyro, numpyro.distributions as dist, volform as vf
    >>> def model():
    ...     numpyro.sample("x", dist.Gamma(3.0, 1.0))
    >>> figure = vf.plot.density(vf.condition(model), "x")
    >>> [ax.get_xlabel() for ax in figure.axes]
    ['x', 'log x']
    """
    fit = canvas.mode_of(target)
    entry = _entry(fit.posterior, site)
    curve = _curve(fit, entry)
    pair = (Coordinate(site, curve.value, curve.slope), _second(curve, site, fit, entry, transform))
    wanted = "two, one for each coordinate system, for example `plt.subplots(1, 2)[1]`"
    drawn = (
        canvas.new_axes(2, 4.2, 3.9)
        if axes is None
        else canvas.given_axes(axes, 2, "density", wanted)
    )
    modes = [_mode(curve.lebesgue - np.log(np.abs(c.slope))) for c in pair]
    for ax, coordinate, own, other in zip(drawn, pair, modes, modes[::-1], strict=True):
        _panel(ax, curve, site, coordinate, float(fit.at.u[entry]), own, other)
    drawn[0].set_ylabel("density / its maximum", color=canvas.INK)
    figure = canvas.figure_of(drawn[0])
    if axes is None:
        figure.suptitle(_title(fit, site, entry), fontsize=10.5, color=canvas.INK)
    return figure


def _entry(posterior: Posterior, label: str) -> int:
    """The entry of u called `label`, if its value is a function of it alone."""
    labels = posterior.layout.labels()
    scalars = [
        name
        for site in posterior.layout.sites
        if site.shape == site.coordinates
        for name in labels[site.segment]
    ]
    if label not in scalars:
        raise UnknownSiteError(
            f"`site` of plot.density should be one scalar parameter, of {scalars[:20]}; got "
            f"{label!r}."
        )
    return labels.index(label)


def _site(posterior: Posterior, entry: int) -> Any:
    return next(s for s in posterior.layout.sites if s.start <= entry < s.start + s.size)


def _curve(fit: MAP, entry: int) -> Curve:
    """The curve over the range where p_u is above a thousandth of its maximum, or q^G is seen."""
    center, sd = float(fit.at.u[entry]), float(fit.at.hessian[entry, entry]) ** -0.5
    low, high = center - REACH * sd, center + REACH * sd
    for _ in range(5):  # wider until p is small at both ends
        curve = _along(fit, entry, np.linspace(low, high, POINTS))
        small = _relative(curve.lebesgue)[[0, -1]] < 1e-3
        if small.all():
            break
        low, high = (
            low - (high - low) / 2 * (not small[0]),
            high + (high - low) / 2 * (not small[1]),
        )
    curve = _along(fit, entry, np.linspace(low, high, POINTS))
    of_p = curve.u[_relative(curve.lebesgue) > 1e-3]
    # q^G need not vanish where p does: show it as far as four standard deviations, if it is there.
    of_q = curve.u[(_relative(curve.volume) > 0.01) & (np.abs(curve.u - center) < 4 * sd)]
    low = min(of_p.min(), of_q.min(initial=center - sd))
    high = max(of_p.max(), of_q.max(initial=center + sd))
    return _along(fit, entry, np.linspace(low, high, POINTS))


def _along(fit: MAP, entry: int, u: Float[np.ndarray, " n"]) -> Curve:
    name = fit.posterior.layout.labels()[entry]
    points = jnp.broadcast_to(fit.at.u, (len(u), fit.posterior.dim)).at[:, entry].set(u)
    value, slope, lebesgue, volume = map(np.asarray, _evaluated(fit.posterior, points, entry))
    known = np.isfinite(value) & np.isfinite(lebesgue) & np.isfinite(volume) & (slope != 0)
    if not known.any():
        raise VolformError(
            f"The density of `{name}` is NaN or infinite on the whole line through the mode; "
            "check the fit, which says whether it has converged."
        )
    return Curve(*(part[known] for part in (u, value, slope, lebesgue, volume)))


@eqx.filter_jit
def _evaluated(posterior: Posterior, points: Float[Array, "n d"], entry: Any) -> Any:
    """Value of one entry of u, its slope, log p_u and log q^G at every point."""

    def entry_value(u: Float[Array, " d"]) -> Float[Array, " d"]:
        parts = [
            jnp.ravel(site.chart(site.part(u)))
            if site.shape == site.coordinates
            else u[site.segment]
            for site in posterior.layout.sites_at(posterior.layout.constrain(u))
        ]
        return jnp.concatenate(parts)[entry]

    def at(u: Float[Array, " d"]) -> Any:
        value, slope = jax.value_and_grad(entry_value)(u)
        lebesgue = posterior.log_density_lebesgue(u)
        return value, slope[entry], lebesgue, lebesgue - posterior.log_volume(u)

    return jax.vmap(at)(points)


def _second(
    curve: Curve, site: str, fit: MAP, entry: int, transform: Callable[[Any], Any] | None
) -> Coordinate:
    """The second panel's coordinate: the user's, else u, else asinh of the value."""
    if transform is None and not np.array_equal(curve.value, curve.u):
        chart = _site(fit.posterior, entry).chart
        name = _UNCONSTRAINED.get(type(chart), "u, the unconstrained {}").format(site)
        return Coordinate(name, curve.u, np.ones_like(curve.u))
    if transform is None:
        scale = float(f"{float(fit.at.hessian[entry, entry]) ** -0.5:.1g}")
        ratio = site if scale == 1 else f"{site} / {scale:g}"
        name, f = f"asinh({ratio})", lambda v: jnp.arcsinh(v / scale)
    else:
        called = getattr(transform, "__name__", type(transform).__name__)
        name, f = f"{called.replace('<lambda>', 'transform')}({site})", transform
    x, push = jax.vmap(jax.value_and_grad(lambda v: jnp.sum(f(v))))(jnp.asarray(curve.value))
    slope = np.asarray(push) * curve.slope
    if not (np.all(slope > 0) or np.all(slope < 0)):
        raise VolformError(
            f"`transform` should be a strictly monotonic function of `{site}` with a derivative; "
            f"on [{curve.value.min():.3g}, {curve.value.max():.3g}] it is not."
        )
    return Coordinate(name, np.asarray(x), slope)


def _panel(
    ax: "Axes",
    curve: Curve,
    site: str,
    coordinate: Coordinate,
    u_mode: float,
    own: float,
    other: float,
) -> None:
    """One coordinate system: both densities, their modes, and the mode of p from the other panel.

    `own` and `other` are the positions of p's modes along the curve, in fractions of an index.
    """
    x, index = coordinate.x, np.arange(len(curve.u))
    p = _relative(curve.lebesgue - np.log(np.abs(coordinate.slope)))
    q = _relative(curve.volume)
    center = float(np.interp(u_mode, curve.u, index))
    for y, color, name, position, style in (
        (q, canvas.BLUE, "$q^G$, density w.r.t. $dV_G$", center, "-"),
        (p, canvas.VERMILION, "$p$, density w.r.t. Lebesgue", own, (0, (5, 1.5))),
    ):
        at = float(np.interp(position, index, x))
        value = float(np.interp(position, index, curve.value))
        where = f"mode {canvas.number(at)}"
        if coordinate.name != site:
            where += f" ({site if len(site) < 9 else 'value'} {canvas.number(value)})"
        ax.plot(x, y, color=color, linestyle=style, linewidth=2, label=f"{name}: {where}")
        ax.plot([at, at], [0, 1], color=color, linewidth=1, alpha=0.6)
        ax.plot([at], [1], "o", color=color, markersize=5.5)
    moved = float(np.interp(other, index, x))
    ax.plot(
        [moved],
        [0],
        "o",
        color=canvas.VERMILION,
        mfc="white",
        markersize=6,
        clip_on=False,
        zorder=5,
        label="mode of $p$ in the other panel",
    )
    seen = (np.maximum(p, q) > 0.02) | (np.abs(index - other) < 1)
    ax.set_xlim(*_margins(x[seen].min(), x[seen].max()))
    ax.set_ylim(0, 1.06)
    ax.set_xlabel(coordinate.name, color=canvas.INK)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), frameon=False, fontsize=8.5)
    canvas.plain(ax)


def _title(fit: MAP, site: str, entry: int) -> str:
    metric = f"G = {fit.posterior.metric_name}"
    mine = _site(fit.posterior, entry)
    held = [
        f"the rest of {own.name}" if own is mine else own.name
        for own in fit.posterior.layout.sites
        if own is not mine or own.size > 1
    ]
    if not held:
        return f"{site}, {metric}"
    shown = ", ".join(held if len(held) < 5 else [*held[:3], f"{len(held) - 3} more sites"])
    return f"{site}, given {shown} at the mode of $q^G$\n{metric}"


def _relative(log_density: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.exp(log_density - log_density.max())


def _margins(low: float, high: float) -> tuple[float, float]:
    return low - 0.03 * (high - low), high + 0.03 * (high - low)


def _mode(log_density: Float[np.ndarray, " n"]) -> float:
    """The index of the maximum, interpolated by the parabola through its neighbors."""
    top = int(np.argmax(log_density))
    if top in (0, len(log_density) - 1):
        return float(top)
    left, middle, right = log_density[top - 1 : top + 2]
    bend = left - 2 * middle + right
    return top + (0.5 * (left - right) / bend if bend < 0 else 0.0)

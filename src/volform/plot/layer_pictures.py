"""A network seen from within: balls of its metric carried through the layers, and magnification."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.errors import DataError, NetworkError
from volform.geometry.metric import Metric, pullback
from volform.layers import LayerSequence, Plane, principal
from volform.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRID = 12  # balls, and lines, a side: 15 with eleven layers could not be read
FINE = 121  # points a side for the boundary of classes and for folds
SHADES = 61  # points a side for the magnification
BALL = 0.42  # of the distance of two balls, the median radius at the input
FLAT = 1e-10  # of the larger eigenvalue: no more than rounding
CUT = 1.0  # of the same, where a ball is cut off and left hollow
CIRCLE = np.stack([np.cos(t := np.linspace(0.0, 2.0 * np.pi, 41)), np.sin(t)], 1)
CLASSES = (canvas.BLUE, canvas.VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FOLD = "#CC79A7"


def layers(
    sequence: LayerSequence,
    x: Float[Array, "n ..."],
    labels: Any = None,
    *,
    metric: Metric,
    logits: Callable[[Array], Array] | None = None,
    show: Sequence[int] | None = None,
    plane: Plane | None = None,
) -> "list[Axes]":
    """Draw a plane of inputs as the layers bend it, with balls of one radius at the output.

    Two tangents of the plane are carried through the layers, and measured once, by the metric of
    the outputs: with G on the plane and the carried frame F_l, the ball behind layer l is
    `{F_l u: u^T G u <= radius^2}`. So there is one formula for layers that widen, narrow or lose
    rank. Layers with more than two coordinates are seen in their two principal directions, those
    with momentum by `x_l` alone. Where a ball is too large it is cut off, and hollow. Folds, where
    the plane turns over, are dashed.

    Args:
        sequence: from `vf.layers.layerwise`.
        x: examples, shape (n, ...); drawn as points.
        labels: class of each, integers.
        metric: of the outputs of one example.
        logits: from the output of one example to its logits, `lambda z: z` where it is logits
            itself; then the boundary of the classes is drawn, of a single one its zero.
        show: layers to draw, 0 for the input; four by default.
        plane: of the inputs; the inputs themselves where they have two coordinates, and else the
            plane of their first two principal directions.

    Returns:
        The axes, one a layer.

    Raises:
        DataError: when labels are not one integer for each example.
        NetworkError: when `show` names a layer that is not there.

    >>> import jax.numpy as jnp, numpy as np, volform as vf
    >>> sequence = vf.layers.layerwise([lambda x: x + 0.5 * jnp.tanh(x[::-1]), jnp.sinh])
    >>> x = jnp.asarray(np.random.default_rng(0).normal(size=(30, 2)))
    >>> axes = vf.plot.layers(sequence, x, metric=vf.Euclidean())
    >>> [ax.get_title() for ax in axes]
    ['input', 'layer 1', 'layer 2']
    """
    count = len(sequence.maps)
    show = _spread(count) if show is None else tuple(show)
    if not show or not set(show) <= set(range(count + 1)):
        raise NetworkError(
            f"`show` is {show}; it should name layers from 0, the input, to {count}, the output."
        )
    labels = None if labels is None else _labels(labels, len(x))
    plane = _plane_of(x) if plane is None else plane
    low, high = _box(plane.coordinates(x))
    sides = _sides(low, high)
    balls = _grid(low, high, *sides)
    spacing = float(np.max(high - low)) / (GRID - 1)
    placed = jax.vmap(plane)
    points, frames = sequence.carry(placed(jnp.asarray(balls)), plane.frame)
    rows = sequence.pull_back(metric, placed(jnp.asarray(balls))).rows[0]
    on_plane = np.asarray(rows) @ np.asarray(plane.frame).reshape(2, -1).T
    circles, is_cut = _circles(np.einsum("nki,nkj->nij", on_plane, on_plane), spacing)
    data = sequence.activations(x)
    curves = _curves(sequence, plane, low, high, logits)
    axes = canvas.new_axes(len(show), 3.4, 3.6)
    for ax, layer in zip(axes, show, strict=True):
        own = partial(_own, sequence, layer)
        view = _view(own(points), plane if layer == 0 else None)
        _draw_balls(ax, view, sides, own(points), own(frames), circles, is_cut)
        for path, color, style in curves:
            carried = own(sequence.activations(placed(jnp.asarray(path))))
            ax.plot(*view(carried).T, color=color, linestyle=style, linewidth=1.3, zorder=3)
        ax.scatter(*view(own(data)).T, s=6, c=_colors(labels), zorder=4, linewidths=0)
        ax.set_title("input" if layer == 0 else f"layer {layer}", fontsize=10.5)
        ax.set_aspect("equal", adjustable="datalim")
        ax.set_xticks([])
        ax.set_yticks([])
    # The last map of a network with momentum leaves the pair, and is no layer of its own.
    _legend(axes[0], count - sequence.is_pair(count - 1), curves)
    return axes


def distinguishable(
    f: Callable[[Array], Array],
    data: Float[Array, "n ..."],
    labels: Any = None,
    *,
    metric: Metric,
    plane: Plane | None = None,
    lines: Mapping[str, Any] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw how finely a function tells inputs apart: the magnification factor on a plane.

    Gray is `log10 sqrt(det G)` of the metric pulled back to the plane, the volume in which the
    outputs see a unit of input; ellipses hold inputs that are equally far from their center. Where
    G has rank one all over, as that of a single output or of two logits, it is the length along
    the one direction that is seen, and the ellipses are segments.

    Args:
        f: of a single example.
        data: examples, shape (n, ...).
        labels: class of each, integers.
        metric: of the outputs.
        plane: of the inputs; as in `layers` by default.
        lines: inputs along a line, shape (m, ...), by name: a geodesic, the straight line.
        ax: matplotlib axes to draw on; by default a new figure.

    Returns:
        The axes.

    References:
        Bishop, Svensén & Williams (1997), Magnification factors for the GTM algorithm.

    >>> import jax.numpy as jnp, numpy as np, volform as vf
    >>> x = jnp.asarray(np.random.default_rng(0).normal(size=(30, 2)))
    >>> ax = vf.plot.distinguishable(jnp.tanh, x, metric=vf.Euclidean())
    >>> ax.get_title()
    'Ellipses: equally far from their center'
    """
    labels = None if labels is None else _labels(labels, len(data))
    plane = _plane_of(data) if plane is None else plane
    ax = canvas.new_axes(1, 5.6, 4.6)[0] if ax is None else ax
    low, high = _box(plane.coordinates(data))
    fine, balls = _grid(low, high, SHADES, SHADES), _grid(low, high, *_sides(low, high))
    gram = np.asarray(_plane_metrics(metric, f, plane, jnp.asarray(np.concatenate([fine, balls]))))
    values, is_flat = np.maximum(np.linalg.eigvalsh(gram), 0.0), _is_flat(gram)
    shape = (SHADES, SHADES)
    with np.errstate(divide="ignore"):
        seen = np.log10(values)[: len(fine), 1 if is_flat else 0 :]
    volume = 0.5 * seen.sum(1).reshape(shape)
    top = np.max(volume[np.isfinite(volume)], initial=0.0)
    levels = np.linspace(max(np.min(volume), top - 6.0), top, 13) if np.ptp(volume) else None
    filled = ax.contourf(
        fine[:, 0].reshape(shape), fine[:, 1].reshape(shape), volume, levels=levels, cmap="Greys",
        extend="min",
    )  # fmt: skip
    symbol = r"\lambda" if is_flat else r"\det G"
    label = rf"log$_{{10}}\sqrt{{{symbol}}}$, magnification"
    canvas.figure_of(ax).colorbar(filled, ax=ax, label=label, format="%.1f")
    spacing = float(np.max(high - low)) / (GRID - 1)
    circles, is_cut = _circles(gram[len(fine) :], spacing, unseen=0.0)
    for center, circle in zip(balls[~is_cut], circles[~is_cut], strict=True):
        ax.plot(*(center + circle).T, color="#E69F00", linewidth=1.0)
    ax.scatter(*plane.coordinates(data).T, s=7, c=_colors(labels), zorder=3, linewidths=0)
    for (name, line), style in zip((lines or {}).items(), ("-", "--", ":", "-.") * 9, strict=False):
        path = plane.coordinates(line).T
        ax.plot(*path, color="white", linewidth=3.4, zorder=4)  # seen on black too
        ax.plot(*path, color="black", linestyle=style, label=name, zorder=5)
    if lines:
        ax.legend(fontsize=8.5)
    shapes = "Segments" if is_flat else "Ellipses"
    ax.set_title(f"{shapes}: equally far from their center", fontsize=9.5)
    for name, line in (("first", ax.set_xlabel), ("second", ax.set_ylabel)):
        line(f"{name} coordinate of the plane", color=canvas.INK)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(low[1], high[1])
    ax.set_aspect("equal")
    canvas.plain(ax)
    return ax


@eqx.filter_jit
def _plane_metrics(
    metric: Metric, f: Callable, plane: Plane, points: Float[Array, "m 2"]
) -> Float[Array, "m 2 2"]:
    pulled = pullback(metric, lambda point: f(plane(point)))
    return jax.lax.map(lambda point: pulled(point).as_matrix(), points, batch_size=512)


def _spread(count: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(np.linspace(0, count, 4).round().astype(int).tolist()))


def _labels(labels: Any, count: int) -> np.ndarray:
    found = np.asarray(labels)
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise DataError(
            f"`labels` has shape {found.shape} and dtype {found.dtype}; it should be one integer "
            f"for each of the {count} examples."
        )
    return found


def _colors(labels: np.ndarray | None) -> Any:
    return canvas.INK if labels is None else [CLASSES[k % len(CLASSES)] for k in labels]


def _plane_of(x: Any) -> Plane:
    if np.shape(x)[1:] == (2,):
        return Plane(jnp.zeros(2, jnp.result_type(x)), jnp.eye(2, dtype=jnp.result_type(x)))
    return principal(x)


def _box(points: Float[np.ndarray, "n 2"]) -> tuple[np.ndarray, np.ndarray]:
    low, high = points.min(0), points.max(0)
    room = 0.12 * np.max(high - low) or 1.0  # of a single point
    return low - room, high + room


def _sides(low: np.ndarray, high: np.ndarray) -> tuple[int, int]:
    """Balls along each axis, about as far apart on both: else those of a flat box overlap."""
    share = (high - low) / np.max(high - low)
    across, up = np.maximum(np.round(share * (GRID - 1)).astype(int) + 1, 2)
    return int(across), int(up)


def _grid(low: np.ndarray, high: np.ndarray, across: int, up: int) -> Float[np.ndarray, "m 2"]:
    sides = zip(low, high, (across, up), strict=True)
    mesh = np.meshgrid(*(np.linspace(a, b, side) for a, b, side in sides))
    return np.stack(mesh, -1).reshape(-1, 2)


def _is_flat(gram: Float[np.ndarray, "n 2 2"]) -> bool:
    values = np.linalg.eigvalsh(gram)
    return bool(np.all(values[:, 0] <= FLAT * values[:, 1]) and np.any(values))


def _circles(
    gram: Float[np.ndarray, "n 2 2"], spacing: float, unseen: float = np.inf
) -> tuple[Float[np.ndarray, "n p 2"], np.ndarray]:
    """Balls of one radius as curves in the plane, and which of them are cut off.

    A flat metric has strips, which are `unseen` long.
    """
    values, vectors = np.linalg.eigh(gram)
    roots = np.sqrt(np.maximum(values, 0.0))
    is_flat = _is_flat(gram)
    scale = roots[:, 1] if is_flat else np.sqrt(np.prod(roots, 1))
    radius = BALL * spacing * (np.median(scale[scale > 0.0]) if np.any(scale > 0.0) else 1.0)
    with np.errstate(divide="ignore"):
        axes = radius / roots
    if is_flat:
        axes[:, 0] = unseen
    shown = np.minimum(axes, CUT * spacing)
    circles = np.einsum("nij,nj,pj->npi", vectors, shown, CIRCLE)
    return circles, np.any(shown < axes, axis=1)


def _own(sequence: LayerSequence, layer: int, arrays: Sequence[Any]) -> np.ndarray:
    """Of the activations behind a layer, or their tangents: `x_l` of a pair `(x_l, x_{l-1})`."""
    found = np.asarray(arrays[layer])
    return found[..., : found.shape[-1] // 2] if sequence.is_pair(layer) else found


def _view(points: np.ndarray, plane: Plane | None) -> Callable[[Any], np.ndarray]:
    """To two coordinates: those of the plane, the layer's own, or principal ones."""
    if plane is not None:
        return plane.coordinates
    flat = points.reshape(len(points), -1)
    if flat.shape[1] == 1:
        return lambda z: np.stack([z.reshape(len(z)), np.zeros(len(z))], 1)
    if flat.shape[1] == 2:
        return lambda z: z.reshape(-1, 2)
    mean = flat.mean(0)
    frame = np.linalg.svd(flat - mean, full_matrices=False)[2][:2]
    return lambda z: (z.reshape(len(z), -1) - mean) @ frame.T


def _draw_balls(
    ax: "Axes",
    view: Callable,
    sides: tuple[int, int],
    points: np.ndarray,
    frames: np.ndarray,
    circles: np.ndarray,
    is_cut: np.ndarray,
) -> None:
    centers = view(points)
    flat = frames.reshape(*frames.shape[:2], -1)
    ends = [view(points + flat[:, i].reshape(points.shape)) - centers for i in range(2)]
    pushed = np.stack(ends, 2)  # [n, coordinate, tangent]; the view is affine
    curves = centers[:, None] + np.einsum("nij,npj->npi", pushed, circles)
    net = centers.reshape(sides[1], sides[0], 2)
    for line in (net, net.swapaxes(0, 1)):
        ax.plot(line[..., 0].T, line[..., 1].T, color=canvas.FAINT, linewidth=0.4, zorder=1)
    for curve, cut in zip(curves, is_cut, strict=True):
        face = "none" if cut else "#00000030"
        ax.fill(*curve.T, facecolor=face, edgecolor="#00000080", linewidth=0.7, zorder=2)


Curve = tuple[np.ndarray, str, Any]


def _curves(
    sequence: LayerSequence,
    plane: Plane,
    low: np.ndarray,
    high: np.ndarray,
    decide: Callable[[Array], Array] | None,
) -> list[Curve]:
    """The boundary of the classes and the folds, as curves in the plane."""
    fine = _grid(low, high, FINE, FINE)
    placed = jax.vmap(plane)(jnp.asarray(fine))
    points, frames = sequence.carry(placed, plane.frame)
    found: list[Curve] = []
    if decide is not None:
        outputs = np.asarray(jax.vmap(decide)(points[-1])).reshape(len(fine), -1)
        for level in _margins(outputs):
            found += [(path, "black", "-") for path in _level_lines(fine, level)]
    last = np.asarray(frames[-1])
    if last.shape[2:] == (2,):
        turned = np.linalg.det(last)
        # Where one direction is lost all over, the sign is that of rounding.
        if np.any(np.abs(turned) > FLAT**0.5 * np.sum(last**2, (1, 2))):
            found += [(path, FOLD, "--") for path in _level_lines(fine, turned)]
    return found


def _margins(outputs: Float[np.ndarray, "m k"]) -> list[np.ndarray]:
    """Functions whose zeros are the boundaries of the classes."""
    if outputs.shape[1] == 1:
        return [outputs[:, 0]]
    classes = range(1 if outputs.shape[1] == 2 else outputs.shape[1])
    return [outputs[:, k] - np.delete(outputs, k, 1).max(1) for k in classes]


def _level_lines(fine: Float[np.ndarray, "m 2"], values: np.ndarray) -> list[np.ndarray]:
    if not (values.min() < 0.0 < values.max()):
        return []
    from contourpy import contour_generator  # noqa: PLC0415 - comes with matplotlib

    shape = (FINE, FINE)
    generator: Any = contour_generator(*(each.reshape(shape) for each in (*fine.T, values)))
    return [np.asarray(line) for line in generator.lines(0.0) if len(line) > 1]


def _legend(ax: "Axes", count: int, curves: list[Curve]) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    ball = f"equally far from its center, as layer {count} measures (hollow: larger, cut off)"
    handles: list[Any] = [Patch(facecolor="#00000030", edgecolor="#00000080", label=ball)]
    known: dict[Any, str] = {("black", "-"): "boundary of the classes", (FOLD, "--"): "folds"}
    drawn = {(color, style) for _, color, style in curves}
    for (color, style), text in known.items():
        if (color, style) in drawn:
            handles.append(Line2D([], [], color=color, linestyle=style, label=text))
    figure = canvas.figure_of(ax)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8.5)

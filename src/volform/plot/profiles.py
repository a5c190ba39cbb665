"""Surfaces of the parameters of one function in three of their coordinates."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from volform.equivalence import OnInputs, function_on
from volform.errors import NetworkError
from volform.plot import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS_OF_PROFILE = 20  # of Levenberg and Marquardt's method, at each point
POINTS_AT_ONCE = 4096
TETRAHEDRA = ((0, 1, 3, 7), (0, 1, 5, 7), (0, 2, 3, 7), (0, 2, 6, 7), (0, 4, 5, 7), (0, 4, 6, 7))


def profile(
    f: Callable[[Any, Any], Any],
    params: Any,
    x: Any,
    *,
    coordinates: Sequence[int],
    names: Sequence[str] = ("first", "second", "third"),
    reach: float = 2.5,
    level: float = -1.0,
    side: int = 48,
    ax: Any = None,
) -> "Axes":
    """Draw the surface around all parameters of a function, in three of their coordinates.

    At each point the relative loss `mean |f - f*|^2 / mean |f*|^2` is brought to its least over all
    other parameters, by Levenberg and Marquardt's method from `params`; the surface is where its
    log10 is `level`. Unlike a slice, such a profile misses no piece that lies elsewhere in the
    other parameters. Pieces that are not joined have different colors.

    Args:
        f: function of parameters and inputs.
        params: pytree of floating-point arrays, four numbers or more.
        x: inputs, shape (n, ...), or a pytree of such.
        coordinates: numbers of the three coordinates among the flat parameters, in the order of
            `jax.flatten_util.ravel_pytree`.
        names: of the coordinates.
        reach: they are drawn from minus to plus this.
        level: log10 of the relative loss. The lower, the thinner are the sheets, and the finer has
            the grid to be: holes that follow its lines are where it is too coarse.
        side: points a side.
        ax: axes in three dimensions; by default a new figure.

    Returns:
        The axes.

    Raises:
        NetworkError: coordinates that are no three different ones.
        DataError: a function that is zero on all inputs.

    >>> import jax.numpy as jnp, volform as vf
    >>> product = lambda p, x: p[0] * p[1] * p[2] * p[3] * x
    >>> ax = vf.plot.profile(product, jnp.ones(4), jnp.ones(3), coordinates=(0, 1, 2), side=8)
    >>> ax.get_zlabel()
    'third'
    """
    outputs = function_on(f, params, x, "profile")
    outputs.require_outputs("profile")
    d = outputs.point.size
    if len(set(coordinates)) != 3 or not set(coordinates) < set(range(d)):
        raise NetworkError(
            f"`coordinates` of profile are {tuple(coordinates)}; give three different numbers "
            f"below {d}, the number of parameters, which should be four or more."
        )
    ticks = np.linspace(-reach, reach, side, dtype=outputs.point.dtype)
    grid = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), -1)
    losses = _profiles(outputs, jnp.asarray(grid.reshape(-1, 3)), jnp.asarray(coordinates))
    with np.errstate(divide="ignore"):
        heights = np.log10(np.asarray(losses)).clip(-8.0, 8.0).reshape(side, side, side) - level
    triangles, pieces = surface(heights, ticks)
    if ax is None:
        import matplotlib.pyplot as plt  # noqa: PLC0415

        ax = plt.figure(figsize=(5.4, 5.0), layout="constrained").add_subplot(projection="3d")
    from matplotlib.colors import LightSource  # noqa: PLC0415
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # noqa: PLC0415

    light = LightSource(azdeg=200, altdeg=40)  # from behind the viewer
    for piece in np.unique(pieces):
        look: Any = {"facecolors": canvas.COLORS[(piece - 1) % 4], "lightsource": light}
        shown = triangles[pieces == piece]
        ax.add_collection3d(Poly3DCollection(shown, shade=True, antialiased=False, **look))
    for axis, name in zip("xyz", names, strict=True):
        getattr(ax, f"set_{axis}lim")(-reach, reach)
        getattr(ax, f"set_{axis}label")(name, color=canvas.INK)
    ax.view_init(elev=22, azim=-125)
    ax.set_box_aspect(None, zoom=0.88)  # else the label of the third axis is cut off
    return ax


@eqx.filter_jit
def _profiles(
    outputs: OnInputs, points: Float[Array, "m 3"], coordinates: Int[Array, " 3"]
) -> Float[Array, " m"]:
    import lineax as lx  # noqa: PLC0415
    import optimistix as optx  # noqa: PLC0415 - .1 s, which not every import should take

    method = optx.LevenbergMarquardt(1e-4, 1e-6, linear_solver=lx.Normal(lx.Cholesky()))

    def least(point: Float[Array, " 3"]) -> Float[Array, ""]:
        def residuals(flat: Float[Array, " d"], _: Any) -> Array:
            return outputs.change(flat.at[coordinates].set(point))

        found = optx.least_squares(
            residuals, method, outputs.point, max_steps=STEPS_OF_PROFILE, throw=False
        )
        return jnp.sum(residuals(found.value, None) ** 2)

    return jax.lax.map(least, points, batch_size=POINTS_AT_ONCE)


def surface(
    values: Float[np.ndarray, "n n n"], ticks: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "t 3 3"], Int[np.ndarray, " t"]]:
    """Triangles between negative and positive values on a grid, and the piece that each is of.

    Each cell is cut into six tetrahedra, in which the surface is a triangle or a quadrangle.
    """
    from scipy.ndimage import label  # noqa: PLC0415

    labels: Any = label(values < 0.0, np.ones((3, 3, 3)))
    steps = [(bits & 1, bits >> 1 & 1, bits >> 2) for bits in range(8)]
    cells = np.stack(np.meshgrid(*(np.arange(n - 1) for n in values.shape), indexing="ij"), -1)
    corners = cells.reshape(-1, 1, 3) + np.array(steps)
    found, pieces = [], []
    for tetrahedron in TETRAHEDRA:
        index = corners[:, tetrahedron]
        v, p = values[tuple(index.transpose(2, 0, 1))], ticks[index]
        inside = np.sum(v < 0.0, axis=1)
        order = np.argsort(v, axis=1)
        v, p = np.take_along_axis(v, order, 1), np.take_along_axis(p, order[..., None], 1)
        lowest = np.take_along_axis(index, order[:, :1, None], 1)[:, 0]
        for count, edges in (
            (1, ((0, 1), (0, 2), (0, 3))),
            (3, ((3, 0), (3, 1), (3, 2))),
            (2, ((0, 2), (0, 3), (1, 3))),
            (2, ((0, 2), (1, 3), (1, 2))),
        ):
            cut = inside == count
            a, b = np.array(edges).T
            share = (v[cut][:, a] / (v[cut][:, a] - v[cut][:, b]))[..., None]
            triangles = (1.0 - share) * p[cut][:, a] + share * p[cut][:, b]
            found.append(_turned(triangles, p[cut][:, 0]))
            pieces.append(labels[0][tuple(lowest[cut].T)])
    return np.concatenate(found), np.concatenate(pieces)


def _turned(
    triangles: Float[np.ndarray, "t 3 3"], inside: Float[np.ndarray, "t 3"]
) -> Float[np.ndarray, "t 3 3"]:
    """The triangles with their corners in the order whose normal points outward, for the light."""
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    is_inward = np.sum(normals * (triangles.mean(1) - inside), axis=1) < 0.0
    return np.where(is_inward[:, None, None], triangles[:, ::-1], triangles)

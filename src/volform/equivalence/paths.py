"""Barriers between parameters: the highest loss on a path that is as low as one can find."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import require_key, require_positive, require_whole
from volform.compilation import steady
from volform.equivalence.on_inputs import BLOCK, flat_params
from volform.errors import NetworkError

BETWEEN = 10  # points on each segment of a path at which its height is looked for
EQUAL = 1e-4  # of the height of the straight line, by which two paths are equally high
WAVES = 3  # of sines, by which a first string departs from the straight line

_Loss = Callable[[Any], Float[Array, ""]]


@dataclass(frozen=True, repr=False)
class Barrier:
    """A path between two parameters and the height of its pass.

    Attributes:
        height: highest loss on the path above the larger loss of its ends; of a `String` it is an
            upper bound of the least height.
        points: the path, the parameters' pytree with a leading axis.
        losses: at these points.
        tried: heights of all paths that were tried, ascending.
    """

    height: float
    points: Any
    losses: Float[np.ndarray, " n"]
    tried: Float[np.ndarray, " s"]

    def __repr__(self) -> str:
        number = len(self.tried)
        by = "on the straight line" if number == 1 else f"at most, the least of {number} paths"
        ends = f"{self.losses[0]:.3g} and {self.losses[-1]:.3g} at the ends"
        return f"barrier {self.height:.3g} {by}; {ends}"


class Path(eqx.Module):
    """A way to lay a path between two parameters, as a value."""

    @abc.abstractmethod
    def lay(
        self, loss: _Loss, a: Float[Array, " d"], b: Float[Array, " d"]
    ) -> Float[Array, "s n d"]:
        """Paths from a to b; `loss` is of flat parameters."""


class Line(Path):
    """The straight line.

    Attributes:
        nodes: points on it; the loss is looked at in ten places between each two.

    >>> from volform import equivalence
    >>> equivalence.Line()
    Line()
    """

    nodes: int = 41

    def __check_init__(self) -> None:
        _require_nodes(self.nodes, "Line")

    def lay(
        self, loss: _Loss, a: Float[Array, " d"], b: Float[Array, " d"]
    ) -> Float[Array, "s n d"]:
        """One path."""
        return _line(a, b, self.nodes)[None]


class String(Path):
    """Paths of low loss by the string method, from several random first ones.

    The nodes of a string go down the part of the gradient that is across it, by Adam, and are
    spaced evenly after each step. A string may end in a pass that is not the lowest (3 of 8 do on
    the network of two ReLU units), so that several are tried, and the best is an upper bound.

    Attributes:
        key: key of the first strings.
        starts: number of strings.
        nodes: points of each, both ends among them.
        steps: of each.
        rate: first step of each coordinate, relative to its mean distance between the ends; it
            falls to zero as a cosine.

    References:
        E, Ren & Vanden-Eijnden (2007), Simplified and improved string method.

    >>> import jax
    >>> from volform import equivalence
    >>> equivalence.String(jax.random.key(0), starts=4).starts
    4
    """

    key: PRNGKeyArray
    starts: int = 8
    nodes: int = 41
    steps: int = 1000
    rate: float = 0.02

    def __check_init__(self) -> None:
        require_key(self.key, "key", "String", NetworkError)
        require_whole(self.starts, "starts", "String", NetworkError)
        require_whole(self.steps, "steps", "String", NetworkError)
        require_positive(self.rate, "rate", "a part of the distance of the ends")
        _require_nodes(self.nodes, "String")

    def lay(
        self, loss: _Loss, a: Float[Array, " d"], b: Float[Array, " d"]
    ) -> Float[Array, "s n d"]:
        """All strings, relaxed."""
        keys = jax.random.split(self.key, self.starts)
        rate = jnp.asarray(self.rate, a.dtype)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            return _relaxed(loss, a, b, keys, self.nodes, self.steps, rate)


def barrier(loss: _Loss, a: Any, b: Any, *, by: Path) -> Barrier:
    """Height of the loss that has to be crossed from a to b.

    Args:
        loss: function of parameters, a number.
        a: parameters, a pytree of floating-point arrays.
        b: others of the same shapes; of two networks that were trained apart, the copy that is
            nearest to a, since others are behind barriers that mean nothing.
        by: `Line()`, or `String(key)` for a path of low loss.

    Returns:
        A `Barrier`: height and path.

    Raises:
        NetworkError: parameters of different shapes, equal ones, a loss that is no finite number.

    Cost: a gradient of the loss for each string, node and step; 328,000 by default.

    >>> import jax, jax.numpy as jnp
    >>> from volform import equivalence
    >>> valley = lambda p: (p["x"] ** 2 + p["y"] ** 2 - 1.0) ** 2  # along a circle
    >>> a = {"x": jnp.array(1.0), "y": jnp.array(0.0)}
    >>> b = {"x": jnp.array(-1.0), "y": jnp.array(0.0)}
    >>> round(equivalence.barrier(valley, a, b, by=equivalence.Line()).height, 6)
    1.0
    >>> string = equivalence.String(jax.random.key(0), starts=2)
    >>> equivalence.barrier(valley, a, b, by=string).height < 1e-3
    True
    """
    if not isinstance(by, Path):
        raise NetworkError(
            f"`by` of barrier is {by!r}; it should be `Line()` or `String(jax.random.key(0))`."
        )
    (first, unravel), second = ends_of(a, b, "barrier")
    of_flat = _OfFlat(loss, unravel)
    shape = jax.eval_shape(of_flat, first).shape
    if shape != () or not bool(jnp.isfinite(of_flat(first)) & jnp.isfinite(of_flat(second))):
        raise NetworkError(
            f"`loss` of barrier has shape {shape}, or is not finite at `a` or `b`; it should be "
            "one finite number, such as a mean over the data."
        )
    paths = by.lay(of_flat, first, second)
    paths = jnp.concatenate([paths, _line(first, second, paths.shape[1])[None]])
    losses, tops = (np.asarray(part) for part in _heights(of_flat, paths))
    tops = np.where(np.isnan(tops), np.inf, tops) - max(losses[0, 0], losses[0, -1])
    lengths = np.linalg.norm(np.diff(np.asarray(paths), axis=1), axis=2).sum(1)
    is_low = tops <= max(tops.min(), 0.0) + EQUAL * max(tops[-1], 0.0)
    best = int(np.argmin(np.where(is_low, lengths, np.inf)))  # which is the least entangled
    return Barrier(
        float(max(tops[best], 0.0)),
        jax.vmap(unravel)(paths[best]),
        losses[best],
        np.sort(np.maximum(tops[: len(paths) - 1], 0.0)),
    )


class _OfFlat(eqx.Module):
    """A loss of flat parameters; a module, so that equal losses are compiled once."""

    loss: _Loss
    unravel: Callable[[Array], Any] = eqx.field(static=True)

    def __call__(self, flat: Float[Array, " d"]) -> Float[Array, ""]:
        return self.loss(self.unravel(flat))


def ends_of(a: Any, b: Any, function: str) -> tuple[tuple[Array, Callable], Array]:
    """Two parameters as flat vectors, and the way back.

    Raises:
        NetworkError: when they differ in shape, or are equal.
    """
    first, unravel = flat_params(a, "a", function)
    second, _ = flat_params(b, "b", function)
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(each)] for each in (a, b)]
    if jax.tree.structure(a) != jax.tree.structure(b) or shapes[0] != shapes[1]:
        raise NetworkError(
            f"`a` and `b` of {function} differ in their arrays, {shapes[0]} and {shapes[1]}, or in "
            "the names of those; they should be parameters of one network."
        )
    if bool(jnp.all(first == second)):
        raise NetworkError(
            f"`a` and `b` of {function} are equal, so that nothing lies between them; give two "
            "different parameters."
        )
    return (first, unravel), second


def _require_nodes(nodes: int, of: str) -> None:
    require_whole(nodes, "nodes", of, NetworkError)
    if nodes < 3:
        raise NetworkError(f"`nodes` of {of} is {nodes}; a path needs a point between its ends: 3.")


def _line(a: Float[Array, " d"], b: Float[Array, " d"], nodes: int) -> Float[Array, "n d"]:
    at = jnp.linspace(0.0, 1.0, nodes, dtype=a.dtype)[:, None]
    return (1.0 - at) * a[None] + at * b[None]


@steady
def _relaxed(
    loss: _Loss,
    a: Float[Array, " d"],
    b: Float[Array, " d"],
    keys: PRNGKeyArray,
    nodes: int,
    steps: int,
    rate: Float[Array, ""],
) -> Float[Array, "s n d"]:
    import optax  # noqa: PLC0415 - .05 s, which not every `import volform` should take

    size = jnp.linalg.norm(b - a) / a.size**0.5
    # One rate for all coordinates: Adam's steps do not depend on the scale of the loss.
    optimizer = optax.adam(lambda i: 0.5 * rate * size * (1.0 + jnp.cos(jnp.pi * i / steps)))
    line = _line(a, b, nodes)
    at = jnp.linspace(0.0, 1.0, nodes, dtype=a.dtype)
    waves = jnp.arange(1, WAVES + 1, dtype=a.dtype)
    sines = jnp.sin(jnp.pi * at[:, None] * waves[None]) / waves[None]

    def relax(start: tuple[PRNGKeyArray, Array]) -> Float[Array, "n d"]:
        key, share = start
        first = line + share * size * sines @ jax.random.normal(key, (WAVES, a.size), a.dtype)

        def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
            string, state = carry
            slopes = jax.vmap(jax.grad(loss))(string)
            along: Any = jnp.gradient(string, axis=0)
            along = along / jnp.maximum(jnp.linalg.norm(along, axis=1, keepdims=True), 1e-30)
            across = slopes - jnp.sum(slopes * along, 1, keepdims=True) * along
            update, state = optimizer.update(across, state)
            moved = optax.apply_updates(string, update)
            moved = jnp.asarray(moved).at[0].set(a).at[-1].set(b)
            return (_evenly(moved), state), None

        return jax.lax.scan(step, (first, optimizer.init(first)), None, steps)[0][0]

    batch = max(1, BLOCK // (8 * nodes * a.size))
    # From near the straight line to far from it: simple paths are found by the first.
    shares = (jnp.arange(len(keys), dtype=a.dtype) + 0.5) / len(keys)
    return jax.lax.map(relax, (keys, shares), batch_size=min(batch, len(keys)))


def _evenly(string: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Nodes at equal distances along the string."""
    gaps = jnp.linalg.norm(jnp.diff(string, axis=0), axis=1)
    at = jnp.concatenate([jnp.zeros_like(gaps[:1]), jnp.cumsum(gaps)])
    even = jnp.linspace(0.0, 1.0, len(string), dtype=string.dtype) * at[-1]
    return jax.vmap(lambda column: jnp.interp(even, at, column), 1, 1)(string)


@steady
def _heights(loss: _Loss, paths: Float[Array, "s n d"]) -> tuple[Array, Array]:
    """Losses at the nodes of each path, and the highest on it, between the nodes too."""
    at = jnp.linspace(0.0, 1.0, BETWEEN, endpoint=False, dtype=paths.dtype)

    def heights(path: Float[Array, "n d"]) -> tuple[Array, Array]:
        losses = jax.lax.map(loss, path)

        def on_segment(ends: tuple[Array, Array]) -> Array:
            start, end = ends
            return jnp.max(jax.vmap(lambda t: loss((1.0 - t) * start + t * end))(at))

        between = jax.lax.map(on_segment, (path[:-1], path[1:]))
        return losses, jnp.maximum(jnp.max(between), losses[-1])

    return jax.lax.map(heights, paths)

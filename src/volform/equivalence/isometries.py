"""Metrics and densities under a group: which part of it leaves them as they are."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from volform.equivalence.group import Element, Group, arrays_of
from volform.equivalence.signs import rounding_of
from volform.errors import MetricError, ModelError
from volform.geometry.metric import Metric

_TANGENTS = 4  # random tangent vectors that lengths and angles are compared on
_MOST_UNITS = 64  # of which the worst one is looked for
_POINTS = 8  # more random points than generators, at which a density's slopes are taken


@dataclass(frozen=True)
class Isometry:
    """Verdict on whether a metric or a density is the same under a group.

    Attributes:
        defect: largest relative change by a random element.
        holds: whether that is rounding.
        worst: the symmetry that changes it most; empty where it holds.
        parts: the change by each part of the group.
    """

    defect: float
    holds: bool
    worst: str
    parts: Mapping[str, float]

    def __repr__(self) -> str:
        worst = f", worst={self.worst!r}" if self.worst else ""
        return f"{type(self).__name__}(defect={self.defect:.2g}, holds={self.holds}{worst})"


def is_isometry(metric: Metric, group: Group, params: PyTree) -> Isometry:
    """Tell whether the group moves parameters without a change of a metric.

    `|J^T G(g theta) J - G(theta)|` over `|G(theta)|` on random tangent vectors, for random elements
    g of each part of the group, J their derivative. Exchanges are isometries of `Euclidean()` and
    scalings are not, so that what depends on it is no property of the function.

    Args:
        metric: a metric on the parameters, called with `params`.
        group: symmetries of a function.
        params: a point; a generic one, since alike units look invariant.

    Raises:
        NetworkError: when the parameters are not of this group's network.
        MetricError: when the metric is not finite there.

    >>> import jax.numpy as jnp, volform as vf
    >>> from volform import equivalence as eq
    >>> params = {"a": jnp.array(1.0), "c": jnp.array(0.8)}
    >>> group = eq.symmetry(lambda p, x: p["a"] * p["c"] * x, params, jnp.ones(3))
    >>> eq.is_isometry(vf.Euclidean(), group, params).holds
    False
    >>> scale_free = vf.geometry.DiagonalField(lambda a, c: {"a": a**-2, "c": c**-2})
    >>> eq.is_isometry(scale_free, group, params).holds
    True
    """
    leaves = [np.asarray(leaf) for leaf in group.leaves(params)[0]]
    arrays, _ = _points(params)
    random = np.random.default_rng(5)
    tangents = [
        [random.normal(size=x.shape).astype(x.dtype) for x in leaves] for _ in range(_TANGENTS)
    ]
    treedef = jax.tree.structure(arrays)

    @jax.jit
    def gram(point: list[Array], vectors: list[list[Array]]) -> Array:
        operator = metric(jax.tree.unflatten(treedef, point))
        trees = [jax.tree.unflatten(treedef, vector) for vector in vectors]
        images = [ravel_pytree(operator.mv(tree))[0] for tree in trees]
        return jnp.stack([ravel_pytree(tree)[0] for tree in trees]) @ jnp.stack(images).T

    before = np.asarray(gram(leaves, tangents))
    if not np.all(np.isfinite(before)):
        raise MetricError(
            f"`metric` of is_isometry, {metric!r}, is not finite at `params`; give a point where "
            "it is."
        )

    def change(element: Element) -> float:
        here = element.of_leaves(leaves)  # elements are affine: differences are derivatives
        moved = [
            [
                y - x
                for x, y in zip(here, element.of_leaves(list(map(np.add, leaves, v))), strict=True)
            ]
            for v in tangents
        ]
        after = np.asarray(gram(here, moved))
        return float(np.max(np.abs(after - before)) / np.max(np.abs(before)))

    return _verdict(group, change, 100.0 * rounding_of(leaves))


def is_invariant(density: Callable[[PyTree], Array], group: Group, params: PyTree) -> Isometry:
    """Tell whether the group leaves a log density as it is.

    Args:
        density: of parameters, such as a log joint density with respect to Lebesgue measure.
        group: symmetries of a function.
        params: a point; a generic one, since alike units look invariant.

    Returns:
        The verdict; changes are relative to the density.

    Raises:
        NetworkError: when the parameters are not of this group's network.
        ModelError: when the density is not finite there.
    """
    group.leaves(params)
    before = float(density(params))
    if not np.isfinite(before):
        raise ModelError(
            f"`density` of is_invariant is {before} at `params`; give a point inside its support."
        )

    def change(element: Element) -> float:
        return abs(float(density(element(params))) - before) / (1.0 + abs(before))

    leaves, _, _ = arrays_of(params)
    return _verdict(group, change, rounding_of(leaves))


def preserving(
    density: Callable[[PyTree], Array], group: Group, params: PyTree
) -> Float[np.ndarray, "r k"]:
    """Combinations of the generators that leave a log density as it is.

    Rows c with `sum_k c_k X_k(theta) log p(theta) = 0` at random theta, an orthonormal basis: of a
    Gaussian prior that is the same for all units, the rotations among the mixtures.

    Args:
        density: of parameters; differentiable.
        group: symmetries of a function.
        params: shapes, and the scale of the random points.

    Returns:
        The rows, shape (r, k), for `group.generators(params)`.

    Raises:
        NetworkError: when the parameters are not of this group's network.
        ModelError: when the density is not finite at random points.
    """
    group.leaves(params)
    arrays, rest = _points(params)
    flat, unravel = ravel_pytree(arrays)
    scale = float(jnp.sqrt(jnp.mean(flat**2))) or 1.0
    random = np.random.default_rng(6)

    @jax.jit
    def slopes(u: Array) -> Array:
        point = rest(unravel(u))
        fields, _ = _points(group.generators(point))
        slope = jax.grad(lambda u: density(rest(unravel(u))))(u)
        return jax.vmap(lambda field: ravel_pytree(field)[0])(fields) @ slope

    count = group.dimension
    points = scale * random.normal(size=(count + _POINTS, flat.size)).astype(flat.dtype)
    rows = np.stack([np.asarray(slopes(u)) for u in points]) if count else np.zeros((0, 0))
    if not np.all(np.isfinite(rows)):
        raise ModelError(
            "`density` of preserving is not finite at random parameters; give it in coordinates in "
            "which it is finite everywhere."
        )
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    _, values, basis = np.linalg.svd(rows)
    return basis[int(np.sum(values > np.sqrt(rounding_of([flat])) * max([*values, 1e-300]))) :]


def _points(params: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """The arrays of parameters, and the function that puts the rest beside them."""
    leaves, treedef, rest = arrays_of(params)
    arrays = jax.tree.unflatten(treedef, [jnp.asarray(leaf) for leaf in leaves])
    return arrays, lambda point: jax.tree.map(
        lambda x, y: y if x is None else x, point, rest, is_leaf=lambda x: x is None
    )


def _verdict(group: Group, change: Callable[[Element], float], tolerance: float) -> Isometry:
    found = {name: change(element) for name, element in _parts(group)}
    defect = max(found.values(), default=0.0)
    worst = max(found, key=found.__getitem__) if defect > tolerance else ""
    for number, flow in enumerate(group.flows):
        if worst == _title(flow.kind, flow.name) and 1 < flow.count <= _MOST_UNITS:
            each = [change(_flowing(group, number, t)) for t in 0.5 * flow.basis]
            worst = flow.labels()[int(np.argmax(each))]
            break
    return Isometry(defect, defect <= tolerance, worst, found)


def _parts(group: Group) -> Iterator[tuple[str, Element]]:
    """A random element of each part of the group."""
    random, one = np.random.default_rng(7), group.identity
    drawn = replace(group, flows=()).drawn(random)
    for n, units in enumerate(group.units):
        still = one.signs[n], one.together[n]
        yield _title("exchange", units.name), one.at(n, np.roll(one.orders[n], 1), *still)
        if units.signs or units.together:
            turned = -np.abs(drawn.signs[n]), -np.abs(drawn.together[n])
            yield _title("sign", units.name), one.at(n, one.orders[n], *turned)
    for n, flow in enumerate(group.flows):
        yield _title(flow.kind, flow.name), _flowing(group, n, flow.amounts(random))


def _title(kind: str, name: str) -> str:
    return f"{kind} of {name}"


def _flowing(group: Group, number: int, amounts: np.ndarray) -> Element:
    every = (amounts if n == number else np.zeros(f.shape) for n, f in enumerate(group.flows))
    return replace(group.identity, amounts=tuple(every))

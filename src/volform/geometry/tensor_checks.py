"""Checks of points and components that `tangent_spaces` makes, also of numbers that are traced."""

import inspect
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from volform.errors import IndefiniteError, MetricError, TensorError
from volform.geometry.geodesics import shown
from volform.geometry.metric import Metric
from volform.geometry.tensors import Typed
from volform.linalg.structured import Point, size_of

CANCELLED = 64  # roundings of the largest entry, in an entry that is a difference of such


def floats(tree: PyTree, argument: str, owner: str) -> PyTree:
    """A pytree as floating-point arrays.

    Raises:
        TensorError: for leaves that are not, for none, and for numbers that are not finite, unless
            they are traced.
    """
    leaves, structure = jax.tree.flatten(tree)
    dtypes = [_dtype_of(leaf) for leaf in leaves]
    is_float = [dtype is not None and jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes]
    if not all(is_float) or not any(np.size(leaf) for leaf in leaves):
        raise TensorError(
            f"`{argument}` of {owner} is {tree!r}; it should be made of floating-point numbers, an "
            "array or a pytree of arrays, as `jnp.asarray(x, float)` gives."
        )
    arrays = [jnp.asarray(leaf, dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]
    return structure.unflatten(finite_or_traced(arrays, argument, owner))


def floats_like(tree: PyTree, like: PyTree, argument: str, owner: str) -> PyTree:
    """A pytree of real numbers as arrays of the shapes and dtypes of another.

    Raises:
        TensorError: for another layout, other entries, and numbers that are not finite.
    """
    leaves, structure = jax.tree.flatten(tree)
    models = jax.tree.leaves(like)
    shapes = [[np.shape(leaf) for leaf in each] for each in (leaves, models)]
    if structure != jax.tree.structure(like) or shapes[0] != shapes[1]:
        raise TensorError(
            f"`{argument}` of {owner} are laid out as {_layout(tree)}; at this point they should "
            f"be laid out as {_layout(like)}."
        )
    if not all(map(is_real, leaves)):
        raise TensorError(
            f"`{argument}` of {owner} are {tree!r}; they should be made of real numbers."
        )
    arrays = [jnp.asarray(leaf, at.dtype) for leaf, at in zip(leaves, models, strict=True)]
    return structure.unflatten(finite_or_traced(arrays, argument, owner))


def square_matrix(point: Point, components: Any, kind: str) -> Any:
    """A matrix with a row for each coordinate of a point.

    Raises:
        TensorError: for another shape, and what `floats_like` refuses.
    """
    size, dtype = size_of(point), ravel_pytree(point)[0].dtype
    if np.shape(components) != (size, size):
        raise TensorError(
            f"`components` of {kind} have the shape {np.shape(components)}; at this point they "
            f"should be a matrix with a row for each coordinate, ({size}, {size})."
        )
    return floats_like(components, np.empty((size, size), dtype), "components", kind)


def is_real(leaf: Any) -> bool:
    """Tell whether something is a real number or an array of them; no bool is."""
    dtype = _dtype_of(leaf)
    return dtype is not None and (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    )


def _dtype_of(leaf: Any) -> Any:
    try:
        return None if leaf is None else jnp.result_type(leaf)
    except (TypeError, ValueError):
        return None


def _layout(tree: PyTree) -> Any:
    return jax.tree.map(np.shape, tree)


def finite_or_traced(arrays: list[Any], argument: str, owner: str) -> list[Any]:
    """Arrays, if all numbers in them are finite or traced.

    Raises:
        TensorError: when they are not.
    """
    for array in arrays:
        if not isinstance(array, Tracer) and not np.isfinite(array).all():
            raise TensorError(
                f"`{argument}` of {owner} should be finite, with NaN or infinity nowhere; where a "
                "metric is singular, or the Jacobian of a change of coordinates, none comes out."
            )
    return arrays


def is_alike(left: PyTree, right: PyTree) -> Any:
    """Tell whether two pytrees of one layout agree to half of their digits; may be traced.

    Entry by entry, since coordinates have units of their own. A point that is reached in two ways
    differs in the last digits, and where terms cancel by those of the largest entry.
    """
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    differing = [pair for pair in pairs if pair[0] is not pair[1]]
    traced = any(isinstance(leaf, Tracer) for pair in differing for leaf in pair)
    xp: Any = jnp if traced else np
    alike: Any = True
    for a, b in differing:
        sizes, eps = xp.maximum(xp.abs(a), xp.abs(b)), float(jnp.finfo(a.dtype).eps)
        room = eps**0.5 * sizes + CANCELLED * eps * xp.max(sizes, initial=0.0)
        alike &= xp.all(xp.abs(a - b) <= room)
    return alike


def witness_of(point: PyTree) -> PyTree:
    """A fixed vector that a chart is known by: no entry is zero, and no two are alike."""
    leaves, structure = jax.tree.flatten(point)
    starts = np.cumsum([0, *(np.size(leaf) for leaf in leaves)])
    found = [
        (2.0 + np.sin(start + np.arange(np.size(leaf)))).reshape(np.shape(leaf)).astype(leaf.dtype)
        for start, leaf in zip(starts, leaves, strict=False)
    ]
    return structure.unflatten(found)


def is_zero(tree: PyTree) -> Any:
    """Tell whether all numbers are zero; may be traced."""
    leaves = jax.tree.leaves(tree)
    xp: Any = jnp if any(isinstance(leaf, Tracer) for leaf in leaves) else np
    return xp.all(xp.stack([xp.all(leaf == 0.0) for leaf in leaves]))


def require_takes(phi: Callable[..., Any], point: PyTree) -> None:
    """Check that a map can be called at a point.

    Raises:
        TensorError: when it takes other arguments.
    """
    named, each = (point, ()) if isinstance(point, dict) else ({}, point)
    try:
        inspect.signature(phi).bind(*(each if isinstance(each, tuple) else (each,)), **named)
    except TypeError as error:
        raise TensorError(
            f"`phi` of `to` does not fit the point, {error}: it is called as by `vf.pullback`, "
            "with the entries of a dict by name, and those of a tuple one by one."
        ) from error
    except ValueError:
        pass  # of some builtins there is no signature


def require_moved(witness: PyTree) -> None:
    """Check that a map has not made zero of a witness.

    Raises:
        TensorError: when it has.
    """
    if is_derivative(witness):
        raise TensorError(
            "`phi` of `to` has a Jacobian of zeros at this point, and is no change of coordinates "
            "there: no tensor can be carried along it."
        )


def is_derivative(witness: PyTree) -> bool:
    """Tell whether a witness is one of `jax.grad`; False where it is traced."""
    zero = is_zero(witness)
    return not isinstance(zero, Tracer) and bool(zero)


def require_no_derivative(witness: PyTree) -> None:
    """Check that a witness is none of `jax.grad`.

    Raises:
        TensorError: when it is.
    """
    if is_derivative(witness):
        raise TensorError(
            "This came out of `jax.grad` with respect to a tensor, or a TangentSpace, and is none "
            "itself. The derivative of a function f of vectors is a covector, "
            "`space.covector(jax.grad(lambda v: f(space.vector(v)))(vector.components))`, and that "
            "of a function of the point is `space.differential(f)`."
        )


def nan_unless(holds: Any, tree: PyTree, message: Callable[[], str]) -> PyTree:
    """A pytree if something holds; where that is known only as the program runs, else NaN.

    Raises:
        TensorError: with the message, where it is known not to hold.
    """
    if isinstance(holds, Tracer):
        return jax.tree.map(lambda leaf: jnp.where(holds, leaf, jnp.nan), tree)
    if not holds:
        raise TensorError(message())
    return tree


def point_in_words(tree: PyTree) -> str:
    """A point or components in words: their entries to four digits."""
    leaves = jax.tree.leaves(tree)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return "traced"
    if len(leaves) == 1 and np.ndim(leaves[0]) == 2:
        rows = np.asarray(leaves[0])
        return str(rows.round(4).tolist()) if rows.size < 10 else f"{len(rows)} by {len(rows.T)}"
    return shown(tree)


def metric_for(metric: Any, method: str) -> Metric:
    """The metric that a method was given.

    Raises:
        MetricError: when there is none.
    """
    if isinstance(metric, Typed):
        raise MetricError(
            f"`metric` of `{method}` is {metric!r}, which lives at one point; a metric is a "
            "function of the point, such as `vf.Euclidean()`, and it is its own form there, "
            "`space.form(metric)`."
        )
    if not callable(metric) or isinstance(metric, type):
        raise MetricError(
            f"`metric` of `{method}` is {metric!r}: a metric is missing, such as `vf.Euclidean()` "
            "or `vf.Fisher(family)`. Without one the result would be another in every chart."
        )
    return cast(Metric, metric)


def positive(numbers: Array, what: str) -> Array:
    """Numbers if all are positive; where they are traced, with NaN for those that are not.

    Raises:
        IndefiniteError: when they are known not to be.
    """
    if isinstance(numbers, Tracer):
        return jnp.where(numbers > 0.0, numbers, jnp.nan)
    if not np.min(numbers) > 0.0:
        raise IndefiniteError(
            f"{what} is {float(np.min(numbers)):.3g}: `logdet` has no logarithm to take, as at a "
            "saddle; look at `form.eigenvalues(metric)`."
        )
    return numbers

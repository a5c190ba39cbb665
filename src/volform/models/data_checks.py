"""Checks of the data of observed sites."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental.multihost_utils import process_allgather
from numpyro.distributions import (
    CategoricalLogits,
    CategoricalProbs,
    Delta,
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    Unit,
    constraints,
)

from volform.errors import DataError


def require_observed(name: str, fn: Any, value: Any) -> None:
    """Check that observed values are there and finite; masked ones are not looked at.

    Raises:
        DataError: empty, NaN or infinite, or of another length.
    """
    if _is_unchecked(fn, value):
        return
    if isinstance(value, list | tuple):
        raise DataError(
            f"The observed site `{name}` has a {type(value).__name__} for data, which NumPyro does "
            "not calculate with; pass an array, `jnp.asarray(...)`, of the data."
        )
    value = on_host(value)
    if value.dtype.kind not in "biufc":
        raise DataError(
            f"The observed site `{name}` has data of the type {value.dtype}; they should be "
            "numbers. Drop what is missing, and write text as integer codes."
        )
    if value.size == 0:
        raise DataError(
            f"The observed site `{name}` is empty, of shape {value.shape}; pass at least one datum."
        )
    require_whole_labels(name, fn, value)
    require_equal_lengths(name, fn, value.shape)
    require_complete(name, value, used_entries(fn, value))


def require_complete(name: str, value: np.ndarray, used: np.ndarray) -> None:
    """Check that the values that enter the density are finite.

    Raises:
        DataError: NaN or infinite.
    """
    _require_nowhere(
        np.issubdtype(value.dtype, np.inexact) & used & ~np.isfinite(value),
        f"The observed site `{name}` holds {{}} values that are NaN or infinite, the first at "
        "index {}. Drop them, or leave them out with `numpyro.handlers.mask`.",
    )


def require_whole_labels(name: str, fn: Any, value: Any) -> None:
    """Check that the type of labels of classes is one that can count.

    Raises:
        DataError: for floating-point or boolean labels of a Categorical.
    """
    is_class = isinstance(core_of(fn), CategoricalLogits | CategoricalProbs)
    kind = jnp.result_type(value)
    if is_class and not jnp.issubdtype(kind, jnp.integer):
        raise DataError(
            f"The observed site `{name}` has labels of classes of the type {kind}; they should be "
            "integers from 0 on. Pass `y.astype(int)`."
        )


def require_in_support(name: str, fn: Any, value: Any) -> None:
    """Check that observed values lie in the support; masked ones are not looked at.

    Raises:
        DataError: when some do not.
    """
    if _is_unchecked(fn, value):
        return
    used, core = used_entries(fn, on_host(value)), core_of(fn)
    inside = _is_inside(core.support, value)  # of elements, also where events are of several
    if isinstance(inside, Tracer):  # under jit, where nothing is known yet
        return
    inside = on_host(inside)
    _require_nowhere(
        ~inside & (used if inside.shape == used.shape else True),
        f"The observed site `{name}` holds {{}} values outside the support of its distribution, "
        f"{type(core).__name__} on {core.support}, the first at index {{}}. Check the data, and "
        "the parameters that bound it.",
    )


def _is_inside(support: Any, value: Any) -> Any:
    host = on_host(value)
    try:  # NumPyro checks arrays of NumPy by NumPy, without a compilation for each operation
        with np.errstate(all="ignore"):  # entries that a mask leaves out may be NaN
            return support(host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False))
    except (AttributeError, TypeError, np.linalg.LinAlgError):  # written for arrays of JAX
        return support(jnp.asarray(value))


def has_valid_arguments(fn: Any) -> bool:
    """Tell whether NumPyro accepts the arguments of a distribution, and of those that it holds.

    Asked of arrays of NumPy, so that nothing is compiled. Arguments that are traced are not known.
    """
    leaves = jax.tree.leaves(fn)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return True
    with np.errstate(all="ignore"):
        try:
            for part in _distributions(jax.tree.map(on_host, fn)):
                part.validate_args(strict=False)
        except (AttributeError, TypeError, ValueError):
            return False
    return True


def _distributions(fn: Any) -> Iterator[Any]:
    def is_part(node: Any) -> bool:
        return isinstance(node, Distribution) and node is not fn

    yield fn
    for part in jax.tree.leaves(fn, is_leaf=is_part):
        if is_part(part):
            yield from _distributions(part)


def require_equal_lengths(name: str, fn: Any, shape: tuple[int, ...]) -> None:
    """Check that the data of a site have the shape of its distribution.

    Raises:
        DataError: of another length.
    """
    wanted, event_dim = tuple(fn.shape()), len(fn.event_shape)
    try:
        joint = np.broadcast_shapes(shape, wanted)
    except ValueError:
        joint = None
    same_event = shape[len(shape) - event_dim :] == wanted[len(wanted) - event_dim :]
    if joint in (shape, wanted) and same_event:
        return
    is_pairing = joint is not None and same_event
    raise DataError(
        f"The observed site `{name}` has data of shape {shape}, but its distribution has shape "
        f"{wanted}; the lengths should agree."
        + (f" Broadcast to {joint}, each datum would count several times." if is_pairing else "")
    )


def _is_unchecked(fn: Any, value: Any) -> bool:
    """Tell whether there is nothing to look at: a factor, or a value that is not known yet."""
    return isinstance(core_of(fn), Unit) or isinstance(value, Tracer)


def on_host(value: Any) -> np.ndarray:
    """The value of an array, also of one that is spread over several processes."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return np.asarray(process_allgather(value, tiled=True))
    return np.asarray(value)


def advice_on(message: str, model: Any, args: tuple, kwargs: dict[str, Any]) -> str:
    """Advice for a model that could not be run with these arguments, by what Python said."""
    if any(isinstance(value, list | tuple) for value in (*args, *kwargs.values())):
        return "Pass arrays, `jnp.asarray(...)`, in place of lists."
    if "argument" in message:
        with contextlib.suppress(TypeError, ValueError):
            return f"It takes {inspect.signature(model)}."
    return "Check that every argument is there, without NaN, and that lengths agree."


def is_point_mass(fn: Any) -> bool:
    """Tell whether the distribution is a `Delta`."""
    return isinstance(core_of(fn), Delta)


def all_inside(fn: Any, value: Any) -> Any:
    """Tell whether all values that enter the density lie in the support, under `jit` as well."""
    core = core_of(fn)
    inside = core.support(jnp.asarray(value))
    while fn is not core:
        if isinstance(fn, MaskedDistribution):
            mask = jnp.asarray(fn._mask)
            event = len(fn.event_shape) - len(core.event_shape)
            inside = inside | ~mask.reshape(mask.shape + (1,) * event)
        fn = fn.base_dist
    return jnp.all(inside)


def value_in_words(value: Any) -> str:
    """The shapes of an argument, and how many of its values are NaN."""
    shapes = jax.tree.map(lambda x: np.shape(x) if hasattr(x, "shape") else x, value)
    bad = sum(int(np.sum(~np.isfinite(leaf))) for leaf in jax.tree.leaves(value) if _is_real(leaf))
    if not hasattr(value, "shape"):
        return str(shapes)
    text = f"of shape {shapes}" + (f" and {bad} NaN or infinite values" if bad else "")
    return text + (", no numbers: give codes, `pd.factorize(x)[0]`" if _is_text(value) else "")


def _is_real(leaf: Any) -> bool:
    kind = getattr(leaf, "dtype", None)  # pandas has others than NumPy's
    return isinstance(kind, np.dtype) and np.issubdtype(kind, np.floating)


def _is_text(value: Any) -> bool:
    return hasattr(value, "__array__") and np.asarray(value).dtype.kind in "OUST"


def require_no_table(leaf: Any) -> None:
    """Refuse data frames, which may be meant as a matrix or as columns by name.

    Raises:
        DataError: for what has columns.
    """
    if hasattr(leaf, "columns"):
        raise DataError(
            f"An argument of the model is a table, {type(leaf).__name__} of shape "
            f"{np.shape(leaf)}, which may be meant as a matrix or by columns. Pass "
            "`table.to_numpy()` for the one, or `xarray.DataArray(table)` with its labels, and "
            "`table['y']`, `dict(table)` or `**table` for the other."
        )


def is_circular(fn: Any) -> bool:
    """Tell whether the values of a distribution are angles."""
    support = core_of(fn).support
    return isinstance(getattr(support, "base_constraint", support), type(constraints.circular))


def core_of(fn: Any) -> Any:
    """The distribution under masks, expansions and reinterpreted batch dimensions."""
    while isinstance(fn, MaskedDistribution | Independent | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def used_entries(fn: Any, value: Any) -> np.ndarray:
    """Entries of the value that enter the density: those that no mask leaves out."""
    used = np.ones(value.shape, bool)
    while isinstance(fn, MaskedDistribution | Independent | ExpandedDistribution):
        if isinstance(fn, MaskedDistribution):
            mask = np.reshape(fn._mask, np.shape(fn._mask) + (1,) * len(fn.event_shape))
            broadcast_to = jnp.broadcast_to if isinstance(mask, Tracer) else np.broadcast_to
            used = used & broadcast_to(mask, np.broadcast_shapes(mask.shape, value.shape))
        fn = fn.base_dist
    return used


def _require_nowhere(bad: Any, message: str) -> None:
    if np.any(bad):
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(message.format(int(np.sum(bad)), first))

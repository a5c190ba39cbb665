"""Examples as arrays, and checks of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from volform.errors import DataError


def as_array(x: Any) -> Array:
    """An array of JAX; a copy of one of NumPy, for which `jnp.asarray` compiles in each shape."""
    return jax.device_put(np.array(x)) if type(x) is np.ndarray else jnp.asarray(x)


def require_inputs(x: Any, argument: str) -> Float[Array, "n ..."]:
    """`x` as an array of n examples.

    Raises:
        DataError: when it is no array, has no axis of features, is empty, is no floating-point
            array, or (outside `jit`) is not finite.
    """
    return require_finite(_rows(x, argument), argument)


def require_tokens(x: Any, argument: str, count: int) -> Int[Array, "n ..."]:
    """`x` as an array of n examples of tokens, which are 0 to count - 1.

    Raises:
        DataError: when it is no array, has no axis of tokens, is empty, is no array of integers, or
            (outside `jit`) holds a number that is no token.
    """
    x = _rows(x, argument)
    _require_filled(x, argument)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise DataError(
            f"`{argument}` has dtype {x.dtype}; an `Embedding` takes tokens, which are whole "
            f"numbers from 0 to {count - 1}: write `{argument}.astype(int)` if it holds some."
        )
    if not isinstance(x, Tracer):
        array: Any = np.asarray(x) if x.is_fully_addressable else x  # NumPy is no part of a trace
        lowest, highest = int(array.min()), int(array.max())
        if lowest < 0 or highest >= count:
            raise DataError(
                f"`{argument}` holds the token {lowest if lowest < 0 else highest}; an `Embedding` "
                f"of {count} tokens takes those from 0 to {count - 1}: give it a larger `count`, "
                "or number the tokens anew."
            )
    return x


def require_rows(x: Any, argument: str) -> Array:
    """`x` as an array of n examples for a function that is not known: of integers, they are tokens.

    Raises:
        DataError: as `require_inputs`, but for integers.
    """
    x = _rows(x, argument)
    _require_filled(x, argument)
    return x if jnp.issubdtype(x.dtype, jnp.integer) else require_finite(x, argument)


def _rows(x: Any, argument: str) -> Array:
    try:
        x = as_array(x)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"`{argument}` is a {type(x).__name__}, and no array of numbers; it should be the "
            "examples. Are the arguments in their order?"
        ) from error
    if x.ndim < 2:
        raise DataError(
            f"`{argument}` has shape {x.shape}; it should have one row for each example, shape "
            "(n, features): for a single feature write `x[:, None]`."
        )
    return x


def require_finite(x: Array, argument: str) -> Array:
    """`x` itself, or DataError where it is empty, of integers, or holds NaN or infinity."""
    _require_filled(x, argument)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise DataError(
            f"`{argument}` has dtype {x.dtype}; networks and kernels are differentiable functions "
            f"of real inputs: write `{argument}.astype(float)`, or `{argument} / 255.0` for the "
            "pixels of an image."
        )
    bad = 0 if isinstance(x, Tracer) else _count_bad(x)
    if bad:
        raise DataError(
            f"`{argument}` holds {bad} entries that are NaN or infinite; leave those examples out, "
            "or fill them in."
        )
    return x


def _require_filled(x: Array, argument: str) -> None:
    if x.size == 0:
        raise DataError(
            f"`{argument}` has shape {x.shape} and is empty; at least one example with at least "
            "one feature is needed."
        )


def _count_bad(x: Array) -> int:
    if x.is_fully_addressable:
        return x.size - int(np.count_nonzero(np.isfinite(x)))
    return int(jnp.sum(~jnp.isfinite(x)))  # some of it lies with other processes

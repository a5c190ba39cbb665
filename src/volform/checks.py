"""Checks of single arguments that every room makes, each with its sentence."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PRNGKeyArray

from volform.errors import NetworkError, OperatorError, VolformError

# Help for searches and estimators of evidence, which cannot be traced.
ONE_BY_ONE = (
    "call it for one data set after the other, `[vf.evidence(vf.condition(model, y)) for y in "
    "data]`, which is compiled once for each shape; for gradients of the evidence use "
    "`vf.maximize_evidence`"
)


def require_whole(
    number: Any, argument: str, function: str, error: type[VolformError] = OperatorError
) -> None:
    """Check that an argument is a whole number of at least one.

    Args:
        number: what was given.
        argument: its name.
        function: the function that it was given to.
        error: what is raised.

    Raises:
        VolformError: `error`, for anything else; a bool is no number here.
    """
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
        raise error(
            f"`{argument}` of {function} is {number!r}; it should be a whole number of at least "
            "one."
        )


def require_positive(
    value: Any, argument: str, why: str, error: type[VolformError] = NetworkError
) -> None:
    """Check that an argument is one number, positive and finite, unless it is traced.

    Args:
        value: what was given.
        argument: its name.
        why: what it is, or what may stand in its place; ends the sentence.
        error: what is raised.

    Raises:
        VolformError: `error`, for anything else.
    """
    if not isinstance(value, Tracer) and not is_positive_number(value):
        raise error(f"`{argument}` is {value!r}; it should be a positive number, {why}.")


def require_key(
    key: Any, argument: str, function: str, error: type[VolformError] = OperatorError
) -> None:
    """Check that an argument is one random key of JAX, typed or of raw bits; it may be traced.

    Args:
        key: what was given.
        argument: its name.
        function: the function that it was given to.
        error: what is raised.

    Raises:
        VolformError: `error`, for anything else, a number or a batch of keys among them.
    """
    shape, dtype = np.shape(key), getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if shape == ():
            return
        shown = f"a batch of keys of shape {shape}"
        helps = "take one of them, or map over them with `jax.vmap`"
    elif dtype == jnp.uint32 and shape in {(2,), (4,)}:  # threefry, rbg
        return
    else:
        shown = f"of the type {type(key).__name__}" if np.size(key) > 1 else repr(key)
        helps = "such as `jax.random.key(0)`"
    raise error(f"`{argument}` of {function} is {shown}; it should be one random key: {helps}.")


def key_of(key: Any, function: str, error: type[VolformError] = OperatorError) -> PRNGKeyArray:
    """The argument `key` of a function, checked; `jax.random.key(0)` for None.

    Raises:
        VolformError: `error`, when it is no key.
    """
    if key is None:
        return jax.random.key(0)
    require_key(key, "key", function, error)
    return key


def require_names(
    names: Iterable[Any], argument: str, function: str, error: type[VolformError] = OperatorError
) -> None:
    """Check that all names are text, and none of them empty.

    Raises:
        VolformError: `error`; shows the first that is not.
    """
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise error(
                f"`{argument}` of {function} has the name {name!r}; names should be text, such as "
                f"'{str(name).strip() or 'model'}', since they are shown."
            )


def require_untraced(
    value: Any, argument: str, function: str, helps: str, error: type[VolformError] = OperatorError
) -> None:
    """Check that no array in a pytree is traced, where Python has to look at numbers.

    Raises:
        VolformError: `error`, inside `jit`, `vmap` and `grad`; says what `helps`.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
        raise error(
            f"`{argument}` of {function} holds traced arrays, as inside `jax.jit`, `jax.vmap` or "
            f"`jax.grad`, and {function} looks at numbers on its way; {helps}."
        )


def is_positive_number(value: Any) -> bool:
    """Tell whether a value that is known is one real number, positive and finite; no bool is."""
    number = np.asarray(value)
    return bool(number.dtype.kind in "fiu" and number.size == 1 and 0.0 < number.item() < np.inf)

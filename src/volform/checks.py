"""Checks of single arguments that every room makes, each with its sentence."""

from typing import Any

import numpy as np
from jax.core import Tracer

from volform.errors import NetworkError, OperatorError, VolformError


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
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
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


def is_positive_number(value: Any) -> bool:
    """Tell whether a value that is known is one real number, positive and finite; no bool is."""
    number = np.asarray(value)
    return bool(number.dtype.kind in "fiu" and number.size == 1 and 0.0 < number.item() < np.inf)

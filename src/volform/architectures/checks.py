"""Checks of the settings of a survey, made before any of its work."""

import math
from collections.abc import Sequence
from typing import Any

from volform.checks import require_positive
from volform.errors import KernelError
from volform.inference.evidence.importance import FEWEST_DRAWS


def require_choices(chosen: dict[str, Any], widths: Sequence[float]) -> None:
    """Check that a survey has something to compare.

    Raises:
        KernelError: names the setting, its value, and what it should be.
    """
    for name, values in chosen.items():
        if not values:
            raise KernelError(f"`{name}` is {values!r}; it should hold at least one to compare.")
    for width in widths:
        if not (isinstance(width, int) and width > 0) and width != math.inf:
            raise KernelError(
                f"`widths` holds {width!r}; each should be a positive integer, or `math.inf` for "
                "the limit."
            )


def require_settings(
    widths: Sequence[float], noise: Any, rows: int, draws: Any, folds: Any
) -> None:
    """Check the noise, and the numbers of draws and of folds.

    Raises:
        KernelError: names the setting, its value, and what it should be.
    """
    require_positive(noise, "noise", "the standard deviation of the observations", KernelError)
    if not isinstance(folds, int) or not 2 <= folds <= rows:
        raise KernelError(
            f"`folds` of survey is {folds!r}; it should be an integer from 2 to the number of "
            f"rows, {rows}."
        )
    if min(widths) < math.inf and (not isinstance(draws, int) or draws < FEWEST_DRAWS):
        raise KernelError(
            f"`draws` of survey is {draws!r}; it should be an integer, at least {FEWEST_DRAWS}, "
            "for evidences at finite widths."
        )

"""A model on some of its examples."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from volform.models.model_with_data import ModelWithData, make_program


def with_examples(program: ModelWithData, count: int, take: Callable[[Any], Any]) -> ModelWithData:
    """The model on some of its examples, the rows of those arguments that have `count` of them.

    It is run in Python again.

    Args:
        program: the model with all of them.
        count: number of the examples.
        take: from an array of all rows to one of some.
    """

    def some(leaf: Any) -> Any:
        is_own = isinstance(leaf, jax.Array | np.ndarray) and leaf.shape[:1] == (count,)
        return take(leaf) if is_own else leaf

    args, kwargs = jax.tree.map(some, program.arguments())
    return make_program(program.model, args, kwargs)

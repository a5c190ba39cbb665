"""Sizes in steps, so that a program that is compiled for one serves nearly as many examples."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from volform.compilation import is_traced
from volform.networks.inputs import as_array

_FEWEST = 8


def filled(lists: tuple[Any, ...], most: int, *beside: PyTree) -> tuple[Any, ...]:
    """Lists of examples, the first of them over again behind the last, as many as their steps.

    So that results can be cut again, by NumPy as JAX would compile that for each size: themselves
    where anything is traced, or lies on a device by choice.

    Args:
        lists: examples, or what belongs to them; None stays.
        most: number of examples above which the list stays as it is.
        beside: what else the result depends on.
    """
    is_whole = all(x is None or stepped(len(x), most) == len(x) for x in lists)
    if is_whole or not _is_free(lists, *beside):
        return lists
    return tuple(x if x is None else _filled(x, stepped(len(x), most)) for x in lists)


def _filled(x: Float[Array, "n ..."], size: int) -> Float[Array, "size ..."]:
    return as_array(np.take(np.asarray(x), np.arange(size), 0, mode="wrap"))


def _is_free(*values: PyTree) -> bool:
    if is_traced(values):
        return False
    return not any(getattr(leaf, "committed", False) for leaf in jax.tree.leaves(values))


def stepped(count: int, most: int) -> int:
    """The next of 4, 5, 6 or 7 times a power of two, at most `most`; the number itself above that.

    At most a quarter more than the number, but for very few. Columns 64 numbers apart, or a
    multiple of that, share few lines of the cache: a matrix of 320 rows takes half as long again
    as one of 328.
    """
    unit = max(_FEWEST, 1 << (count.bit_length() - 1)) // 4
    size = max(_FEWEST, -(-count // unit) * unit)
    return max(count, min(most, size if size % 64 else size + 8))


def cut(x: Float[Array, "..."], *sizes: int) -> Float[Array, "..."]:
    """The beginning of an array, so much along each of its first axes; itself if that is all."""
    if x.shape[: len(sizes)] == sizes:
        return x
    return as_array(np.asarray(x)[tuple(slice(size) for size in sizes)])


def floats_as_arrays(tree: PyTree) -> Any:
    """Floats of a tree as arrays, so that no program is compiled for their values."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, float) else leaf, tree)

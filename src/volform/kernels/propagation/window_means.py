"""Kernels of means over windows of images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from volform.kernels.propagation.moments import Moments, of_products, root
from volform.kernels.propagation.state import KernelState


def window_mean(state: KernelState, table: Int[np.ndarray, "windows size"]) -> KernelState:
    """Means over each window of the kernels of its pixels, the same ones of both examples.

    The kernels of a sum over the window with independent weights of variance 1 / size.
    """
    parts = state.moments, state.ntk, state.self_moments
    moments, ntk, within = _mean_of_equal(parts, jnp.asarray(table.T), bool(state.self_moments))
    return state.replace(moments=moments, ntk=ntk, self_moments=within)


@partial(jax.jit, static_argnums=2)  # or the loop would be compiled anew in every call
def _mean_of_equal(
    parts: tuple[Moments, Array, tuple[Moments, ...]],
    columns: Int[Array, "size windows"],
    is_full: bool,
) -> tuple[Moments, Array, tuple[Moments, ...]]:
    moments, ntk, within = parts

    def at(column: Int[Array, " windows"]) -> tuple[Moments, Array, tuple[Moments, ...]]:
        shifted = tuple(_moments_at(m, column, is_full) for m in (moments, *within))
        return shifted[0], _both_at(ntk, column, is_full), shifted[1:]

    def add(total: tuple, column: Int[Array, " windows"]) -> tuple[tuple, None]:
        (m, t, w), (m1, t1, w1) = total, at(column)
        return (m.plus(m1), t + t1, tuple(a.plus(b) for a, b in zip(w, w1, strict=True))), None

    m, t, w = jax.lax.scan(add, at(columns[0]), columns[1:])[0]
    part = 1 / len(columns)
    return m.times(part), part * t, tuple(own.times(part) for own in w)


def _moments_at(moments: Moments, at: Int[Array, " windows"], is_full: bool) -> Moments:
    left = _at(moments.left, at, -2 if is_full else -1)
    cross, area = (_both_at(pair, at, is_full) for pair in moments[2:])
    return Moments(left, _at(moments.right, at, -1), cross, area)


def _both_at(x: Array, at: Int[Array, " windows"], is_full: bool) -> Array:
    return _at(_at(x, at, -2), at, -1) if is_full else _at(x, at, -1)


def _at(x: Array, at: Int[Array, "..."], axis: int) -> Array:
    return jnp.take(x, at, axis=axis, mode="fill", fill_value=0)


def pool(state: KernelState, table: Int[np.ndarray, "windows size"]) -> KernelState:
    """The kernels of means over each window, from those of all pairs of pixels."""
    at = jnp.asarray(table)

    def mean(x: Float[Array, "... P P"]) -> Float[Array, "... windows windows"]:
        rows = jnp.mean(_at(x, at, -1), -1).mT
        return jnp.mean(_at(rows, at, -1), -1).mT

    every = (state.moments, *state.self_moments)
    crosses, same = [mean(m.cross) for m in every], [_same_windows(m, at) for m in every]
    return mixed(state, crosses, mean(state.ntk), same)


def uncorrelated(state: KernelState) -> KernelState:
    """The state of all pairs of pixels, of which unequal ones are uncorrelated."""
    left, right, cross, area = state.moments
    own = (left[:, 0], right[0])
    ends = left[..., None], right[..., None, :]
    moments = _on_diagonal(*ends, cross, area)
    within = tuple(_on_diagonal(v[..., None], v[..., None, :], v, jnp.zeros_like(v)) for v in own)
    ntk = _diagonal(state.ntk, jnp.zeros((), state.ntk.dtype))
    return state.replace(moments=moments, ntk=ntk, self_moments=within)


def _on_diagonal(left: Array, right: Array, cross: Array, area: Array) -> Moments:
    """Moments of all pairs; the area of uncorrelated units is the product of their sizes."""
    zero = jnp.zeros((), cross.dtype)
    return Moments(left, right, _diagonal(cross, zero), _diagonal(area, root(left) * root(right)))


def _diagonal(equal: Float[Array, "... P"], others: Array) -> Float[Array, "... P P"]:
    is_equal = jnp.eye(equal.shape[-1], dtype=bool)
    is_equal = is_equal.reshape((1,) * (equal.ndim - 1) + is_equal.shape)
    return jnp.where(is_equal, equal[..., None], others)


def mixed(
    state: KernelState,
    crosses: list[Float[Array, "..."]],
    ntk: Float[Array, "n1 n2 P P"],
    is_same: list[Bool[Array, "..."]],
) -> KernelState:
    """The state after a linear map of each example's pixels, which gave these kernels.

    Args:
        state: with all pairs of pixels.
        crosses: the cross-moments, and those within the examples of either list.
        ntk: the neural tangent kernel.
        is_same: for each of the cross-moments, which pixels are the same but for a sign.
    """
    own = [jnp.diagonal(cross, axis1=-2, axis2=-1) for cross in crosses[1:]]
    ends = [(variance[:, :, None], variance[:, None, :]) for variance in own]
    ends = [(own[0][:, None, :, None], own[1][None, :, None, :]), *ends]
    parts = zip(ends, crosses, is_same, strict=True)
    moments, *within = [of_products(*end, cross, same) for end, cross, same in parts]
    return state.replace(moments=moments, ntk=ntk, self_moments=tuple(within))


def _same_windows(moments: Moments, at: Int[Array, "windows size"]) -> Bool[Array, "..."]:
    """Tell whether the pixels of two windows are parallel and of one size, each by itself."""
    same = moments.is_parallel
    edge = [(0, 0)] * (same.ndim - 2) + [(0, 1), (0, 1)]
    same = jnp.pad(same, edge).at[..., -1, -1].set(True)
    return jnp.all(same[..., at[:, None, :], at[None, :, :]], -1)

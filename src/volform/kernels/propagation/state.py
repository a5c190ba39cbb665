"""State that layers hand on: kernels of units, and of the pixels that are asked for."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from volform.kernels.propagation.inputs import Examples, of_inputs, prepared
from volform.kernels.propagation.moments import Moments
from volform.networks.layer import Place


class Pairs(enum.IntEnum):
    """The pairs of pixels of two examples whose kernels are looked at."""

    NONE = 0  # means over all pixels and channels only
    EQUAL = 1  # each pixel with the same one of the other example
    ALL = 2


class KernelState(eqx.Module):
    """State from which a layer's kernel is computed.

    Pixels are numbered in a row. With P of them, arrays of two examples have the shape
    (n1, n2, P) if each is paired with the same pixel of the other example, and (n1, n2, P, P) if
    with all of them.

    Attributes:
        moments: second moments of the units.
        ntk: their neural tangent kernel, of the shape of the cross-moments.
        shape: shape of an example, without the batch.
        is_gaussian: whether the units are a Gaussian process, as a dense layer makes them.
        is_same: whether the two lists of examples are one; may be traced.
        self_moments: if all pairs of pixels are kept, the moments of those of one example, of
            either list: (n1, P, P) and (n2, P, P).
    """

    moments: Moments
    ntk: Float[Array, "n1 n2 ..."]
    shape: tuple[int, ...] = eqx.field(static=True)
    is_gaussian: bool = eqx.field(static=True)
    is_same: Any
    self_moments: tuple[Moments, ...] = ()

    @property
    def has_pixels(self) -> bool:
        """Tell whether there are pixels, and not only means over them."""
        return self.moments.cross.ndim > 2

    def replace(self, **changes: Any) -> "KernelState":
        """The state with other values of some of its fields."""
        return dataclasses.replace(self, **changes)

    def map(self, f: Callable[[Moments], Moments]) -> "KernelState":
        """The state with f of all moments."""
        return self.replace(
            moments=f(self.moments), self_moments=tuple(f(m) for m in self.self_moments)
        )

    def restricted(self, pairs: Pairs) -> "KernelState":
        """The state without the pairs of unequal pixels, unless they are asked for."""
        if pairs is Pairs.ALL or not self.self_moments:
            return self
        left, right, cross, area = self.moments
        equal = [jnp.diagonal(part, axis1=-2, axis2=-1) for part in (cross, area, self.ntk)]
        moments = Moments(left[..., 0], right[..., 0, :], equal[0], equal[1])
        return self.replace(moments=moments, ntk=equal[2], self_moments=())


class LayerContext(NamedTuple):
    """Circumstances that a layer's kernel depends on, besides the kernel of its inputs.

    Attributes:
        place: place of the layer in its network.
        pairs: the pairs of pixels that the layers after it look at.
    """

    place: Place
    pairs: Pairs


def in_pairs(
    x1: Float[Array, "n1 ..."], x2: Float[Array, "n2 ..."], pairs: Pairs
) -> tuple[Examples, Examples]:
    """Two lists of examples, with what `of_examples` would compute for each of its tiles again."""
    return prepared(x1, x2) if _is_of_vectors(x1, pairs) else (x1, x2)


def of_examples(x1: Examples, x2: Examples, pairs: Pairs, *, is_same: Any) -> KernelState:
    """The state of given examples, with `x1 . x2 / channels` as covariance of two pixels.

    Of tokens, which are integers, it is 1 where they agree and 0 elsewhere.
    """
    shape, within = x1.shape[1:], ()
    if are_tokens(x1):
        x1, x2 = (x.reshape(len(x), -1) for x in (x1, x2))
        every = pairs is Pairs.ALL
        moments = _of_tokens(*((x1[:, :, None], x2[:, None]) if every else (x1, x2)))
        within = tuple(_of_own_tokens(x) for x in (x1, x2)) if every else ()
    elif _is_of_vectors(x1, pairs):
        moments = of_inputs(x1, x2, is_same)
    else:
        x1, x2 = (x.reshape(len(x), -1, x.shape[-1]) for x in (x1, x2))
        moments = _of_equal_pixels(x1, x2) if pairs is Pairs.EQUAL else _of_all_pixels(x1, x2)
        within = () if pairs is Pairs.EQUAL else (_of_one_example(x1), _of_one_example(x2))
    ntk = jnp.zeros_like(moments.cross)
    return KernelState(moments, ntk, shape, is_gaussian=False, is_same=is_same, self_moments=within)


def are_tokens(x: Examples) -> bool:
    """Tell whether examples are integers."""
    return isinstance(x, jax.Array | np.ndarray) and jnp.issubdtype(x.dtype, jnp.integer)


def dtype_of_kernels(x: Examples) -> Any:
    """That of the kernels of these examples; of tokens the default of floats."""
    return jax.dtypes.canonicalize_dtype(float) if are_tokens(x) else x.dtype


def _is_of_vectors(x: Examples, pairs: Pairs) -> bool:
    return not are_tokens(x) and (len(x.shape) == 2 or pairs is Pairs.NONE)


def _of_tokens(x1: Int[Array, "n1 *P"], x2: Int[Array, "n2 *Q"]) -> Moments:
    """Moments of vectors with a one at the token: of each pair, they are one or orthogonal."""
    return _agreement(x1[:, None], x2[None])


def _of_own_tokens(x: Int[Array, "n P"]) -> Moments:
    return _agreement(x[:, :, None], x[:, None])


def _agreement(left: Int[Array, "..."], right: Int[Array, "..."]) -> Moments:
    cross = (left == right).astype(dtype_of_kernels(left))
    one, other = (jnp.ones(x.shape, cross.dtype) for x in (left, right))
    return Moments(one, other, cross, 1 - cross)


@jax.jit
def _of_equal_pixels(x1: Float[Array, "n1 P d"], x2: Float[Array, "n2 P d"]) -> Moments:
    return jax.vmap(of_inputs, in_axes=1, out_axes=-1)(x1, x2)


@jax.jit
def _of_all_pixels(x1: Float[Array, "n1 P d"], x2: Float[Array, "n2 P d"]) -> Moments:
    left, right, *pairs = of_inputs(x1.reshape(-1, x1.shape[2]), x2.reshape(-1, x2.shape[2]))
    sizes = (len(x1), x1.shape[1], len(x2), x2.shape[1])
    cross, area = (jnp.swapaxes(pair.reshape(sizes), 1, 2) for pair in pairs)
    ends = left.reshape(len(x1), 1, -1, 1), right.reshape(1, len(x2), 1, -1)
    return Moments(*ends, cross, area)


@jax.jit
def _of_one_example(x: Float[Array, "n P d"]) -> Moments:
    return jax.vmap(of_inputs)(x, x)

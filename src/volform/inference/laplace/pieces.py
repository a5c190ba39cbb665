"""Pieces of arrays of parameters: what flows through them, and the sites they are made of."""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from volform.inference.laplace.layers import Layers, Piece


class ValuedOutputs(Protocol):
    """Outputs of a model as a function of its latent values, in which layers are looked for."""

    posterior: Any
    u: Float[Array, " d"]

    def of_values(self, values: dict[str, Array]) -> tuple[Any, list[int]]:
        """The outputs, and the lengths of the data."""
        ...


def multipliers_of(outputs: ValuedOutputs, layers: Layers) -> list[tuple[Array, Array] | None]:
    """For each array of parameters a number, and whether it is that multiple of its one site.

    Traced; None where the site is another one's too, or of another size.
    """
    posterior, u = outputs.posterior, outputs.u
    arrays, push = jax.linearize(lambda u: layers.arrays(posterior.values(u)), u)
    probes = scattered(2, u.size, u.dtype)
    moves = [push(probe) for probe in probes]
    found: list[tuple[Array, Array] | None] = []
    for k, (array, names) in enumerate(zip(arrays, layers.sites_of, strict=True)):
        site = posterior.layout.site(min(names))
        if len(names) > 1 or site.size != array.size:
            found.append(None)
            continue
        pairs = [(move[k].ravel(), p[site.segment]) for move, p in zip(moves, probes, strict=True)]
        c = (pairs[0][0] @ pairs[0][1]) / (pairs[0][1] @ pairs[0][1])
        small = 1e3 * jnp.finfo(c.dtype).eps * jnp.abs(c)
        fits = [jnp.all(jnp.abs(to - c * v) <= small * jnp.abs(v).max()) for to, v in pairs]
        found.append((c, jnp.all(jnp.stack(fits)) & (c != 0.0)))
    return found


def scattered(count: int, size: int, dtype: Any) -> Float[Array, "count size"]:
    """Numbers between -1/2 and 1/2 without a pattern, by the mixing of Murmur's hash function.

    XLA draws those of `jax.random` again for each site that is cut out of them, which took 3 of the
    4 s of the compilation for six sites.
    """
    bits = jnp.arange(1, count * size + 1, dtype=jnp.uint32).reshape(count, size)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return (bits >> 8).astype(dtype) / 2**24 - 0.5


def features_of(piece: Piece, activations: dict[int, Array]) -> Float[Array, "n p fan_in"]:
    """Those of all equations that read the piece, as positions of one."""
    each = [
        _ordered(r.features(activations[r.equation])[part], own)
        for r, part, _, own in piece.readings
    ]
    return jnp.concatenate(each, 1) if len(each) > 1 else each[0]


def rows_of(piece: Piece, activations: dict[int, Array]) -> Int[Array, "n p"]:
    """Numbers of the rows that are looked up, in their order in the table; else their count."""
    each = [
        jnp.asarray(np.argsort(own))
        .at[r.rows(activations[r.equation])]
        .get(mode="fill", fill_value=len(own))
        for r, _, _, own in piece.readings
    ]
    return jnp.concatenate(each, 1)


def slopes_of(piece: Piece, deltas: dict[int, Array]) -> Float[Array, "n p units"]:
    """Derivatives at what the equations give that read the piece, as positions of one."""
    readings = piece.readings
    each = [_ordered(r.slopes(deltas[r.equation])[part], own) for r, part, own, _ in readings]
    return jnp.concatenate(each, 1) if len(each) > 1 else each[0]


def gradients_of(
    piece: Piece, activations: dict[int, Array], deltas: dict[int, Array]
) -> Float[Array, "n s"]:
    """Derivatives of each example in an array that is added, or multiplied entry by entry."""
    each = [r.gradients(activations[r.equation], deltas[r.equation]) for (r,) in piece.readings]
    return functools.reduce(jnp.add, each)


def _ordered(array: Float[Array, "n p i"], order: np.ndarray) -> Float[Array, "n p i"]:
    return array if (np.diff(order) == 1).all() else array[..., order]

"""Identity of a run of Lanczos quadrature: its settings, the operator's arrays and products."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from volform.linalg.methods import Krylov
from volform.linalg.pencil import Pencil

SETTINGS = {"probes": "`probes`", "depth": "`depth`", "batch": "`batch`", "dtype": "the dtype"}
DIFFERENCES = {
    "key": "`key`",
    **SETTINGS,
    "structure": "the shapes of the parameters",
    "arrays": "the arrays that the operator is made of",
    "products": "its products with random vectors",
}
_VECTORS, _BUCKETS = 3, 64


def identity_of(form: Pencil, by: Krylov) -> dict[str, np.ndarray]:
    """Settings of a run, and an operator, as arrays that are the same for the same run.

    The products alone would not tell operators apart that differ in small eigenvalues, and the
    arrays alone not those of different functions. Both are computed where the arrays are, so that
    every process of several finds the same.
    """
    arrays = [leaf for leaf in jax.tree.leaves(form) if eqx.is_array(leaf)]
    numbers = [leaf for leaf in jax.tree.leaves(form) if isinstance(leaf, bool | int | float)]
    keys = jax.random.split(jax.random.key(0), _VECTORS)
    return {
        "key": np.asarray(jax.random.key_data(by.key)),
        "probes": np.array(by.probes),
        "depth": np.array(by.depth),
        "batch": np.array("None" if by.batch is None else str(by.batch)),
        "dtype": np.array(str(form.dtype())),
        "structure": np.array(_shapes(form.like.in_structure())),
        "arrays": np.array([*map(str, numbers), *(_described(leaf) for leaf in arrays)]),
        "products": np.stack([np.asarray(_sketch(form, key)) for key in keys]),
    }


def _shapes(structure: Any) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(structure)
    return " ".join(f"{jax.tree_util.keystr(at)}:{s.dtype}{list(s.shape)}" for at, s in leaves)


def _described(leaf: Any) -> str:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return f"{leaf.dtype}{list(leaf.shape)} {np.asarray(_checksum(leaf)).tolist()}"


@jax.jit
def _checksum(leaf: Array) -> UInt32[Array, "2"]:
    """Two sums of the bits of an array, each word with a weight by its place.

    Of whole numbers, modulo 2^32: in any order, on any number of devices, they are the same.
    """
    if jnp.iscomplexobj(leaf):
        leaf = jnp.stack([leaf.real, leaf.imag])
    bits = min(leaf.dtype.itemsize * 8, 32)
    flat = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    words = jax.lax.bitcast_convert_type(flat, jnp.dtype(f"uint{bits}")).astype(jnp.uint32).ravel()
    place = jnp.arange(words.size, dtype=jnp.uint32)
    return jnp.stack([jnp.sum(words * _mixed(place + s), dtype=jnp.uint32) for s in (1, 1 << 31)])


def _mixed(x: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    """Odd numbers without pattern, by the finalizer of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return (x ^ (x >> 16)) | jnp.uint32(1)


@eqx.filter_jit
def _sketch(form: Pencil, key: PRNGKeyArray) -> Float[Array, " buckets"]:
    """The product with a Gaussian vector, its entries added in buckets under random signs."""
    n, dtype = form.size(), form.dtype()
    at, under = jax.random.split(key)
    product = form.mv()(jax.random.normal(at, (n,), dtype))
    signs = jax.random.rademacher(under, (n,), dtype)
    return jax.ops.segment_sum(signs * product, jnp.arange(n) % _BUCKETS, _BUCKETS)

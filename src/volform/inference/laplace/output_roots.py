"""Roots of the curvature L of a likelihood in its parameters, example by example."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from volform.errors import StructureError
from volform.inference.laplace.observed_sites import SiteOutputs
from volform.inference.laplace.sums import Split


class OutputRoots(NamedTuple):
    """A root of L: `L_n = sum_o s_on s_on^T` for each example n.

    Attributes:
        laid_out: from numbers of each example, (n, k), to parameters of the likelihoods.
        flat: back, without what does not move.
        roots: the columns s, shape (o, n, k).
        factorization_error: minus the smallest eigenvalue of the L_n, how far L is from a sum
            over examples, and the largest eigenvalue, which the two are relative to.
    """

    laid_out: Callable[[Float[Array, "n k"]], SiteOutputs]
    flat: Callable[[SiteOutputs], Float[Array, "n k"]]
    roots: Float[Array, "o n k"]
    factorization_error: Float[Array, " 3"]


def output_roots(split: Split, z: SiteOutputs, flags: Any, count: int) -> OutputRoots:
    """The root of the curvature of a split.

    Args:
        split: the model and where.
        z: the parameters of the likelihoods.
        flags: for each leaf of z whether it moves.
        count: number of examples n.

    Raises:
        StructureError: where a leaf that moves has no axis of examples first.
    """
    leaves, treedef = jax.tree.flatten(z)
    moves = jax.tree.leaves(flags)
    moving = [leaf for leaf, flag in zip(leaves, moves, strict=True) if flag]
    for leaf in moving:
        if leaf.shape[:1] != (count,):
            raise StructureError(
                f"`structure` takes the examples along the first axis of the data, {count} of "
                f"them; the likelihood has a parameter of shape {leaf.shape} that the layers move. "
                "Use `BySite()` or `LowRank(k)`."
            )

    def laid_out(flat: Float[Array, "n k"]) -> SiteOutputs:
        parts = iter(jnp.split(flat, np.cumsum([leaf[0].size for leaf in moving])[:-1], axis=1))
        filled = [
            next(parts).reshape(leaf.shape) if flag else jnp.zeros_like(leaf)
            for leaf, flag in zip(leaves, moves, strict=True)
        ]
        return jax.tree.unflatten(treedef, filled)

    def flat(z: SiteOutputs) -> Float[Array, "n k"]:
        pairs = zip(jax.tree.leaves(z), moves, strict=True)
        return jnp.concatenate([leaf.reshape(count, -1) for leaf, flag in pairs if flag], axis=1)

    assert split.curvature is not None  # there are names of observed sites
    columns = split.curvature.scores(split, z)
    if columns is None:
        return OutputRoots(
            laid_out, flat, *_roots(split.output_product(z), flat, laid_out, flat(z))
        )
    roots = jax.vmap(flat)(columns)
    return OutputRoots(laid_out, flat, roots, jnp.zeros(3, roots.dtype))


def _roots(
    product: Callable[[SiteOutputs], SiteOutputs],
    flat: Any,
    laid_out: Any,
    like: Float[Array, "n k"],
) -> tuple[Float[Array, "k n k"], Float[Array, " 3"]]:
    """Roots of the blocks of L for each example, and the error of taking L for its blocks."""
    weigh = lambda v: flat(product(laid_out(v)))  # noqa: E731
    size = like.shape[1]
    columns = jax.vmap(lambda o: weigh(jnp.zeros_like(like).at[:, o].set(1.0)))(jnp.arange(size))
    each = jnp.moveaxis(columns, 0, 2)  # [n, k, k']
    values, vectors = jnp.linalg.eigh(0.5 * (each + jnp.swapaxes(each, 1, 2)))
    probe = jax.random.normal(jax.random.key(0), like.shape, like.dtype)
    difference = weigh(probe) - jnp.einsum("nij,nj->ni", each, probe)
    sizes = -jnp.min(values), jnp.max(jnp.abs(difference)), jnp.max(jnp.abs(values))
    error = jnp.stack(sizes)
    return jnp.moveaxis(vectors * jnp.sqrt(jnp.maximum(values, 0.0))[:, None], 2, 0), error


def picked(roots: Float[Array, "o n k"], columns: Int[Array, " n"] | None) -> Float[Array, "o n k"]:
    """One column of each example in place of all."""
    return roots if columns is None else roots[columns, jnp.arange(roots.shape[1])][None]


def require_roots(factorization_error: Float[Array, " 3"]) -> None:
    """Check that a likelihood is a product over examples, and log-concave.

    Raises:
        StructureError: where it is not.
    """
    negative, gap, largest = (float(s) for s in factorization_error)
    largest = largest if largest > 0.0 else 1.0  # zero where a mask hides all
    lowest, gap = -negative / largest, gap / largest
    bound = float(jnp.sqrt(jnp.finfo(factorization_error.dtype).eps))
    if not gap < bound:
        raise StructureError(
            "`structure` needs a likelihood that is a product over the examples along the first "
            "axis; here the examples are coupled. Use `Full()`, `BySite()` or `LowRank(k)`."
        )
    if not lowest > -bound:
        raise StructureError(
            "`structure` needs a likelihood that is log-concave in its parameters (logits, log "
            f"rates, the mean of a normal); here L has eigenvalues down to {lowest:.2g} of the "
            "largest. Use `curvature=ExpectedFisher()`, which is definite for every likelihood, or "
            "`structure=Full()`."
        )

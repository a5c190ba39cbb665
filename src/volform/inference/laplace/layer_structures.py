"""Structures that are made of the layers of a model: the diagonal, and Kronecker factors."""

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from volform.errors import StructureError
from volform.inference.laplace.gauss_newton import (
    DataPriorSplit,
    diagonal_entries,
    rest_diagonal,
)
from volform.inference.laplace.kronecker_factors import (
    CorrectedFactors,
    ExactBlock,
    Forms,
    KroneckerFactors,
    PieceCurvature,
    holders,
    kronecker_blocks,
    kronecker_matrix,
)
from volform.inference.laplace.layer_moments import (
    corrected_moments_of,
    moments_of,
    shaped,
    squares_of,
)
from volform.inference.laplace.structure import Structure
from volform.linalg.operator import require_dense
from volform.linalg.structured import DenseOperator, FlatBlocks
from volform.models.layout import Site


class Diagonal(Structure):
    """The diagonal in unconstrained coordinates.

    Invariant where each coordinate is reparametrized by itself, and under permutations. Of the
    layers of a network in closed form from their inputs and the gradients at their outputs, else by
    one product for each parameter.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    ...     b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)
    >>> posterior, at = vf.condition(model, jnp.array([1.5])), {"a": 0.5, "b": 0.5}
    >>> vf.laplace(posterior, at=at).precision.as_matrix().round(6).tolist()
    [[2.0, 1.0], [1.0, 2.0]]
    >>> diagonal = vf.laplace(posterior, at=at, structure=vf.inference.Diagonal())
    >>> diagonal.precision.as_matrix().round(6).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """

    def precision(self, split: DataPriorSplit) -> lx.AbstractLinearOperator:
        """The entries."""
        rest = rest_diagonal(split)
        if rest is None:
            rest = diagonal_entries(split, jnp.arange(split.u.size), of_rest=True)
        found = {site.name: part for site, part in squares_of_layers(split)}
        entries = jnp.arange(split.u.size)
        parts = [
            found[site.name]
            if site.name in found
            else diagonal_entries(split, entries[site.segment], of_rest=False)
            for site in split.posterior.layout.sites
        ]
        return lx.DiagonalLinearOperator(jnp.concatenate(parts) + rest)


class Kronecker(Structure):
    """For the matrix of each layer the Kronecker product of two factors (KFAC), and the rest.

    Layers are found in the program of the model: wherever a matrix of parameters, or a filter or
    table of rows, multiplies activations, whatever library or function that is written in. With a
    the features that the matrix multiplies, delta the gradients at the products by the columns of
    a root of L, and sums over the examples n, positions p and columns o,

        P = (sum_np a a^T) x (sum_nop delta delta^T) / (number of n, p) + rest.

    Positions are pixels, tokens, and equations that share the matrix. With `reduce` they are
    summed before: with a_n the mean of the features of an example and delta_n the sum of the
    gradients,

        P = (sum_n a_n a_n^T) x (sum_no delta_n delta_n^T) / (number of n) + rest,

    exact for a single example where either is the same at all positions. Arrays that are added or
    multiplied entry by entry (biases, gains), and sites that the model reads in any other way or in
    two ways, have a block of their own, exact. Invariant under affine maps of the inputs and
    outputs of each layer, and under every reparametrization of its matrix, since the factors are
    those of the matrix that multiplies the features. Where that is a multiple of one site, with
    independent priors of one scale, the cost of a layer is O(units^3 + fan_in^3); else the whole
    matrix is formed.

    With `corrected` (EKFAC) the factors give their eigenvectors only, and what the data say is
    exact on the diagonal in them: nearer to `J^T L J` in the Frobenius norm, for one more pass
    backward. It is invariant under orthogonal maps of a layer's inputs and outputs only.

    Args:
        reduce: whether positions are summed before the second moments are taken.
        corrected: whether eigenvalues are those of the data in the eigenvectors of the factors.

    References:
        Martens & Grosse (2015), Optimizing neural networks with Kronecker-factored approximate
        curvature; Grosse & Martens (2016), for convolutions; Ritter, Botev & Barber (2018), A
        scalable Laplace approximation for neural networks; George et al. (2018), Fast approximate
        natural gradient descent in a Kronecker-factored eigenbasis; Eschenhagen et al. (2023),
        Kronecker-factored approximate curvature for modern neural network architectures.

    >>> import equinox as eqx, jax, jax.numpy as jnp, volform as vf
    >>> x, net = jnp.array([[0.5], [1.0], [2.0]]), eqx.nn.MLP(1, 1, 4, 1, key=jax.random.key(0))
    >>> model = vf.networks.from_function(lambda net, x: jax.vmap(net)(x), net)
    >>> posterior = vf.condition(vf.networks.regression(model, 0.1), x, jnp.sin(x))
    >>> at = model.values(net)  # a training may have ended there
    >>> approx = vf.laplace(posterior, at=at, curvature=vf.GGN(), structure=vf.Kronecker())
    >>> [type(block).__name__ for block in approx.precision.blocks]  # weight and bias of two layers
    ['KroneckerSum', 'DenseOperator', 'KroneckerSum', 'DenseOperator']
    """

    reduce: bool = eqx.field(static=True, default=False)
    corrected: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        for name, flag in (("reduce", self.reduce), ("corrected", self.corrected)):
            if not isinstance(flag, bool):
                raise StructureError(
                    f"`{name}` of Kronecker is {flag!r}; it should be True or False: whether "
                    "positions are summed (reduce), or eigenvalues those of the data (corrected)."
                )

    def precision(self, split: DataPriorSplit) -> lx.AbstractLinearOperator:
        """Blocks of two Kronecker products where they keep apart, else their sum as a matrix."""
        forms = forms_of(split, reduce=self.reduce, corrected=self.corrected)
        blocks = kronecker_blocks(split, forms, rest_diagonal(split))
        if blocks is not None:
            return FlatBlocks(tuple(blocks))
        require_dense(split.u.size, split.u.size, split.u.dtype)
        return DenseOperator(kronecker_matrix(split, forms) + split.rest_matrix(), split.u)


def squares_of_layers(split: DataPriorSplit) -> list[tuple[Site, Float[Array, " s"]]]:
    """The diagonal of `J^T L J` for the sites that are arrays of layers, in closed form."""
    if not split.names:
        return []
    layers = shaped(split)
    held = holders(split, layers)
    names = [h.site.name for h in held if h]
    if not held or any(h is None for h in held) or len(set(names)) < len(held):
        return []
    pairs = zip(held, squares_of(split), strict=True)
    return [(h.site, h.multiplier**2 * part) for h, part in pairs if h is not None]


def forms_of(split: DataPriorSplit, *, reduce: bool = False, corrected: bool = False) -> Forms:
    """Curvature of all layers in their weights and biases, layer after layer.

    Args:
        split: the model and where.
        reduce: as of `Kronecker`.
        corrected: as of `Kronecker`.

    Raises:
        StructureError: for a model without layers, and where the loss is no sum over examples.
    """
    lacking = "" if split.names else "the curvature is the Hessian"
    layers = shaped(split) if split.names else None
    if layers is not None and not any(piece.is_matrix for piece in layers.pieces):
        lacking = (
            "no array of parameters is such a matrix, or each is read in several ways, which have "
            "an exact block; use `BySite()`, `Diagonal()` or `LowRank(k)`"
        )
    if lacking or layers is None:
        raise StructureError(
            "`structure=Kronecker()` needs `curvature=GGN()`, or a Fisher matrix, and a model with "
            "layers, which multiply matrices of parameters into activations, with the examples "
            f"along the first axis of the data; here {lacking}."
        )
    found: list[PieceCurvature]
    if corrected:
        found = [
            ExactBlock(left) if right is None else CorrectedFactors(left, right, values)
            for left, right, values in corrected_moments_of(split, reduce=reduce)
        ]
    else:
        found = [
            ExactBlock(left) if right is None else KroneckerFactors(left, right)
            for left, right in moments_of(split, reduce=reduce)
        ]
    return Forms(layers, found)

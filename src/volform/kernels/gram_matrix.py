"""Gram matrices as operators: products with vectors tile by tile."""

from typing import Any

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import Array, Float

from volform.compilation import steady
from volform.kernels.checks import require_examples
from volform.kernels.kernel import Kernel, context_of, kernel_block, lists_of, tile_side
from volform.kernels.propagation.inputs import Examples
from volform.kernels.propagation.sizes import floats_as_arrays
from volform.kernels.propagation.state import LayerContext, dtype_of_kernels
from volform.kernels.propagation.tiles import (
    Spread,
    matrices,
    product,
    rows_times,
    spread_of,
)
from volform.linalg.operator import Operator, register_operator, require_dense
from volform.networks.layer import Layer
from volform.networks.parametrization import Parametrization


class GramMatrix(Operator):
    """A kernel's matrix of one list of examples; built by `nngp_operator` and `ntk_operator`."""

    net: Layer
    x: Float[Array, "n ..."]
    context: LayerContext
    which: int = eqx.field(static=True)  # field of `Kernel`
    tile: int = eqx.field(static=True)
    spread: Spread | None = eqx.field(static=True)
    is_kept: bool = eqx.field(static=True)

    def block(self, rows: Examples, columns: Examples, is_same: Any) -> Float[Array, "r c"]:
        """The matrix of these examples."""
        return kernel_block(self.net, rows, columns, self.context, is_same=is_same)[self.which]

    def mv(self, vector: Float[Array, " n"]) -> Float[Array, " n"]:
        """The product, for which each tile is computed anew."""
        return _product(self, vector)

    def linearize(self) -> lx.AbstractLinearOperator:
        """The matrix if it may be kept, else itself."""
        if not self.is_kept:
            return self
        matrix, tag = self.as_matrix(), lx.positive_semidefinite_tag
        if self.spread is None:
            return lx.MatrixLinearOperator(matrix, tag)
        times = eqx.Partial(rows_times, matrix, spread=self.spread)
        return lx.FunctionLinearOperator(times, self.in_structure(), tag)

    def as_matrix(self) -> Float[Array, "n n"]:
        """All tiles; refused beyond 8 GiB."""
        require_dense(len(self.x), len(self.x), dtype_of_kernels(self.x))
        return _matrix(self)

    def transpose(self) -> "GramMatrix":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """A number for each example."""
        return jax.ShapeDtypeStruct((len(self.x),), dtype_of_kernels(self.x))


@steady
def _product(gram: GramMatrix, vector: Float[Array, " n"]) -> Float[Array, " n"]:
    examples = lists_of(gram.net, gram.x, gram.x)
    return product(gram.block, *examples, vector, gram.tile, gram.spread)


@steady
def _matrix(gram: GramMatrix) -> Float[Array, "n n"]:
    examples = lists_of(gram.net, gram.x, gram.x)
    return matrices(gram.block, *examples, gram.tile, is_same=True, spread=gram.spread)


register_operator(GramMatrix, symmetric=True, semidefinite=True)


def nngp_operator(
    net: Layer,
    x: Float[Array, "n ..."],
    *,
    parametrization: Parametrization | None = None,
    tile: int | None = None,
    is_kept: bool = False,
) -> GramMatrix:
    """The NNGP kernel `K(x, x)` as an operator on R^n, of which no more than a tile is held.

    Each product costs what the kernel costs, O(n^2 (features + layers)), and memory O(n + tile^2);
    with x `volform.operators.sharded`, each device computes the rows of its examples.
    Functionals such as `volform.linalg.logdet` take it, alone or in sums:
    `nngp_operator(net, x) + noise**2`.

    Args:
        net: a network of infinite width.
        x: examples, shape (n, features).
        parametrization: `NTP()` if left out.
        tile: examples along each side of a tile; few enough for the cache by default.
        is_kept: whether a functional may compute the matrix once and hold it, in n^2 numbers.

    Returns:
        A symmetric, positive semi-definite operator.

    Raises:
        DataError: when x is empty, not finite, of the wrong shape or kind of numbers.
        KernelError: when `tile` is no positive whole number.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> K = k.nngp_operator(nn.Dense(1), 2.0 * jnp.eye(2))
    >>> (K + 1.0).mv(jnp.array([1.0, 2.0])).tolist()
    [3.0, 6.0]
    """
    return _gram(net, x, parametrization, tile, is_kept, Kernel._fields.index("nngp"))


def ntk_operator(
    net: Layer,
    x: Float[Array, "n ..."],
    *,
    parametrization: Parametrization | None = None,
    tile: int | None = None,
    is_kept: bool = False,
) -> GramMatrix:
    """The neural tangent kernel `T(x, x)` as an operator on R^n; otherwise as `nngp_operator`.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> k.ntk_operator(nn.Dense(1), 2.0 * jnp.eye(2)).mv(jnp.array([1.0, 2.0])).tolist()
    [2.0, 4.0]
    """
    return _gram(net, x, parametrization, tile, is_kept, Kernel._fields.index("ntk"))


def _gram(
    net: Layer,
    x: Any,
    parametrization: Parametrization | None,
    tile: int | None,
    is_kept: bool,
    which: int,
) -> GramMatrix:
    x, context = require_examples(net, x, "x"), context_of(parametrization)
    side = tile_side(net, x, tile)
    return GramMatrix(floats_as_arrays(net), x, context, which, side, spread_of(x), is_kept)

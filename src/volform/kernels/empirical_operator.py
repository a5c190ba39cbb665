"""The empirical neural tangent kernel as an operator: products with vectors, no matrix."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from volform.geometry.metric import Euclidean, Metric
from volform.geometry.tensors import sharp
from volform.kernels.empirical import empirical_ntk, require_empirical
from volform.kernels.empirical_blocks import chunks_of, joined, require_outputs
from volform.kernels.gradients import OutputPairs
from volform.linalg.operator import Operator, linearized, register_operator, require_dense
from volform.networks.inputs import require_rows


class TangentKernel(Operator):
    """`J G^-1 J^T` on vectors laid out like the outputs; built by `empirical_ntk_operator`."""

    function: Callable[[Any, Array], PyTree]
    params: Any
    x: Float[Array, "n ..."]
    metric: Metric
    chunk: int | None = eqx.field(static=True)

    def mv(self, vector: PyTree) -> PyTree:
        """The product, by one derivative in reverse and one forward."""
        return _product(self, vector)

    def linearize(self) -> lx.AbstractLinearOperator:
        """Linearized once, unless in chunks: that would hold what chunks are there to save."""
        if self.chunk is not None and self.chunk < len(self.x):
            return self
        return linearized(self, lx.positive_semidefinite_tag)

    def as_matrix(self) -> Float[Array, "m m"]:
        """The matrix in `ravel_pytree` order of the outputs; refused beyond 8 GiB."""
        require_dense(self.in_size(), self.in_size(), jnp.result_type(self.x))
        args = self.function, self.params, self.x
        tree = empirical_ntk(*args, metric=self.metric, outputs=OutputPairs.ALL, chunk=self.chunk)
        leaves = jax.tree.leaves(self.in_structure())
        sizes = [math.prod(leaf.shape[1:]) for leaf in leaves]
        blocks = iter(jax.tree.leaves(tree))
        n = len(self.x)
        rows = [
            [next(blocks).reshape(n, n, a, b).swapaxes(1, 2).reshape(n * a, n * b) for b in sizes]
            for a in sizes
        ]
        return jnp.block(rows)

    def transpose(self) -> "TangentKernel":
        """Itself: it is symmetric."""
        return self

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Structure of the outputs."""
        return jax.eval_shape(self.function, self.params, self.x)


register_operator(TangentKernel, symmetric=True, semidefinite=True)


@eqx.filter_jit
def _product(kernel: TangentKernel, vector: PyTree) -> PyTree:
    n = len(kernel.x)
    side = min(n, kernel.chunk or n)

    def zero_filled(leaf: Array) -> Array:
        filled = jnp.pad(leaf, [(0, -n % side)] + [(0, 0)] * (leaf.ndim - 1))
        return filled.reshape(len(filled) // side, side, *leaf.shape[1:])

    def back(total: PyTree, part: tuple[Array, PyTree]) -> tuple[PyTree, None]:
        x, cotangent = part
        _, pull = jax.vjp(lambda p: kernel.function(p, x), kernel.params)
        return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

    def forth(x: Array) -> PyTree:
        return jax.jvp(lambda p: kernel.function(p, x), (kernel.params,), (tangent,))[1]

    zero = jax.tree.map(jnp.zeros_like, kernel.params)
    x = chunks_of(kernel.x, side)
    covector, _ = jax.lax.scan(back, zero, (x, jax.tree.map(zero_filled, vector)))
    tangent = sharp(kernel.metric, kernel.params, covector)
    images = jax.lax.map(forth, x)
    return jax.tree.map(lambda leaf: joined(leaf)[:n], images)


def empirical_ntk_operator(
    function: Callable[[Any, Array], PyTree],
    params: Any,
    x: Float[Array, "n ..."],
    *,
    metric: Metric | None = None,
    chunk: int | None = None,
) -> TangentKernel:
    """The neural tangent kernel at given parameters as an operator, `J G^-1 J^T`.

    Its vectors are laid out like `function(params, x)`: with outputs (n, k) it is a matrix of n k
    rows. A product costs two gradients of one batch, and nothing is kept but the activations of
    `chunk` examples. Functionals such as `volform.linalg.logdet` take it, alone or in sums:
    `empirical_ntk_operator(f, params, x) + noise**2`.

    Args:
        function: as of `empirical_ntk`.
        params: a pytree of arrays.
        x: examples.
        metric: on `params`; `Euclidean()` if left out.
        chunk: number of examples that are worked on at once; all if left out.

    Returns:
        A symmetric, positive semi-definite operator.

    Raises:
        DataError: as `empirical_ntk`, and so do the others.
        MetricError: when `metric` is no metric.
        NetworkError: when `function` or `chunk` do not fit.
        OperatorError: when `params` do not fit.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> x = jnp.array([[1.0, 2.0], [0.0, 3.0]])
    >>> kernel = k.empirical_ntk_operator(lambda w, x: x @ w, jnp.ones(2), x)
    >>> (kernel + 1.0).mv(jnp.array([1.0, 0.0])).tolist()
    [6.0, 6.0]
    """
    x = require_rows(x, "x")
    name = "empirical_ntk_operator"
    params, function, _ = require_empirical(name, function, params, metric, OutputPairs.ALL, chunk)
    require_outputs(function, params, x)
    return TangentKernel(function, params, x, Euclidean() if metric is None else metric, chunk)

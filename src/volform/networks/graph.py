"""Aggregation over the neighbors in a graph."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from volform.errors import NetworkError
from volform.networks.layer import Place, Weightless


class Aggregate(Weightless):
    """Sums over the neighbors of each node of a graph, which is the same for all examples.

    `y = A x` for examples x of shape (nodes, channels), as of sensors or regions of a brain. A row
    of A that sums to one makes a mean, `A = D^(-1/2) (B + I) D^(-1/2)` the layer of a graph
    convolutional network with a `Conv(width, (1,))` before it. Kernels are `A K A^T` and `A T A^T`,
    of all pairs of nodes.

    Args:
        adjacency: weights of the edges, shape (nodes behind, nodes); numbers or traced values.

    Raises:
        NetworkError: when `adjacency` is no matrix of finite numbers, or examples have other nodes.

    References:
        Kipf & Welling (2017), Semi-supervised classification with graph convolutional networks.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> path = nn.Aggregate([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    >>> x = jnp.array([[[1.0], [2.0], [4.0]]])
    >>> path.apply((), x)[0, :, 0].tolist()
    [2.0, 5.0, 2.0]
    >>> net = nn.serial(path, nn.Conv(8, (1,)), nn.Relu(), nn.GlobalAvgPool(), nn.Dense(1))
    >>> round(float(k.kernel(net, x).nngp[0, 0]), 6)
    4.5
    """

    adjacency: Float[Array, "targets nodes"]

    def __init__(self, adjacency: Any):
        if jnp.iscomplexobj(adjacency):
            raise NetworkError(
                "`adjacency` of Aggregate holds complex numbers; it should be a matrix of real "
                "weights of edges, zero where there is none."
            )
        try:
            matrix = jnp.asarray(adjacency, float)
        except (TypeError, ValueError) as error:
            raise NetworkError(
                f"`adjacency` of Aggregate is a {type(adjacency).__name__}; it should be a matrix "
                "of the weights of edges, of numbers: zero where there is none."
            ) from error
        if matrix.ndim != 2 or matrix.size == 0:
            raise NetworkError(
                f"`adjacency` of Aggregate has shape {matrix.shape}; it should be a matrix with a "
                "row for each node behind the layer, and a column for each node before it."
            )
        if not isinstance(matrix, Tracer) and not np.all(np.isfinite(matrix)):
            raise NetworkError(
                "`adjacency` of Aggregate holds entries that are NaN or infinite; put zeros where "
                "there are no edges, and leave nodes without neighbors out before dividing."
            )
        self.adjacency = matrix

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A node for each row.

        Raises:
            NetworkError: when examples are no graphs of as many nodes.
        """
        rows, nodes = self.adjacency.shape
        if len(shape) != 2 or shape[0] != nodes:
            raise NetworkError(
                f"`Aggregate` of {nodes} nodes got examples of shape {shape}; it takes graphs of "
                f"shape ({nodes}, channels): write a single channel as `x[..., None]`."
            )
        return (rows, shape[-1])

    def forward(
        self, params: tuple[()], x: Float[Array, "n nodes channels"], place: Place
    ) -> Float[Array, "n targets channels"]:
        """`A x`."""
        self.shape_of(x.shape[1:])
        matrix = self.adjacency.astype(x.dtype)
        return jnp.einsum("tp,npc->ntc", matrix, x, precision=jax.lax.Precision.HIGHEST)

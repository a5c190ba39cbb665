"""Kernels of networks of finite width: of one set of parameters, and under the prior."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import require_key, require_whole
from volform.errors import MetricError, NetworkError
from volform.geometry.metric import Euclidean, Metric
from volform.kernels.checks import require_pair
from volform.linalg.methods import Estimate
from volform.linalg.structured import whiten
from volform.networks.inputs import require_inputs
from volform.networks.layer import Layer
from volform.networks.parametrization import Parametrization

CHUNK_ENTRIES = 2**24  # of a block of the Jacobian held at once


def empirical_ntk(
    function: Callable[[Any, Array], Array],
    params: Any,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None = None,
    *,
    metric: Metric | None = None,
    chunk: int | None = None,
) -> Float[Array, "n1 n2"]:
    """The neural tangent kernel at given parameters, `J G^-1 J^T`, its mean over the outputs.

    It transforms as a function of the parameters' point, not of their coordinates, when the metric
    is carried along: with G the metric of `NTP` written in other coordinates it is the same
    kernel. For the kernel of one output, let `function` return that output.

    Rows of `L^-1 dF`, `G = L L^T`, of `chunk` examples of either list are held at once: memory
    O(chunk outputs parameters). Each row is a vector-Jacobian product; those of x2 are computed
    once for each chunk of x1.

    Args:
        function: `function(params, x)` maps a batch (n, ...) to outputs (n,) or (n, k), each
            example by itself (not checked: wrong answers for batch normalization).
        params: a pytree of arrays.
        x1: examples, shape (n1, ...).
        x2: examples; x1 if left out, and then the kernel is symmetric to the last bit.
        metric: on `params`; `Euclidean()` if left out.
        chunk: number of examples; as many as fit in 2^24 numbers if left out.

    Returns:
        The kernel, shape (n1, n2).

    Raises:
        DataError: when inputs are empty, not finite, of integers or of the wrong shape.
        MetricError: when `metric` is no metric.
        NetworkError: when `function` does not return (n,) or (n, k), or `chunk` is not positive.

    References:
        Jacot, Gabriel & Hongler (2018); Kristiadi, Dangel & Hennig (2023), section 5.1, with the
        metric that the kernel needs to be invariant.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> k.empirical_ntk(lambda w, x: x @ w, jnp.ones(2), jnp.eye(2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    x1 = require_inputs(x1, "x1")
    is_same = x2 is None or x2 is x1
    x2 = x1 if x2 is None else require_inputs(x2, "x2")
    require_pair(x1, x2)
    chosen = Euclidean() if metric is None else metric
    if not isinstance(chosen, Metric):
        raise MetricError(
            f"`metric` is {metric!r}, which is no metric; give a value such as `vf.Euclidean()`."
        )
    outputs = _outputs(function, params, x1)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    chunk = max(1, CHUNK_ENTRIES // (outputs * size)) if chunk is None else chunk
    if chunk < 1:
        raise NetworkError(
            f"`chunk` is {chunk}; it should be a positive number of examples, or left out."
        )
    operator = chosen(params)

    def rows(x: Float[Array, "chunk ..."]) -> Float[Array, "chunk outputs size"]:
        def one(example: Array) -> Array:
            jacobian = jax.jacrev(lambda p: function(p, example[None]).reshape(outputs))(params)
            return jax.vmap(lambda covector: whiten(operator, covector))(jacobian)

        return jax.vmap(one)(x)

    def block(left: Array) -> Array:
        own = rows(left)
        parts = jax.lax.map(lambda right: _contract(own, rows(right)), _chunks(x2, chunk))
        return jnp.moveaxis(parts, 0, 1).reshape(own.shape[0], -1)

    kernel = jax.lax.map(block, _chunks(x1, chunk)).reshape(-1, _padded(len(x2), chunk))
    kernel = kernel[: len(x1), : len(x2)] / outputs
    return (kernel + kernel.T) / 2 if is_same else kernel


def empirical_nngp(
    net: Layer,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None = None,
    *,
    key: PRNGKeyArray,
    draws: int = 1000,
    parametrization: Parametrization | None = None,
) -> Estimate:
    """The prior covariance of an output at finite width, `E[f(x1) f(x2)]`, by Monte Carlo.

    Products of outputs, averaged over the outputs, for `draws` sets of parameters.

    Args:
        net: a network; the widths are those of its layers.
        x1: examples, shape (n1, ...).
        x2: examples; x1 if left out.
        key: a random key.
        draws: number of draws from the prior, at least 2.
        parametrization: `NTP()` if left out.

    Returns:
        Mean (`value`) and standard error (`error`), each of shape (n1, n2).

    Raises:
        DataError: when inputs are empty, not finite, of integers or of the wrong shape.
        NetworkError: when there are fewer than two draws.

    >>> import jax, jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> found = k.empirical_nngp(nn.Dense(1), jnp.eye(2), key=jax.random.key(0))
    >>> bool(abs(found.value[0, 0] - 0.5) < 4 * found.error[0, 0])
    True
    """
    x1 = require_inputs(x1, "x1")
    x2 = x1 if x2 is None else require_inputs(x2, "x2")
    require_pair(x1, x2)
    require_key(key, "key", "empirical_nngp", NetworkError)
    require_whole(draws, "draws", "empirical_nngp", NetworkError)
    if draws < 2:
        raise NetworkError(f"`draws` is {draws}; a mean with a standard error takes at least 2.")
    both = jnp.concatenate([x1, x2])

    def one(key: PRNGKeyArray) -> Float[Array, "n1 n2"]:
        params = net.init(key, both.shape, parametrization=parametrization)
        f = net.apply(params, both, parametrization=parametrization)
        return f[: len(x1)] @ f[len(x1) :].T / f.shape[1]

    products = jax.lax.map(one, jax.random.split(key, draws))
    return Estimate(products.mean(0), products.std(0, ddof=1) / jnp.sqrt(draws))


def _outputs(function: Callable[[Any, Array], Array], params: Any, x: Array) -> int:
    shape = jax.eval_shape(function, params, x).shape
    if len(shape) not in (1, 2) or shape[0] != len(x):
        raise NetworkError(
            f"`function` returned shape {shape} for {len(x)} examples; it should return "
            f"({len(x)},) or ({len(x)}, k), one row for each example."
        )
    return shape[1] if len(shape) == 2 else 1


def _contract(left: Array, right: Array) -> Float[Array, "n1 n2"]:
    """Sum over outputs and parameters."""
    left, right = left.reshape(len(left), -1), right.reshape(len(right), -1)
    return jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)


def _padded(n: int, chunk: int) -> int:
    chunk = min(chunk, n)
    return -(-n // chunk) * chunk


def _chunks(x: Float[Array, "n ..."], chunk: int) -> Float[Array, "chunks chunk ..."]:
    """Chunks of examples, the last one filled up with copies of its last."""
    missing = _padded(len(x), chunk) - len(x)
    x = jnp.concatenate([x, jnp.repeat(x[-1:], missing, 0)])
    return x.reshape(-1, min(chunk, len(x)), *x.shape[1:])

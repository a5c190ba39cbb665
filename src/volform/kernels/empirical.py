"""Kernels of networks of finite width: of one set of parameters, and under the prior."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from volform.checks import require_key, require_whole
from volform.errors import MetricError, NetworkError
from volform.geometry.metric import Euclidean, Metric, Product, Scaled
from volform.kernels.checks import require_examples, require_pair
from volform.kernels.empirical_blocks import kernel_diagonal, kernel_matrix
from volform.kernels.gradients import OutputPairs
from volform.kernels.propagation.sizes import floats_as_arrays
from volform.linalg.methods import Estimate
from volform.linalg.operator import require_params
from volform.networks.inputs import require_rows
from volform.networks.layer import Layer
from volform.networks.parametrization import Parametrization


def empirical_ntk(
    function: Callable[[Any, Array], PyTree],
    params: Any,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None = None,
    *,
    metric: Metric | None = None,
    outputs: OutputPairs = OutputPairs.MEAN,
    chunk: int | None = None,
) -> PyTree[Float[Array, "n1 n2 ..."]]:
    """The neural tangent kernel at given parameters, `J G^-1 J^T`; its mean over the outputs.

    It transforms as a function of the parameters' point, not of their coordinates, when the metric
    is carried along: with G the metric of `NTP` written in other coordinates it is the same
    kernel. For the kernel of one output, let `function` return that output.

    A dense layer `z = h W` adds `(h . h') (df/dz . df'/dz)`, and a convolution the sum of that over
    pairs of windows or the product of its gradients, whichever takes fewer multiplications. Such
    layers are found in the function's jaxpr, whoever wrote it; gradients are formed in the
    parameters that other equations read, or several, and in all of them where the metric is more
    than a number for each array of parameters (`Euclidean`, its multiples, `Product` of such).

    What is kept of an example, its gradients or their factors, is computed once where all of it
    fits in 2^27 numbers, and else for each pair of chunks. Where `x1` is `x2`, half of the pairs
    of chunks are computed. Compiled once for each function, shapes and structure.

    Args:
        function: `function(params, x)` maps a batch (n, ...) to outputs (n, ...), or a pytree of
            such, each example by itself (not checked: wrong answers for batch normalization).
        params: a pytree of arrays.
        x1: examples, shape (n1, ...).
        x2: examples; x1 if left out, and then the kernel is symmetric to the last bit.
        metric: on `params`; `Euclidean()` if left out.
        outputs: pairs of outputs of which the kernel is made; their mean if left out.
        chunk: number of examples that are worked on at once; all if they take no more than 2^27
            numbers, and else as many as take 2^25, if left out.

    Returns:
        The kernel, shape (n1, n2). For `OutputPairs.EACH` and `OutputPairs.ALL` it is laid out like
        the outputs: (n1, n2, *s) and (n1, n2, *s, *s) for those of shape (n, *s), a pytree of the
        former, and for each of its leaves one of the latter, for a pytree.

    Raises:
        DataError: when inputs are empty, not finite or of the wrong shape.
        MetricError: when `metric` is no metric.
        NetworkError: when `function` does not return a row for each example, `outputs` is no
            `OutputPairs`, or `chunk` is not positive.
        OperatorError: when `params` hold no array, or other leaves than floating-point arrays.

    References:
        Jacot, Gabriel & Hongler (2018); Kristiadi, Dangel & Hennig (2023), section 5.1, with the
        metric that the kernel needs to be invariant; Novak, Sohl-Dickstein & Schoenholz (2022), on
        the cost.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> k.empirical_ntk(lambda w, x: x @ w, jnp.ones(2), jnp.eye(2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    >>> k.empirical_ntk(
    ...     lambda w, x: x @ w, jnp.ones((2, 3)), jnp.eye(2), outputs=k.OutputPairs.ALL
    ... ).shape
    (2, 2, 3, 3)
    """
    is_same = x2 is None or x2 is x1
    x1 = require_rows(x1, "x1")
    x2 = None if is_same else require_rows(x2, "x2")
    if x2 is not None:
        require_pair(x1, x2)
    given = require_empirical("empirical_ntk", function, params, metric, outputs, chunk)
    return kernel_matrix((given[0], x1, x2), *given[1:], outputs=outputs, chunk=chunk)


def empirical_ntk_diagonal(
    function: Callable[[Any, Array], PyTree],
    params: Any,
    x: Float[Array, "n ..."],
    *,
    metric: Metric | None = None,
    outputs: OutputPairs = OutputPairs.MEAN,
    chunk: int | None = None,
) -> PyTree[Float[Array, "n ..."]]:
    """The neural tangent kernel of each example with itself; otherwise as `empirical_ntk`.

    The trace of `J G^-1 J^T` is its sum for `OutputPairs.TRACE`; the sum over the examples for
    `OutputPairs.ALL` is the kernel between outputs.

    Args:
        function: as of `empirical_ntk`, and so are the others.
        params: a pytree of arrays.
        x: examples.
        metric: on `params`; `Euclidean()` if left out.
        outputs: pairs of outputs; their mean if left out.
        chunk: number of examples that are worked on at once.

    Returns:
        Shape (n,); of outputs (n, *s) for `OutputPairs.EACH` (n, *s), and for `OutputPairs.ALL`
        (n, *s, *s).

    Raises:
        DataError: as `empirical_ntk`, and so do the others.
        MetricError: when `metric` is no metric.
        NetworkError: when `function`, `outputs` or `chunk` do not fit.
        OperatorError: when `params` do not fit.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> x = jnp.array([[1.0, 2.0], [0.0, 3.0]])
    >>> k.empirical_ntk_diagonal(lambda w, x: x @ w, jnp.ones(2), x).tolist()
    [5.0, 9.0]
    """
    x = require_rows(x, "x")
    given = require_empirical("empirical_ntk_diagonal", function, params, metric, outputs, chunk)
    return kernel_diagonal((given[0], x), *given[1:], outputs=outputs, chunk=chunk)


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
        DataError: when inputs are empty, not finite, of the wrong shape or kind of numbers.
        NetworkError: when there are fewer than two draws.

    >>> import jax, jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> found = k.empirical_nngp(nn.Dense(1), jnp.eye(2), key=jax.random.key(0))
    >>> bool(abs(found.value[0, 0] - 0.5) < 4 * found.error[0, 0])
    True
    """
    x1 = require_examples(net, x1, "x1")
    x2 = x1 if x2 is None else require_examples(net, x2, "x2")
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


def require_empirical(
    name: str, function: Any, params: Any, metric: Any, outputs: Any, chunk: Any
) -> tuple[Any, Any, Any]:
    """The parameters, the function and the metric there, as programs take them."""
    chosen = Euclidean() if metric is None else metric
    if not isinstance(chosen, Metric):
        raise MetricError(
            f"`metric` is {metric!r}, which is no metric; give a value such as `vf.Euclidean()`."
        )
    if not isinstance(outputs, OutputPairs):
        choices = ", ".join(map(str, OutputPairs))
        raise NetworkError(f"`outputs` of {name} is {outputs!r}; it should be one of {choices}.")
    if chunk is not None and (not isinstance(chunk, int | np.integer) or chunk < 1):
        raise NetworkError(
            f"`chunk` is {chunk}; it should be a positive number of examples, or left out."
        )
    require_params(params, name)
    params = jax.tree.map(jnp.asarray, params)
    if isinstance(getattr(function, "__self__", None), Layer):
        function = floats_as_arrays(function)
    roots = _roots(chosen, params)
    return params, function, chosen(params) if roots is None else roots


def _roots(metric: Metric, params: Any) -> list[Any] | None:
    """Square roots of the inverse metric of each leaf, None if they are no numbers.

    None as one of them stands for one, too.
    """
    match metric:
        case Euclidean(scale=scale) if np.ndim(scale) == 0:
            is_one = isinstance(scale, float | int) and scale == 1.0
            return [None if is_one else jnp.asarray(scale)] * len(jax.tree.leaves(params))
        case Scaled(metric=inner, factor=factor):
            roots = _roots(inner, params)
            root = 1 / jnp.sqrt(jnp.asarray(factor, float))
            return roots and [root if r is None else root * r.astype(root.dtype) for r in roots]
        case Product(metrics=metrics) if isinstance(params, dict) and set(params) == set(metrics):
            parts = [_roots(metrics[name], params[name]) for name in sorted(metrics)]
            if any(part is None for part in parts):
                return None
            return [root for part in parts if part for root in part]
        case _:
            return None

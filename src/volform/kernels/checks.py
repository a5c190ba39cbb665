"""Checks of arguments, where their values are known."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from volform.errors import DataError, KernelError, NetworkError
from volform.networks.activations import Activation
from volform.networks.composition import Serial
from volform.networks.inputs import as_array, require_finite
from volform.networks.layer import Flatten, Layer, whole


def require_targets(y: Any, rows: int) -> Float[Array, "n ..."]:
    """`y` as an array with one row for each of the examples.

    Raises:
        DataError: when it has another number of rows, is no floating-point array or not finite.
    """
    y = as_array(y)
    if y.ndim not in (1, 2) or y.shape[0] != rows:
        raise DataError(
            f"`y` has shape {y.shape} and `x` has {rows} rows; it should have shape ({rows},), or "
            f"({rows}, k) for k outputs."
        )
    return require_finite(y, "y")


def require_examples(net: Any, x: Any, argument: str) -> Array:
    """`x` as an array of examples that a network takes.

    Raises:
        DataError: when it holds others.
        NetworkError: when `net` is no layer.
    """
    if not isinstance(net, Layer):
        raise NetworkError(
            f"`net` is a {type(net).__name__}; it should be a layer, or layers put together as "
            "`serial(Dense(64), Relu(), Dense(1))`; of a `Network` give its `layers`."
        )
    return net.require_examples(x, argument)


def require_regression(net: Any, x: Any) -> Array:
    """`x` as an array of examples of a network whose outputs are alike Gaussian processes.

    Raises:
        DataError: when it holds others.
        NetworkError: when `net` ends in a function of each output, which is not Gaussian then, or
            in `Flatten()` of images, each pixel of which has a kernel of its own.
    """
    x = require_examples(net, x, "x")
    layers, shape = (net.layers if isinstance(net, Serial) else (net,)), x.shape[1:]
    if isinstance(layers[-1], Activation):
        raise NetworkError(
            f"`net` ends in `{layers[-1]!r}`: its outputs are no Gaussian process, and targets of "
            "them have no evidence in closed form. End it in a `Dense(width)`."
        )
    if isinstance(layers[-1], Flatten):
        for layer in layers[:-1]:
            _, shape = layer.parameters(shape, whole(None))
        if math.prod(shape[:-1]) > 1:
            raise NetworkError(
                f"`net` ends in `Flatten()` of shape {shape}: its outputs are pixels, each with a "
                "kernel of its own, and targets of them are not alike. Put a `Dense(width)` behind."
            )
    return x


def require_pair(x1: Array, x2: Array) -> None:
    """Raises DataError when the examples of `x1` and of `x2` differ in shape."""
    if x1.shape[1:] != x2.shape[1:]:
        raise DataError(
            f"`x2` has examples of shape {x2.shape[1:]} and those of `x1` have shape "
            f"{x1.shape[1:]}; both should have the same features."
        )


def require_factor(
    factor: Float[Array, "n n"], matrix: Callable[[], Float[Array, "n n"]], jitter: Any
) -> None:
    """Raises KernelError where (outside `jit`) a factor of a covariance says that there is none."""
    if not isinstance(factor, Tracer) and not np.all(np.isfinite(factor)):
        values = np.asarray(matrix(), float)
        lowest, highest = np.linalg.eigvalsh(values)[[0, -1]]
        raise KernelError(
            f"`net` and `x` give a covariance of shape {values.shape} that is not positive "
            f"definite with `jitter={jitter}`: its eigenvalues go from {lowest:.3g} to "
            f"{highest:.3g}.{_twins(values, jnp.finfo(factor.dtype).eps)} Leave out duplicate "
            "examples, give a `noise`, compute in float64, or ask for a `jitter` of about "
            f"{1e-6 * highest:.1g}."
        )


def _twins(matrix: np.ndarray, eps: Any) -> str:
    """The first pairs of examples of which the covariance says that they are one."""
    variance = np.diagonal(matrix)
    distance = variance[:, None] + variance - 2 * matrix
    pairs = np.argwhere(np.triu(distance <= 16 * float(eps) * variance.max(), 1)).tolist()
    if not pairs:
        return ""
    named = ", ".join(f"{i} and {j}" for i, j in pairs[:3])
    more = f" and {len(pairs) - 3} more pairs" if len(pairs) > 3 else ""
    return f" To the covariance, examples {named}{more} are the same."

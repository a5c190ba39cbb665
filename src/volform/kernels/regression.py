"""Regression by a kernel: examples in sizes that programs are compiled for, and covariances."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from volform.checks import require_positive
from volform.compilation import Compiled
from volform.errors import KernelError
from volform.kernels.checks import require_factor, require_pair
from volform.kernels.kernel import Kernel, kernel, tile_side
from volform.kernels.propagation.sizes import cut, filled, floats_as_arrays
from volform.kernels.propagation.tiles import spread_of
from volform.networks.layer import Layer
from volform.networks.parametrization import Parametrization


class Regression(NamedTuple):
    """Examples with their targets, and new examples; built by `regression_of`.

    Attributes:
        net: a network of infinite width.
        x: examples, and behind them rows that fill up a size, which count for nothing.
        y: targets, as many rows; None where there is none.
        new: new examples, filled up too; None where there is none.
        noise: standard deviation of the observations; None for no noise.
        jitter: variance added to the diagonal.
        known: number of examples.
    """

    net: Layer
    x: Float[Array, "n ..."]
    y: Any
    new: Any
    noise: Any
    jitter: Float[Array, ""]
    known: Int[np.ndarray, ""]

    @property
    def is_given(self) -> Bool[Array, " n"]:
        """Tell of each row whether it is an example."""
        return jnp.arange(len(self.x), dtype=jnp.int32) < self.known

    def masked(self, rows: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """Zero in the rows that are no examples."""
        return jnp.where(jnp.expand_dims(self.is_given, range(1, rows.ndim)), rows, 0)

    def kernels(self, parametrization: Parametrization | None = None) -> tuple[Kernel, ...]:
        """Those of the examples; of examples and new ones; and of the new ones."""
        at = partial(kernel, self.net, parametrization=parametrization)
        if self.new is None:
            return (at(self.x),)
        if spread_of(self.x) is not None:
            return at(self.x), at(self.x, self.new), at(self.new)
        # All in one list take no more tiles than three of lists, and a third of the compilation.
        n, both = len(self.x), at(jnp.concatenate([self.x, self.new]))
        parts = (slice(n), slice(n)), (slice(n), slice(n, None)), (slice(n, None), slice(n, None))
        return tuple(Kernel(*(matrix[part] for matrix in both)) for part in parts)

    def covariance(self, kernel: Float[Array, "n n"]) -> Float[Array, "n n"]:
        """`kernel + (noise^2 + jitter) I`; v I in rows that are no examples.

        v, the mean variance of the examples, lies between the least of their eigenvalues and the
        largest, so that these rows set no scale.
        """
        noise = 0.0 if self.noise is None else self.noise**2
        extra = jnp.zeros((), kernel.dtype) + self.jitter + noise
        own = jnp.where(self.is_given[:, None] & self.is_given[None], kernel, 0)
        mean = extra + jnp.trace(own) / jnp.asarray(self.known, kernel.dtype)
        return own + jnp.diag(jnp.where(self.is_given, extra, mean))

    def factor(self, kernel: Float[Array, "n n"]) -> Float[Array, "n n"]:
        """The lower Cholesky factor of the covariance; NaN where there is none.

        A squared pivot within 8 roundings of the largest variance counts as zero: a singular matrix
        may pass Cholesky by rounding, with a log-determinant that means nothing.
        """
        matrix = self.covariance(kernel)
        factor = jnp.linalg.cholesky(matrix)
        floor = 8 * jnp.finfo(kernel.dtype).eps * jnp.max(jnp.diagonal(matrix))
        is_regular = jnp.all(jnp.diagonal(factor) ** 2 > floor)
        return jnp.where(is_regular, factor, jnp.nan)


def regression_of(
    net: Layer,
    x: Float[Array, "n ..."],
    y: Float[Array, "n ..."] | None = None,
    new: Float[Array, "m ..."] | None = None,
    *,
    noise: Any,
    jitter: Any,
    beside: Any = None,
) -> Regression:
    """Regression of these, filled up to sizes in steps unless values are traced.

    Args:
        net: a network of infinite width.
        x: examples.
        y: targets; None for none.
        new: new examples; None for none.
        noise: standard deviation of the observations; None for no noise.
        jitter: variance added to the diagonal.
        beside: other arguments of the program that may be traced.

    Raises:
        DataError: when new examples have another shape than those of x.
        KernelError: when `noise` is not positive, or `jitter` negative.
    """
    if noise is not None:
        why = "the standard deviation of observations, or None for none"
        require_positive(noise, "noise", why, KernelError)
    if isinstance(jitter, float | int) and not 0 <= jitter < math.inf:
        raise KernelError(
            f"`jitter` is {jitter}; it should be a variance from 0 on that is added to the "
            "diagonal of the covariance."
        )
    if new is not None:
        require_pair(x, new)
    count = np.asarray(len(x), np.int32)
    x, y, new = filled((x, y, new), tile_side(net, x), net, noise, jitter, beside)
    noise = None if noise is None else jnp.asarray(noise)
    return Regression(floats_as_arrays(net), x, y, new, noise, jnp.asarray(jitter), count)


def factored(program: Compiled, given: Regression, kernel: Callable[[], Array], *rest: Any) -> Any:
    """The value of a program that returns it with a factor of the covariance, or None.

    Args:
        program: compiled from a function of a regression, and of what follows.
        given: the regression.
        kernel: the kernel that is factored, for a message.
        rest: further arguments.

    Raises:
        KernelError: where (outside `jit`) the covariance has no factor.
    """
    if spread_of(given.x) is not None:  # which is not seen inside a program
        program = program.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]
    value, factor = program(given, *rest)
    count = int(given.known)
    if factor is not None:
        require_factor(factor, lambda: cut(given.covariance(kernel()), count, count), given.jitter)
    return value

"""Hyperparameters of an infinitely wide network, by the maximum of its exact evidence."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

from volform.architectures.architecture import Architecture
from volform.checks import require_positive
from volform.compilation import by_numbers
from volform.errors import ConvergenceError, KernelError
from volform.kernels.checks import require_targets
from volform.kernels.gaussian_process import evidence
from volform.networks.inputs import require_inputs

MAX_STEPS = 500
TOLERANCE = 1e-3  # nats for each factor of e in a hyperparameter


class Learned(NamedTuple):
    """An architecture with its hyperparameters, and the noise of the observations.

    Attributes:
        architecture: with the learned `w_std` and `b_std`.
        noise: standard deviation of the observations about the function.
    """

    architecture: Architecture
    noise: float


def learn(
    architecture: Architecture,
    x: Float[Array, "n ..."],
    y: Float[Array, "n ..."],
    *,
    noise: float = 0.5,
) -> Learned:
    """The `w_std`, `b_std` and noise of greatest exact evidence, of the infinitely wide network.

    Maximizes `evidence` over their logarithms by BFGS with its exact gradient, from the values
    given: a local maximum. The evidence there favors the architecture by about half a nat for
    each hyperparameter that the data determine, the same for all that have as many.

    Args:
        architecture: depth, activation, and the values to start from. Without biases, `b_std` of
            None, it stays without.
        x: examples, shape (n, features).
        y: targets, shape (n,) or (n, k).
        noise: standard deviation of the observations to start from.

    Returns:
        The architecture with these values, and the noise.

    Raises:
        DataError: when data are empty, not finite, of integers or of the wrong shape.
        KernelError: when `noise` is not positive.
        ConvergenceError: when no maximum was reached.

    >>> import jax.numpy as jnp
    >>> import volform as vf
    >>> from volform import networks as nn
    >>> x = jnp.linspace(-2.0, 2.0, 8)[:, None]
    >>> y = x[:, 0] + jnp.tile(jnp.array([0.1, -0.1]), 4)
    >>> found = vf.architectures.learn(vf.architectures.Architecture(1, nn.Erf(), 1.0, 1.0), x, y)
    >>> 0.05 < found.noise < 0.2
    True
    """
    x = require_inputs(x, "x")
    y = require_targets(y, len(x))
    require_positive(noise, "noise", "where the search begins", KernelError)
    values = [architecture.w_std, noise]
    values += [] if architecture.b_std is None else [architecture.b_std]
    start = jnp.log(jnp.asarray(values, x.dtype))
    layout = Architecture(architecture.depth, architecture.activation)
    program = _programs(len(x) ** 2)
    end, slope = (np.asarray(part) for part in program(start, layout, x, y))
    if not np.max(np.abs(slope)) < TOLERANCE:
        reached = np.exp(end).tolist()
        raise ConvergenceError(
            f"`architecture` {architecture!r} reached no maximum of the evidence: `w_std`, `noise` "
            f"and `b_std` ended at {reached}, where its slope is {slope.tolist()}. Compute in "
            "float64, start from other values, or give the values yourself."
        )
    w_std, noise, *rest = np.exp(end).tolist()
    biases = rest[0] if rest else None
    return Learned(Architecture(architecture.depth, architecture.activation, w_std, biases), noise)


def _search(
    start: Float[Array, " p"], layout: Architecture, x: Array, y: Array
) -> tuple[Float[Array, " p"], Float[Array, " p"]]:
    """The logarithms where the search ends, and the slope there."""
    found = optx.minimise(
        _loss,
        optx.BFGS(rtol=1e-8, atol=1e-8),
        start,
        args=(layout, x, y),
        max_steps=MAX_STEPS,
        throw=False,
    )
    return found.value, found.state.f_info.grad


_programs = by_numbers(_search)


def _with(architecture: Architecture, logs: Float[Array, " p"]) -> tuple[Architecture, Array]:
    w_std, noise, *rest = jnp.exp(logs)
    b_std = rest[0] if rest else None
    return Architecture(architecture.depth, architecture.activation, w_std, b_std), noise


def _loss(logs: Float[Array, " p"], args: tuple[Architecture, Array, Array]) -> Float[Array, ""]:
    architecture, x, y = args
    learned, noise = _with(architecture, logs)
    return -evidence(learned.layers(), x, y, noise=noise).log_z

"""Hyperparameters of an infinitely wide network, by the maximum of its exact evidence."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import key_of, require_positive, require_whole
from volform.compilation import by_numbers
from volform.errors import ConvergenceError, KernelError, TrustWarning
from volform.kernels.checks import require_targets
from volform.kernels.gaussian_process import evidence
from volform.networks.inputs import require_rows
from volform.networks.layer import Layer

MAX_STEPS = 500
TOLERANCE = 1e-3  # nats for each factor of e in a hyperparameter
LEAST_CHANGE = 0.01  # nats by a factor of e: of a maximum that is known to a factor of 20 it is .05
NOISE = "noise"

Hyperparameters = Mapping[str, Any]


class Learned(NamedTuple):
    """A network with its hyperparameters, and the noise of the observations.

    Attributes:
        network: with the learned values.
        values: the hyperparameters, by name.
        noise: standard deviation of the observations about the function.
        log_z: the log evidence there.
    """

    network: Layer
    values: dict[str, float]
    noise: float
    log_z: float


def learn(
    network: Callable[[Hyperparameters], Layer],
    start: Hyperparameters,
    x: Float[Array, "n ..."],
    y: Float[Array, "n ..."],
    *,
    noise: float = 0.5,
    starts: int = 1,
    key: PRNGKeyArray | None = None,
) -> Learned:
    """The hyperparameters and the noise of greatest exact evidence, of an infinitely wide network.

    Maximizes `evidence` over their logarithms by BFGS with its exact gradient, from the values
    given: a local maximum; with `starts`, the best of as many, all but the first begun at values
    times exp(2 z), z standard normal. The evidence there favors the network by about half a nat for
    each hyperparameter that the data determine, the same for all that have as many.

    Compiled anew for each `network`: a function, method of a value, or module that is kept serves
    data of equal shape.

    Args:
        network: from hyperparameters by name to a network; one value may enter many layers.
        start: positive values to start from, by name.
        x: examples, shape (n, features).
        y: targets, shape (n,) or (n, k).
        noise: standard deviation of the observations to start from.
        starts: number of searches.
        key: key of their beginnings; `jax.random.key(0)` by default.

    Returns:
        The network with these values, the values, and the noise.

    Raises:
        DataError: when data are empty, not finite, of integers or of the wrong shape.
        KernelError: when `noise` or a value of `start` is not positive, or one is called `noise`.
        ConvergenceError: when no search reached a maximum.

    Warns:
        TrustWarning: when the evidence does not change by a factor of e in a hyperparameter: it ran
            off to zero or infinity, or the data do not tell it.

    >>> import jax.numpy as jnp
    >>> import volform as vf
    >>> from volform import networks as nn
    >>> x = jnp.linspace(-2.0, 2.0, 8)[:, None]
    >>> y = x[:, 0] + jnp.tile(jnp.array([0.1, -0.1]), 4)
    >>> def network(h):
    ...     return nn.serial(nn.Dense(1, h["w"], h["b"]), nn.Erf(), nn.Dense(1, h["w"]))
    >>> found = vf.architectures.learn(network, {"w": 1.0, "b": 1.0}, x, y)
    >>> 0.05 < found.noise < 0.2
    True
    """
    x = require_rows(x, "x")  # the network says more of them
    y = require_targets(y, len(x))
    names = _require_hyperparameters(network, start, noise)
    require_whole(starts, "starts", "learn", KernelError)
    first = np.log(np.array([*map(float, start.values()), float(noise)]))
    moves = jax.random.normal(key_of(key, "learn", KernelError), (starts, len(first)))
    program, ends = _programs(len(x) ** 2), []
    for move in 2.0 * np.asarray(moves) * (np.arange(starts) > 0)[:, None]:
        found = program(jnp.asarray(first + move, y.dtype), network, names, x, y)
        ends.append([np.asarray(part) for part in found])
    reached = [end for end in ends if np.max(np.abs(end[1])) < TOLERANCE]
    if not reached:
        end, slope, *_ = ends[0]
        at = dict(zip((*names, NOISE), np.exp(end).tolist(), strict=True))
        raise ConvergenceError(
            f"`network` reached no maximum of the evidence: its hyperparameters ended at {at}, "
            f"where the slope is {slope.tolist()}. Compute in float64, start from other values, or "
            "give the values yourself."
        )
    end, _, log_z, beside = max(reached, key=lambda found: float(found[2]))
    *values, noise = np.exp(end).tolist()
    learned = dict(zip(names, values, strict=True))
    _warn_of_flat({**learned, NOISE: noise}, beside)
    return Learned(network(learned), learned, noise, float(log_z))


def _warn_of_flat(values: dict[str, float], beside: Float[np.ndarray, "2 p"]) -> None:
    """Warn of hyperparameters that the evidence does not tell from others, as one that runs off."""
    for (name, value), (below, above) in zip(values.items(), beside.T, strict=True):
        flat = [abs(change) < LEAST_CHANGE for change in (below, above)]
        if any(flat):
            other = "a smaller or larger" if all(flat) else ("a smaller" if flat[0] else "a larger")
            warnings.warn(
                f"`learn`: the evidence has no maximum in `{name}`, which ended at {value:.3g}: "
                f"{other} value does as well. Leave it out of `start`, and write a value into "
                "`network`, such as 0 for a bias.",
                TrustWarning,
                stacklevel=3,
            )


def _require_hyperparameters(network: Any, start: Any, noise: Any) -> tuple[str, ...]:
    if not callable(network) or not isinstance(start, Mapping):
        raise KernelError(
            f"`network` is {network!r} and `start` {start!r}; they should be a function from "
            "hyperparameters by name to a network, and a dict of values to start from."
        )
    if NOISE in start:
        raise KernelError(
            f"`start` holds {NOISE!r}; the noise of the observations is an argument of its own, "
            f"`noise={start[NOISE]!r}`."
        )
    for name, value in start.items():
        require_positive(value, f"start[{name!r}]", "where the search begins", KernelError)
    require_positive(noise, "noise", "where the search begins", KernelError)
    net = network(start)
    if not isinstance(net, Layer):
        raise KernelError(
            f"`network` returned {net!r}; it should return a network such as "
            "`serial(Dense(1, h['w']), Erf(), Dense(1))`."
        )
    return tuple(start)


def _search(
    start: Float[Array, " p"],
    network: Callable[[Hyperparameters], Layer],
    names: tuple[str, ...],
    x: Array,
    y: Array,
) -> tuple[Float[Array, " p"], Float[Array, " p"], Float[Array, ""], Float[Array, "2 p"]]:
    """The logarithms where it ends, slope and log evidence there, and its change on either side."""

    def loss(logs: Float[Array, " p"], args: tuple[Array, Array]) -> Float[Array, ""]:
        *values, noise = jnp.exp(logs)
        net = network(dict(zip(names, values, strict=True)))
        return -evidence(net, *args, noise=noise).log_z

    found = optx.minimise(
        loss,
        optx.BFGS(rtol=1e-8, atol=1e-8),
        start,
        args=(x, y),
        max_steps=MAX_STEPS,
        throw=False,
    )
    # Beside the end, a factor of e to either side in each: of a maximum both are lower.
    eye, value = jnp.eye(len(start), dtype=start.dtype), found.value[None]
    sides = jnp.stack([value - eye, value + eye])
    beside = jax.lax.map(lambda logs: loss(logs, (x, y)), sides.reshape(-1, len(start)))
    log_z = -found.state.f_info.f
    return found.value, found.state.f_info.grad, log_z, -beside.reshape(2, -1) - log_z


_programs = by_numbers(_search)

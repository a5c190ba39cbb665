"""Gradient descent of an infinitely wide network, by its neural tangent kernel."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from volform.compilation import steady
from volform.errors import KernelError
from volform.kernels.checks import require_examples, require_regression, require_targets
from volform.kernels.gaussian_process import Prediction
from volform.kernels.propagation.sizes import cut
from volform.kernels.regression import Regression, factored, regression_of
from volform.networks.layer import Layer
from volform.networks.parametrization import Parametrization

UNRESOLVED = 0.1  # time times the least eigenvalue that is more than rounding


def predict_trained(
    net: Layer,
    x: Float[Array, "n ..."],
    y: Float[Array, "n ..."],
    new: Float[Array, "m ..."],
    *,
    time: Any = math.inf,
    noise: Any = None,
    jitter: Any = 0.0,
    parametrization: Parametrization | None = None,
) -> Prediction:
    """The law of the function after training by gradient flow, over draws of initial parameters.

    The flow `dw/dt = -G^-1 dL`, `L = 1/2 |f(x) - y|^2`, G the flat metric of the parametrization.
    With the kernels K (NNGP) and T (NTK), `M = T(x, x) + noise^2 I` and
    `A = T(new, x) M^-1 (1 - exp(-M t))`, a function that begins as f0 ends as
    `f0(new) + A (y - f0(x))`. Over f0 with covariance K the mean is `A y`, the covariance
    `K(new, new) - A K(x, new) - K(new, x) A^T + A K(x, x) A^T`.

    With `noise`, L has the term `noise^2 / 2 |w - w0|^2` too: the mean at infinite time is that of
    regression with T as covariance. Targets are fixed; noise that is drawn anew for each member of
    the ensemble would add `noise^2 A A^T` to the covariance. Unlike the posterior's, this
    covariance is not that of a Bayesian inference, unless T = K.

    Cost O(n^3): Cholesky at infinite time, an eigendecomposition at finite ones. Differentiable in
    inputs, hyperparameters and time, at finite times once.

    Args:
        net: a network of infinite width.
        x: examples, shape (n, features).
        y: targets, shape (n,) or (n, k).
        new: new examples, shape (m, features).
        time: duration of training, not negative. Under `jit` a traced time has to be finite.
        noise: root of the weight of the distance from the initial parameters; None for none.
        jitter: added to the diagonal of T(x, x); nothing is added that is not asked for.
        parametrization: `NTP()` if left out.

    Returns:
        Mean and covariance of the function.

    Raises:
        DataError: when data are empty, not finite, of the wrong shape or kind of numbers.
        KernelError: when `time` is negative, or so long that rounding decides about directions in
            which the kernel is zero to its accuracy; or as for `gaussian_process`.

    References:
        Jacot, Gabriel & Hongler (2018), section 5; Lee et al. (2019), Wide neural networks of any
        depth evolve as linear models under gradient descent, Eqs. (14) to (16).

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> x = jnp.array([[1.0]])
    >>> k.predict_trained(nn.Dense(1), x, jnp.array([3.0]), 2.0 * x).mean.tolist()
    [6.0]
    """
    x = require_regression(net, x)
    y = require_targets(y, len(x))
    if not isinstance(time, Tracer) and not _is_duration(time):
        raise KernelError(
            f"`time` is {time!r}; it should be the duration of training, a number from 0 on or "
            "`math.inf`."
        )
    new = require_examples(net, new, "new")
    is_long = not isinstance(time, Tracer) and time == math.inf
    when = None if is_long else jnp.asarray(time)
    given = regression_of(
        net, x, y, new, noise=noise, jitter=jitter, beside=(when, parametrization)
    )

    def kernel() -> Float[Array, "n n"]:
        return given.kernels(parametrization)[0].ntk

    law = factored(_trained, given, kernel, when, parametrization)
    return Prediction(cut(law.mean, len(new)), cut(law.covariance, len(new), len(new)))


def _is_duration(time: Any) -> bool:
    try:
        return bool(np.asarray(time, float) >= 0)
    except (TypeError, ValueError):
        return False


@steady
def _trained(
    given: Regression, time: Float[Array, ""] | None, parametrization: Parametrization | None
) -> tuple[Prediction, Float[Array, "n n"]]:
    own, cross, prior = given.kernels(parametrization)
    ntk, nngp = given.masked(cross.ntk), given.masked(cross.nngp)
    if time is None:
        factor = given.factor(own.ntk)
        reach = cho_solve((factor, True), ntk).T
    else:
        factor = _relaxation(given.covariance(own.ntk), time)
        reach = ntk.T @ factor
    drift = reach @ nngp
    covariance = prior.nngp - drift - drift.T + reach @ own.nngp @ reach.T
    mean = reach @ given.masked(given.y)
    return Prediction(mean, (covariance + covariance.T) / 2), factor


# The derivative of `eigh` is NaN at repeated eigenvalues, that of a function of the matrix is not:
# in the eigenbasis it multiplies by divided differences (Daleckii & Krein).
@jax.custom_jvp
def _relaxation(matrix: Float[Array, "n n"], time: Float[Array, ""]) -> Float[Array, "n n"]:
    """`M^-1 (1 - exp(-M t))`, which is t where M is 0; NaN where rounding decides about it.

    Of eigenvalues within 8 roundings of the largest nothing is known. At a time t for which they
    matter, what rounding leaves of the kernel along their eigenvectors is multiplied by t: of a
    sine at 100 points in float32 the means are .001 off at `t floor = .03`, .03 at .3, 4 at 30.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    floor, time = 8 * jnp.finfo(values.dtype).eps * values[-1], time.astype(values.dtype)
    is_known = (values[0] > floor) | (time * floor < UNRESOLVED)
    reach = jnp.where(is_known, _reach(jnp.maximum(values, 0), time), jnp.nan)
    return (vectors * reach[None]) @ vectors.T


@_relaxation.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    (matrix, time), (dmatrix, dtime) = primals, tangents
    values, vectors = jnp.linalg.eigh(matrix)
    values, time = jnp.maximum(values, 0), time.astype(values.dtype)
    reach = _reach(values, time)
    gap = values[:, None] - values[None]
    middle = (values[:, None] + values[None]) / 2
    is_close = jnp.abs(gap) * time <= 1e-5 * (1 + middle * time)
    quotient = (reach[:, None] - reach[None]) / jnp.where(is_close, 1, gap)
    quotient = jnp.where(is_close, _reach_slope(middle, time), quotient)
    inner = quotient * (vectors.T @ dmatrix @ vectors)
    inner += jnp.diag(jnp.exp(-values * time) * dtime.astype(values.dtype))
    return (vectors * reach[None]) @ vectors.T, vectors @ inner @ vectors.T


def _reach(value: Float[Array, "..."], time: Float[Array, ""]) -> Float[Array, "..."]:
    """`(1 - exp(-value time)) / value`."""
    is_zero = value * time == 0
    return jnp.where(is_zero, time, -jnp.expm1(-value * time) / jnp.where(is_zero, 1, value))


def _reach_slope(value: Float[Array, "..."], time: Float[Array, ""]) -> Float[Array, "..."]:
    """Its derivative, `-t^2 (1 - (1 + z) exp(-z)) / z^2` at `z = value time`."""
    z = value * time
    is_small = z < 0.5
    series = [(-1) ** k * (k + 1) / math.factorial(k + 2) for k in range(14)]
    small = jnp.polyval(jnp.asarray(series[::-1], z.dtype), jnp.where(is_small, z, 0))
    large = jnp.where(is_small, 1, z)
    return -(time**2) * jnp.where(is_small, small, (1 - (1 + large) * jnp.exp(-large)) / large**2)

"""Gaussian processes by the NNGP kernel: evidence, predictions, and a NumPyro distribution."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from volform.compilation import Compiled, steady
from volform.kernels.checks import require_examples, require_regression, require_targets
from volform.kernels.iterative import iterative_log_evidence, iterative_posterior
from volform.kernels.propagation.sizes import cut
from volform.kernels.regression import Regression, factored, regression_of
from volform.linalg.by_matrix import without_xtrace
from volform.linalg.methods import Krylov, Method, chosen
from volform.models.fingerprint import fingerprint
from volform.networks.layer import Layer
from volform.results import Cost, Evidence, Level, Provenance, Trust


class Prediction(NamedTuple):
    """The law of the function at new inputs: Gaussian, outputs independent of each other.

    Attributes:
        mean: shape (m,), or (m, k) for k outputs.
        covariance: of the function without observation noise, shape (m, m), the same for all
            outputs.
    """

    mean: Float[Array, "m ..."]
    covariance: Float[Array, "m m"]


def gaussian_process(
    net: Layer, x: Float[Array, "n ..."], *, noise: Any = None, jitter: Any = 0.0
) -> dist.MultivariateNormal:
    """The law of observations of an infinitely wide network, `Normal(0, K + noise^2 I)`.

    A NumPyro distribution over R^n, with density with respect to Lebesgue measure. In a model,
    `numpyro.sample("y", gaussian_process(net, x, noise=noise), obs=y)` with a net made of sampled
    `w_std` and `b_std` learns them by NUTS. Cost O(n^3).

    Args:
        net: a network of infinite width, with one output.
        x: examples, shape (n, features).
        noise: standard deviation of the observations about the function; None for no noise.
        jitter: variance added to the diagonal. Nothing is added that is not asked for.

    Returns:
        A multivariate normal distribution.

    Raises:
        DataError: when inputs are empty, not finite, of the wrong shape or kind of numbers.
        KernelError: when `noise` is not positive, `jitter` negative, or (outside `jit`, where it
            gives NaN) the covariance not positive definite.

    References:
        Lee et al. (2018), Deep neural networks as Gaussian processes.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> k.gaussian_process(nn.Dense(1), jnp.eye(2), noise=0.5).variance.tolist()
    [0.75, 0.75]
    """
    x = require_regression(net, x)
    given = regression_of(net, x, noise=noise, jitter=jitter)
    factor = cut(_fitted(_factor, given), len(x), len(x))
    return dist.MultivariateNormal(jnp.zeros(len(x), factor.dtype), scale_tril=factor)


def evidence(
    net: Layer,
    x: Float[Array, "n ..."],
    y: Float[Array, "n ..."],
    *,
    noise: Any = None,
    jitter: Any = 0.0,
    by: Method | None = None,
) -> Evidence:
    """The exact evidence, `log Z = log Normal(y | 0, K + noise^2 I)`, summed over outputs.

    `-1/2 y^T C^-1 y - 1/2 log det C - n/2 log(2 pi)`, by Cholesky, O(n^3). It is the density of y
    with respect to Lebesgue measure. `log_z` is differentiable in `w_std`, `b_std`, `noise` and
    inputs, under `jit` too, and `vf.compare` takes the result beside those of other models.

    `by=Krylov(key)` needs products with C only, O(n^2) each, and C is not held where it takes more
    than 2 GiB: conjugate gradients, and the log-determinant by Lanczos quadrature, both with C
    divided by a partial Cholesky factor of 128 columns. It takes a positive noise.

    Args:
        net: a network of infinite width.
        x: examples, shape (n, features).
        y: targets, shape (n,), or (n, k) for k independent outputs.
        noise: standard deviation of the observations; None for no noise.
        jitter: variance added to the diagonal; nothing is added that is not asked for.
        by: `Exact()`, the default, or `Krylov(key, probes, depth)`.

    Returns:
        An `Evidence` whose error is zero, or by `Krylov` that of the log-determinant: all weights
        are integrated out, so that it has no parameters and no metric. Where y is traced it does
        not know of which data it is.

    Raises:
        ConvergenceError: when conjugate gradients do not converge.
        DataError: when data are empty, not finite, of the wrong shape or kind of numbers.
        KernelError: as for `gaussian_process`.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> print(k.evidence(nn.Dense(1), jnp.eye(2), jnp.ones(2), noise=1.0))
    log Z -2.910, exact, 0 parameters
    trust good: closed form, by a Gaussian process
    """
    x = require_regression(net, x)
    provenance = provenance_of_targets(y)
    y = require_targets(y, len(x))
    if isinstance(method := _chosen(by, "evidence"), Krylov):
        log_z, error = iterative_log_evidence(net, x, y, noise, jitter, method)
        how, trust = "conjugate gradients and Lanczos quadrature", "solutions converged"
    else:
        given = regression_of(net, x, y, noise=noise, jitter=jitter)
        log_z, error = _fitted(_log_evidence, given)
        how, trust = "exact", "closed form, by a Gaussian process"
    return Evidence(
        log_z,
        error,
        None,
        metric=None,
        dim=0,
        method=how,
        trust=Trust(Level.GOOD, trust),
        diagnostics={},
        cost=Cost(densities=1),
        provenance=provenance,
    )


def _fitted(program: Compiled, given: Regression) -> Any:
    return factored(program, given, lambda: given.kernels()[0].nngp)


@steady
def _factor(given: Regression) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    factor = given.factor(given.kernels()[0].nngp)
    return factor, factor


@steady
def _log_evidence(given: Regression) -> tuple[tuple[Array, Array], Float[Array, "n n"]]:
    factor = given.factor(given.kernels()[0].nngp)
    y = given.masked(given.y)
    outputs = 1 if y.ndim == 1 else y.shape[1]
    white = solve_triangular(factor, y, lower=True)
    count = jnp.asarray(given.known, factor.dtype)
    size = jnp.sum(given.masked(jnp.log(jnp.diagonal(factor)))) + count / 2 * math.log(2 * math.pi)
    log_z = -jnp.sum(white**2) / 2 - outputs * size
    return (log_z, jnp.zeros_like(log_z)), factor


def provenance_of_targets(y: Any) -> Provenance:
    """The provenance of an evidence of the data y; without the data where y is traced."""
    return Provenance() if isinstance(y, Tracer) else Provenance(data=(fingerprint(y),))


def predict(
    net: Layer,
    x: Float[Array, "n ..."],
    y: Float[Array, "n ..."],
    new: Float[Array, "m ..."],
    *,
    noise: Any = None,
    jitter: Any = 0.0,
    by: Method | None = None,
) -> Prediction:
    """The posterior of the function of an infinitely wide network at new inputs.

    With `C = K(x, x) + noise^2 I`: mean `K(new, x) C^-1 y`, covariance
    `K(new, new) - K(new, x) C^-1 K(x, new)`. Cost O(n^3 + n^2 m). `by=Krylov(key)` solves by
    conjugate gradients, as in `evidence`, to a residual of 1e-10 (in float32 3e-6); the key is not
    used.

    Args:
        net: a network of infinite width.
        x: examples, shape (n, features).
        y: targets, shape (n,) or (n, k).
        new: new examples, shape (m, features).
        noise: standard deviation of the observations; None for no noise.
        jitter: variance added to the diagonal; nothing is added that is not asked for.
        by: `Exact()`, the default, or `Krylov(key)`.

    Returns:
        Mean and covariance of the function; for new observations add `noise^2` to its diagonal.

    Raises:
        DataError: when data are empty, not finite, of the wrong shape or kind of numbers.
        KernelError: as for `gaussian_process`.

    References:
        Rasmussen & Williams (2006), Gaussian processes for machine learning, Eqs. (2.23), (2.24).

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> x = jnp.array([[1.0]])
    >>> k.predict(nn.Dense(1), x, jnp.array([3.0]), 2.0 * x, noise=1.0).mean.tolist()
    [3.0]
    """
    x = require_regression(net, x)
    y = require_targets(y, len(x))
    new = require_examples(net, new, "new")
    if isinstance(_chosen(by, "predict"), Krylov):
        return Prediction(*iterative_posterior(net, x, y, new, noise, jitter))
    law = _fitted(_posterior, regression_of(net, x, y, new, noise=noise, jitter=jitter))
    return Prediction(cut(law.mean, len(new)), cut(law.covariance, len(new), len(new)))


@steady
def _posterior(given: Regression) -> tuple[Prediction, Float[Array, "n n"]]:
    own, cross, prior = (kernel.nngp for kernel in given.kernels())
    factor = given.factor(own)
    half = solve_triangular(factor, given.masked(cross), lower=True)
    covariance = prior - half.T @ half
    mean = half.T @ solve_triangular(factor, given.masked(given.y), lower=True)
    return Prediction(mean, (covariance + covariance.T) / 2), factor


def _chosen(by: Method | None, function: str) -> Method:
    return without_xtrace(chosen(by, 0), function)

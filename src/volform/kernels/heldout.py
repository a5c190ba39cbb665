"""How well infinitely wide networks predict rows that they have not seen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.errors import KernelError
from volform.geometry import Parametrization
from volform.kernels.checking import require_inputs, require_positive, require_targets
from volform.kernels.layer import Layer
from volform.kernels.process import predict
from volform.kernels.training import predict_trained


class Score(NamedTuple):
    """How well held-out targets are predicted, over all rows.

    Attributes:
        rmse: root mean squared error, in units of the targets.
        log_density: mean of `log Normal(y_i | mean_i, variance_i + noise^2)` over rows and outputs.
    """

    rmse: float
    log_density: float


class Scores(NamedTuple):
    """Both predictions of a network by its kernels.

    Attributes:
        nngp: of the Bayesian posterior.
        ntk: of an ensemble trained by gradient flow for ever.
    """

    nngp: Score
    ntk: Score


def held_out(
    net: Layer,
    x: Float[Array, "n ..."],
    y: Float[Array, "n ..."],
    *,
    noise: float,
    folds: int = 5,
    key: PRNGKeyArray | None = None,
    parametrization: Parametrization | None = None,
) -> Scores:
    """Errors on held-out folds, of `predict` and of `predict_trained` at infinite time.

    Rows are shuffled and cut into folds whose sizes differ by one at most; each is predicted from
    all the others. Training has the same `noise` as the posterior: the weight of the distance from
    the initial parameters. The NNGP's prediction does not depend on the parametrization. Under
    `SP` the neural tangent kernel is the leading order at the layers' own widths.

    Args:
        net: a network of infinite width.
        x: examples, shape (n, features).
        y: targets, shape (n,) or (n, k).
        noise: standard deviation of the observations.
        folds: number of folds, from 2 to n.
        key: key of the shuffle; `jax.random.key(0)` by default.
        parametrization: `NTP()` if left out.

    Returns:
        Root mean squared errors and log predictive densities.

    Raises:
        DataError: when data are empty, not finite, of integers or of the wrong shape.
        KernelError: when `noise` is not positive or `folds` not from 2 to n.

    >>> import jax.numpy as jnp
    >>> from volform import kernels as k
    >>> x = jnp.linspace(-1.0, 1.0, 12)[:, None]
    >>> line = k.held_out(k.Dense(1, 2.0), x, 3.0 * x[:, 0], noise=0.1, folds=4)
    >>> line.nngp.rmse < 0.02, line.nngp == line.ntk
    (True, True)
    """
    x = require_inputs(x, "x")
    y = require_targets(y, len(x))
    require_positive(noise, "noise", "the standard deviation of observations", KernelError)
    if not isinstance(folds, int) or not 2 <= folds <= len(x):
        raise KernelError(
            f"`folds` is {folds!r}; it should be an integer from 2 to the number of rows, {len(x)}."
        )
    key = jax.random.key(0) if key is None else key
    order = np.asarray(jax.random.permutation(key, len(x)))
    found = []
    for test in np.array_split(order, folds):
        seen = np.setdiff1d(order, test)
        data = (x[seen], y[seen], x[test])
        bayes = predict(net, *data, noise=noise)
        trained = predict_trained(net, *data, noise=noise, parametrization=parametrization)
        found.append([_terms(law, y[test], noise) for law in (bayes, trained)])
    # folds, kinds, (squared error and log density), rows of the fold: all rows count the same
    nngp, ntk = (np.concatenate([fold[kind] for fold in found], 1).mean(1) for kind in (0, 1))
    return Scores(*(Score(float(np.sqrt(s)), float(d)) for s, d in (nngp, ntk)))


def _terms(law: Any, y: Float[Array, "m ..."], noise: float) -> Float[np.ndarray, "2 terms"]:
    """Squared errors and log densities of single targets."""
    variance = jnp.diagonal(law.covariance) + noise**2
    variance = variance.reshape(-1, *(1,) * (y.ndim - 1))
    square = (y - law.mean) ** 2
    density = -(square / variance + jnp.log(2 * jnp.pi * variance)) / 2
    return np.stack([np.ravel(square), np.ravel(density)])

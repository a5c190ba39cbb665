"""Cross-validation of infinitely wide networks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import key_of, require_positive
from volform.compilation import QUICK, Compiled
from volform.errors import KernelError
from volform.kernels.checks import require_targets
from volform.kernels.gaussian_process import Prediction
from volform.networks.inputs import as_array, require_rows


class Score(NamedTuple):
    """Quality of predictions of held-out targets, over all rows.

    Attributes:
        rmse: root mean squared error, in units of the targets.
        log_density: mean of `log Normal(y_i | mean_i, variance_i + noise^2)` over rows and outputs.
    """

    rmse: float
    log_density: float


def held_out(
    predictor: Callable[[Array, Array, Array], Prediction],
    x: Float[Array, "n ..."],
    y: Float[Array, "n ..."],
    *,
    noise: float,
    folds: int = 5,
    key: PRNGKeyArray | None = None,
) -> Score:
    """Predict rows from others: `folds`-fold cross-validation.

    Rows are shuffled and cut into folds whose sizes differ by one at most; each is predicted from
    all the others.

    Args:
        predictor: `predictor(x, y, new)` gives a `Prediction`: `partial(predict, net, noise=0.1)`,
            or the same of `predict_trained`.
        x: examples, shape (n, features).
        y: targets, shape (n,) or (n, k).
        noise: standard deviation of the observations about the function, for the log density.
        folds: number of folds, from 2 to n.
        key: key of the shuffle; `jax.random.key(0)` by default.

    Returns:
        Root mean squared error and log predictive density.

    Raises:
        DataError: when data are empty, not finite or of the wrong shape.
        KernelError: when `noise` is not positive or `folds` not from 2 to n.

    >>> from functools import partial
    >>> import jax.numpy as jnp
    >>> from volform import kernels as k, networks as nn
    >>> x = jnp.linspace(-1.0, 1.0, 12)[:, None]
    >>> line = partial(k.predict, nn.Dense(1, 2.0), noise=0.1)
    >>> k.held_out(line, x, 3.0 * x[:, 0], noise=0.1, folds=4).rmse < 0.02
    True
    """
    x = require_rows(x, "x")
    y = require_targets(y, len(x))
    require_positive(noise, "noise", "the standard deviation of observations", KernelError)
    if not isinstance(folds, int) or not 2 <= folds <= len(x):
        raise KernelError(
            f"`folds` is {folds!r}; it should be an integer from 2 to the number of rows, {len(x)}."
        )
    key = key_of(key, "held_out", KernelError)
    order = np.asarray(_shuffled(key, len(x)))
    inputs, targets = np.asarray(x), np.asarray(y)  # JAX would compile each choice of rows
    terms = []
    for test in np.array_split(order, folds):
        seen = np.setdiff1d(order, test)
        parts = inputs[seen], targets[seen], inputs[test]
        terms.append(_terms(predictor(*map(as_array, parts)), targets[test], noise))
    square, density = np.concatenate(terms, 1).mean(1)  # every row counts the same
    return Score(float(np.sqrt(square)), float(density))


_shuffled = Compiled(jax.random.permutation, QUICK)


def _terms(
    law: Prediction, y: Float[np.ndarray, "m ..."], noise: float
) -> Float[np.ndarray, "2 terms"]:
    """Squared errors and log densities of single targets."""
    mean, covariance = (np.asarray(part) for part in law)
    variance = np.diagonal(covariance) + noise**2
    variance = variance.reshape(-1, *(1,) * (y.ndim - 1))
    square = (y - mean) ** 2
    density = -(square / variance + np.log(2 * np.pi * variance)) / 2
    return np.stack([np.ravel(square), np.ravel(density)])

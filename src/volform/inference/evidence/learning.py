"""The learning coefficient of a model: how fast its evidence falls with the amount of data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from volform.checks import is_positive_number, require_key, require_whole
from volform.errors import ConvergenceError, ModelError
from volform.generators import generator
from volform.inference.evidence.bridge import R_HAT_LIMIT
from volform.inference.evidence.estimator import problem_of
from volform.inference.evidence.powers import (
    AtPower,
    ChainSettings,
    at_power,
    fits_at,
    observations_of,
    temperature_of,
)
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.modes.mode import MAP
from volform.models.posterior import Posterior
from volform.models.prior_draws import prior_draws
from volform.progress import waiting

HALVED = 60  # times, from a prior draw toward the point
RISE = 0.1  # of the coefficient, by which a better point beside `at` may change it


class TemperedNUTS(eqx.Module):
    """NumPyro's NUTS on the posterior with its likelihood to a power, as a value.

    Attributes:
        key: key of the chains.
        powers: of the likelihood; 1 / log n by default, as for Watanabe's WBIC. Of a likelihood of
            n data a power b stands for n b data.
        draws: in all chains at each power.
        chains: number of chains.
        warmup: warm-up steps of each.
        target_accept: mean probability of acceptance.

    >>> import jax
    >>> from volform.inference import TemperedNUTS
    >>> TemperedNUTS(jax.random.key(0), powers=(0.1, 1.0)).powers
    (0.1, 1.0)
    """

    key: PRNGKeyArray
    powers: tuple[float, ...] | None = None
    draws: int = 4000
    chains: int = 4
    warmup: int = 1000
    target_accept: float = 0.9

    def __check_init__(self) -> None:
        require_key(self.key, "key", "TemperedNUTS", ModelError)
        for name in ("draws", "chains", "warmup"):
            require_whole(getattr(self, name), name, "TemperedNUTS", ModelError)
        powers = self.powers
        if powers is not None and not (powers and all(map(is_positive_number, powers))):
            raise ModelError(
                f"`powers` of TemperedNUTS is {powers!r}; it should hold positive numbers, such as "
                "(1 / math.log(n), 1.0): at the power zero there is no likelihood."
            )
        if self.chains < 2 or self.draws < 8 * self.chains or not 0.0 < self.target_accept < 1.0:
            raise ModelError(
                f"`chains`, `draws` and `target_accept` of TemperedNUTS are {self.chains}, "
                f"{self.draws} and {self.target_accept}; give 2 chains or more, whose R-hat is "
                "looked at, 8 draws in each or more, and a probability between 0 and 1."
            )


@dataclass(frozen=True, repr=False)
class LearningCoefficient:
    """Effective learning coefficients `b (log L(at) - E_b[log L])` at powers b of the likelihood.

    Twice the coefficient is the number of parameters that the data see; of a regular model, in
    which they see all, it is d / 2.

    Attributes:
        powers: of the likelihood, shape (k,).
        mean: the coefficient at each.
        error: standard error of each.
        r_hat: split R-hat of log L.
        effective: effective number of draws of log L.
        parameters: number of parameters d.
        log_likelihood: at the point.
    """

    powers: Float[np.ndarray, " k"]
    mean: Float[np.ndarray, " k"]
    error: Float[np.ndarray, " k"]
    r_hat: Float[np.ndarray, " k"]
    effective: Float[np.ndarray, " k"]
    parameters: int
    log_likelihood: float

    def __repr__(self) -> str:
        rows = zip(self.powers, self.mean, self.error, self.r_hat, self.effective, strict=True)
        return "\n".join(
            f"learning coefficient {mean:.3f} ± {error:.3f} of {self.parameters}/2 at power "
            f"{power:.3g}, R-hat {r_hat:.3f}, {effective:.0f} effective draws"
            for power, mean, error, r_hat, effective in rows
        )


def learning_coefficient(
    target: Posterior | MAP | LaplaceApproximation,
    *,
    by: TemperedNUTS,
    at: MAP | LaplaceApproximation | Mapping[str, Any] | None = None,
) -> LearningCoefficient:
    """Estimate the learning coefficient lambda of a model: its real log canonical threshold.

    The evidence of n data behaves as `log Z = log L(at) - lambda log n + (m - 1) log log n + O(1)`,
    and under the posterior with the likelihood to the power b,

        b (log L(at) - E_b[log L]) = lambda - (m - 1) / log(n b) + ...,

    which is what is estimated. Laplace's method and BIC say lambda = d / 2, the most that it can
    be; where parameters are redundant it is less. It does not depend on the parametrization.

    Args:
        target: a `Posterior`, or a MAP or Laplace approximation of it.
        by: `TemperedNUTS(key)`.
        at: the best parameters: a MAP, or values of the latent sites. `target` itself if it is a
            MAP; else one is searched.

    Returns:
        A `LearningCoefficient`: mean, error, R-hat and effective draws at each power.

    Raises:
        ModelError: an improper prior, no power where the number of data is not known.
        ConvergenceError: chains whose R-hat is above 1.05; an `at` beside which the likelihood is
            higher by so much that the coefficient would be wrong.

    Cost: NUTS, `draws` and warm-up at each power; one program for all of them.

    References:
        Watanabe (2009), Algebraic geometry and statistical learning theory; (2013), WBIC. Lau et
        al. (2023), the local learning coefficient.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):  # only the product is seen
    ...     a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    ...     b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(a * b, 1.0), obs=y)
    >>> posterior = vf.condition(model, jnp.ones(100))
    >>> by = vf.inference.TemperedNUTS(jax.random.key(0), powers=(1.0,))
    >>> vf.inference.learning_coefficient(posterior, at={"a": 1.0, "b": 1.0}, by=by).mean.round(1)
    array([0.5])
    """
    if not isinstance(by, TemperedNUTS):
        raise ModelError(
            f"`by` of learning_coefficient is {by!r}; it should be `TemperedNUTS(key)`. For log Z "
            "and the coefficient at all temperatures take `vf.evidence(posterior, "
            "by=vf.inference.Thermodynamic())`."
        )
    problem = problem_of(target, by.key)
    posterior, model = problem.posterior, problem.posterior.bound_model
    powers = by.powers or _default_power(observations_of(problem.provenance))
    point = np.asarray(_point(posterior, problem.fit if at is None else at))
    highest = float(fits_at(model, point[None])[0])
    if isinstance(at, Mapping):
        _require_highest(posterior, point, highest, max(powers))
    found: list[AtPower] = []
    settings = ChainSettings(by.chains, by.warmup, by.draws // by.chains, by.target_accept)
    with waiting("learning_coefficient", show=True) as phase:
        for number, power in enumerate(powers):
            starts = _starts(problem.posterior, point, highest, power, by, number)
            first = np.eye(posterior.dim, dtype=point.dtype)
            key = jax.random.fold_in(by.key, number)
            found.append(at_power(posterior, power, key, starts, first, settings, phase))
    for each in found:
        if not each.r_hat <= R_HAT_LIMIT:
            raise ConvergenceError(
                f"R-hat of log L is {each.r_hat:.3f} at the power {each.power:.3g}, above "
                f"{R_HAT_LIMIT}: the chains of `TemperedNUTS` have not mixed, and the learning "
                f"coefficient {each.power * (highest - each.mean):.2f} would mean nothing. Take "
                "more `draws` and `warmup`, or a smaller power."
            )
    return LearningCoefficient(
        np.array(powers, float),
        np.array([each.power * (highest - each.mean) for each in found]),
        np.array([each.power * each.error for each in found]),
        np.array([each.r_hat for each in found]),
        np.array([each.effective for each in found]),
        posterior.dim,
        highest,
    )


def _default_power(observations: int | None) -> tuple[float, ...]:
    power = temperature_of(observations)
    if power is None:
        raise ModelError(
            f"`powers` of TemperedNUTS is 1 / log n by default, and the model has {observations} "
            "observations along the first axis of its data; give `powers`, such as (0.2,)."
        )
    return (power,)


def _point(posterior: Posterior, at: MAP | LaplaceApproximation | Mapping[str, Any]) -> Any:
    if isinstance(at, Mapping):
        return posterior.layout.unconstrain(at, "at")
    mode = at.mode if isinstance(at, LaplaceApproximation) else at
    if not isinstance(mode, MAP) or np.shape(mode.at.u) != (posterior.dim,):
        raise ModelError(
            f"`at` of learning_coefficient is a {type(at).__name__}; it should be a MAP of this "
            "posterior, or a dict with the values of its latent sites."
        )
    return mode.at.u


def _require_highest(
    posterior: Posterior, point: Float[np.ndarray, " d"], highest: float, power: float
) -> None:
    """Refuse a point along whose gradient the likelihood rises so much that it changes the result.

    Raises:
        ConvergenceError: then it is no stationary point of the likelihood.
    """
    model = posterior.bound_model
    slope = np.asarray(_slope(model, point))
    norm = np.linalg.norm(slope)
    steps = np.geomspace(1e-8, 1.0, 33)[:, None] * slope / (norm if norm > 0.0 else 1.0)
    rise = float(np.max(fits_at(model, point + steps)) - highest)
    if not np.isfinite(highest) or power * rise > RISE:
        raise ConvergenceError(
            f"`at` of learning_coefficient is no stationary point: log L is {highest:.6g} there, "
            f"and {rise:.3g} higher beside it, which would change the coefficient by "
            f"{power * rise:.2g}. Give a maximum, such as `vf.find_map(posterior)`."
        )


@eqx.filter_jit
def _slope(model: Any, u: Any) -> Any:
    return jax.grad(model.log_likelihood)(u)


def _starts(
    posterior: Posterior,
    point: Float[np.ndarray, " d"],
    highest: float,
    power: float,
    by: TemperedNUTS,
    number: int,
) -> Float[np.ndarray, "c d"]:
    """Starts between prior draws and the point, each as far off as it fits nearly as well.

    A loss of d nats is about twice that of a draw, so that chains that do not mix are seen to.
    """
    draws = np.asarray(prior_draws(posterior.bound_model, by.key, by.chains))
    random = generator(by.key, number)
    shrunk = 0.5 ** (np.arange(HALVED) + random.uniform(size=(by.chains, 1)))
    tried = point + shrunk[..., None] * (draws - point)[:, None]
    fits = fits_at(posterior.bound_model, tried.reshape(-1, len(point))).reshape(shrunk.shape)
    near = power * (highest - fits) <= len(point)
    near[:, -1] = True
    return tried[np.arange(by.chains), np.argmax(near, axis=1)].astype(point.dtype)

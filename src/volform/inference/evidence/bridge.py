"""Evidence by bridge sampling from posterior draws."""

import dataclasses
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.diagnostics import effective_sample_size

from volform.checks import require_whole
from volform.errors import ConvergenceError, DataError, ModelError
from volform.generators import generator
from volform.inference.evidence.edges import cut_off, is_far_out
from volform.inference.evidence.estimator import Estimator, Problem
from volform.inference.laplace.gaussian_chart import LEBESGUE, densities_at
from volform.inference.laplace.mixture import proposal_at
from volform.inference.laplace.samples import Samples
from volform.inference.samplers.nuts import Chains, chains_of, run_nuts
from volform.models.posterior import Posterior
from volform.progress import waiting
from volform.results import Cost, Evidence, Level, Trust

OVERDISPERSED = 3.0  # degrees of freedom of the starts of the chains
R_HAT_LIMIT = 1.05  # above it the chains have not mixed
# Of 2 d standard normal numbers below d = 500 one is above 6 once in a million.
STEIN_LIMIT = 6.0
DRAWS_AT_ONCE = 1000  # draws evaluated at once; bounds the memory


class Bridge(Estimator):
    """Bridge sampling (Meng & Wong) between the posterior and a Gaussian, warped to match.

    The posterior is standardized by mean and covariance of one half of the draws and made
    symmetric (Warp-III), `1/2 |L| [p(m + L z) + p(m - L z)]`; the optimal bridge to N(0, I) is
    iterated on the other half. Halves change places, and the Gaussian draws are repeated; the
    estimate is the mean of all. The error is the larger of the formula's, with the effective
    number of draws, and the spread of the repetitions.

    Attributes:
        draws: posterior draws in all; an equal number of Gaussian draws is made.
        chains: chains of NUTS.
        warmup: warm-up steps of each chain.
        target_accept: mean probability of acceptance of NUTS; where transitions diverge, 0.99
            takes smaller steps.
        samples: draws that are at hand already, in place of NUTS: a NumPyro `MCMC`, an ArviZ
            object, or a dict of arrays of shape (chains, draws, ...).
        repeats: repetitions with fresh Gaussian draws.

    References:
        Meng & Wong (1996); Meng & Schilling (2002), warp bridge sampling; Fruhwirth-Schnatter
        (2004), section 3, for the error.

    >>> import volform as vf
    >>> vf.Bridge(draws=2000)
    Bridge(draws=2000)
    """

    draws: int = 4000
    chains: int = 4
    warmup: int = 1000
    target_accept: float = 0.9  # more than NumPyro's 0.8, for narrow necks
    samples: Any = None
    repeats: int = 3

    def __check_init__(self) -> None:
        for name in ("draws", "chains", "warmup", "repeats"):
            require_whole(getattr(self, name), name, "Bridge", ModelError)
        if not 0.0 < self.target_accept < 1.0:
            raise ModelError(
                f"`target_accept` of Bridge is {self.target_accept!r}; it should be a probability "
                "between 0 and 1."
            )

    def estimate(self, problem: Problem) -> Evidence:
        """The mean over halves and repetitions."""
        posterior = problem.posterior
        random = generator(problem.key, 2)
        chains = self._chains(problem, random)
        folds = [fold_of(posterior, *halves) for halves in _folds(np.asarray(chains.u))]
        rounds = [bridge(posterior, fold, random) for _ in range(self.repeats) for fold in folds]
        values, errors = np.reshape(np.array(rounds), (self.repeats, 2, 2)).transpose(2, 0, 1)
        error = max(
            self._lack(problem),
            float(np.sqrt(np.mean(errors**2) / 2.0)),  # halves are nearly independent
            float(np.abs(values.mean(0) @ np.array([0.5, -0.5]))),
            float(values.mean(1).std(ddof=1)) if self.repeats > 1 else 0.0,
        )
        checked = 0 if self.samples is None else chains.u[..., 0].size
        used = sum(fold.at_draws.size for fold in folds)
        spread = {} if self.repeats == 1 else {"spread": float(values.std(ddof=1))}
        return problem.estimated(
            float(values.mean()),
            error,
            method=f"bridge sampling ({used:,} draws)",
            trust=self._trust(posterior, chains, error)
            .but(self._reservations(problem))
            .but(cut_off(posterior, float(np.mean(is_far_out(np.asarray(chains.u))))))
            .given("if chains reach all of the mass"),
            diagnostics={
                "r_hat": float(chains.r_hat().max()),
                "effective_draws": float(chains.effective().min()),
            }
            | ({"divergent": float(chains.divergent)} if chains.divergent else {})
            | spread,
            cost=Cost(2 * used * (1 + self.repeats), chains.gradients + checked),
            regimes=chains.regimes,
            draws=Samples(
                posterior,
                LEBESGUE,
                np.asarray(chains.u).reshape(-1, posterior.dim),
                chains=len(chains.u),
            ),
        )

    def _trust(self, posterior: Posterior, chains: Chains, error: float) -> Trust:
        worst = 0.0 if self.samples is None else _stein_score(posterior, chains.u)
        if not worst <= STEIN_LIMIT:
            return Trust(
                Level.POOR,
                f"the draws in `samples` are not from this posterior: a mean that is zero under it "
                f"is {worst:.0f} of its standard errors away",
            )
        return _trust(posterior, chains, error)

    def _reservations(self, problem: Problem) -> tuple[str, ...]:
        if self.samples is not None and problem.provenance.equivalent_modes is None:
            return ()  # a search costs more than draws that are at hand
        # Without a mode no number of copies is missing.
        return problem.reservations if problem.known_modes else ()

    def _lack(self, problem: Problem) -> float:
        return problem.lack if self._reservations(problem) else 0.0

    def _chains(self, problem: Problem, random: np.random.Generator) -> Chains:
        if self.samples is not None:
            chains = chains_of(problem.posterior, self.samples)
            _require_enough(*chains.u.shape)
            return chains
        each = math.ceil(self.draws / self.chains)
        _require_enough(self.chains, each, problem.posterior.dim)
        starts, covariance = _dispersed(problem, random, self.chains)
        with waiting("evidence", show=True) as phase:
            return run_nuts(
                problem.posterior,
                problem.key,
                starts,
                covariance,
                self.warmup,
                each,
                self.target_accept,
                phase,
            )


def _stein_score(posterior: Posterior, u: Float[Array, "c n d"]) -> float:
    """Largest number of standard errors by which draws fail Stein's identities for p_u.

    `E[d_i log p] = 0` and `E[(u_i - m_i) d_i log p] = -1` hold for draws from p alone; draws that
    are shifted fail the first, draws that are tempered the second.
    """
    slopes = np.asarray(_gradients(posterior, u.reshape(-1, u.shape[-1]))).reshape(u.shape)
    centered = np.asarray(u) - np.asarray(u).mean((0, 1))
    scores = []
    for statistic in (slopes, centered * slopes + 1.0):
        effective = np.clip(effective_sample_size(statistic), 1.0, statistic[..., 0].size)
        deviation = np.sqrt(statistic.var((0, 1)) / effective)
        scores.append(np.abs(statistic.mean((0, 1))) / np.maximum(deviation, 1e-300))
    return float(np.max(scores))


@eqx.filter_jit
def _gradients(posterior: Posterior, u: Float[Array, "n d"]) -> Float[Array, "n d"]:
    slope = jax.grad(posterior.log_density_lebesgue)
    return jax.lax.map(slope, u, batch_size=min(len(u), DRAWS_AT_ONCE))


def _dispersed(problem: Problem, random: np.random.Generator, chains: int) -> tuple[Any, Any]:
    """Starts of the chains, and a first covariance.

    Student t around the modes that the search found; where it found none, as NumPyro starts.
    """
    posterior, dtype = problem.posterior, jnp.result_type(float)
    modes = problem.known_modes
    if not modes:
        starts = random.uniform(-2.0, 2.0, (chains, posterior.dim))
        return starts.astype(dtype), np.eye(posterior.dim, dtype=dtype)
    proposal = proposal_at(posterior, LEBESGUE, modes, OVERDISPERSED)
    proposal = dataclasses.replace(proposal, log_weights=np.zeros(len(modes)))
    whitener = np.asarray(modes[0].whitener)
    return proposal.sample(random, chains).astype(dtype), whitener @ whitener.T


def _require_enough(chains: int, each: int, dim: int) -> None:
    count, least = chains * each, 4 * (dim + 10)
    if count < least or each < 8:
        raise DataError(
            f"Bridge sampling has {count} draws in `samples` or by `draws=`, in {chains} "
            f"chains; half of them have to give a covariance of {dim} parameters. It needs at "
            f"least {least}, and 8 in each chain."
        )


def _folds(u: Float[np.ndarray, "c n d"]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The halves of each chain, one to fit and one to iterate on, both ways round."""
    half = u.shape[1] // 2
    first, second = u[:, :half], u[:, half : 2 * half]
    return [(first, second), (second, first)]


class Fold(NamedTuple):
    """A Gaussian fitted to one half of the draws, and the other half seen from it.

    Attributes:
        mean: its mean, shape (d,).
        factor: lower triangular root of its covariance, shape (d, d).
        at_draws: log of the warped posterior over the Gaussian at the other half.
        effective: effective number of those draws.
    """

    mean: Float[np.ndarray, " d"]
    factor: Float[np.ndarray, "d d"]
    at_draws: Float[np.ndarray, "c n"]
    effective: float


def fold_of(
    posterior: Posterior, fit: Float[np.ndarray, "c n d"], rest: Float[np.ndarray, "c n d"]
) -> Fold:
    """The Gaussian of `fit`, and the warped posterior at `rest`.

    Raises:
        ConvergenceError: when there are draws outside the support.
        DataError: when the draws do not vary.
    """
    flat = fit.reshape(-1, fit.shape[-1])
    mean, covariance = flat.mean(0), np.atleast_2d(np.cov(flat.T))
    try:
        factor = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError as error:
        raise DataError(
            "The draws in `samples` do not vary in every direction, so that they have no "
            "covariance to be standardized by. Did the sampler move?"
        ) from error
    z = np.linalg.solve(factor, (rest - mean).reshape(-1, flat.shape[1]).T).T
    at_draws = _log_ratio(posterior, mean, factor, z).reshape(rest.shape[:2])
    if not np.isfinite(at_draws).all():
        raise ConvergenceError(
            f"At {np.sum(~np.isfinite(at_draws)):,} of {at_draws.size:,} draws of the chains the "
            "density is zero: they did not find the support. Try `vf.Tempered()`."
        )
    effective = float(np.clip(effective_sample_size(at_draws), 1.0, at_draws.size))
    return Fold(mean, factor, at_draws, effective)


def bridge(posterior: Posterior, fold: Fold, random: np.random.Generator) -> tuple[float, float]:
    """Log Z and its error, by as many Gaussian draws as there are of the posterior."""
    noise = random.standard_normal((fold.at_draws.size, fold.mean.size))
    return _iterated(
        fold.at_draws, _log_ratio(posterior, fold.mean, fold.factor, noise), fold.effective
    )


def _log_ratio(
    posterior: Posterior,
    mean: Float[np.ndarray, " d"],
    factor: Float[np.ndarray, "d d"],
    z: Float[np.ndarray, "n d"],
) -> Float[np.ndarray, " n"]:
    """Log of the warped posterior over N(0, I)."""
    steps = z @ factor.T
    points = np.concatenate([mean + steps, mean - steps])
    sides = densities_at(posterior, LEBESGUE, points)[0].reshape(2, len(z))
    sides = np.where(np.isnan(sides), -np.inf, sides)
    log_scale = np.sum(np.log(np.diagonal(factor))) - math.log(2.0)
    log_normal = -0.5 * (z**2).sum(1) - 0.5 * z.shape[1] * math.log(2.0 * math.pi)
    return np.logaddexp(*sides) + log_scale - log_normal


def _iterated(
    at_draws: Float[np.ndarray, "c n"], at_noise: Float[np.ndarray, " n"], effective: float
) -> tuple[float, float]:
    """The fixed point of the optimal bridge, in logs, and its relative error."""
    count = at_noise.size
    share = effective / (effective + count)
    log_s1, log_s2 = math.log(share), math.log1p(-share)
    log_z = float(np.median(at_draws))
    for _ in range(1000):
        upper = at_noise - np.logaddexp(log_s1 + at_noise, log_s2 + log_z)
        lower = -np.logaddexp(log_s1 + at_draws, log_s2 + log_z)
        new = float(_log_mean_exp(upper) - _log_mean_exp(lower))
        done, log_z = abs(new - log_z) < 1e-10, new
        if done:
            break
    f1 = np.exp(at_noise - log_z - np.logaddexp(log_s1 + at_noise - log_z, log_s2))
    f2 = np.exp(-np.logaddexp(log_s1 + at_draws - log_z, log_s2))
    effective_f2 = float(np.clip(effective_sample_size(f2), 1.0, f2.size))
    within = f2.var() / effective_f2
    # Slow mixing shows between chains before it shows in the autocorrelation of each.
    between = f2.mean(1).var(ddof=1) / len(f2) if len(f2) > 1 else 0.0
    variance = f1.var() / f1.mean() ** 2 / count + max(within, between) / f2.mean() ** 2
    return log_z, math.sqrt(variance)


def _log_mean_exp(logs: Float[np.ndarray, "..."]) -> Any:
    return np.logaddexp.reduce(logs, axis=None) - math.log(logs.size)


def _trust(posterior: Posterior, chains: Chains, error: float) -> Trust:
    r_hat, effective = chains.r_hat(), chains.effective()
    worst = int(np.nanargmax(r_hat))
    label = posterior.layout.labels()[worst]
    if not r_hat[worst] <= R_HAT_LIMIT:
        return Trust(Level.POOR, f"chains have not mixed: R-hat {r_hat[worst]:.2f} of {label}")
    reservations = []
    if len(chains.u) < 2:
        reservations.append("one chain cannot show whether it mixes")
    if chains.divergent:
        reservations.append(f"{chains.divergent} divergent transitions")
    if effective.min() < 100:
        reservations.append(f"only {effective.min():.0f} effective draws")
    if not error < 0.1:
        reservations.append("the error is large")
    text = f"R-hat {r_hat[worst]:.3f}"
    if reservations:
        return Trust(Level.FAIR, f"{text}, but {', '.join(reservations)}")
    return Trust(Level.GOOD, f"{text}, {effective.min():.0f} effective draws")

"""Evidence along powers of the likelihood, from the prior to the posterior, by chains of NUTS."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import expit

from volform.checks import require_whole
from volform.errors import ConvergenceError, ModelError
from volform.generators import generator
from volform.inference.evidence.bridge import R_HAT_LIMIT
from volform.inference.evidence.edges import cut_off, is_far_out
from volform.inference.evidence.estimator import Estimator, Problem
from volform.inference.evidence.powers import (
    AtPower,
    ChainSettings,
    at_power,
    fits_at,
    observations_of,
    temperature_of,
    worst_r_hat,
)
from volform.inference.evidence.tempered import drawn, require_draws
from volform.inference.laplace.gaussian_chart import LEBESGUE
from volform.inference.laplace.samples import Samples
from volform.models.prior_draws import PRIOR_DRAWS, highest_power
from volform.progress import waiting
from volform.results import Cost, Evidence, Level, Trust

STREAM_OF_POWERS = 7  # of the key, which other draws fold other numbers into
OVERLAP = 0.5  # effective share of the draws at the next power of the likelihood
MOST_RUNGS = 200
BLOCKS = 5  # of each chain, that are left out in turn for the error
FEW_EFFECTIVE = 100.0
# Errors of log Z over those by leaving out draws, root mean square: .9 to 1.35 on five models of
# known evidence, 20 to 60 runs each. Powers are chosen, and chains started, by the same draws.
WIDER = 1.25


class Thermodynamic(Estimator):
    """Thermodynamic integration: log Z, and the learning coefficient at every temperature.

    Chains of NUTS at powers 0 = b_0 < ... < b_T = 1 of the likelihood, each power the highest at
    which half of the draws at the last are effective. d log Z / db = E_b[log L]; between two powers
    the integral is taken by Bennett's acceptance ratio, which has no error of discretization:
    `log Z_(t+1) / Z_t` is the root c of
    `sum_t expit(s l - c) = sum_(t+1) expit(c - s l)`, s = b_(t+1) - b_t, l = log L. The error is by
    leaving out blocks of the chains, and whole chains, at all powers.

    It needs no mode, as `Tempered` does not, and moves each draw farther; the priors have to be
    proper. Chains start where the draws at the last power weigh most, and all powers are one
    program. The diagnostics hold at each power b the effective learning coefficient
    `b (log L* - E_b[log L])`, log L* the highest that draws, or a given MAP, have; and
    Watanabe's WBIC, `E_b[log L]` at b = 1 / log n.

    Attributes:
        draws: in all chains at each power, a multiple of 1,000.
        chains: chains of NUTS.
        warmup: warm-up steps of each chain at each power.
        target_accept: mean probability of acceptance of NUTS.

    References:
        Ogata (1989); Gelman & Meng (1998), path sampling; Bennett (1976); Watanabe (2013), WBIC.

    >>> from volform.inference import Thermodynamic
    >>> Thermodynamic(chains=2)
    Thermodynamic(chains=2)
    """

    draws: int = 4000
    chains: int = 4
    warmup: int = 300
    target_accept: float = 0.9

    def __check_init__(self) -> None:
        for name in ("draws", "chains", "warmup"):
            require_whole(getattr(self, name), name, "Thermodynamic", ModelError)
        if self.draws % PRIOR_DRAWS or self.draws % (self.chains * BLOCKS) or self.chains < 2:
            raise ModelError(
                f"`draws` and `chains` of Thermodynamic are {self.draws:,} and {self.chains}; give "
                f"a multiple of {PRIOR_DRAWS:,} draws that {BLOCKS} blocks of 2 chains or more "
                "divide, such as 2,000 and 4."
            )
        if not 0.0 < self.target_accept < 1.0:
            raise ModelError(
                f"`target_accept` of Thermodynamic is {self.target_accept!r}; it should be a "
                "probability between 0 and 1."
            )

    def estimate(self, problem: Problem) -> Evidence:
        """The sum over the steps from power to power."""
        require_draws(problem, "vf.inference.Thermodynamic")
        rungs = self._rungs(problem)
        fits = np.stack([rung.fit.reshape(self.chains, BLOCKS, -1) for rung in rungs])
        powers = np.array([rung.power for rung in rungs])
        log_z = _log_z(powers, fits.reshape(len(rungs), -1))
        error = WIDER * max(
            _jackknife(powers, fits.reshape(len(rungs), self.chains * BLOCKS, -1)),
            _jackknife(powers, fits.reshape(len(rungs), self.chains, -1)),
        )
        last, sampled = rungs[-1], rungs[1:]
        divergent = sum(rung.divergent for rung in sampled)
        drawn_in_all = sum(rung.fit.size for rung in rungs)
        return problem.estimated(
            log_z,
            error,
            method=f"thermodynamic integration ({len(sampled)} powers, {drawn_in_all:,} draws)",
            trust=_trust(sampled, error, divergent)
            .but(cut_off(problem.posterior, float(np.mean(is_far_out(last.u)))))
            .given("if chains at every power reach all of its mass"),
            diagnostics={
                "r_hat": worst_r_hat(sampled).r_hat,
                "effective_draws": min(rung.effective for rung in sampled),
            }
            | ({"divergent": float(divergent)} if divergent else {})
            | _learning(problem, rungs),
            cost=Cost(drawn_in_all, sum(rung.gradients for rung in sampled)),
            draws=Samples(
                problem.posterior,
                LEBESGUE,
                last.u.reshape(-1, problem.posterior.dim),
                chains=self.chains,
            ),
        )

    def _rungs(self, problem: Problem) -> list[AtPower]:
        """Draws at each power, from the prior's on."""
        posterior = problem.posterior
        random = generator(problem.key, STREAM_OF_POWERS)
        u, fit = drawn(posterior.bound_model, problem.key, random, self.draws // PRIOR_DRAWS)
        u, fit = u[: self.draws], fit[: self.draws]
        shape = self.chains, self.draws // self.chains
        rungs = [AtPower(0.0, u.reshape(*shape, -1), fit.reshape(shape))]
        settings = ChainSettings(self.chains, self.warmup, shape[1], self.target_accept)
        wbic = temperature_of(observations_of(problem.provenance))
        with waiting("thermodynamic integration", show=True) as phase:
            for number in range(MOST_RUNGS):
                power, last = rungs[-1].power, rungs[-1]
                if power >= 1.0:
                    return rungs
                fit = last.fit.ravel()
                step = highest_power(fit, OVERLAP * np.isfinite(fit).sum())
                reached = min(power + step, 1.0)
                reached = wbic if wbic is not None and power < wbic < reached else reached
                starts, covariance = _moved_on(last, reached - power, random, self.chains)
                key = jax.random.fold_in(problem.key, number)
                rungs.append(at_power(posterior, reached, key, starts, covariance, settings, phase))
        raise ConvergenceError(
            f"`Thermodynamic` came to the power {rungs[-1].power:.3g} of the likelihood in "
            f"{MOST_RUNGS} steps: the likelihood varies too much. Try `vf.Tempered()`."
        )


def _moved_on(
    last: AtPower, step: float, random: np.random.Generator, chains: int
) -> tuple[Float[np.ndarray, "c d"], Float[np.ndarray, "d d"]]:
    """Starts and covariance at the next power: the draws at the last, weighed."""
    u, fit = last.u.reshape(-1, last.u.shape[-1]), last.fit.ravel()
    weights = np.exp(step * (fit - fit.max()))
    weights = weights / weights.sum()
    starts = u[random.choice(len(u), chains, p=weights)]
    covariance = np.atleast_2d(np.cov(u.T, aweights=weights))
    ridge = 1e-6 * np.diag(np.maximum(np.diagonal(covariance), np.finfo(u.dtype).tiny))
    return starts, (covariance + ridge).astype(u.dtype)


def _log_z(powers: Float[np.ndarray, " t"], fits: Float[np.ndarray, "t n"]) -> float:
    """Sum of the log ratios of neighbors, by Bennett's acceptance ratio."""
    pairs = zip(np.diff(powers), fits[:-1], fits[1:], strict=True)
    return math.fsum(_log_ratio(step * lower, step * upper) for step, lower, upper in pairs)


def _log_ratio(lower: Float[np.ndarray, " n"], upper: Float[np.ndarray, " n"]) -> float:
    """Root c of `sum expit(lower - c) = sum expit(c - upper)`, which falls in c."""

    def excess(c: float) -> float:
        return float(expit(lower - c).sum() - expit(c - upper).sum())

    finite = np.concatenate([lower, upper])
    finite = finite[np.isfinite(finite)]
    root: Any = brentq(excess, finite.min() - 40.0, finite.max() + 40.0, xtol=1e-10)
    return float(root)


def _jackknife(powers: Float[np.ndarray, " t"], fits: Float[np.ndarray, "t g n"]) -> float:
    """Standard error of log Z by leaving out each of g groups of draws, at all powers."""
    count = fits.shape[1]
    kept = [_log_z(powers, np.delete(fits, g, 1).reshape(len(powers), -1)) for g in range(count)]
    return math.sqrt((count - 1) * float(np.var(kept)))


def _learning(problem: Problem, rungs: Sequence[AtPower]) -> dict[str, float]:
    """Effective learning coefficients by power, and WBIC."""
    best = max(float(rung.fit.max()) for rung in rungs)
    if problem.given is not None:
        given = np.asarray(problem.given.at.u)[None]
        best = max(best, float(fits_at(problem.posterior.bound_model, given)[0]))
    wbic = temperature_of(observations_of(problem.provenance))
    at_wbic = next((rung.mean for rung in rungs if rung.power == wbic), math.nan)
    found = {} if math.isnan(at_wbic) else {"wbic": at_wbic}
    return found | {
        f"learning coefficient at power {rung.power:.3g}": rung.power * (best - rung.mean)
        for rung in rungs[1:]
    }


def _trust(rungs: Sequence[AtPower], error: float, divergent: int) -> Trust:
    worst = worst_r_hat(rungs)
    text = f"R-hat {worst.r_hat:.3f} of log L at the power {worst.power:.3g}"
    if not worst.r_hat <= R_HAT_LIMIT:
        return Trust(Level.POOR, f"chains have not mixed: {text}")
    effective = min(rung.effective for rung in rungs)
    reservations = [
        *([f"{divergent} divergent transitions"] if divergent else []),
        *([f"only {effective:.0f} effective draws"] if effective < FEW_EFFECTIVE else []),
        *(["the error is large"] if not error < 0.1 else []),
    ]
    if reservations:
        return Trust(Level.FAIR, f"{text}, but {', '.join(reservations)}")
    return Trust(Level.GOOD, f"{text}, {effective:.0f} effective draws or more")

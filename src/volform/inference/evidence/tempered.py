"""Evidence by sequential Monte Carlo from the prior to the posterior."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from volform.checks import require_whole
from volform.compilation import STEADY, Compiled
from volform.errors import ConvergenceError, ModelError
from volform.generators import generator
from volform.inference.evidence.edges import cut_off
from volform.inference.evidence.estimator import Estimator, Problem
from volform.inference.evidence.particles import Round, Run
from volform.inference.laplace.log_evidence import first_order
from volform.limits import RANDOM_WALK_UP_TO
from volform.models.bound_model import BoundModel
from volform.models.posterior import Posterior
from volform.models.prior_draws import PRIOR_DRAWS, highest_power, weighed_draws
from volform.progress import waiting
from volform.results import Cost, Evidence, Level, Regime, Trust

PARTICLE_STREAM = 6  # of the key, which other draws fold other numbers into
LEAPFROGS = 8  # of a trajectory of Hamiltonian Monte Carlo
MORE = 4  # times as many moves, or particles, in the next round
KEPT = 0.5  # effective share of the particles at the next power of the likelihood
MOST_POWERS = 500
# Draws from the prior that have a likelihood at all, and batches of draws until there are so many.
FEWEST_POSSIBLE, MOST_BATCHES = 50, 100
# Spread of log Z between runs above which particles do not know where the mass is: .6 of a
# sinusoid's frequency by 1,000 particles, .1 by 4,000.
SPREAD_LIMIT = 0.3
# Of a known mode that particles did not reach: mass, by Laplace's method, and distance of the
# nearest in standard deviations per root of the dimension, where of thousands some lie within 1.
LEAST_SHARE, FARTHEST = 0.01, 4.0
ERROR_LIMIT = 0.1
FEW_RUNS = 1.4  # quantile of Student's t with 6 degrees of freedom over the normal one, at 1 / 100


class Tempered(Estimator):
    """Sequential Monte Carlo from the prior to the posterior, by powers of the likelihood.

    Particles drawn from the prior are weighed by `L^(b_t - b_(t-1))`, 0 = b_0 < ... < b_T = 1, each
    power the highest that leaves half of them effective, resampled and moved: by random walks up to
    20 parameters, above by Hamiltonian Monte Carlo, scaled by their covariance;
    `log Z = sum_t log mean_i L_i^(b_t - b_(t-1))`. No mode is looked for, so that rings, plateaus,
    boxes and many modes do no harm. The priors have to be proper.

    Runs that agree may be wrong together where particles move too little. So the number of moves is
    multiplied by 4 until two rounds of runs agree within 2 joint errors, and the number of
    particles while the runs of a round do not. The error is the larger of that by the spread of the
    runs and half of the gap between the rounds.

    Attributes:
        particles: particles of a run, a multiple of 1,000: so many are drawn and moved at once.
        runs: independent runs in a round.
        evaluations: of the density or its gradient, after which no further round begins.

    References:
        Del Moral, Doucet & Jasra (2006), sequential Monte Carlo samplers.

    >>> import volform as vf
    >>> vf.Tempered()
    Tempered()
    """

    particles: int = PRIOR_DRAWS
    runs: int = 4
    evaluations: int = 10_000_000

    def __check_init__(self) -> None:
        for name in ("particles", "runs", "evaluations"):
            require_whole(getattr(self, name), name, "Tempered", ModelError)
        if self.particles % PRIOR_DRAWS:
            raise ModelError(
                f"`particles` of Tempered is {self.particles:,}; it should be a multiple of "
                f"{PRIOR_DRAWS:,}, which are drawn and moved at once."
            )
        if self.runs < 2:
            raise ModelError(
                f"`runs` of Tempered is {self.runs}; its error is their spread: give 2 or more."
            )

    def estimate(self, problem: Problem) -> Evidence:
        """The log of the mean evidence of the last round."""
        posterior = problem.posterior
        require_draws(problem, "vf.Tempered")
        batches, moves, used = self.particles // PRIOR_DRAWS, _Moves.of(posterior.dim).first, 0
        rounds: list[Round] = []
        with waiting("tempering", show=True) as phase:
            while not (rounds and (_is_settled(rounds) or used > self.evaluations)):
                runs = []
                for number in range(self.runs):
                    text = f"{moves} moves of {batches * PRIOR_DRAWS:,} particles"
                    phase(text, number, self.runs)
                    random = generator(problem.key, PARTICLE_STREAM, len(rounds), number)
                    runs.append(_run(posterior, problem.key, random, batches, moves))
                used += sum(run.evaluated for run in runs)
                rounds.append(Round(batches, moves, tuple(runs)))
                if _agree(rounds):
                    batches *= MORE
                else:
                    moves *= MORE
        return _concluded(problem, rounds, used)


def _gap(rounds: Sequence[Round]) -> float:
    """Change of log Z in the last round; infinite after one."""
    return abs(rounds[-1].log_z - rounds[-2].log_z) if len(rounds) > 1 else math.inf


def _agree(rounds: Sequence[Round]) -> bool:
    return len(rounds) > 1 and _gap(rounds) <= 2.0 * math.hypot(rounds[-1].error, rounds[-2].error)


def _is_settled(rounds: Sequence[Round]) -> bool:
    is_narrow = rounds[-1].spread < SPREAD_LIMIT and _error(rounds) < ERROR_LIMIT
    return is_narrow and _agree(rounds)


class _Moves(NamedTuple):
    """Kind of moves: how many to begin with, their acceptance, scale, and cost in evaluations."""

    walk: bool
    first: int
    acceptance: float
    scale: float
    evaluations: int

    @classmethod
    def of(cls, dim: int) -> "_Moves":
        """Random walks in few dimensions, with the best scale of a Gaussian, and else HMC."""
        if dim <= RANDOM_WALK_UP_TO:
            return cls(True, 20, 0.234, 2.38 / math.sqrt(dim), 1)
        return cls(False, 4, 0.75, dim**-0.25, LEAPFROGS)


def _run(
    posterior: Posterior, key: PRNGKeyArray, random: np.random.Generator, batches: int, count: int
) -> Run:
    model, moves = posterior.bound_model, _Moves.of(posterior.dim)
    u, fit = drawn(model, key, random, batches)
    log_z, power, scale, used = 0.0, 0.0, moves.scale, len(u)
    for _ in range(MOST_POWERS):
        enough = KEPT * np.isfinite(fit).sum()
        step = min(highest_power(fit, enough), 1.0 - power)
        log_weights = step * fit
        log_z += float(np.logaddexp.reduce(log_weights)) - math.log(len(u))
        power += step
        if power >= 1.0:
            return Run(log_z, u, log_weights - np.logaddexp.reduce(log_weights), used)
        u = u[_resampled(log_weights, batches * PRIOR_DRAWS, random)]
        # Arrays, since numbers of Python would be compiled into the program.
        given = np.asarray(power, u.dtype), u.mean(0), _factor(u), np.asarray(scale, u.dtype)
        parts = [
            _moved(model, key, _number(random), part, *given, np.asarray(count))
            for part in np.split(u, batches)
        ]
        u, fit, accepted = _joined(parts)
        scale *= math.exp(accepted.mean() - moves.acceptance)
        used += count * len(u) * moves.evaluations
    raise ConvergenceError(
        f"`vf.Tempered` came to the power {power:.3g} of the likelihood in {MOST_POWERS} steps: "
        "the particles do not follow it."
    )


def drawn(
    model: BoundModel, key: PRNGKeyArray, random: np.random.Generator, batches: int
) -> tuple[np.ndarray, ...]:
    """Draws from the prior and their log likelihood, more of them while few have any.

    Raises:
        ConvergenceError: when none has one.
    """
    parts = [weighed_draws(model, key, _number(random)) for _ in range(batches)]
    while True:
        u, fit = _joined(parts)
        if np.isfinite(fit).sum() >= FEWEST_POSSIBLE or len(parts) >= MOST_BATCHES:
            break
        parts.append(weighed_draws(model, key, _number(random)))
    if np.isfinite(fit).any():
        return u, fit
    raise ConvergenceError(
        f"None of {len(fit):,} draws from the prior has a finite likelihood: `vf.Tempered` has "
        "nothing to begin with. Do the priors allow the data?"
    )


def _joined(parts: list[tuple[Array, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(list(map(np.atleast_1d, p))) for p in zip(*parts, strict=True))


def _number(random: np.random.Generator) -> Any:
    return np.asarray(random.integers(2**31 - 1), np.int32)


def _resampled(
    log_weights: Float[np.ndarray, " n"], count: int, random: np.random.Generator
) -> Int[np.ndarray, " c"]:
    """Systematic resampling: each particle as often as its share of the weight, to one."""
    cumulative = np.cumsum(np.exp(log_weights - log_weights.max()))
    places = (np.arange(count) + random.uniform()) / count
    return np.searchsorted(cumulative, cumulative[-1] * places)


def _factor(u: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
    covariance = np.atleast_2d(np.cov(u.T))
    spread = np.maximum(np.diagonal(covariance), np.finfo(u.dtype).tiny)
    return np.linalg.cholesky(covariance + 1e-6 * np.diag(spread))


def _move(
    model: BoundModel,
    key: PRNGKeyArray,
    number: Int[Array, ""],
    u: Float[Array, "n d"],
    power: Float[Array, ""],
    center: Float[Array, " d"],
    factor: Float[Array, "d d"],
    scale: Float[Array, ""],
    count: Int[Array, ""],
) -> tuple[Array, Array, Array]:
    """Particles after `count` moves each, their log likelihood, and their mean acceptance."""
    from blackjax.mcmc import hmc, random_walk  # noqa: PLC0415 - half a second, that few need

    dim, walks = u.shape[1], _Moves.of(u.shape[1]).walk

    def place(z: Float[Array, " d"]) -> Float[Array, " d"]:
        return center + factor @ z

    def density(z: Float[Array, " d"]) -> Float[Array, ""]:
        prior, fit = model.log_prior_and_likelihood(place(z))
        value = prior + power * fit
        return jnp.where(jnp.isfinite(value), value, -jnp.inf)

    def walk(key: PRNGKeyArray, state: Any) -> tuple[Any, Any]:
        noise = random_walk.normal(scale * jnp.ones(dim))
        return random_walk.build_additive_step()(key, state, density, noise)

    def trajectory(key: PRNGKeyArray, state: Any) -> tuple[Any, Any]:
        step: Any = scale
        return hmc.build_kernel()(key, state, density, step, jnp.ones(dim), LEAPFROGS)

    kernel, init = (walk, random_walk.init) if walks else (trajectory, hmc.init)

    def chain(key: PRNGKeyArray, z: Float[Array, " d"]) -> tuple[Array, Array, Array]:
        def move(i: Int[Array, ""], carry: tuple[Any, Array]) -> tuple[Any, Array]:
            state, accepted = carry
            state, info = kernel(jax.random.fold_in(key, i), state)
            return state, accepted + info.acceptance_rate

        start = init(z, density), jnp.zeros((), z.dtype)
        state, accepted = jax.lax.fori_loop(0, count, move, start)
        at = place(state.position)
        fit = model.log_likelihood(at)
        return at, jnp.where(jnp.isfinite(fit), fit, -jnp.inf), accepted / count.astype(z.dtype)

    z = jax.scipy.linalg.solve_triangular(factor, (u - center).T, lower=True).T
    keys = jax.random.split(jax.random.fold_in(key, number), len(u))
    at, fit, accepted = jax.vmap(chain)(keys, z)
    return at, fit, jnp.mean(accepted)


_moved = Compiled(_move, STEADY)  # which millions of evaluations repay


def require_draws(problem: Problem, estimator: str) -> None:
    """Refuse priors that cannot be drawn from, in the name of an estimator.

    Raises:
        ModelError: a prior that is improper, or that has no sampler.
    """
    posterior = problem.posterior
    sites = sorted({*problem.provenance.improper, *_without_sampler(posterior)})
    if sites:
        raise ModelError(
            f"`{estimator}` begins with draws from the prior, and the sites {sites} have no proper "
            "prior that can be drawn from; use `vf.Importance()` or `vf.Bridge()`."
        )


def _without_sampler(posterior: Posterior) -> list[str]:
    missing: list[str] = []

    def draw(key: PRNGKeyArray, u: Float[Array, " d"]) -> None:
        trace = posterior.bound_model.trace(u)
        for name in posterior.names:
            try:
                trace[name]["fn"].sample(key)
            except NotImplementedError:
                missing.append(name)

    jax.eval_shape(draw, jax.random.key(0), posterior.layout.point)
    return missing


def _concluded(problem: Problem, rounds: Sequence[Round], used: int) -> Evidence:
    last, moves = rounds[-1], _Moves.of(problem.posterior.dim)
    error = _error(rounds)
    count = last.batches * PRIOR_DRAWS
    cost = Cost(densities=used) if moves.walk else Cost(gradients=used)
    hamiltonian = (Regime("tempering by Hamiltonian Monte Carlo", RANDOM_WALK_UP_TO),)
    return problem.estimated(
        last.log_z,
        error,
        method=f"tempering ({count:,} particles)",
        trust=(_unreached(problem, last) or _trust(rounds))
        .but(cut_off(problem.posterior, last.cut))
        .given(f"if no region of less than 1/{count:,} of the prior's mass matters"),
        diagnostics={"spread": last.spread, "moves": float(last.moves)}
        | ({"gap": _gap(rounds)} if len(rounds) > 1 else {}),
        cost=cost,
        regimes=() if moves.walk else hamiltonian,
        draws=last.draws(problem.posterior),
    )


def _error(rounds: Sequence[Round]) -> float:
    """The error by the spread of the last two rounds, and by half of the gap between them.

    Four runs are close together by chance once in a while: of 39 estimates one was off by 5 errors
    by the last round alone. So the spread is that of eight, times what makes 3 errors as rare for 6
    degrees of freedom as for many.
    """
    last = rounds[-1]
    if len(rounds) < 2:
        return last.spread
    pooled = math.hypot(last.spread, rounds[-2].spread) / math.sqrt(2.0)
    return max(FEW_RUNS * pooled / math.sqrt(len(last.values)), 0.5 * _gap(rounds))


def _unreached(problem: Problem, last: Round) -> Trust | None:
    """The verdict where a mode that a search found holds mass, and has no particle near it."""
    u = np.concatenate([run.u for run in last.runs])
    for mode in problem.modes_so_far:
        log_z = float(first_order(mode, mode.log_det + 2.0 * mode.log_volume))
        share = math.exp(min(log_z - last.log_z, 0.0))
        z = (u - np.asarray(mode.u)) @ np.linalg.cholesky(np.asarray(mode.hessian))
        nearest = float(np.sqrt((z**2).sum(1).min() / u.shape[1]))
        if share > LEAST_SHARE and nearest > FARTHEST:
            return Trust(
                Level.POOR,
                f"a mode that the search found, with at least {share:.0%} of the mass that "
                f"particles saw, has none of them within {nearest:.0f} standard deviations",
            )
    return None


def _trust(rounds: Sequence[Round]) -> Trust:
    last = rounds[-1]
    text = f"runs spread by {last.spread:.2g}"
    if len(rounds) < 2:
        return Trust(Level.POOR, f"{text}; one round does not show whether particles move enough")
    text = f"{text}, {MORE} times the work changed log Z by {_gap(rounds):.2g}"
    if not last.spread < 1.0:
        return Trust(Level.POOR, f"{text}: the particles do not know where the mass is")
    if _is_settled(rounds):
        return Trust(Level.GOOD, text)
    return Trust(Level.FAIR, f"{text}: it has not settled")

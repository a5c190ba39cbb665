"""Particles of sequential Monte Carlo, run by run."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from volform.inference.evidence.edges import is_far_out
from volform.inference.laplace.gaussian_chart import LEBESGUE
from volform.inference.laplace.samples import Samples
from volform.models.posterior import Posterior


class Run(NamedTuple):
    """One run from the prior to the posterior.

    Attributes:
        log_z: log evidence.
        u: the particles before the last weighing, shape (n, d).
        log_shares: log weights of these, which sum to one, shape (n,).
        evaluated: evaluations of the density or its gradient.
    """

    log_z: float
    u: Float[np.ndarray, "n d"]
    log_shares: Float[np.ndarray, " n"]
    evaluated: int

    @property
    def cut(self) -> float:
        """Share of the mass where the chart of a bounded site may be cut off."""
        return float(np.exp(self.log_shares) @ is_far_out(self.u))


class Round(NamedTuple):
    """Runs of equal numbers of particles and of moves.

    Attributes:
        batches: particles of a run, in batches.
        moves: moves of a particle at each power.
        runs: the runs.
    """

    batches: int
    moves: int
    runs: tuple[Run, ...]

    @property
    def values(self) -> Float[np.ndarray, " r"]:
        """Log evidence of each run."""
        return np.array([run.log_z for run in self.runs])

    @property
    def cut(self) -> float:
        """Mean share of the mass where the chart of a bounded site may be cut off."""
        return float(np.mean([run.cut for run in self.runs]))

    def draws(self, posterior: Posterior) -> Samples:
        """The particles, each run with the weight of its evidence."""
        log_weights = np.concatenate([run.log_z + run.log_shares for run in self.runs])
        return Samples(
            posterior,
            LEBESGUE,
            np.concatenate([run.u for run in self.runs]),
            chains=len(self.runs) if len({len(run.u) for run in self.runs}) == 1 else 1,
            log_weights=log_weights - np.logaddexp.reduce(log_weights),
        )

    @property
    def log_z(self) -> float:
        """Log of the mean evidence, which is unbiased."""
        return float(np.logaddexp.reduce(self.values) - math.log(len(self.values)))

    @property
    def spread(self) -> float:
        """Standard deviation of log Z between the runs."""
        return float(self.values.std(ddof=1))

    @property
    def error(self) -> float:
        """Standard error of log Z, by the spread."""
        return self.spread / math.sqrt(len(self.values))

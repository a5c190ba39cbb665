"""Entries of a survey: architectures at a width, in a parametrization."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from volform.architectures.architecture import Architecture
from volform.kernels.cross_validation import Score
from volform.networks.parametrization import Parametrization
from volform.results import Evidence, Level


class Candidate(NamedTuple):
    """An architecture of a survey, with its hyperparameters.

    Attributes:
        activation: its name.
        architecture: depth, activation, `w_std` and `b_std`.
        noise: standard deviation of the observations.
    """

    activation: str
    architecture: Architecture
    noise: float

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        return self.architecture.depth

    def __str__(self) -> str:
        return f"{self.activation}, depth {self.depth}"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One architecture at one width in one parametrization.

    Attributes:
        candidate: activation, depth and hyperparameters.
        parametrization: coordinates, prior and metric.
        width: number of units of each hidden layer; `math.inf` for the limit.
        evidence: exact at infinite width, else with the last layer exact; None where the prior has
            no limit.
        laplace: by Laplace's method with `GGN()` at the best stationary point of the network that
            was found; None at infinite width, where it was not asked for, or would not fit.
        nngp: held-out error of the Bayesian posterior, at infinite width.
        ntk: held-out error after training, by the tangent kernel at this width; at infinite width
            only if there is a limit, at finite ones only if there is none.
        growth: exponents by which the layers' parts of the tangent kernel grow with the width.
    """

    candidate: Candidate
    parametrization: Parametrization
    width: float
    evidence: Evidence | None
    laplace: Evidence | None
    nngp: Score | None
    ntk: Score | None
    growth: tuple[float, ...]

    @property
    def record(self) -> dict[str, Any]:
        """The numbers of the entry by name, None where there is none."""
        found, candidate = self.evidence, self.candidate
        by_laplace, nngp, ntk = self.laplace, self.nngp, self.ntk
        return {
            "activation": self.candidate.activation,
            "depth": self.candidate.depth,
            "parametrization": type(self.parametrization).__name__,
            "width": self.width,
            "log_z": None if found is None else float(found.log_z),
            "error": None if found is None else float(found.error),
            "trust": None if found is None else found.trust.level.value,
            "laplace": None if by_laplace is None else float(by_laplace.log_z),
            "laplace_trust": None if by_laplace is None else by_laplace.trust.level.value,
            "nngp_rmse": None if nngp is None else nngp.rmse,
            "nngp_log_density": None if nngp is None else nngp.log_density,
            "ntk_rmse": None if ntk is None else ntk.rmse,
            "ntk_log_density": None if ntk is None else ntk.log_density,
            "ntk_growth": self.growth,
            "w_std": candidate.architecture.w_std,
            "b_std": candidate.architecture.b_std,
            "noise": candidate.noise,
        }

    @property
    def cells(self) -> dict[str, str]:
        """The entry as a reader sees it: a text for each column's title."""
        record = self.record
        log_z, error = _number(record["log_z"], 2), record["error"]
        return {
            "activation": self.candidate.activation,
            "depth": str(self.candidate.depth),
            "param.": record["parametrization"],
            "width": "inf" if math.isinf(self.width) else str(self.width),
            "log Z": f"{log_z} ± {error:.2f}" if error else log_z,
            "trust": record["trust"] or "–",
            "Laplace": _judged(record["laplace"], record["laplace_trust"]),
            "NNGP RMSE": _number(record["nngp_rmse"], 4),
            "NNGP lpd": _number(record["nngp_log_density"], 4),
            "NTK RMSE": _number(record["ntk_rmse"], 4),
            "NTK growth": " ".join(f"{exponent + 0.0:.0f}" for exponent in np.round(self.growth)),
        }


def rank(entry: Entry) -> tuple[int, float]:
    """Place of an entry: 0, 1 or 2 for trusted, poor and no evidence, then by the evidence."""
    found = entry.evidence
    if found is None:
        return 2, 0.0
    return int(found.trust.level is Level.POOR), -float(found.log_z)


def _judged(value: float | None, trust: str | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.2f} ({trust})"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"

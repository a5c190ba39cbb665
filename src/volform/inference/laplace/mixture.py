"""Proposals in the tangent space at the modes: mixtures of Gaussians or Student t."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special
from jaxtyping import Float

from volform.inference.laplace.gaussian_chart import GaussianChart
from volform.inference.laplace.log_evidence import log_evidence
from volform.inference.modes.expansion import SecondOrder
from volform.linalg.generalized import cholesky_or_nan, solve_lower
from volform.models.posterior import Posterior


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A mixture in the coordinates w of a chart, one component at each mode.

    Its arithmetic is NumPy's: of ten thousand draws it takes milliseconds, and nothing is compiled.

    Attributes:
        chart: the coordinates.
        centers: the modes, shape (m, d).
        factors: lower triangular L with L L^T = H^-1 in w, shape (m, d, d).
        log_weights: log weights of the components, shape (m,).
        df: degrees of freedom of Student's t; infinite for Gaussians.
    """

    chart: GaussianChart
    centers: Float[np.ndarray, "m d"]
    factors: Float[np.ndarray, "m d d"]
    log_weights: Float[np.ndarray, " m"]
    df: float

    def sample(self, random: np.random.Generator, draws: int) -> Float[np.ndarray, "n d"]:
        """Draws in w."""
        d = self.centers.shape[1]
        shares = scipy.special.softmax(self.log_weights)
        chosen = random.choice(len(shares), size=draws, p=shares)
        z = random.standard_normal((draws, d))
        if not math.isinf(self.df):
            z *= np.sqrt(self.df / random.chisquare(self.df, draws))[:, None]
        w = np.empty_like(z)
        for m, (center, factor) in enumerate(zip(self.centers, self.factors, strict=True)):
            w[chosen == m] = center + z[chosen == m] @ factor.T
        return w

    def log_prob(self, w: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Log density at each w with respect to Lebesgue measure in w."""
        return np.logaddexp.reduce(self.log_shares(w), axis=1)

    def log_shares(self, w: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n m"]:
        """Log density of each component at each w, times its weight."""
        d = w.shape[1]
        squares = np.stack([(self.standardized(w, m) ** 2).sum(1) for m in range(len(self))], 1)
        if math.isinf(self.df):
            standard = -0.5 * squares - 0.5 * d * math.log(2.0 * math.pi)
        else:
            half = 0.5 * (self.df + d)
            constant = math.lgamma(half) - math.lgamma(0.5 * self.df)
            constant -= 0.5 * d * math.log(self.df * math.pi)
            standard = constant - half * np.log1p(squares / self.df)
        log_det = np.sum(np.log(np.diagonal(self.factors, axis1=1, axis2=2)), axis=1)
        return scipy.special.log_softmax(self.log_weights) + standard - log_det

    def standardized(self, w: Float[np.ndarray, "n d"], m: int) -> Float[np.ndarray, "n d"]:
        """The points in units of one component, `L^-1 (w - center)`."""
        return solve_lower(self.factors[m], (w - self.centers[m]).T).T

    def __len__(self) -> int:
        return len(self.centers)


def proposal_at(
    posterior: Posterior, chart: GaussianChart, modes: Sequence[SecondOrder], df: float
) -> Proposal:
    """The mixture with one component for each expansion, of covariance H^-1 (for t, scale).

    Components have the weights of the modes' Laplace evidences.
    """
    centers, factors = [], []
    for at in modes:
        center, push = chart.pushed(posterior, at.u)
        # L from the QR factors of W^T: no product W W^T loses half of the digits.
        upper: Any = np.linalg.qr((push @ np.asarray(at.whitener, float)).T, mode="r")
        centers.append(center)
        factors.append(upper.T * np.sign(np.diagonal(upper)))
    weights = np.array([log_evidence(at) for at in modes])
    return Proposal(chart, np.stack(centers), np.stack(factors), weights, df)


def adapted(
    proposal: Proposal, w: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"]
) -> Proposal:
    """One step of EM of the mixture toward weighted draws.

    The covariance is shrunk toward the one before by what the effective number of draws of each
    component leaves undecided: as a Wishart prior of as many draws as it has free numbers, and the
    mean has. With d + 2 of them, which a covariance needs to exist, importance sampling in 40 and
    more dimensions was off by its proposal's noise.

    Args:
        proposal: the mixture.
        w: draws, shape (n, d).
        weights: theirs, which each component takes its share of; they sum to one.

    References:
        Cappe, Douc, Guillin, Marin & Robert (2008), adaptive importance sampling in general
        mixture classes, sections 3.2 and 4.
    """
    d = w.shape[1]
    undecided = 0.5 * d * (d + 3)
    shares = weights[:, None] * scipy.special.softmax(proposal.log_shares(w), axis=1)
    centers, factors = [], []
    for m, (center, factor) in enumerate(zip(proposal.centers, proposal.factors, strict=True)):
        z, share = proposal.standardized(w, m), shares[:, m]
        # Student t is a scale mixture of Gaussians: far draws count for less.
        pull = 1.0 if math.isinf(proposal.df) else (proposal.df + d) / (proposal.df + (z**2).sum(1))
        pulled = share * pull
        with np.errstate(divide="ignore", invalid="ignore"):  # of a component without a draw
            mean = pulled @ z / pulled.sum()
            scatter = (z.T @ (pulled[:, None] * z) - np.outer(pulled @ z, mean)) / share.sum()
            kept = undecided / (share.sum() ** 2 / (share**2).sum() + undecided)
        scale = (1.0 - kept) * scatter + kept * np.eye(d)
        centers.append(center + factor @ mean)
        factors.append(factor @ cholesky_or_nan(scale))
    log_shares = np.log(shares.sum(0) + 1e-3 / len(proposal))
    return dataclasses.replace(
        proposal, centers=np.stack(centers), factors=np.stack(factors), log_weights=log_shares
    )

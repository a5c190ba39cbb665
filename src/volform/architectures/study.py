"""The work of a survey on one architecture."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.architectures.architecture import Architecture
from volform.architectures.entry import Candidate, Entry
from volform.architectures.finite_width import finite_evidence
from volform.architectures.learning import learn
from volform.architectures.width_scaling import ntk_growth
from volform.inference.laplace.approximation import laplace
from volform.inference.laplace.curvatures import GGN
from volform.inference.laplace.woodbury import is_few
from volform.kernels.cross_validation import Score, held_out
from volform.kernels.gaussian_process import evidence, predict
from volform.kernels.gradient_flow import predict_trained
from volform.linalg.operator import fits
from volform.models.posterior import condition
from volform.networks.likelihoods import regression
from volform.networks.parametrization import NTP, Parametrization
from volform.results import Evidence

WIDE = 1000  # a width at which priors are told apart for all widths


class Studied(NamedTuple):
    """Entries of one architecture, and notes that a reader must know of single ones."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """The work on one architecture, which needs nothing else and can be sent elsewhere.

    Attributes:
        start: the architecture with its hyperparameters, where the search for them begins.
        learned: whether they are learned.
        x: examples.
        y: targets.
        widths: numbers of units; `math.inf` for the limit.
        scalings: parametrizations.
        key: of draws, folds and searches.
        draws: number of draws of hidden layers.
        folds: number of folds of held-out rows.
        by_laplace: whether Laplace's method is put beside.
    """

    start: Candidate
    learned: bool
    x: Float[Array, "n features"]
    y: Float[Array, " n"]
    widths: Sequence[float]
    scalings: Sequence[Parametrization]
    key: PRNGKeyArray
    draws: int
    folds: int
    by_laplace: bool

    def run(self, told: Callable[[int], None] = lambda done: None) -> Studied:
        """Every width and parametrization of the architecture.

        Args:
            told: called with the number of entries after each.

        Raises:
            ConvergenceError: when its evidence has no maximum in the hyperparameters.
        """
        found, notes = [], list[str]()
        for entry in self._entries(self._candidate(), notes):
            found.append(entry)
            told(len(found))
        return Studied(tuple(found), tuple(notes))

    def _candidate(self) -> Candidate:
        """With the values of greatest evidence, if they are to be learned."""
        if not self.learned:
            return self.start
        name, start, noise = self.start
        found = learn(start.at, start.values, self.x, self.y, noise=noise)
        return Candidate(name, start.replace(found.values), found.noise)

    def _entries(self, candidate: Candidate, notes: list[str]) -> Iterator[Entry]:
        _, architecture, noise = candidate
        growth = [ntk_growth(architecture, self.x, parametrization=p) for p in self.scalings]
        bayes = self._score(partial(predict, architecture.layers()), noise)
        for width in self.widths:
            known: list[tuple[np.ndarray, tuple[Evidence | None, Evidence | None]]] = []
            for scaling, exponents in zip(self.scalings, growth, strict=True):
                law = self._law(architecture, width, scaling)
                same = [found for other, found in known if np.allclose(law, other, rtol=1e-10)]
                found = same[0] if same else self._evidences(candidate, width, scaling, notes)
                known.append((law, found))
                trained = None
                has_limit = max(map(abs, exponents)) < 1e-3
                if has_limit == math.isinf(width):
                    net = architecture.layers(1 if has_limit else int(width))
                    train = partial(predict_trained, net, parametrization=scaling)
                    trained = self._score(train, noise)
                is_process = math.isinf(width) and found[0] is not None
                nngp = bayes if is_process else None
                yield Entry(candidate, scaling, width, *found, nngp, trained, exponents)

    def _score(self, predictor: Any, noise: float) -> Score:
        return held_out(
            partial(predictor, noise=noise),
            self.x,
            self.y,
            noise=noise,
            folds=self.folds,
            key=self.key,
        )

    def _law(
        self, architecture: Architecture, width: float, scaling: Parametrization
    ) -> Float[np.ndarray, " parameters"]:
        """Standard deviations of weights and biases, which are all that the prior sees."""
        units = WIDE if math.isinf(width) else int(width)
        parameters = architecture.network(units, scaling).parameters(self.x.shape[1])
        return np.array([float(p.scaling.weight_deviation) for p in parameters])

    def _evidences(
        self, candidate: Candidate, width: float, scaling: Parametrization, notes: list[str]
    ) -> tuple[Evidence | None, Evidence | None]:
        """The evidence, and that by Laplace's method."""
        _, architecture, noise = candidate
        if math.isinf(width):
            if not np.allclose(
                self._law(architecture, width, scaling), self._law(architecture, width, NTP())
            ):
                return None, None
            return evidence(architecture.layers(), self.x, self.y, noise=noise), None
        network = architecture.network(int(width), scaling)
        found = finite_evidence(
            network, self.x, self.y, noise=noise, key=self.key, draws=self.draws
        )
        if not self.by_laplace:
            return found, None
        name = f"{candidate}, {type(scaling).__name__}, width {width}"
        rows = self.y.size if is_few(self.y.size, found.dim) else found.dim
        if not fits(rows, found.dim, self.x.dtype):
            notes.append(f"{name}: no Laplace evidence, it would take too much memory")
            return found, None
        posterior = condition(regression(network, noise), self.x, self.y[:, None])
        approx = laplace(posterior, key=self.key, curvature=GGN(), refuse=False, progress=False)
        return found, approx.evidence

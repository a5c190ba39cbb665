"""Survey of architectures: evidence at all widths, predictions, growth of the kernel."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from volform.architectures.architecture import Architecture
from volform.architectures.checks import require_choices, require_settings
from volform.architectures.finite_width import finite_evidence
from volform.architectures.learning import learn
from volform.architectures.width_scaling import ntk_growth
from volform.checks import key_of
from volform.errors import ConvergenceError, KernelError
from volform.inference.evidence.comparison import Comparison, compare
from volform.inference.laplace.approximation import laplace
from volform.inference.laplace.curvatures import GGN
from volform.inference.laplace.woodbury import is_few
from volform.kernels.cross_validation import Score, held_out
from volform.kernels.gaussian_process import evidence, predict
from volform.kernels.gradient_flow import predict_trained
from volform.linalg.operator import fits
from volform.models.posterior import condition
from volform.networks.activations import Activation, Erf, Relu
from volform.networks.likelihoods import regression
from volform.networks.parametrization import NTP, SP, MuP, Parametrization
from volform.progress import waiting
from volform.results import Evidence, Level, text_table

WIDE = 1000  # a width at which priors are told apart for all widths


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


@dataclasses.dataclass(frozen=True)
class Survey:
    """Architectures by the evidence of one set of data; built by `survey`.

    Attributes:
        entries: the greatest evidence first, then those whose evidence cannot be trusted, then
            those without one.
        notes: what a reader must know of single entries.
    """

    entries: tuple[Entry, ...]
    notes: tuple[str, ...]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The architectures, each once, by name."""
        return tuple(
            sorted({str(e.candidate): e.candidate for e in self.entries}.values(), key=str)
        )

    @cached_property
    def comparison(self) -> Comparison:
        """All evidences ranked by `vf.compare`; parametrizations of one prior are one model."""
        found: dict[int, tuple[list[str], Entry]] = {}
        for entry in self.entries:
            if entry.evidence is not None:
                names, _ = found.setdefault(id(entry.evidence), ([], entry))
                names.append(type(entry.parametrization).__name__)
        models = {}
        for names, entry in found.values():
            name = f"{entry.candidate}, width {entry.cells['width']}, {' = '.join(names)}"
            models[name] = entry.evidence
        return compare(models)

    def __repr__(self) -> str:
        cells = [entry.cells for entry in self.entries]
        table = [list(cells[0]), *(list(row.values()) for row in cells)]
        return "\n".join([*text_table(table), *self.summary()])

    def summary(self) -> list[str]:
        """Findings of the table, in sentences."""
        lines = []
        for candidate in self.candidates:
            _, architecture, noise = candidate
            b_std = architecture.b_std
            biases = "no biases" if b_std is None else f"b_std {b_std:.4g}"
            lines.append(
                f"{candidate}: w_std {architecture.w_std:.4g}, {biases}, noise {noise:.4g}"
            )
        return [*lines, *self.notes]


def survey(
    x: Float[Array, "n features"],
    y: Float[Array, " n"],
    *,
    activations: Mapping[str, Activation] | None = None,
    depths: Sequence[int] = (1, 2),
    widths: Sequence[float] = (64, 256, math.inf),
    parametrizations: Sequence[Parametrization] = (SP(), NTP(), MuP()),
    w_std: float = 1.4,
    b_std: float | None = 0.3,
    noise: float = 0.5,
    learned: bool = True,
    by_laplace: bool = True,
    draws: int = 500,
    folds: int = 5,
    key: PRNGKeyArray | None = None,
    progress: bool = True,
) -> Survey:
    """Compare dense architectures by their evidence, at finite and at infinite width.

    For each depth and activation: the exact evidence of the infinitely wide network, `evidence`;
    that of finite widths, `finite_evidence`; held-out errors of both kernels, `held_out`; and the
    growth of the tangent kernel in each layer, `ntk_growth`. Parametrizations with one prior,
    such as `SP` and `NTP`, are one model and have one evidence, which is computed once.

    Args:
        x: examples, shape (n, features).
        y: targets, shape (n,).
        activations: by name; `{"relu": Relu(), "erf": Erf()}` by default.
        depths: numbers of hidden layers.
        widths: numbers of units of each hidden layer; `math.inf` for the limit.
        parametrizations: as values.
        w_std: standard deviation of the weights times `sqrt(fan_in)`.
        b_std: standard deviation of the biases; None for none.
        noise: standard deviation of the observations.
        learned: whether these three are where the search for the greatest evidence of each
            infinitely wide network begins, `learn`, and not its values.
        by_laplace: whether Laplace's method is put beside, at each finite width: seconds for a
            network of some thousand parameters, a minute for 10^5.
        draws: number of draws of hidden layers.
        folds: number of folds of held-out rows.
        key: key of draws, folds and searches; `jax.random.key(0)` by default.
        progress: whether to show a line of what is done, in a terminal or a notebook.

    Returns:
        A `Survey`; print it, or take `entries`, `comparison`, `notes`.

    Raises:
        DataError: when data are empty, not finite, of integers or of the wrong shape.
        KernelError: when there is no activation, depth, width or parametrization, a width is no
            positive integer, `folds` or `draws` cannot be, or as for `evidence`.
        NetworkError: when a depth, activation or standard deviation is none.
        ConvergenceError: when no architecture's evidence reached a maximum; those whose evidence
            did not are left out, and named in `notes`.

    >>> import math
    >>> import jax.numpy as jnp
    >>> import volform as vf
    >>> from volform import kernels as k, networks as nn
    >>> x = jnp.linspace(-2.0, 2.0, 10)[:, None]
    >>> survey = vf.architectures.survey(
    ...     x, x[:, 0] ** 2, depths=(1,), widths=(math.inf,), parametrizations=(nn.NTP(),),
    ...     learned=False,
    ... )
    >>> print(*(entry.candidate for entry in survey.entries), sep="; ")
    relu, depth 1; erf, depth 1
    """
    activations = {"relu": Relu(), "erf": Erf()} if activations is None else activations
    chosen = {
        "activations": activations,
        "depths": depths,
        "widths": widths,
        "parametrizations": parametrizations,
    }
    require_choices(chosen, widths)
    starts = {
        (name, depth): Architecture(depth, activations[name], w_std, b_std)
        for name in activations
        for depth in depths
    }
    require_settings(widths, noise, len(x), draws, folds)
    key = key_of(key, "survey", KernelError)
    study = _Study(jnp.asarray(x), jnp.asarray(y), key, draws, folds, by_laplace, [])
    found: list[Entry] = []
    failed: ConvergenceError | None = None
    each = len(widths) * len(parametrizations)
    with waiting("survey", progress) as phase:
        for number, ((name, depth), start) in enumerate(starts.items()):
            title = f"{name}, depth {depth}"
            phase(title, number * each, len(starts) * each)
            try:
                candidate = _candidate(name, start, noise, (x, y) if learned else None)
            except ConvergenceError as error:
                failed = error
                study.notes.append(f"{title}: left out. {error}")
                continue
            entries = study.entries(candidate, widths, parametrizations)
            for done, entry in enumerate(entries, number * each + 1):
                found.append(entry)
                phase(title, done, len(starts) * each)
    if failed is not None and not found:
        raise failed
    found.sort(key=rank)
    return Survey(tuple(found), tuple(study.notes))


def _candidate(name: str, start: Architecture, noise: Any, data: Any) -> Candidate:
    """With the values of greatest evidence of the data; with those given, if None."""
    if data is None:
        return Candidate(name, start, noise)
    found = learn(start.at, start.values, *data, noise=noise)
    return Candidate(name, start.replace(found.values), found.noise)


@dataclasses.dataclass(frozen=True)
class _Study:
    """Data and settings that the entries of a survey share."""

    x: Float[Array, "n features"]
    y: Float[Array, " n"]
    key: PRNGKeyArray
    draws: int
    folds: int
    by_laplace: bool
    notes: list[str]

    def entries(
        self, candidate: Candidate, widths: Sequence[float], scalings: Sequence[Parametrization]
    ) -> Iterator[Entry]:
        """Every width and parametrization of one architecture."""
        _, architecture, noise = candidate
        growth = [ntk_growth(architecture, self.x, parametrization=p) for p in scalings]
        bayes = self._score(partial(predict, architecture.layers()), noise)
        for width in widths:
            known: list[tuple[np.ndarray, tuple[Evidence | None, Evidence | None]]] = []
            for scaling, exponents in zip(scalings, growth, strict=True):
                law = self._law(architecture, width, scaling)
                same = [found for other, found in known if np.allclose(law, other, rtol=1e-10)]
                found = same[0] if same else self._evidences(candidate, width, scaling)
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
        self, candidate: Candidate, width: float, scaling: Parametrization
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
            self.notes.append(f"{name}: no Laplace evidence, it would take too much memory")
            return found, None
        posterior = condition(regression(network, noise), self.x, self.y[:, None])
        approx = laplace(posterior, key=self.key, curvature=GGN(), refuse=False, progress=False)
        return found, approx.evidence


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

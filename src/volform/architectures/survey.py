"""Survey of architectures: evidence at all widths, predictions, growth of the kernel."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import cached_property, partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from volform.architectures.architecture import Architecture
from volform.architectures.checks import require_choices, require_settings
from volform.architectures.entry import Candidate, Entry, rank
from volform.architectures.study import Studied, Study
from volform.checks import key_of
from volform.errors import ConvergenceError, KernelError
from volform.inference.evidence.comparison import Comparison, compare
from volform.inference.evidence.executing import by_executor, require_executor
from volform.networks.activations import Activation, Erf, Relu
from volform.networks.parametrization import NTP, SP, MuP, Parametrization
from volform.progress import Phase, waiting
from volform.results import html_table, text_table


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

    def to_dataframe(self) -> Any:
        """A pandas DataFrame, one row for each architecture, width and parametrization."""
        import pandas as pd  # noqa: PLC0415 - comes with arviz, and takes long to import

        return pd.DataFrame([entry.record for entry in self.entries])

    def __repr__(self) -> str:
        return "\n".join([*text_table(self._rows()), *self.summary()])

    def _repr_html_(self) -> str:
        return html_table(self._rows(), self.summary())

    def _rows(self) -> list[list[str]]:
        cells = [entry.cells for entry in self.entries]
        return [list(cells[0]), *(list(row.values()) for row in cells)]

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
    executor: Executor | None = None,
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
        executor: where the architectures are studied, one task for each depth and activation:
            `ProcessPoolExecutor()` of `concurrent.futures`, dask's `client.get_executor()`,
            mpi4py's `MPIPoolExecutor()`. The numbers are the same. An architecture that fails
            there is left out, and named in `notes`.

    Returns:
        A `Survey`; print it, or take `entries`, `comparison`, `notes`.

    Raises:
        DataError: when data are empty, not finite, of integers or of the wrong shape.
        KernelError: when there is no activation, depth, width or parametrization, a width is no
            positive integer, `folds`, `draws` or `executor` cannot be, or as for `evidence`.
        ModelError: an architecture that cannot be sent to another process.
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
    starts = [
        Candidate(name, Architecture(depth, activations[name], w_std, b_std), noise)
        for name in activations
        for depth in depths
    ]
    require_executor(executor, "survey", KernelError)
    require_settings(widths, noise, len(x), draws, folds)
    data, key = (jnp.asarray(x), jnp.asarray(y)), key_of(key, "survey", KernelError)
    settings = widths, parametrizations, key, draws, folds, by_laplace
    studies = {str(start): Study(start, learned, *data, *settings) for start in starts}
    with waiting("survey", progress) as phase:
        if executor is None:
            outcomes = dict(_in_turn(studies, phase))
        else:
            outcomes = dict(by_executor(executor, studies, phase, "architecture {!r} of survey"))
    found, notes, failures = list[Entry](), list[str](), list[Exception]()
    for title in studies:
        outcome = outcomes[title]
        if isinstance(outcome, Exception):
            failures.append(outcome)
            notes.append(f"{title}: left out. {outcome}")
        else:
            found += outcome.entries
            notes += outcome.notes
    if failures and not found:
        raise failures[0]
    found.sort(key=rank)
    return Survey(tuple(found), tuple(notes))


def _in_turn(
    studies: Mapping[str, Study], phase: Phase
) -> Iterator[tuple[str, Studied | ConvergenceError]]:
    """Results of every study in this process and order, or that an evidence has no maximum."""
    for number, (title, study) in enumerate(studies.items()):
        each = len(study.widths) * len(study.scalings)
        told = partial(_tell, phase, title, number * each, len(studies) * each)
        told(0)
        try:
            yield title, study.run(told)
        except ConvergenceError as error:
            yield title, error


def _tell(phase: Phase, title: str, before: int, of: int, done: int) -> None:
    phase(title, before + done, of)

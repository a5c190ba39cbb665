"""Estimators of the log evidence on eight models, each by its error in nats.

NumPyro's AutoLaplace, Laplace's method of first and second order under four metrics, importance
sampling and bridge sampling, against the exact log evidence or the best that can be had.

    python examples/evidence_study.py --out study-out
"""

import argparse
import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import study_models as models
from peers import auto_laplace
from rich.console import Console
from rich.progress import track
from rich.table import Table

import volform as vf
from volform.errors import ConvergenceError, SingularMetricError, TrustWarning, VolformError

jax.config.update("jax_enable_x64", True)
# Compiling is nearly all the time of models this small.
jax.config.update("jax_disable_most_optimizations", True)

METRICS = ("Euclidean", "Unconstrained", "LikelihoodFisher", "JointFisher")
# Where draws are proposed: the first of these under which there is a mode.
PROPOSALS = ("JointFisher", "Unconstrained", "LikelihoodFisher", "Euclidean")
MISSING = "–"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One estimate of one model's log evidence.

    Attributes:
        estimator: its name; Laplace's method goes by its metric.
        order: 1 or 2 for Laplace's method, else 0.
        gap: estimate less the exact value, in nats; NaN where there is no estimate.
        claimed: the error that it claims; NaN where it claims none.
        trust: the level of its trust.
        why: why there is no estimate, in a word or two.
        k_hat: Pareto's shape, of importance sampling.
        densities: evaluations of the density alone.
        gradients: evaluations of its gradient.
        seconds: compiling included.
        detail: the reason of the trust, or the message of the error.
    """

    estimator: str
    order: int = 0
    gap: float = math.nan
    claimed: float = math.nan
    trust: str = ""
    why: str = ""
    k_hat: float = math.nan
    densities: int = 0
    gradients: int = 0
    seconds: float = 0.0
    detail: str = ""

    @property
    def evaluations(self) -> int:
        """Densities and gradients together."""
        return self.densities + self.gradients


@dataclasses.dataclass(frozen=True)
class Study:
    """All the estimates of one model."""

    name: str
    dim: int
    exact: models.Exact
    entries: tuple[Entry, ...]
    seconds: float

    def entry(self, estimator: str, order: int = 0) -> Entry | None:
        """The entry of an estimator, if it was run."""
        found = [e for e in self.entries if (e.estimator, e.order) == (estimator, order)]
        return found[0] if found else None


def optimizer_metric(case: models.Case, name: str) -> vf.Metric:
    """A metric by name; the Fisher metrics with a key where the model has to be simulated."""
    make = getattr(vf, name)
    if case.key is None or not name.endswith("Fisher"):
        return make()
    return make(key=case.key, draws=1024)


def study(name: str, quick: bool) -> Study:
    """Every estimator on one model; in quick mode AutoLaplace, JointFisher and few draws."""
    warnings.simplefilter("ignore", TrustWarning)  # the table says it
    start, case = time.perf_counter(), models.CASES[name]()
    exact = models.exact(case, 4000 if quick else 32_000)
    entries = [_of_peer(case, exact)]
    fits: dict[str, vf.inference.MAP] = {}
    metrics = METRICS[3:] if quick else METRICS
    for metric in metrics:
        entries += _of_metric(case, metric, exact, fits)
    proposal = next((metric for metric in PROPOSALS if metric in fits), None)
    target = case.posterior(vf.Unconstrained()) if proposal is None else fits[proposal]
    draws = 2000 if quick else 10_000
    entries.append(_estimated("Importance", target, vf.Importance(draws=draws), exact))
    if not quick:
        entries.append(_estimated("Bridge", target, vf.Bridge(draws=4000), exact))
    dim = case.posterior(vf.Unconstrained()).dim
    return Study(name, dim, exact, tuple(entries), time.perf_counter() - start)


def _of_peer(case: models.Case, exact: models.Exact) -> Entry:
    start = time.perf_counter()
    answer = auto_laplace(case.model, *case.args, y=case.y)
    return Entry(
        "AutoLaplace",
        1,
        gap=answer.log_z - exact.log_z,
        why="" if math.isfinite(answer.log_z) else "singular",
        gradients=3000,  # of Adam; BFGS does not tell
        seconds=time.perf_counter() - start,
        detail=answer.warning,
    )


def _of_metric(
    case: models.Case, name: str, exact: models.Exact, fits: dict[str, vf.inference.MAP]
) -> list[Entry]:
    """Both orders under a metric; its mode is kept in `fits` if it is strict."""
    start = time.perf_counter()
    try:
        fit = vf.find_map(
            case.posterior(optimizer_metric(case, name)),
            key=jax.random.key(0),
            starts=8,
            progress=False,
        )
        found = vf.evidence(fit, by=vf.Laplace())
    except VolformError as error:
        seconds = time.perf_counter() - start
        return [_failed(name, order, error, seconds) for order in (1, 2)]
    fits[name] = fit
    first = _entry(name, 1, found, exact, time.perf_counter() - start)
    second = found.log_z_second_order
    searching = dataclasses.replace(first, gradients=found.cost.gradients - _of_correction(found))
    if second is None:
        return [searching, Entry(name, 2, why="not computed")]
    gap = float(second) - exact.log_z
    why = "" if math.isfinite(gap) else "breaks down"
    return [searching, dataclasses.replace(first, order=2, gap=gap, why=why)]


def _of_correction(found: vf.results.Evidence) -> int:
    """Evaluations that the second order takes, over and above the first."""
    modes = max(1, sum(name.startswith("weight of mode") for name in found.diagnostics))
    return 0 if found.correction is None else modes * found.dim**2


def _estimated(name: str, target: Any, by: Any, exact: models.Exact) -> Entry:
    start = time.perf_counter()
    try:
        found = vf.evidence(target, by=by, key=jax.random.key(1))
    except VolformError as error:
        return _failed(name, 0, error, time.perf_counter() - start)
    return _entry(name, 0, found, exact, time.perf_counter() - start)


def _entry(
    name: str, order: int, found: vf.results.Evidence, exact: models.Exact, seconds: float
) -> Entry:
    return Entry(
        name,
        order,
        gap=float(found.log_z) - exact.log_z,
        claimed=float(found.error),
        trust=found.trust.level.value,
        k_hat=found.diagnostics.get("k_hat", math.nan),
        densities=found.cost.densities,
        gradients=found.cost.gradients,
        seconds=seconds,
        detail=found.trust.reason,
    )


def _failed(name: str, order: int, error: VolformError, seconds: float) -> Entry:
    why = "no metric"
    if isinstance(error, SingularMetricError):
        why = "singular"
    elif isinstance(error, ConvergenceError):
        why = "no mode"
    return Entry(name, order, why=why, seconds=seconds, detail=str(error))


def signed(entry: Entry | None) -> str:
    """The error of an entry, or why there is none; a question mark where trust is poor."""
    if entry is None:
        return MISSING
    if entry.why:
        return entry.why
    doubt = "?" if entry.trust == "poor" else ""
    digits = 4 if abs(entry.gap) < 0.1 else 2
    return f"{entry.gap:+.{digits}f}{doubt}"


def both_orders(of: Study, metric: str) -> str:
    """First and second order in one cell."""
    first, second = signed(of.entry(metric, 1)), signed(of.entry(metric, 2))
    return first if first == second else f"{first} / {second}"


def rows_of_errors(studies: list[Study]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table of errors."""
    head = ["model", "d", "log Z", "AutoLaplace", *METRICS, "importance", "k-hat", "bridge"]
    rows = []
    for of in studies:
        drawn = of.entry("Importance")
        known = drawn is not None and math.isfinite(drawn.k_hat)
        uncertain = of.exact.error > 1e-3
        rows.append(
            [
                of.name,
                str(of.dim),
                f"{of.exact.log_z:.3f}" + (f" ± {of.exact.error:.3f}" if uncertain else ""),
                signed(of.entry("AutoLaplace", 1)),
                *(both_orders(of, metric) for metric in METRICS),
                signed(drawn),
                f"{drawn.k_hat:.2f}" if known else MISSING,
                signed(of.entry("Bridge")),
            ]
        )
    return head, rows


def rows_of_costs(studies: list[Study]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table of evaluations."""
    head = ["model", "AutoLaplace", *METRICS, "importance", "bridge", "log Z by"]
    rows = []
    for of in studies:
        cells = []
        for name, order in [*((metric, 2) for metric in METRICS), ("Importance", 0), ("Bridge", 0)]:
            entry = of.entry(name, order)
            shown = entry is not None and (not entry.why or entry.evaluations)
            cells.append(f"{entry.evaluations:,}" if entry is not None and shown else MISSING)
        rows.append([of.name, "> 3,000", *cells, of.exact.how])
    return head, rows


ERRORS = "Error of log Z in nats; Laplace's method: first / second order"
COSTS = "Evaluations of the density or its gradient, searches included"


def table(title: str, head: list[str], rows: list[list[str]]) -> Table:
    """A table for the terminal."""
    made = Table(title=title, title_justify="left")
    for name in head:
        made.add_column(name, justify="left" if name in {"model", "log Z by"} else "right")
    for row in rows:
        made.add_row(*row)
    return made


def markdown(title: str, head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    rule = ["---" if name in {"model", "log Z by"} else "---:" for name in head]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]
    return "\n".join([f"{title}.", "", *lines, ""])


def write(studies: list[Study], out: Path) -> None:
    """The study as JSON, as Markdown and as a picture."""
    from study_picture import draw  # matplotlib is slow to import

    out.mkdir(parents=True, exist_ok=True)
    plain = [dataclasses.asdict(of) for of in studies]
    (out / "evidence_study.json").write_text(json.dumps(_finite(plain), indent=1) + "\n")
    texts = [
        markdown(ERRORS, *rows_of_errors(studies)),
        markdown(COSTS, *rows_of_costs(studies)),
    ]
    (out / "evidence_study.md").write_text("\n".join(texts))
    draw(studies, out / "evidence_study.png")


def _finite(value: Any) -> Any:
    """JSON has no NaN; null stands for it."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one model and one metric")
    parser.add_argument("--out", type=Path, help="folder of the tables and the picture")
    parser.add_argument("--only", help="models whose name contains this")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    options = parser.parse_args()
    names = list(models.CASES)
    if options.quick:
        names = ["AR(3)"]
    names = [name for name in names if (options.only or "") in name]
    console = Console(width=170)
    with concurrent.futures.ProcessPoolExecutor(
        options.jobs,  # processes, since NumPyro's effect handlers are not safe in threads
        multiprocessing.get_context("spawn"),
    ) as pool:
        jobs = {
            name: pool.submit(study, name, options.quick)
            for name in sorted(names, key=lambda name: name != "Poisson GP")  # the longest first
        }
        for done in track(concurrent.futures.as_completed(jobs.values()), "models", len(jobs)):
            found = done.result()
            console.print(f"{found.name}: {found.seconds:.0f} s")
        studies = [jobs[name].result() for name in names]
    console.print(table(ERRORS, *rows_of_errors(studies)))
    console.print(table(COSTS, *rows_of_costs(studies)))
    if options.out is not None:
        write(studies, options.out)
        console.print(f"written to {options.out}")


if __name__ == "__main__":
    main()

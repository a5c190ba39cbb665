"""The commands and their options."""

import argparse
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from rich.console import Console

from volform.cli.comparing import print_comparison, write_comparison
from volform.cli.data_files import load_data
from volform.cli.layer_table import add_layers
from volform.cli.loading import arguments_of, load_function, name_of
from volform.cli.options import seed, whole
from volform.cli.output import output_folder
from volform.cli.report import print_summary, print_tables, write_files
from volform.cli.surveying import add_architectures
from volform.cli.symmetries import add_equivalence
from volform.compilation import keep_compiled
from volform.errors import MetricError, ModelError, TrustWarning, VolformError
from volform.geometry.metric import Euclidean, Metric
from volform.inference.evidence.automatic import Automatic, evidence
from volform.inference.evidence.bridge import Bridge
from volform.inference.evidence.comparison import compare
from volform.inference.evidence.estimator import Estimator
from volform.inference.evidence.importance import Importance
from volform.inference.evidence.quadrature import Quadrature
from volform.inference.laplace.approximation import laplace
from volform.inference.modes.search import find_map
from volform.models.attaching import attach
from volform.models.binding import Unconstrained
from volform.models.fisher_metrics import JointFisher, LikelihoodFisher
from volform.models.posterior import Posterior, condition

METRICS: dict[str, Callable[..., Metric]] = {
    "joint-fisher": JointFisher,
    "likelihood-fisher": LikelihoodFisher,
    "euclidean": Euclidean,
    "unconstrained": Unconstrained,
}
ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "importance": Importance,
    "bridge": Bridge,
    "quadrature": Quadrature,
    "automatic": Automatic,
}
MOST_STARTS = 100_000
WITH_REFERENCE = ("joint-fisher", "likelihood-fisher")

EXAMPLE = """\
example:
  model.py holds a NumPyro model:

    import numpyro, numpyro.distributions as dist

    def eight_schools(sigma, y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("school", len(sigma)):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

  data.json holds its arguments:

    {"y": [28, 8, -3, 7, -1, 1, 18, 12], "sigma": [15, 10, 16, 11, 9, 11, 10, 18]}

  $ volform evidence model.py:eight_schools --data data.json --metric joint-fisher --out results
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"volform: {message} (see `{self.prog} --help`)\n")


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = _Parser(prog="volform", description="Bayesian inference with invariant densities.")
    top.add_argument("--version", action="version", version=f"volform {_version()}")
    commands = top.add_subparsers(title="commands", metavar="command", required=True)
    single = commands.add_parser(
        "evidence",
        help="mode and evidence of a NumPyro model, the same in every parametrization",
        description="Find the invariant MAP of a NumPyro model and its invariant Laplace "
        "evidence, in float64.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    single.set_defaults(run=run_evidence)
    add = single.add_argument
    add("model", metavar="model.py:function", help="a NumPyro model: a file and a function in it")
    _add_common(single, "evidence.json, posterior.nc and PNG pictures")
    add("--starts", type=_starts, help="starts of the search (default: as many as find_map takes)")
    add(
        "--by",
        metavar="NAME",
        help=f"a second estimate of the evidence, beside Laplace's: {', '.join(ESTIMATORS)}",
    )
    add(
        "--no-second-order",
        dest="second_order",
        action="store_false",
        help="leave out the second-order correction, the larger part of the time",
    )
    add(
        "--allow-improper",
        action="store_true",
        help="give the formal integral under an improper prior, labeled so",
    )
    comparison = commands.add_parser(
        "compare",
        help="rank NumPyro models by evidence, on the same data",
        description="Rank NumPyro models by evidence: by the cheapest estimator that can be "
        "trusted, in float64.",
    )
    comparison.set_defaults(run=run_compare)
    comparison.add_argument(
        "model", nargs="+", metavar="model.py:function", help="NumPyro models, of the same data"
    )
    _add_common(comparison, "comparison.json and evidence.png")
    add_architectures(commands)
    add_equivalence(commands)
    add_layers(commands)
    return top


def _add_common(command: argparse.ArgumentParser, files: str) -> None:
    add = command.add_argument
    add(
        "--data",
        type=Path,
        metavar="FILE",
        help="the functions' arguments by name: a JSON object (.json), columns with a header "
        "(.csv, .tsv, .parquet), or arrays (.npz, .nc); whole numbers stay integers, and text "
        "becomes them",
    )
    add(
        "--metric",
        metavar="NAME",
        help=f"{', '.join(METRICS)}; by default the metrics that the model has attached itself "
        "(any metric, with its arguments), and euclidean on sites without",
    )
    add(
        "--reference",
        metavar="other.py:function",
        help="with a Fisher metric: another spelling of the model to read the geometry from",
    )
    add("--out", type=Path, metavar="DIR", help=f"write {files} to this folder")
    add("--seed", type=seed, default=0, help="seed of starts and draws (default: 0)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Bad input of any kind is one line on stderr and exit code 2; an interrupt is exit code 130.

    Args:
        argv: the arguments, those of the process by default.
    """
    try:
        options = parser().parse_args(argv)
    except SystemExit as left:  # argparse leaves so, after --help too
        return int(left.code or 0)
    # Log-determinants and fourth derivatives need float64, and this is the program's own process.
    jax.config.update("jax_enable_x64", True)
    keep_compiled()
    console = Console()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            options.run(options, console)
        except (VolformError, OSError) as error:
            return _fail(_one_line(error))
        except KeyboardInterrupt:
            return _fail("interrupted; nothing was written", 130)
        except (Exception, SystemExit) as error:
            place = _place_in(error, options)
            if place is None:
                raise
            return _fail(f"{place}: {type(error).__name__}: {_one_line(error)}")
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        console.print(f"warning: {message}", style="yellow", markup=False)
    return 0


def run_evidence(options: argparse.Namespace, console: Console) -> None:
    """`volform evidence`: fit, print, write."""
    estimator = _estimator(options)
    with output_folder(options.out) as folder:
        written = _evidence(options, console, estimator, folder)
    _report(console, options.out, written)


def _evidence(
    options: argparse.Namespace, console: Console, estimator: Estimator | None, folder: Path | None
) -> list[Path]:
    """Fit and print; the files that were written to `folder`."""
    posterior, facts = _posterior(options.model, options, console)
    search, draws = jax.random.split(jax.random.key(options.seed))
    fit = find_map(posterior, key=search, starts=options.starts)
    approx = laplace(fit, second_order=options.second_order, allow_improper=options.allow_improper)
    console.print(repr(posterior).splitlines()[0], markup=False, highlight=False)
    print_tables(console, approx)
    if estimator is not None:
        improper = options.allow_improper
        found = evidence(fit, by=estimator, key=draws, allow_improper=improper)
        console.print(repr(found), markup=False, highlight=False)
        if found.draws is not None:
            print_summary(console, found.summary())
    if folder is None:
        return []
    return write_files(folder, approx, draws, _description(options, facts, starts=fit.starts))


def run_compare(options: argparse.Namespace, console: Console) -> None:
    """`volform compare`: estimate, rank, print, write."""
    with output_folder(options.out) as folder:
        written = _comparison(options, console, folder)
    _report(console, options.out, written)


def _comparison(options: argparse.Namespace, console: Console, folder: Path | None) -> list[Path]:
    """Rank and print; the files that were written to `folder`."""
    names, models = _short_names(options.model), {}
    facts: dict[str, Any] = {}
    for name, reference in zip(names, options.model, strict=True):
        models[name], found = _posterior(reference, options, console)
        facts |= {fact: facts.get(fact, {}) | {name: value} for fact, value in found.items()}
    table = compare(models, key=jax.random.key(options.seed))
    print_comparison(console, table)
    if folder is None:
        return []
    return write_comparison(folder, table, _description(options, facts))


def _posterior(
    reference: str, options: argparse.Namespace, console: Console
) -> tuple[Posterior, dict[str, Any]]:
    """The model that `reference` names, conditioned on the data; and how these were read."""
    model = load_function(reference)
    metric = _metric(options)
    data = {} if options.data is None else load_data(options.data)
    source = "`--data` (not given)" if options.data is None else f"`{options.data}`"
    exact = options.data is not None and options.data.suffix.lower() == ".json"
    found = arguments_of(model, data, source, exact)
    posterior = condition(model if metric is None else attach(model, metric), **found.values)
    for note in found.notes(source, name_of(model)):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if not posterior.observed:
        warnings.warn(
            f"the model observes nothing of {source}: log Z is 0, or that of its `numpyro.factor`",
            TrustWarning,
            stacklevel=1,
        )
    facts = {"left_out": found.left_out, "levels": found.levels}
    return posterior, {name: fact for name, fact in facts.items() if fact}


def _short_names(references: list[str]) -> list[str]:
    """Names of the functions where they differ, else the references as they were given."""
    short = [reference.rpartition(":")[2] for reference in references]
    return short if len(set(short)) == len(short) else references


def _description(
    options: argparse.Namespace, facts: dict[str, Any], **settings: Any
) -> dict[str, Any]:
    return {
        "volform": _version(),
        "model": options.model,
        "data": None if options.data is None else str(options.data),
        "seed": options.seed,
        **settings,
        **facts,
    }


def _report(console: Console, folder: Path, paths: list[Path]) -> None:
    for path in paths:
        where = folder / path.name
        console.print(f"wrote {where}", markup=False, highlight=False, soft_wrap=True)


def _estimator(options: argparse.Namespace) -> Estimator | None:
    if options.by is None:
        return None
    if options.by not in ESTIMATORS:
        raise ModelError(
            f"`--by {options.by}` is not known; it should be one of {_listed(ESTIMATORS)}."
        )
    return ESTIMATORS[options.by]()


def _metric(options: argparse.Namespace) -> Metric | None:
    """The metric that was asked for; None for those of the model."""
    name, reference = options.metric, options.reference
    if name is not None and name not in METRICS:
        raise MetricError(
            f"`--metric {name}` is not known; it should be one of {_listed(METRICS)}."
        )
    if reference is None:
        return None if name is None else METRICS[name]()
    if name not in WITH_REFERENCE:
        raise MetricError(
            f"`--reference` needs a metric that is read off a model: `--metric` should be one of "
            f"{_listed(WITH_REFERENCE)}."
        )
    return METRICS[name](reference=load_function(reference))


def _listed(names: Any) -> str:
    return ", ".join(names)


def _starts(text: str) -> int:
    return whole(text, 1, MOST_STARTS, "one start at least is needed, and memory for all of them")


def _fail(line: str, code: int = 2) -> int:
    print(f"volform: {line}", file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _place_in(error: BaseException, options: argparse.Namespace) -> str | None:
    """Line of the model's own file that was running when the error came; None if it was not."""
    models = [options.model] if isinstance(options.model, str) else options.model
    named = [r.rpartition(":")[0] for r in (*models, options.reference) if r]
    files = {str(Path(path).resolve()): path for path in named}
    place, frame = None, error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        if code.co_filename in files:
            place = f"{files[code.co_filename]}, line {frame.tb_lineno}, in {code.co_name}"
        frame = frame.tb_next
    return place


def _version() -> str:
    try:
        return importlib.metadata.version("volform")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"

"""`volform architectures`: its options, its table, and its files."""

import argparse
import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich.console import Console
from rich.table import Table

from volform import networks
from volform.architectures.entry import Entry, rank
from volform.architectures.survey import Survey, survey
from volform.cli.data_files import TABLES, listed, load_data, value_of
from volform.cli.options import seed
from volform.cli.output import output_folder
from volform.errors import DataError, KernelError
from volform.networks.activations import Activation
from volform.networks.parametrization import NTP, SP, MuP, Parametrization
from volform.plot.canvas import figure_of
from volform.plot.widths import evidence_by_width, tangent_growth

ACTIVATIONS: dict[str, Callable[[], Activation]] = {
    "relu": networks.Relu,
    "erf": networks.Erf,
    "gelu": networks.Gelu,
    "tanh": lambda: networks.Elementwise(jnp.tanh),
    "sin": networks.Sin,
    "abs": networks.Abs,
    "gaussian": networks.Gaussian,
}
PARAMETRIZATIONS: dict[str, Callable[[], Parametrization]] = {"sp": SP, "ntp": NTP, "mup": MuP}
MOST_ROWS = 1000  # an exact evidence costs the cube of their number

DESCRIPTION = """\
Compare neural networks by their evidence on a table of numbers, at finite and at infinite width,
in float64. Features and target are standardized first; the evidence is that of the standardized
target.
"""
EXAMPLE = """\
example:
  $ volform architectures --data diabetes.csv --target y --depth 1,2,3 --activation relu,erf \\
        --parametrization sp,ntp,mup --width 64,256,inf --out results

  log Z       exact at infinite width; at finite widths with the last layer exact, by draws of the
              others
  Laplace     at finite widths, by Laplace's method with the Gauss-Newton matrix at a mode of the
              network, and whether to trust it
  NNGP        held-out error and log predictive density of the Bayesian posterior
  NTK         held-out error after training by gradient flow for ever
  NTK growth  exponents by which each layer's part of the tangent kernel grows with the width
"""


def add_architectures(commands: Any) -> None:
    """Add the command to the parser's."""
    command = commands.add_parser(
        "architectures",
        help="which neural network the data prefer, at finite and at infinite width",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run_architectures, model=(), reference=None)
    add = command.add_argument
    add("--data", type=Path, required=True, metavar="FILE", help="columns with a header")
    add("--target", required=True, metavar="COLUMN", help="what is predicted from all the others")
    add("--depth", default="1,2", help="numbers of hidden layers (default: 1,2)")
    add("--activation", default="relu,erf", help=f"of {', '.join(ACTIVATIONS)} (default: relu,erf)")
    add("--parametrization", default="sp,ntp,mup", help="default: sp,ntp,mup")
    add("--width", default="64,256,inf", help="hidden units (default: 64,256,inf)")
    add("--w-std", type=float, default=1.4, help="of the weights times sqrt(fan_in)")
    add("--b-std", type=float, default=0.3, help="of the biases")
    add("--noise", type=float, default=0.5, help="of the standardized target")
    add(
        "--fixed",
        action="store_true",
        help="take --w-std, --b-std and --noise as they are; by default each architecture's are "
        "learned from there, by its exact evidence",
    )
    add("--no-laplace", action="store_true", help="without Laplace's method, which takes long")
    add("--rows", type=int, metavar="N", help="use N rows only, drawn at random")
    add("--draws", type=int, default=500, help="draws of hidden layers (default: 500)")
    add("--folds", type=int, default=5, help="folds of held-out rows (default: 5)")
    add("--out", type=Path, metavar="DIR", help="write architectures.json, .csv and PNG pictures")
    add("--seed", type=seed, default=0, help="seed of rows, draws and folds (default: 0)")


def run_architectures(options: argparse.Namespace, console: Console) -> None:
    """`volform architectures`: read, survey, print, write."""
    choices = {
        "activations": _chosen("--activation", options.activation, ACTIVATIONS),
        "depths": _whole_numbers("--depth", options.depth),
        "widths": _whole_numbers("--width", options.width, or_infinite=True),
        "parametrizations": tuple(
            _chosen("--parametrization", options.parametrization, PARAMETRIZATIONS).values()
        ),
    }
    x, y, unit = _standardized(options)
    with output_folder(options.out) as folder:
        written = _surveyed(options, console, choices, (x, y, unit), folder)
    for path in written:
        where = options.out / path.name
        console.print(f"wrote {where}", markup=False, highlight=False, soft_wrap=True)


def _surveyed(
    options: argparse.Namespace,
    console: Console,
    choices: dict[str, Any],
    table: tuple[Float[Array, "n features"], Float[Array, " n"], float],
    folder: Path | None,
) -> list[Path]:
    """Survey and print; the files that were written to `folder`."""
    x, y, unit = table
    console.print(
        f"{options.data}: {len(y)} rows, {x.shape[1]} features, standardized; log Z of "
        f"`{options.target}` in its own units is lower by {len(y) * math.log(unit):.2f}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    found = survey(
        x,
        y,
        **choices,
        w_std=options.w_std,
        b_std=options.b_std,
        noise=options.noise,
        learned=not options.fixed,
        by_laplace=not options.no_laplace,
        draws=options.draws,
        folds=options.folds,
        key=jax.random.key(options.seed),
    )
    print_survey(console, found)
    if folder is None:
        return []
    description = {
        "data": str(options.data),
        "target": options.target,
        "rows": len(y),
        "log_unit": len(y) * math.log(unit),
        "seed": options.seed,
    }
    return write_survey(folder, found, x, description)


def print_survey(console: Console, survey: Survey) -> None:
    """The table, and what it says in sentences."""
    columns = [name for name in survey.entries[0].cells if _is_used(survey, name)]
    title = "Architectures, the best first; those with poor trust in a part of their own"
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, no_wrap=True)
    for entry, following in zip(survey.entries, [*survey.entries[1:], None], strict=True):
        is_last = following is not None and rank(entry)[0] != rank(following)[0]
        table.add_row(*(entry.cells[name] for name in columns), end_section=is_last)
    _at_full_width(console, table)
    for line in survey.summary():
        console.print(line, markup=False, highlight=False)


def _at_full_width(console: Console, table: Table) -> None:
    """A number that is cut off is worse than a line that is too long."""
    room = console.options.update(max_width=1000)
    width = max(console.width, console.measure(table, options=room).maximum)
    Console(file=console.file, width=width, force_terminal=console.is_terminal).print(table)


def write_survey(
    folder: Path,
    survey: Survey,
    x: Float[Array, "n features"],
    description: dict[str, Any],
) -> list[Path]:
    """Write architectures.json, architectures.csv and the pictures; returns their paths."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    records = [_plain(entry) for entry in survey.entries]
    written = [folder / "architectures.json", folder / "architectures.csv"]
    content = {**description, "entries": records, "notes": list(survey.summary())}
    text = json.dumps(content, indent=2, allow_nan=False)
    written[0].write_text(text + "\n", encoding="utf-8")
    with written[1].open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows({**r, "ntk_growth": " ".join(map(str, r["ntk_growth"]))} for r in records)
    pictures = {"architectures-evidence.png": evidence_by_width(survey)}
    deepest = max(survey.candidates, key=lambda candidate: candidate.depth)
    pictures["architectures-growth.png"] = tangent_growth(deepest.architecture, x)[0]
    for name, ax in pictures.items():
        figure_of(ax).savefig(folder / name, dpi=150)
        plt.close(figure_of(ax))
    return written + [folder / name for name in pictures]


def _is_used(survey: Survey, column: str) -> bool:
    return any(entry.cells[column] != "–" for entry in survey.entries)


def _plain(entry: Entry) -> dict[str, Any]:
    record = entry.record
    width = "inf" if math.isinf(record["width"]) else record["width"]
    finite = {k: v for k, v in record.items() if not isinstance(v, float) or math.isfinite(v)}
    nothing = dict.fromkeys(record)
    return {**nothing, **finite, "width": width, "ntk_growth": list(record["ntk_growth"])}


def _standardized(
    options: argparse.Namespace,
) -> tuple[Float[Array, "n features"], Float[Array, " n"], float]:
    """Features and target in units of their standard deviations, and the target's."""
    if options.data.suffix.lower() not in TABLES:
        raise DataError(
            f"`--data {options.data}` should be a file whose name ends in {', '.join(TABLES)}."
        )
    columns = load_data(options.data)
    if options.target not in columns:
        raise DataError(
            f"`--target {options.target}` is no column of `{options.data}`, which has "
            f"{', '.join(columns)}."
        )
    names = [name for name in columns if name != options.target]
    numbers = {name: _numbers(options.data, name, column) for name, column in columns.items()}
    rows = _rows(options, len(numbers[options.target]))
    table = {name: values[rows] for name, values in numbers.items()}
    for name, values in table.items():
        if not np.ptp(values) > 0:
            raise DataError(
                f"`{options.data}`: the column `{name}` is the same in all of {len(values)} rows, "
                "so that it cannot be standardized; leave it out."
            )
    if not names:
        raise DataError(f"`{options.data}` should have a column of features beside the target.")
    scaled = {name: (v - v.mean()) / v.std() for name, v in table.items()}
    unit = float(table[options.target].std())
    features = jnp.asarray(np.stack([scaled[name] for name in names], 1))
    return features, jnp.asarray(scaled[options.target]), unit


def _numbers(path: Path, name: str, column: Any) -> np.ndarray:
    values, levels = value_of(f"`{path}`", name, column)
    if levels:
        raise DataError(
            f"`{path}`: the column `{name}` is text ({listed(levels[:4])}), which has no order; "
            "give each level a column of 0 and 1, or leave it out."
        )
    return np.asarray(values, float)


def _rows(options: argparse.Namespace, count: int) -> Any:
    """Rows that are used."""
    wanted = options.rows
    if wanted is None:
        if count > MOST_ROWS:
            raise DataError(
                f"`{options.data}` has {count} rows, and an exact evidence costs the cube of that; "
                f"give `--rows {MOST_ROWS}` for as many drawn at random, or `--rows {count}` for "
                "all of them."
            )
        return slice(None)
    if not 2 <= wanted <= count:
        raise DataError(
            f"`--rows {wanted}` should be from 2 to {count}, the number of rows of "
            f"`{options.data}`."
        )
    return np.sort(np.random.default_rng(options.seed % 2**64).permutation(count)[:wanted])


def _chosen(option: str, text: str, known: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    names = [name.strip().lower() for name in text.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise KernelError(
            f"`{option} {text}` holds {', '.join(map(repr, unknown))}; it should be a list of "
            f"{', '.join(known)} with commas between them."
        )
    return {name: known[name]() for name in names}


def _whole_numbers(option: str, text: str, or_infinite: bool = False) -> tuple[Any, ...]:
    try:
        found = [
            math.inf if or_infinite and part.strip() == "inf" else int(part)
            for part in text.split(",")
        ]
    except ValueError:
        found = [0]
    if min(found) < 1:
        also = ", or inf," if or_infinite else ""
        raise KernelError(
            f"`{option} {text}` should be positive whole numbers{also} with commas between them."
        )
    return tuple(dict.fromkeys(found))

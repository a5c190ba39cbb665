"""Errors of log Z against the errors that are claimed, on models whose log evidence is known.

    python benchmarks/calibration.py --out docs

runs every estimator under some keys, prints a table, writes `calibration.json` and
`calibration.png`, and the date and the tables into `calibration.md`, where that is. With `--by`
and `--only` a part is run, and takes the place of that part in the file; `--missing` runs what is
not in the file yet, and `--draw` nothing. Seconds are of the processor, medians over keys:
compilation is in those of the first key only.
"""

import argparse
import datetime
import json
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from calibration_models import CASES
from rich.console import Console
from rich.table import Table

import volform as vf
from volform.errors import TrustWarning, VolformError

jax.config.update("jax_enable_x64", True)
# Compiling is nearly all the time of models this small.
jax.config.update("jax_disable_most_optimizations", True)

ESTIMATORS = {
    "default": None,
    "Laplace": vf.Laplace(),
    "Importance": vf.Importance(),
    "Bridge": vf.Bridge(),
    "Tempered": vf.Tempered(),
}
LEVELS = ("good", "fair", "poor")
COLUMNS = (
    "estimator", "verdict", "count", "within 1", "within 2", "within 3", "beyond 3", "worst",
    "worst error", "median s",
)  # fmt: skip
# A difference below this many nats is rounding, whatever is claimed.
ROUNDING = 1e-9
BEGIN, END = "<!-- by benchmarks/calibration.py -->", "<!-- end -->"

Record = dict[str, Any]


def measured(name: str, by: str, keys: int) -> list[Record]:
    """One estimator on one model, under each key, `jax.random.key(seed)`."""
    case = CASES[name]()
    posterior = vf.condition(case.model, *case.args)
    records = []
    # Near a Gaussian the same draws are off by the same error in every model: seeds of its own.
    first = 100 * list(CASES).index(name)
    for seed in range(first, first + keys):
        record: Record = {
            "model": name, "kind": case.kind, "dim": case.dim, "by": by, "seed": seed,
        }  # fmt: skip
        start = time.process_time()
        try:
            found = vf.evidence(posterior, by=ESTIMATORS[by], key=jax.random.key(seed))
        except VolformError as error:
            record |= {"level": "failed", "reason": f"{type(error).__name__}: {error}"}
        else:
            record |= {
                "level": found.trust.level.value,
                "gap": _rounded(float(found.log_z) - case.log_z),
                "claimed": _rounded(float(found.error)),
                "method": found.method,
                "reason": found.trust.reason,
            }
        records.append(record | {"seconds": round(time.process_time() - start, 2)})
    return records


def _rounded(value: float) -> float | None:
    """Five digits; JSON has no NaN, and null stands for it."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def is_number(record: Record) -> bool:
    """Tell whether there is an estimate with an error."""
    return record.get("gap") is not None and record.get("claimed") is not None


def ratio(record: Record) -> float:
    """The error in claimed errors; rounding counts as none."""
    gap = abs(record["gap"])
    return 0.0 if gap < ROUNDING else gap / max(record["claimed"], ROUNDING)


def rows(records: Sequence[Record]) -> list[list[str]]:
    """Cells of the table, by estimator and verdict."""
    cells = []
    for by in ESTIMATORS:
        for level in (*LEVELS, "failed"):
            found = [r for r in records if r["by"] == by and r["level"] == level]
            if found:
                cells.append([by, level, str(len(found)), *_summary(found)])
    return cells


def _summary(found: Sequence[Record]) -> list[str]:
    timed = [r["seconds"] for r in found if r["seconds"] is not None]
    seconds = f"{np.median(timed):.1f}" if timed else "–"
    scores = sorted((ratio(r), abs(r["gap"])) for r in found if is_number(r))
    if not scores:
        return [*["–"] * 6, seconds]
    of = np.array([score for score, _ in scores])
    shares = [f"{np.mean(of <= bound):.1%}" for bound in (1, 2, 3)]
    worst = f"{of[-1]:.3g}"
    most = f"{max(gap for _, gap in scores):.2g}"
    return [*shares, str(int((of > 3).sum())), worst, most, seconds]


def markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---" if name in {"estimator", "verdict", "model"} else "---:" for name in head]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *cells))


def beyond(records: Sequence[Record]) -> list[list[str]]:
    """Cells of the good estimates that are off by more than three of their errors, worst first."""
    found = [r for r in records if r["level"] == "good" and is_number(r) and ratio(r) > 3]
    return [
        [r["model"], r["by"], str(r["seed"]), f"{r['gap']:+.2g}", f"{r['claimed']:.2g}",
         f"{ratio(r):.1f}"]
        for r in sorted(found, key=ratio, reverse=True)
    ]  # fmt: skip


def page(text: str, records: Sequence[Record], date: str) -> str:
    """The page with its date and tables replaced."""
    count = len({r["model"] for r in records})
    parts = [
        f"Last run on {date}: {len(records)} estimates on {count} models.",
        markdown(COLUMNS, rows(records)),
        'Estimates that are called "good" and are off by more than three of their errors:',
        markdown(("model", "estimator", "seed", "error", "claimed", "ratio"), beyond(records)),
    ]
    before, rest = text.split(BEGIN)
    return "\n\n".join([before + BEGIN, *parts, END + rest.split(END)[1]])


def _read(path: Path) -> list[Record]:
    return json.loads(path.read_text())["records"] if path.exists() else []


def _write(path: Path, records: Sequence[Record]) -> None:
    """The records, one a line, with the date of the last of them."""
    order = {name: number for number, name in enumerate(CASES)}
    kept = [r for r in records if r["model"] in order]
    kept.sort(key=lambda r: (list(ESTIMATORS).index(r["by"]), order[r["model"]], r["seed"]))
    lines = ",\n".join(json.dumps(record) for record in kept)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    path.write_text(f'{{"date": "{today}", "records": [\n{lines}\n]}}\n')


def _names(part: str, dims: str) -> list[str]:
    """Models to be run, those of few parameters first."""
    lowest, highest = map(int, dims.split(":"))
    sizes = {name: make().dim for name, make in CASES.items() if part in name}
    return sorted((n for n, d in sizes.items() if lowest <= d <= highest), key=sizes.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--by", default=",".join(ESTIMATORS), help="estimators (default: all)")
    parser.add_argument("--keys", type=int, default=3, help="keys of each (default: 3)")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--dims", default="1:1000", help="from:to, numbers of parameters")
    parser.add_argument("--missing", action="store_true", help="only what is not in the file")
    parser.add_argument("--out", type=Path, default=Path("calibration-out"), help="folder")
    parser.add_argument("--draw", action="store_true", help="run nothing; table and picture again")
    options = parser.parse_args()
    warnings.simplefilter("ignore", TrustWarning)  # the table says it
    options.out.mkdir(parents=True, exist_ok=True)
    path, console = options.out / "calibration.json", Console(width=140)
    for name in [] if options.draw else _names(options.only, options.dims):
        for by in options.by.split(","):
            if options.missing and any((r["model"], r["by"]) == (name, by) for r in _read(path)):
                continue
            fresh = measured(name, by, options.keys)
            old = [r for r in _read(path) if (r["model"], r["by"]) != (name, by)]
            _write(path, [*old, *fresh])
            for r in fresh:
                found = f"{r['gap']:+.2g} ± {r['claimed']:.2g}" if is_number(r) else r["reason"]
                console.print(f"{name}, {by}: {r['level']} {found} {r['seconds']:.1f} s")
        jax.clear_caches()  # programs of hundreds of models are gigabytes
    records = _read(path)
    shown = Table(*COLUMNS)
    for cells in rows(records):
        shown.add_row(*cells)
    console.print(shown)
    text = options.out / "calibration.md"
    if text.exists():
        text.write_text(page(text.read_text(), records, json.loads(path.read_text())["date"]))
    from calibration_picture import draw  # matplotlib is slow to import

    draw(records, options.out / "calibration.png")


if __name__ == "__main__":
    main()

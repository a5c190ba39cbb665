"""The results of `volform compare`: a table on the terminal, files in a folder."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from volform.cli.report import plain
from volform.inference.evidence.comparison import Comparison
from volform.plot.canvas import figure_of
from volform.plot.ranking import evidence


def print_comparison(console: Console, table: Comparison) -> None:
    """The ranked models, and what stands between the numbers and a conclusion."""
    columns = ("model", "log Z", "error", "probability", "log BF", "against it", "trust", "LOO")
    columns += ("stack",) * any(row.stack is not None for row in table.rows)
    rich = Table(*columns, title="Models, the best first", title_justify="left")
    for row in table.rows:
        rich.add_row(*(escape(row.cells[column]) for column in columns))
    console.print(rich)
    for row in table.rows:
        found = row.evidence
        console.print(
            f"{row.name}: {found.method}, {found.trust.reason}; {found.cost}",
            markup=False,
            highlight=False,
        )
    for caution in table.cautions:
        console.print(f"caution: {caution}", style="yellow", markup=False)


def write_comparison(folder: Path, table: Comparison, description: dict[str, Any]) -> list[Path]:
    """Write comparison.json and evidence.png; returns their paths."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    records = table.to_dataframe().reset_index().to_dict("records")
    models = [
        {key: value if isinstance(value, str) else plain(value) for key, value in record.items()}
        for record in records
    ]
    content = {**description, "models": models, "cautions": list(table.cautions)}
    written = [folder / "comparison.json", folder / "evidence.png"]
    text = json.dumps(content, indent=2, allow_nan=False)
    written[0].write_text(text + "\n", encoding="utf-8")
    figure = figure_of(evidence(table))
    figure.savefig(written[1], dpi=150)
    plt.close(figure)
    return written

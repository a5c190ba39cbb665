"""The results of `volform evidence`: tables on the terminal, files in a folder."""

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from volform.errors import ConvergenceError
from volform.inference.arviz_compat import without_slashes
from volform.inference.arviz_export import to_arviz
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.summary import Summary
from volform.plot.canvas import figure_of
from volform.plot.density import density
from volform.plot.spectrum import spectrum


def print_tables(console: Console, approx: LaplaceApproximation) -> None:
    """The tables of the parameters, of the mode and of the evidence."""
    table = _summary(approx)
    if table is None:
        console.print(_value_table(approx))
    else:
        print_summary(console, table)
    console.print(_mode_table(approx))
    console.print(_evidence_table(approx))


def print_summary(console: Console, summary: Summary) -> None:
    """The table of the parameters, and what a reader must know of it."""
    titles, *body = summary.rows()
    table = Table("site", title=escape(summary.title), title_justify="left")
    for title in titles[1:]:
        table.add_column(title, justify="right", no_wrap=True)
    for row in body:
        table.add_row(*map(escape, row))
    console.print(table)
    for note in summary.notes:
        console.print(note, markup=False, highlight=False)


def _summary(approx: LaplaceApproximation) -> Summary | None:
    """The summary, None where it would take draws and hardly any lies in the support."""
    with suppress(ConvergenceError):
        return approx.summary()
    return None


def _value_table(approx: LaplaceApproximation) -> Table:
    table = Table("site", "value", title="Mode of q^G", title_justify="left")
    for name, value in approx.values.items():
        table.add_row(escape(name), escape(_array(value)))
    return table


def _mode_table(approx: LaplaceApproximation) -> Table:
    fit = approx.fit
    rows = {
        "log q^G": f"{fit.log_density:.6f}",
        "gradient norm": f"{fit.gradient_norm:.1e}",
        "eigenvalues of E": _array(fit.eigenvalues),
    }
    if len(fit.modes) > 1:
        below = [f"{mode.log_density - fit.log_density:+.3f}" for mode in fit.modes[1:]]
        rows["other modes, log q^G"] = ", ".join(below)
    return _two_columns("Mode of q^G", rows)


def _evidence_table(approx: LaplaceApproximation) -> Table:
    evidence = approx.evidence
    second = evidence.log_z_second_order
    rows = {
        "log Z, first order": f"{float(evidence.log_z):.6f}",
        "log Z, second order": "not computed" if second is None else f"{float(second):.6f}",
        "correction c": "not computed"
        if evidence.correction is None
        else f"{float(evidence.correction):+.6f}",
        "metric": evidence.metric_name,
        "parameters d": str(evidence.dim),
        "trust": str(evidence.trust),
    }
    if evidence.note:
        rows["note"] = evidence.note
    return _two_columns("Evidence", rows)


def _two_columns(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def write_files(
    folder: Path, approx: LaplaceApproximation, key: PRNGKeyArray, description: dict[str, Any]
) -> list[Path]:
    """Write evidence.json, posterior.nc and the pictures; returns their paths."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    written = [folder / "evidence.json", folder / "posterior.nc"]
    text = json.dumps({**description, **numbers(approx)}, indent=2, allow_nan=False)
    written[0].write_text(text + "\n", encoding="utf-8")
    _for_netcdf(to_arviz(approx, key=key)).to_netcdf(str(written[1]))
    scalars = [site.name for site in approx.posterior.layout.sites if not site.shape]
    stems = file_names(scalars)
    pictures = {f"density-{stems[name]}.png": density(approx, name) for name in scalars}
    pictures["spectrum.png"] = figure_of(spectrum(approx))
    for name, figure in pictures.items():
        figure.savefig(folder / name, dpi=150)
        plt.close(figure)
    return written + [folder / name for name in pictures]


def numbers(approx: LaplaceApproximation) -> dict[str, Any]:
    """Every number of the result as plain Python values, None for what is NaN or not computed."""
    fit, evidence, summary = approx.fit, approx.evidence, _summary(approx)
    return {
        "metric": evidence.metric_name,
        "parameters": evidence.dim,
        "evidence": {
            "log_z": plain(evidence.log_z),
            "log_z_second_order": plain(evidence.log_z_second_order),
            "correction": plain(evidence.correction),
            "terms": {name: plain(value) for name, value in evidence.terms.items()},
            "regimes": [str(regime) for regime in evidence.regimes],
            "trust": str(evidence.trust),
            "note": evidence.note,
        },
        "mode": {
            "values": {name: plain(value) for name, value in fit.values.items()},
            "log_q": plain(fit.log_density),
            "gradient_norm": plain(fit.gradient_norm),
            "eigenvalues": plain(fit.eigenvalues),
            "verdict": str(fit.verdict),
            "modes": [
                {"log_q": plain(mode.log_density), "starts": mode.starts} for mode in fit.modes
            ],
        },
        "summary": None if summary is None else _columns(summary),
    }


def _columns(summary: Summary) -> dict[str, Any]:
    names = ("mode", "mean", "sd", "lower", "upper", "error")
    sites = {
        site: {name: plain(getattr(summary, name)[site]) for name in names} for site in summary.mean
    }
    return {"probability": summary.probability, "sites": sites, "notes": list(summary.notes)}


def plain(value: Any) -> Any:
    """Plain Python numbers, None for what is NaN or infinite."""

    def finite(number: Any) -> Any:
        return number if math.isfinite(number) else None

    return None if value is None else jax.tree.map(finite, np.asarray(value).tolist())


def _array(value: Any) -> str:
    return np.array2string(
        np.asarray(value), precision=4, threshold=24, edgeitems=4, max_line_width=60
    )


def _for_netcdf(data: Any) -> Any:
    """The same ArviZ object with names that NetCDF can hold: `scope/mu` becomes `scope_mu`."""

    def renamed(dataset: Any) -> Any:
        return dataset.rename(without_slashes({*dataset.variables, *dataset.dims}))

    is_tree = hasattr(data, "map_over_datasets")  # an xarray DataTree, of ArviZ 1.x
    return data.map_over_datasets(renamed) if is_tree else data.map(renamed)


def file_names(sites: Sequence[str]) -> dict[str, str]:
    """Names of files for sites, which may have the same letters: `a/b` and `a_b`."""
    names: dict[str, str] = {}
    for site in sites:
        name = re.sub(r"[^\w.-]", "_", site)
        while name in names.values():
            name += "_"
        names[site] = name
    return names

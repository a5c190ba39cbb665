"""The notebook runs in a kernel of Jupyter, cell by cell, and shows what its reader sees."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "eight_schools.ipynb"


def outputs(cell, kind):
    """What a cell shows of one MIME type."""
    found = (output.get("data", {}) for output in cell.get("outputs", []))
    return [data[kind] for data in found if kind in data]


def log_z(cell):
    (text,) = outputs(cell, "text/plain")[-1:]
    return float(re.search(r"log Z (-\d+\.\d+)", text)[1])


def test_eight_schools(tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # pictures stand under their cells
    written = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    for cell in fresh.cells:
        cell.pop("outputs", None)
    client = NotebookClient(fresh, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    for cell, stored in zip(fresh.cells, written.cells, strict=True):
        for kind in ("text/html", "image/png"):
            assert bool(outputs(cell, kind)) == bool(outputs(stored, kind)), cell.source
        assert not any(output.get("name") == "stderr" and "volform" in output.text
                       for output in cell.get("outputs", []))  # fmt: skip
    by_source = {c.source.splitlines()[-1]: c for c in fresh.cells if c.cell_type == "code"}
    found = by_source["found"]
    assert log_z(found) == pytest.approx(-31.311, abs=0.15)  # by quadrature, as in README
    # Progress stood under the cell, and is gone.
    assert any(output.output_type == "display_data" for output in found.outputs)
    assert "..." not in "".join(outputs(found, "text/plain"))
    table = next(c for c in fresh.cells if "az.summary" in c.source)
    assert "theta[H]" in outputs(table, "text/plain")[0]

"""Data by name out of files: tables of text, JSON, Parquet, NetCDF, NumPy's archives."""

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volform.errors import DataError

Data = dict[str, Any]
MISSING = {"", "NA", "N/A", "NaN", "nan", "NULL", "null", "."}
_LARGEST = 2**63  # of the integers that arrays hold
# Numbers as people write them and Python does not: 1,5 or 1 234 or 12 % or $5.
_ALMOST_NUMBER = re.compile(r"[-+$€£\s]*\d[\d.,'_\s]*([eE][-+]?\d+)?\s*[%$€£]?")


@dataclass(frozen=True)
class Column:
    """A column of a table of text, before it is known whether anything needs it.

    Attributes:
        name: its header.
        cells: without the space around them.
        lines: the lines of the file that they stand in.
    """

    name: str
    cells: tuple[str, ...]
    lines: tuple[int, ...]

    def is_text(self) -> bool:
        """Tell whether every cell that is not missing is a word, and none a number or nearly so."""
        told = [cell for cell in self.cells if cell not in MISSING]
        return bool(told) and not any(_ALMOST_NUMBER.fullmatch(c) or _is_number(c) for c in told)

    def numbers(self, source: str) -> np.ndarray:
        """The cells as integers if they all are, else as floats.

        Raises:
            DataError: names the line of the first that is none, that is missing or infinite.
        """
        for line, cell in zip(self.lines, self.cells, strict=True):
            if cell not in MISSING and not _is_number(cell):
                raise DataError(
                    f"{source}: row {line}, column `{self.name}`: {_shown(cell)} is not a number"
                    f"{', which has a point and no comma' if ',' in cell else ''}; mend the cell, "
                    "or make the whole column text."
                )
        array = np.array([np.nan if c in MISSING else float(c) for c in self.cells])
        self._require_known(source, np.isfinite(array))
        if not all(re.fullmatch(r"[-+]?\d+", cell) for cell in self.cells):
            return array
        for line, cell, value in zip(self.lines, self.cells, array, strict=True):
            if abs(value) >= _LARGEST:
                raise DataError(
                    f"{source}: row {line}, column `{self.name}`: {_shown(cell)} is an integer of "
                    "more than 64 bits; write it as a float, such as 1.5e30."
                )
        return np.array([int(cell) for cell in self.cells])

    def codes(self, source: str) -> tuple[np.ndarray, list[str]]:
        """The cells of text as integers from 0 on, and the levels in order of the alphabet."""
        self._require_known(source, np.array([cell not in MISSING for cell in self.cells]))
        return _coded(np.array(self.cells))

    def _require_known(self, source: str, known: np.ndarray) -> None:
        if not known.all():
            place = f", the first in row {self.lines[int(np.argmin(known))]}"
            raise _missing(source, self.name, int((~known).sum()), place)


def load_data(path: Path) -> Data:
    """Named data out of a file, by what its name ends in.

    A table of text (.csv, .tsv) has a header; its separator, `;`, tab or `,`, is found out.

    Returns:
        A `Column` for each one of a table of text, else numbers and arrays; `value_of` reads both.

    Raises:
        FileNotFoundError: when there is no such file.
        DataError: when it cannot be read so.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"`{path}` should be a file whose name ends in {listed(_READERS, 'or')}.")
    if not path.is_file():
        raise FileNotFoundError(2, "No such file", str(path))
    return reader(path)


def value_of(source: str, name: str, value: Any) -> tuple[Any, list[str]]:
    """A value of `load_data` as numbers, and the levels if it is text: its codes' meaning.

    Raises:
        DataError: for what is neither, and for missing and infinite values.
    """
    if isinstance(value, Column):
        return value.codes(source) if value.is_text() else (value.numbers(source), [])
    array = np.asarray(value)
    if array.dtype.kind in "OSUT":
        known = np.array([isinstance(v, str) for v in array.ravel()], bool).reshape(array.shape)
        _require(source, name, known)
        return _coded(array.astype(str))
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{source}: `{name}` is of the type {array.dtype}; it should be numbers or text."
        )
    _require(source, name, np.isfinite(array))
    if isinstance(value, bool | int | float):
        return value, []
    array = array.astype(float) if array.dtype.kind == "f" else array
    return (array if array.ndim else array.item()), []


def inputs_of(data: Data, source: str, without: str) -> np.ndarray:
    """Examples of a network: the array `x`, or the columns beside each other.

    Args:
        data: what a file holds.
        source: the file, as messages name it.
        without: columns that are no inputs, between commas.

    Raises:
        DataError: when `without` names others, nothing is left, or lengths differ.
    """
    left_out = [name for name in without.split(",") if name]
    if any(name not in data for name in left_out):
        raise DataError(
            f"`--without {without}` should leave columns of {source}, which has {listed(data)}."
        )
    names = [name for name in data if name not in left_out]
    if "x" in names:
        array = np.asarray(value_of(source, "x", data["x"])[0])
        if array.ndim > 1:
            return array.astype(float)
    if not names:
        raise DataError(
            f"`--without {without}`: all of {source} are left out; at least one column should stay."
        )
    columns = [np.ravel(value_of(source, name, data[name])[0]) for name in names]
    if len({len(column) for column in columns}) > 1:
        raise DataError(f"{source} should hold an array `x`, or columns of one length.")
    return np.stack(columns, 1).astype(float)


def _require(source: str, name: str, known: np.ndarray) -> None:
    if not np.all(known):
        index = tuple(int(i) for i in np.argwhere(~known)[0])
        place = f", the first at index {index}" if index else ""
        raise _missing(source, name, int((~known).sum()), place)


def _missing(source: str, name: str, count: int, place: str) -> DataError:
    return DataError(
        f"{source}: `{name}` holds {count} missing, NaN or infinite values{place}; drop them or "
        "impute them."
    )


def _coded(array: np.ndarray) -> tuple[np.ndarray, list[str]]:
    levels, codes = np.unique(array, return_inverse=True)
    return codes.reshape(array.shape), [str(level) for level in levels]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"`{path}` could not be read as text in UTF-8: {error}.") from error


# --- JSON


def _read_json(path: Path) -> Data:
    def unique(pairs: list[tuple[str, Any]]) -> Data:
        names = [name for name, _ in pairs]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise DataError(f"`{path}` names {listed(repeated)} more than once; leave one of them.")
        return dict(pairs)

    def integer(text: str) -> int:
        if abs(float(text)) >= _LARGEST:
            raise DataError(
                f"`{path}` holds {_shown(text)}, an integer of more than 64 bits; write it as a "
                "float, such as 1.5e30."
            )
        return int(text)

    try:
        content = json.loads(_text(path), object_pairs_hook=unique, parse_int=integer)
        if not isinstance(content, dict):
            raise DataError(
                f"`{path}` should hold a JSON object, one entry for each argument of the function, "
                f'such as {{"y": [1.5, 2.0]}}; got a {type(content).__name__}.'
            )
        return {name: _json_value(path, name, value) for name, value in content.items()}
    except json.JSONDecodeError as error:
        raise DataError(f"`{path}` could not be read as JSON: {error}.") from error
    except RecursionError as error:
        raise DataError(
            f"`{path}` holds lists within lists, thousands deep; an array has one for each axis."
        ) from error


def _json_value(path: Path, name: str, value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    try:
        array = np.asarray(np.nan if value is None else value)
        if array.dtype == object:  # null somewhere; text stays text, and is refused below
            array = array.astype(float)
    except (TypeError, ValueError):
        array = np.asarray("ragged")
    if array.dtype.kind not in "bif" or isinstance(value, dict):
        raise DataError(
            f"`{path}`: `{name}` should be a number or a list of numbers, lists of equal length "
            f"within lists for a matrix; got {json.dumps(value)[:60]}."
        )
    return array


# --- Tables of text


def _read_table(path: Path) -> Data:
    text = _text(path)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=_separator(text),
        skipinitialspace=True,
        strict=True,
    )
    try:
        rows = [([cell.strip() for cell in row], reader.line_num) for row in reader if row]
    except csv.Error as error:
        raise DataError(
            f"`{path}` could not be read as a table: line {reader.line_num}: {error}."
        ) from error
    if len(rows) < 2:
        raise DataError(
            f"`{path}` should hold a header and at least one line of numbers; it has {len(rows)} "
            "lines."
        )
    header = rows.pop(0)[0]
    if all(len(row) == len(header) + 1 for row, _ in rows):
        header = ["", *header]  # names of rows, as R writes them
    if all(map(_is_number, header)):
        raise DataError(
            f"`{path}`: the first line, {_shown(','.join(header))}, holds numbers; it should be a "
            "header, a name for each column."
        )
    repeated = {name for name in header if name and header.count(name) > 1}
    if repeated:
        raise DataError(f"`{path}`: the header names {listed(repeated)} more than once; rename.")
    for row, line in rows:
        if len(row) != len(header):
            raise DataError(
                f"`{path}`: row {line} has {len(row)} cells; the header has {len(header)} names."
            )
    lines = tuple(line for _, line in rows)
    cells = zip(*(row for row, _ in rows), strict=True)
    return {
        name: Column(name, column, lines)
        for name, column in zip(header, cells, strict=True)
        if name not in ROW_NAMES
    }


ROW_NAMES = ("", "Unnamed: 0")  # headers of a column of names of rows, of R and of pandas


def _separator(text: str) -> str:
    """The separator that the header holds most of, outside of quotes."""
    header = re.sub(r'"[^"]*"', "", next((li for li in text.splitlines() if li.strip()), ""))
    return max(",;\t", key=header.count)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:20]!r}... of {len(text)} characters"


# --- Files of arrays


def _read_npz(path: Path) -> Data:
    try:
        # A file of our own: `np.load(path)` leaves its file open when the archive is broken.
        with path.open("rb") as file, np.load(file) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"`{path}` could not be read as an archive of `numpy.savez`: {_line(error)}."
        ) from error


def _read_parquet(path: Path) -> Data:
    def read() -> Data:
        import pandas  # noqa: PLC0415

        table = pandas.read_parquet(path)
        return {str(name): _array_of(table[name]) for name in table if str(name) not in ROW_NAMES}

    return _with_library(path, read, "`pip install pyarrow`, or write the table as CSV")


def _array_of(column: Any) -> np.ndarray:
    """Numbers as an array, with NaN for what is missing; all else as it is."""
    if column.dtype.kind in "iufb" and column.hasnans:
        return column.to_numpy(dtype=float, na_value=np.nan)
    return column.to_numpy()


def _read_netcdf(path: Path) -> Data:
    def read() -> Data:
        import xarray  # noqa: PLC0415

        groups = xarray.open_groups(path, engine="h5netcdf")
        chosen = groups["/"]
        if not chosen.data_vars:  # ArviZ keeps data in groups of their own
            parts = [groups[g] for g in ("/constant_data", "/observed_data") if g in groups]
            chosen = xarray.merge(parts)
        return {str(name): variable.values for name, variable in chosen.data_vars.items()}

    return _with_library(path, read, "`pip install xarray h5netcdf`, or write the data as JSON")


def _with_library(path: Path, read: Callable[[], Data], help_with: str) -> Data:
    """Data that a library reads, with its errors as ours: it may be missing, a file be foreign."""
    try:
        return read()
    except ImportError as error:
        raise DataError(
            f"`{path}` needs a package that is not installed ({_line(error)[:80]}): {help_with}."
        ) from error
    except Exception as error:
        raise DataError(
            f"`{path}` could not be read as a file of the kind {path.suffix}: "
            f"{type(error).__name__}: {_line(error)[:200]}."
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


_READERS: dict[str, Callable[[Path], Data]] = {
    ".tsv": _read_table,
    ".parquet": _read_parquet,
    ".nc": _read_netcdf,
    ".npz": _read_npz,
    ".json": _read_json,
    ".csv": _read_table,
}
TABLES = (".csv", ".tsv", ".parquet")


def listed(names: Iterable[str], word: str = "and") -> str:
    """Names in quotes, with commas and a word before the last."""
    quoted = [f"`{name}`" for name in names] or ["nothing"]
    return f" {word} ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)

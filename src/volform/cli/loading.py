"""Objects that a command line names: a function in a file, and data in a file."""

import csv
import difflib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpyro.primitives import Messenger

from volform.errors import DataError, ModelError

Data = dict[str, Any]


def load_function(reference: str) -> Callable:
    """The function that `file.py:function` names.

    Raises:
        FileNotFoundError: when there is no such file.
        ModelError: when it cannot be run, or holds no such function; suggests near names.
    """
    path, colon, name = reference.rpartition(":")
    if not colon or not path or not name:
        raise ModelError(
            f"`{reference}` should name a Python file and a function in it, as in "
            "`model.py:eight_schools`."
        )
    module = _load_module(Path(path))
    found = getattr(module, name, None)
    if callable(found):
        return found
    own = [
        key
        for key, value in vars(module).items()
        if isinstance(value, Messenger) or getattr(value, "__module__", None) == module.__name__
    ]
    near = difflib.get_close_matches(name, own, n=3)
    hint = f"Did you mean {_listed(near, 'or')}?" if near else f"It defines {_listed(own)}."
    raise ModelError(f"`{path}` does not hold a function with the name `{name}`. {hint}")


def _load_module(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(2, "No such file", str(path))
    resolved = path.resolve()
    name = f"volform-model {resolved}"
    if name in sys.modules:
        return sys.modules[name]
    if str(resolved.parent) not in sys.path:
        sys.path.insert(0, str(resolved.parent))  # as `python model.py` would
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise ModelError(f"`{path}` should be a file of Python source, whose name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ModelError(
            f"`{path}` could not be run to load its functions: {type(error).__name__}: {error}"
        ) from error
    return module


def load_data(path: Path) -> Data:
    """Named data: a JSON object, or a CSV file with a header, each column an array.

    Whole numbers stay integers; a list or a column with any other number is of floats.

    Raises:
        FileNotFoundError: when there is no such file.
        DataError: when it cannot be read so, or holds NaN, infinite or missing values.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"`{path}` should be a file whose name ends in {_listed(_READERS, 'or')}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"`{path}` could not be read as text in UTF-8: {error}.") from error
    data = reader(path, text)
    for name, value in data.items():
        finite = np.isfinite(np.asarray(value, dtype=float))
        if not np.all(finite):
            index = tuple(int(i) for i in np.argwhere(~finite)[0])
            place = f", the first at index {index}" if index else ""
            raise DataError(
                f"`{path}`: `{name}` holds {int((~finite).sum())} missing, NaN or infinite "
                f"values{place}; drop them or impute them."
            )
    return data


def _read_json(path: Path, text: str) -> Data:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"`{path}` could not be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(
            f"`{path}` should hold a JSON object, one entry for each argument of the function, "
            f'such as {{"y": [1.5, 2.0]}}; got a {type(content).__name__}.'
        )
    return {name: _json_value(path, name, value) for name, value in content.items()}


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


def _read_csv(path: Path, text: str) -> Data:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if len(rows) < 2:
        raise DataError(
            f"`{path}` should hold a header and at least one line of numbers; it has {len(rows)} "
            "lines."
        )
    header = [name.strip() for name in rows[0]]
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise DataError(f"`{path}`: the header names {_listed(repeated)} more than once; rename.")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise DataError(
                f"`{path}`: row {number} has {len(row)} cells; the header has {len(header)} names."
            )
    columns = zip(*rows[1:], strict=True)
    return {name: _column(path, name, cells) for name, cells in zip(header, columns, strict=True)}


def _column(path: Path, name: str, cells: tuple[str, ...]) -> np.ndarray:
    for number_of in (int, float):
        try:
            return np.array([number_of(cell) if cell.strip() else np.nan for cell in cells])
        except ValueError:
            continue
    bad, text = next((i, c) for i, c in enumerate(cells, 2) if c.strip() and not _is_number(c))
    raise DataError(f"`{path}`: row {bad}, column `{name}`: {text!r} is not a number.")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


_READERS: dict[str, Callable[[Path, str], Data]] = {".json": _read_json, ".csv": _read_csv}


def require_arguments(function: Callable, data: Data, source: str) -> None:
    """Check that `function` can be called with `data` as keyword arguments.

    Raises:
        DataError: names what is missing and what is not known.
    """
    inner: Any = function
    while isinstance(inner, Messenger) and inner.fn is not None:
        inner = inner.fn
    parameters = inspect.signature(inner).parameters.values()
    by_name = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    takes = [p.name for p in parameters if p.kind in by_name]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    needs = [p.name for p in parameters if p.kind in by_name and p.default is p.empty]
    called = getattr(inner, "__name__", inner)
    missing = [name for name in needs if name not in data]
    unknown = [name for name in data if name not in takes and not takes_any]
    if missing:
        raise DataError(
            f"{source} lacks {_listed(missing)}, which `{called}` needs; it takes the arguments "
            f"{_listed(takes)}."
        )
    if unknown:
        raise DataError(
            f"{source} holds {_listed(unknown)}, which `{called}` does not take; it takes the "
            f"arguments {_listed(takes)}."
        )


def _listed(names: Iterable[str], word: str = "and") -> str:
    quoted = [f"`{name}`" for name in names] or ["nothing"]
    return f" {word} ".join([", ".join(quoted[:-1]), quoted[-1]] if quoted[1:] else quoted)

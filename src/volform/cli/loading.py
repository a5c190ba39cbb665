"""Functions that a command line names, and their arguments out of a file of data."""

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpyro.primitives import Messenger

from volform.cli.data_files import Data, listed, value_of
from volform.errors import DataError, ModelError
from volform.models.attaching import without_handlers


def load_function(reference: str, others: tuple[type, ...] = ()) -> Any:
    """The function that `file.py:function` names, or a value of one of these other types.

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
    if callable(found) or isinstance(found, others):
        return found
    own = [
        key
        for key, value in vars(module).items()
        if isinstance(value, Messenger) or getattr(value, "__module__", None) == module.__name__
    ]
    near = difflib.get_close_matches(name, own, n=3)
    hint = f"Did you mean {listed(near, 'or')}?" if near else f"It defines {listed(own)}."
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
    except (Exception, SystemExit) as error:  # a script may end itself, by `sys.exit()`
        del sys.modules[name]
        raise ModelError(
            f"`{path}` could not be run to load its functions: {type(error).__name__}: {error}"
        ) from error
    return module


@dataclass(frozen=True)
class Arguments:
    """Arguments of a function out of a file of data.

    Attributes:
        values: by name.
        levels: for each that is text, the levels that its integer codes stand for.
        left_out: names in the file that the function does not take.
    """

    values: Data
    levels: dict[str, list[str]]
    left_out: list[str]

    def notes(self, source: str, called: str) -> list[str]:
        """Sentences on what was left out, and on what codes stand for."""
        notes = [
            f"{source}: `{name}` is text, taken as integers: {_legend(levels)}"
            for name, levels in self.levels.items()
        ]
        if self.left_out:
            notes.append(
                f"{source}: left out, since `{called}` does not take it: {listed(self.left_out)}"
            )
        return notes


def _legend(levels: list[str]) -> str:
    shown = [f"{level} = {code}" for code, level in enumerate(levels[:12])]
    return ", ".join(shown) + (f", ... ({len(levels)} levels)" if len(levels) > len(shown) else "")


def arguments_of(function: Callable, data: Data, source: str, exact: bool) -> Arguments:
    """The arguments that `function` takes, out of data by name.

    Args:
        function: called with keyword arguments.
        data: what a file holds.
        source: the file, as messages name it.
        exact: whether a name that the function does not take is refused, and not left out.

    Raises:
        DataError: names what is missing, what is not known, and what holds no numbers.
    """
    parameters = _signature(function).parameters.values()
    by_name = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    takes = [p.name for p in parameters if p.kind in by_name]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    needs = [p.name for p in parameters if p.kind in by_name and p.default is p.empty]
    missing = [name for name in needs if name not in data]
    left_out = [name for name in data if name not in takes and not takes_any]
    if missing:
        held = f"; it holds {listed(data)}" if data else ""
        raise DataError(
            f"{source} lacks {listed(missing)}, which `{name_of(function)}` needs; it takes the "
            f"arguments {listed(takes)}{held}."
        )
    if left_out and exact:
        raise DataError(
            f"{source} holds {listed(left_out)}, which `{name_of(function)}` does not take; it "
            f"takes the arguments {listed(takes)}."
        )
    read = {n: value_of(source, n, value) for n, value in data.items() if n not in left_out}
    levels = {name: levels for name, (_, levels) in read.items() if levels}
    return Arguments({name: value for name, (value, _) in read.items()}, levels, left_out)


def name_of(function: Callable) -> str:
    """The name of a function under NumPyro's handlers."""
    inner = without_handlers(function)
    return str(getattr(inner, "__name__", inner))


def _signature(function: Callable) -> inspect.Signature:
    try:
        return inspect.signature(without_handlers(function))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"`{name_of(function)}` is no function whose arguments can be read ({error}); give a "
            "NumPyro model, a function of the data."
        ) from error

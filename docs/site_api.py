"""Shows doctests as code and the defaults of Equinox classes on the API pages: a Griffe extension.

A docstring's doctest stands between paragraphs of Markdown, to which `>>>` is a quote in a quote.
An `equinox.Module` has no written `__init__`, so its arguments are read off the class itself.
"""

import importlib
import inspect
import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"(?:^>>> .*\n(?:^(?!\s*$).*\n?)*(?:\n(?=>>> ))?)+", re.MULTILINE)


class SiteApi(griffe.Extension):
    """Changes what Griffe read, before the pages are made of it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the doctests of a docstring."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Give a class the arguments that its fields are."""
        if "__init__" in cls.members:
            return
        made = getattr(importlib.import_module(cls.module.path), cls.name, None)
        if hasattr(made, "__dataclass_fields__"):
            cls.set_member("__init__", _init(cls, made))


def fenced(text: str) -> str:
    """The docstring with a fence round each of its doctests."""
    return _DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text + "\n").rstrip()


def _init(cls: griffe.Class, made: Any) -> griffe.Function:
    """The `__init__` that the fields make, each default as it is written."""
    parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
    for name, parameter in inspect.signature(made).parameters.items():
        field = cls.all_members.get(name)
        parameters.append(
            griffe.Parameter(
                name,
                annotation=getattr(field, "annotation", None),
                kind=getattr(griffe.ParameterKind, parameter.kind.name.lower()),
                default=None
                if parameter.default is parameter.empty
                else _written(field, parameter),
            )
        )
    return griffe.Function("__init__", parameters=griffe.Parameters(*parameters), parent=cls)


def _written(field: Any, parameter: inspect.Parameter) -> Any:
    written = getattr(field, "value", None)
    is_field = written is None or "field(" in str(written)
    return repr(parameter.default) if is_field else written

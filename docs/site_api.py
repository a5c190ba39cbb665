"""Shows doctests as code and the defaults of Equinox classes on the API pages: a Griffe extension.

Where a module has the name of what it defines, as `volform.plot.forest` does, Griffe takes the
module for what a room imports, and its pages would not have it.

A docstring's doctest stands between paragraphs of Markdown, to which `>>>` is a quote in a quote.
An `equinox.Module` has no written `__init__`, so its arguments are read off the class itself.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import griffe

_DOCTEST = re.compile(r"(?:^>>> .*\n(?:^(?!\s*$).*\n?)*(?:\n(?=>>> ))?)+", re.MULTILINE)


class SiteApi(griffe.Extension):
    """Changes what Griffe read, before the pages are made of it."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Give a room's names to what it imports, where they are those of modules too."""
        loader.resolve_aliases(implicit=True, external=False)  # whose paths lead through modules
        rooms = list(_packages(pkg))
        found = [
            (room, name, target)
            for room in rooms
            for name, path in room.imports.items()
            if not name.startswith("_") and (target := _defined(pkg, path)) is not None
        ]
        self._prepare(pkg)  # what the replaced modules hold is visited no more
        for room, name, target in found:
            member = room.members.get(name)
            if member is not None and member.is_module:
                room.members[name] = griffe.Alias(name, target=target, parent=room)

    def _prepare(self, obj: griffe.Object) -> None:
        self.on_object(obj=obj)
        if isinstance(obj, griffe.Class):
            self.on_class(cls=obj)
        for member in list(obj.members.values()):
            if not member.is_alias:
                self._prepare(member)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the doctests of a docstring."""
        if obj.docstring and "```pycon" not in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Give a class the arguments that its fields are."""
        if "__init__" in cls.members:
            return
        made = getattr(importlib.import_module(cls.module.path), cls.name, None)
        if hasattr(made, "__dataclass_fields__"):
            cls.set_member("__init__", _init(cls, made))


def _packages(module: griffe.Module) -> Iterator[griffe.Module]:
    yield module
    for member in module.members.values():
        if isinstance(member, griffe.Module) and member.is_init_module:
            yield from _packages(member)


def _defined(pkg: griffe.Module, path: str) -> Any:
    """The function or class at the end of a chain of imports; None where it is a module."""
    root, *parts, name = path.split(".")
    module = pkg
    if root != pkg.name:
        return None
    for part in parts:
        inner = module.members.get(part)
        if not isinstance(inner, griffe.Module):
            return None
        module = inner
    if module.imports.get(name, path) != path:
        return _defined(pkg, module.imports[name])
    member = module.members.get(name)
    return None if member is None or member.is_module else member


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

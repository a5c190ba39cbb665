"""The rules of the house, read off the syntax trees of the package.

Each rule is a function from the modules to its offenders, so that a failure lists path:line.
"""

import ast
import graphlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import pytest

SRC = Path(__file__).parents[1] / "src" / "volform"

# room: the rooms that it may import. Modules outside a room that are not named here, such as
# `errors` and `_typing`, import nothing of the package except each other; all may import them.
IMPORTS = {
    "geometry": set(),
    "operators": {"geometry"},
    "models": {"geometry", "operators"},
    "inference": {"geometry", "operators", "models"},
    "kernels": {"geometry", "operators", "models", "inference"},
    "equivalence": {"operators", "models"},
    "plotting": {"geometry", "operators", "models", "inference", "kernels", "equivalence"},
}
IMPORTS["cli"] = IMPORTS["__main__"] = {*IMPORTS, "cli"}
SHARED = {"errors", "_typing"}

MAX_PUBLIC_NAMES = 30
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MIN_MESSAGE_WORDS = 8
WORDLESS = {"NotImplementedError", "StopIteration", "SystemExit"}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)


@dataclass(frozen=True)
class Module:
    """A file of the package: its dotted name without the package's, and its syntax tree."""

    path: Path
    name: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    def at(self, node: ast.AST, what: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {what}"


Modules = dict[str, Module]


def read(src: Path) -> Modules:
    modules = {}
    for path in sorted(src.rglob("*.py")):
        parts = path.relative_to(src).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        text = path.read_text(encoding="utf-8")
        modules[name] = Module(path.relative_to(src.parents[1]), name, text, ast.parse(text))
    return modules


@dataclass(frozen=True)
class Import:
    """One imported name: the module it comes from, and the name (empty: the module itself)."""

    node: ast.stmt
    module: str
    name: str
    bound: str


def imports(module: Module, modules: Modules, package: str, lazy: bool) -> Iterator[Import]:
    """What `module` imports from the package, inside functions too if `lazy`."""
    for node in _statements(module.tree, lazy):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == package:
                    target = alias.name.partition(".")[2]
                    yield Import(node, target, "", alias.asname or package)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, module, package)
            for alias in node.names if base is not None else []:
                inner = f"{base}.{alias.name}".lstrip(".")
                target, name = (inner, "") if inner in modules else (base, alias.name)
                yield Import(node, target, name, alias.asname or alias.name)


def _base(node: ast.ImportFrom, module: Module, package: str) -> str | None:
    """The module after `from`, None outside the package."""
    if node.level:
        up = node.level - module.is_package
        parents = module.name.split(".")[: -up or None] if module.name else []
        return ".".join([*parents, *filter(None, [node.module])])
    first, _, rest = (node.module or "").partition(".")
    return rest if first == package else None


def _statements(tree: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported, or also those that run later if `lazy`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, FUNCTIONS) and not lazy:
            continue
        yield child
        yield from _statements(child, lazy)


# --- The rules


def against_the_direction(modules: Modules, package: str) -> Iterator[str]:
    for module in modules.values():
        if not module.name:
            continue  # the package itself re-exports from every room
        allowed = IMPORTS.get(module.room, set()) | SHARED | {module.room}
        for found in imports(module, modules, package, lazy=True):
            room = found.module.partition(".")[0] or package
            if room not in allowed:
                yield module.at(found.node, f"{module.room} may not import {room}")


def unknown_rooms(modules: Modules) -> Iterator[str]:
    for room in sorted({m.room for m in modules.values()} - {"", *IMPORTS, *SHARED}):
        yield f"{room}: say in IMPORTS what it may import"


def cycles(modules: Modules, package: str) -> Iterator[str]:
    graph = {
        name: {found.module for found in imports(module, modules, package, lazy=False)} - {name}
        for name, module in modules.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield " imports ".join(name or package for name in reversed(error.args[1]))


def private_imports(modules: Modules, package: str) -> Iterator[str]:
    for module in modules.values():
        foreign = {}
        for found in imports(module, modules, package, lazy=True):
            if found.module.partition(".")[0] in {module.room, *SHARED}:
                continue
            if any(_is_private(part) for part in [*found.module.split("."), found.name]):
                yield module.at(found.node, f"imports the private {found.module}.{found.name}")
            foreign[found.bound] = found
        for node in ast.walk(module.tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in foreign
                and _is_private(node.attr)
            ):
                yield module.at(node, f"uses the private {ast.unparse(node)}")


def undocumented(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        if not ast.get_docstring(module.tree):
            yield module.at(module.tree, "module")
        for node in _public(module.tree):
            if not ast.get_docstring(node):
                yield module.at(node, node.name)


def _public(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions, classes and methods; an override is documented where it is declared."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, DEFINITIONS):
            marks = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
            if not node.name.startswith("_") and not marks & {"override", "overload", "setter"}:
                yield node
                if isinstance(node, ast.ClassDef):
                    yield from _public(node)
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from _public(node)


def long_files(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        lines = len(module.text.splitlines())
        if lines > MAX_FILE_LINES:
            yield f"{module.path}:1: {lines} lines"


def long_functions(modules: Modules) -> Iterator[str]:
    for module, node in _walk(modules):
        if isinstance(node, FUNCTIONS):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node):
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield module.at(node, f"{node.name}: {lines} lines without its docstring")


def curt_errors(modules: Modules) -> Iterator[str]:
    for module, node in _walk(modules):
        if not isinstance(node, ast.Raise) or node.exc is None:
            continue
        if isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func).rpartition(".")[2]
            text = _static_text(node.exc.args[0]) if node.exc.args else ""
        else:
            name, text = ast.unparse(node.exc).rpartition(".")[2], ""
        # Lower case is a variable or a function that makes the error; None is text made elsewhere.
        if name in WORDLESS or not name[:1].isupper() or text is None:
            continue
        if len(text.split()) < MIN_MESSAGE_WORDS or "`" not in text:
            yield module.at(node, f"{name}({text!r})")


def _static_text(node: ast.expr) -> str | None:
    """The text of a string expression, each value put into it as `{}`; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_static_text(value) or "{}" for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _static_text(node.left), _static_text(node.right)
        return None if left is right is None else (left or "{}") + (right or "{}")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _static_text(node.func.value) if node.func.attr in {"format", "join"} else None
    return None


def string_options(modules: Modules) -> Iterator[str]:
    for module in modules.values():
        if module.room != "cli" and not module.is_package:
            for node in _compared_arguments(module.tree, frozenset()):
                yield module.at(node, ast.unparse(node).splitlines()[0])


def _compared_arguments(tree: ast.AST, arguments: frozenset[str]) -> Iterator[ast.AST]:
    if isinstance(tree, (*FUNCTIONS, ast.Lambda)):
        args = tree.args
        every = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
        arguments |= {arg.arg for arg in every if arg}
    if isinstance(tree, ast.Compare):
        sides = [tree.left, *tree.comparators]
        # `"key" in argument` asks what a container holds; it is no choice between options.
        contains = isinstance(tree.ops[0], (ast.In, ast.NotIn)) and _is_text(tree.left)
        named = any(isinstance(side, ast.Name) and side.id in arguments for side in sides)
        if named and not contains and any(_is_text(side) for side in sides):
            yield tree
    if isinstance(tree, ast.Match) and isinstance(tree.subject, ast.Name):
        values = (p.value for p in ast.walk(tree) if isinstance(p, ast.MatchValue))
        if tree.subject.id in arguments and any(_is_text(value) for value in values):
            yield tree
    for child in ast.iter_child_nodes(tree):
        yield from _compared_arguments(child, arguments)


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return any(_is_text(item) for item in node.elts)
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _walk(modules: Modules) -> Iterator[tuple[Module, ast.AST]]:
    for module in modules.values():
        for node in ast.walk(module.tree):
            yield module, node


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def public_names(init: Module) -> list[str]:
    """Names bound in the package's own file; submodules that Python binds there do not count."""
    names = []
    for node in init.tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            if getattr(node, "module", "") != "__future__":
                names += [alias.asname or alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, DEFINITIONS):
            names.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return sorted({name for name in names if not name.startswith("_")})


# --- The tests


@pytest.fixture(scope="module")
def house() -> Modules:
    return read(SRC)


def none(offenders: Iterator[str]) -> None:
    if found := list(offenders):
        pytest.fail("\n".join(found), pytrace=False)


def test_imports_point_one_way(house):
    none(against_the_direction(house, "volform"))


def test_every_room_is_known(house):
    none(unknown_rooms(house))


def test_no_import_cycle(house):
    none(cycles(house, "volform"))


def test_no_private_name_of_another_room(house):
    none(private_imports(house, "volform"))


def test_everything_public_is_documented(house):
    none(undocumented(house))


def test_files_are_short(house):
    none(long_files(house))


def test_functions_are_short(house):
    none(long_functions(house))


def test_errors_say_what_helps(house):
    none(curt_errors(house))


def test_choices_are_values_not_strings(house):
    none(string_options(house))


def test_few_public_names(house):
    import volform

    # Rooms do not count: what is in them is found there, and not at the top.
    names = [n for n in public_names(house[""]) if not inspect.ismodule(getattr(volform, n))]
    assert len(names) <= MAX_PUBLIC_NAMES, f"{len(names)} public names: {', '.join(names)}"


def test_public_names_are_documented(house):
    import volform

    none(n for n in public_names(house[""]) if not (getattr(volform, n).__doc__ or "").strip())


@pytest.mark.parametrize("x64", ["0", "1"])
def test_import_changes_no_configuration(x64):
    program = """
import jax
before = dict(jax.config.values)
import volform
after = dict(jax.config.values)
changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
assert not changed, changed
"""
    environment = {**os.environ, "JAX_ENABLE_X64": x64, "PYTHONPATH": str(SRC.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_x64_leg():
    assert jnp.zeros(1).dtype == jnp.float64


@pytest.mark.float32
def test_float32_leg():
    assert jnp.zeros(1).dtype == jnp.float32

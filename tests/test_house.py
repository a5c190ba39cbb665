"""The rules of the house, read off the syntax trees of the package.

Each rule is a function from the modules to its offenders, so that a failure lists path:line.
"""

import ast
import graphlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import jax.numpy as jnp
import pytest
from tests.house import (
    DEFINITIONS,
    FLOORS,
    FUNCTIONS,
    ROOT,
    SHARED,
    SRC,
    Module,
    Modules,
    import_depth,
    imports,
    past_the_door,
    public_names,
    read,
)

# Public names of several meanings, each with the reason why.
HOMONYMS = {
    "Conv": "as a NumPyro model in `networks`, as a kernel in `kernels`",
    "Dense": "likewise",
    "evidence": "log Z of a posterior in `inference`, of a Gaussian process in `kernels`",
}
MAX_IMPORT_DEPTH = 20

MAX_PUBLIC_NAMES = 45  # what a user of one room alone needs is found there
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MIN_MESSAGE_WORDS = 8
QUESTIONS = {"How", "What", "When", "Where", "Whether", "Which", "Why"}
WORDLESS = {"NotImplementedError", "StopIteration", "SystemExit"}

# --- The rules


def against_the_direction(modules: Modules, package: str) -> Iterator[str]:
    for module in modules.values():
        if not module.name:
            continue  # the package itself re-exports from every room
        allowed = {*SHARED, module.room, *_below(module.room)}
        for found in imports(module, modules, package, lazy=True):
            room = found.module.partition(".")[0] or package
            if room not in allowed:
                yield module.at(found.node, f"{module.room} may not import {room}")


def _below(room: str) -> set[str]:
    """The rooms on the floors below, and for the command line's entry its neighbor."""
    for number, floor in enumerate(FLOORS):
        if room in floor:
            lower = {name for names in FLOORS[:number] for name in names}
            return lower | {"cli"} if room == "__main__" else lower
    return set()


def unknown_rooms(modules: Modules) -> Iterator[str]:
    rooms = {name for floor in FLOORS for name in floor}
    for room in sorted({m.room for m in modules.values()} ^ {"", *rooms, *SHARED}):
        yield f"{room}: a room without a floor in FLOORS, or the other way round"


def homonyms(modules: Modules) -> Iterator[str]:
    """Public names that are defined in two modules; pictures are named after what they show."""
    places: dict[str, list[str]] = {}
    for module in modules.values():
        if module.room not in {"plot", "cli"}:
            for name in _defined(module):
                places.setdefault(name, []).append(str(module.path))
    for name, paths in sorted(places.items()):
        if len(paths) > 1 and name not in HOMONYMS:
            yield f"{name}: {', '.join(paths)}"


def _defined(module: Module) -> list[str]:
    """Names of public functions, classes and constants of a module."""
    names = [node.name for node in module.tree.body if isinstance(node, DEFINITIONS)]
    for node in module.tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names += [n.id for n in ast.walk(target) if isinstance(n, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def misnamed_files(modules: Modules) -> Iterator[str]:
    """Files named like a class that lives in another file."""
    classes: dict[str, list[Module]] = {}
    for module in modules.values():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name.lower(), []).append(module)
    for module in modules.values():
        homes = classes.get(module.path.stem.replace("_", ""), [])
        if homes and module not in homes and module.room != "plot":
            yield f"{module.path}: a class of this name lives in {homes[0].path}"


def missing_from_reference(modules: Modules, page: str) -> Iterator[str]:
    """Names of a room's door that the page of public names does not list."""
    listed = _listed(page)
    for name, module in modules.items():
        if module.is_package and name and "." not in name and name != "cli":
            missing = set(public_names(module)) - listed.get(f"volform.{name}", set())
            yield from (f"{name}.{missed} is not in docs/api.md" for missed in sorted(missing))


def _listed(page: str) -> dict[str, set[str]]:
    """What each `::: module` of the page lists as members."""
    listed: dict[str, set[str]] = {}
    for block in page.split("::: ")[1:]:
        members = re.search(r"members: \[([^\]]*)\]", block)
        names = {name.strip() for name in members[1].split(",")} if members else set()
        listed.setdefault(block.split()[0], set()).update(names)
    return listed


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


def opened_by_a_question(modules: Modules) -> Iterator[str]:
    """Docstrings that begin with a question word, and not with a verb or a noun."""
    for module, node in _walk(modules):
        if isinstance(node, (ast.Module, *DEFINITIONS)):
            text = ast.get_docstring(node) or "."
            if text.split()[0].strip(",:") in QUESTIONS:
                yield module.at(node, text.splitlines()[0])


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


def test_names_pass_through_doors(house):
    none(past_the_door(house, "volform"))


def test_imports_are_shallow(house):
    chain = import_depth(house, "volform")
    assert len(chain) <= MAX_IMPORT_DEPTH, " imports ".join(chain)


def test_a_public_name_has_one_meaning(house):
    none(homonyms(house))


def test_files_are_named_after_what_they_hold(house):
    none(misnamed_files(house))


def test_the_reference_is_complete(house):
    none(missing_from_reference(house, (ROOT / "docs" / "api.md").read_text(encoding="utf-8")))


def test_the_picture_of_the_rooms_is_fresh():
    check = [sys.executable, str(ROOT / "docs" / "rooms.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_private_name_of_another_room(house):
    none(private_imports(house, "volform"))


def test_everything_public_is_documented(house):
    none(undocumented(house))


def test_docstrings_begin_with_a_verb_or_a_noun(house):
    none(opened_by_a_question(house))


def test_files_are_short(house):
    none(long_files(house))


def test_functions_are_short(house):
    none(long_functions(house))


def test_errors_say_what_helps(house):
    none(curt_errors(house))


def test_choices_are_values_not_strings(house):
    none(string_options(house))


def test_slow_tests_are_there():
    for line in (ROOT / "tests" / "slow.txt").read_text().splitlines():
        path, _, case = line.partition("::")
        name = case.partition("[")[0].rpartition(".")[2]
        is_there = line.startswith("#") or re.search(
            rf"\b(def|class) {name}\b", (ROOT / path).read_text()
        )
        assert is_there, line


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

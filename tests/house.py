"""Reads the package as syntax trees: modules, imports, doors; its floors, and measures of it."""

import ast
import graphlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "volform"

# floor by floor: a room may import those of the floors below. Modules outside a room, such as
# `errors`, import nothing of the package except each other; all may import them.
FLOORS = (
    ("linalg",),
    ("geometry",),
    ("operators", "models"),
    ("equivalence",),
    ("networks",),
    ("inference", "kernels", "layers", "optimizers"),
    ("architectures",),
    ("plot",),
    ("cli", "__main__"),
)
SHARED = {"checks", "compilation", "errors", "generators", "limits", "moved", "progress", "results"}

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


def past_the_door(modules: Modules, package: str) -> Iterator[str]:
    """Names that cross from one folder to another and do not stand in its `__init__`."""
    doors = {name: set(public_names(m)) for name, m in modules.items() if m.is_package}
    for module in modules.values():
        for found in imports(module, modules, package, lazy=True):
            door = _door(module, found.module, doors)
            if door and found.name and found.name not in doors[door]:
                yield module.at(found.node, f"`{found.name}` is not in {door}/__init__.py")


def _door(module: Module, target: str, doors: dict[str, set[str]]) -> str | None:
    """The outermost folder that holds the target and not the module."""
    parts = target.split(".")
    folders = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    inside = f"{module.name}."
    return next((f for f in folders if f in doors and not inside.startswith(f"{f}.")), None)


def import_depth(modules: Modules, package: str) -> list[str]:
    """The longest chain of modules of which each imports the next."""
    longest: dict[str, list[str]] = {}
    graph = {
        name: {found.module for found in imports(module, modules, package, lazy=True)} - {name}
        for name, module in modules.items()
    }
    for name in graphlib.TopologicalSorter(graph).static_order():
        below = (longest[target] for target in graph.get(name, ()))
        longest[name] = [name or package, *max(below, key=len, default=[])]
    return max(longest.values(), key=len)


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

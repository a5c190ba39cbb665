"""Draws the rooms of the package and the imports between them, read off the syntax trees.

python docs/rooms.py            write docs/rooms.svg
python docs/rooms.py --check    exit with 1 where the picture is older than the imports
python docs/rooms.py --table    print the measures of the house
"""

import argparse
import ast
import statistics
import sys
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.house import (  # noqa: E402
    FLOORS,
    FUNCTIONS,
    SHARED,
    SRC,
    Modules,
    import_depth,
    imports,
    past_the_door,
    read,
)

PICTURE = ROOT / "docs" / "rooms.svg"
Arrows = dict[tuple[str, str], int]


def arrows_of(modules: Modules) -> Arrows:
    """How many names each room imports from each other one."""
    crossing = {
        (module.room, found.module.partition(".")[0], found.module, found.name)
        for module in modules.values()
        for found in imports(module, modules, "volform", lazy=True)
        if module.name and found.name
    }
    pairs = Counter((_ground(above), _ground(below)) for above, below, _, _ in crossing)
    return {
        (above, below): count
        for (above, below), count in sorted(pairs.items())
        if above != below and below != "ground"  # which every room imports
    }


def _ground(room: str) -> str:
    return "ground" if room in SHARED else "cli" if room == "__main__" else room


def described(arrows: Arrows) -> str:
    """The arrows as text, which the picture holds and `--check` compares."""
    return "; ".join(f"{above} -> {below}: {count}" for (above, below), count in arrows.items())


def inside(modules: Modules, room: str) -> str:
    """Files and lines of a room, and its sub-rooms."""
    own = [module for module in modules.values() if _ground(module.room) == room and module.name]
    lines = sum(len(module.text.splitlines()) for module in own)
    rooms = sorted({m.name.split(".")[1] for m in own if m.name.count(".") > 1})
    return "\n".join([*([", ".join(rooms)] if rooms else []), f"{len(own)} files, {lines:,} lines"])


def draw(modules: Modules, arrows: Arrows) -> None:
    """One row a floor, the ground at the bottom; the wider an arrow, the more names it carries."""
    floors = [("ground",), *(tuple(r for r in f if r != "__main__") for f in FLOORS)]
    plt.rcParams["svg.hashsalt"] = "volform"  # else every drawing has other ids
    figure, ax = plt.subplots(figsize=(9, 11.5), layout="constrained")
    places = {}
    for height, floor in enumerate(floors):
        for number, room in enumerate(floor):
            # Every other floor stands aside, so that arrows pass a room and not through it.
            aside = 0.0 if len(floor) > 1 else (-1) ** height * 0.55
            places[room] = (3.6 * (number - (len(floor) - 1) / 2) + aside, 1.7 * height)
    for (above, below), count in arrows.items():
        start, end = places[above], places[below]
        bend = 0.18 * (1 if (start[0] + start[1]) > end[0] + end[1] else -1)
        arrow = FancyArrowPatch(
            (start[0], start[1] - 0.42),
            (end[0], end[1] + 0.42),
            connectionstyle=f"arc3,rad={bend * (start[1] - end[1] > 2)}",
            arrowstyle="-|>",
            mutation_scale=9,
            linewidth=0.5 + 0.06 * count,
            color="0.3",
            alpha=0.75,
            zorder=1,
        )
        ax.add_patch(arrow)
    for room, (x, y) in places.items():
        box = FancyBboxPatch(
            (x - 1.35, y - 0.4),
            2.7,
            0.8,
            boxstyle="round,pad=0.02,rounding_size=0.1",
            facecolor="#eef3f8" if room != "ground" else "#f4f4f4",
            edgecolor="0.3",
            zorder=2,
        )
        ax.add_patch(box)
        title = room if room != "ground" else ", ".join(sorted(SHARED))
        ax.text(x, y + 0.2, title, ha="center", va="center", weight="bold", size=10, zorder=3)
        ax.text(x, y - 0.14, inside(modules, room), ha="center", va="center", size=8, zorder=3)
    ax.set_xlim(-3.6, 3.6)
    ax.set_ylim(-0.6, 1.7 * (len(floors) - 1) + 0.6)
    ax.set_axis_off()
    figure.savefig(PICTURE, metadata={"Date": None, "Description": described(arrows)})


def table(modules: Modules) -> str:
    """The measures of the house."""
    files = [len(module.text.splitlines()) for module in modules.values()]
    functions = [
        node.end_lineno - node.lineno + 1 - _documentation(node)
        for module in modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, FUNCTIONS)
    ]
    tenths = statistics.quantiles(functions, n=10)
    rows = {
        "files, lines": f"{len(files)}, {sum(files):,}",
        "median and longest file": f"{statistics.median(files):g}, {max(files)}",
        "functions; lines: median, 90 %, longest": (
            f"{len(functions)}; {statistics.median(functions):g}, {tenths[8]:.0f}, {max(functions)}"
        ),
        "import depth": str(len(import_depth(modules, "volform"))),
        "names past a door": str(len(list(past_the_door(modules, "volform")))),
    }
    return "\n".join(f"{name:<42}{value}" for name, value in rows.items())


def _documentation(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if not ast.get_docstring(node):
        return 0
    return node.body[0].end_lineno - node.body[0].lineno + 1


def main() -> None:
    """Draw, check or print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the picture with the imports")
    parser.add_argument("--table", action="store_true", help="print measures instead")
    parser.add_argument("--source", type=Path, default=SRC, help="the package's folder")
    options = parser.parse_args()
    modules = read(options.source)
    arrows = arrows_of(modules)
    if options.table:
        print(table(modules))
    elif not options.check:
        draw(modules, arrows)
    elif described(arrows).replace(">", "&gt;") not in PICTURE.read_text(encoding="utf-8"):
        sys.exit("docs/rooms.svg is older than the imports: run `make picture`.")


if __name__ == "__main__":
    main()

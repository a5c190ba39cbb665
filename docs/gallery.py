"""Draws the pictures of two pages by the code that stands on them.

python docs/gallery.py          write docs/gallery/*.png, one for each function, and docs/globe.png
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.code_blocks import code_of  # noqa: E402

PICTURES = ROOT / "docs" / "gallery"
DPI = 100
COLORS = 128  # of its own: a picture looks the same, in a third of the bytes


def blocks(page: str) -> Iterator[str]:
    """Run a page, and yield each block of its code when it has run."""
    names: dict[str, object] = {"__name__": "__page__"}
    for code in code_of(f"docs/{page}"):
        plt.close("all")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, names)
        yield code


def save(path: Path) -> None:
    """Write the current figure with a palette of few colors."""
    drawn = io.BytesIO()
    plt.savefig(drawn, dpi=DPI, format="png")
    Image.open(drawn).convert("RGB").quantize(COLORS).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1024:.0f} kB", flush=True)


def main() -> None:
    """Run both pages; a block of the gallery that draws names its picture."""
    PICTURES.mkdir(exist_ok=True)
    for code in blocks("gallery.md"):
        if function := re.search(r"^vf\.plot\.(\w+)\(", code, re.MULTILINE):
            save(PICTURES / f"{function[1]}.png")
    os.chdir(ROOT / "docs")  # where globe.md writes its own
    list(blocks("globe.md"))


if __name__ == "__main__":
    main()

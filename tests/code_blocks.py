"""The code of README and the guides: run page by page, and what it prints compared or written.

    python -m tests.code_blocks                     run all pages, list what is not as they say
    python -m tests.code_blocks --write README.md   write what the code prints into its text blocks

The blocks of a page run in order and share their names, in a folder of their own. A ``text`` block
right behind a ``python`` block is what that prints; a line ``...`` in it stands for any lines.
"""

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")
# Printed numbers agree up to so many units of their last digit, and are alike below rounding.
UNITS, ROUNDING = 2.0, 1e-9


@dataclass(frozen=True)
class Block:
    """A block of code: the line it starts at, what it printed, what its page says, its failure."""

    page: str
    line: int
    printed: str
    expected: str | None
    failure: str | None

    def problem(self) -> str | None:
        """What is wrong with the block, or None."""
        where = f"{self.page}:{self.line}"
        if self.failure:
            return f"{where}: {self.failure}"
        if self.expected is not None and not agree(self.printed, self.expected):
            return f"{where} prints\n{self.printed}where the page says\n{self.expected}"
        return None


def code_of(page: str) -> list[str]:
    """The code of each block of a page."""
    return [found[1] for found in _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))]


def run(page: str) -> list[Block]:
    """The blocks of a page, each run after those before it; none runs after one that fails."""
    text = (ROOT / page).read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "__page__"}
    blocks: list[Block] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for found in _BLOCK.finditer(text):
            line = text[: found.start()].count("\n") + 2
            code = compile("\n" * (line - 1) + found[1], page, "exec")
            failure, out = None, io.StringIO()
            try:
                with contextlib.redirect_stdout(out):
                    exec(code, names)
            except Exception as error:  # whatever a page raises is what its reader would see
                at = [step.lineno for step in traceback.extract_tb(error.__traceback__)
                      if step.filename == page]  # fmt: skip
                failure = f"line {at[-1] if at else '?'}: {type(error).__name__}: {error}"
            if "matplotlib.pyplot" in sys.modules:  # which keeps figures, and warns of twenty
                sys.modules["matplotlib.pyplot"].close("all")
            blocks.append(Block(page, line, out.getvalue(), found[2], failure))
            if failure:
                break
    return blocks


def agree(printed: str, expected: str) -> bool:
    """Tell whether two texts are the same, with `...` for lines left out and last digits apart."""
    lines, wanted = _lines(printed), _lines(expected)
    start = 0
    for part in _parts(wanted):
        for at in range(start, len(lines) - len(part) + 1):
            if all(map(_alike, lines[at : at + len(part)], part)):
                start = at + len(part)
                break
        else:
            return False
    return bool(wanted) and (wanted[-1] == "..." or start == len(lines))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def _parts(lines: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for line in lines:
        if line == "...":
            parts.append([])
        else:
            parts[-1].append(line)
    return parts


def _alike(line: str, wanted: str) -> bool:
    ours, theirs = _NUMBER.findall(line), _NUMBER.findall(wanted)
    words = [_NUMBER.sub("#", text).split() for text in (line, wanted)]
    return words[0] == words[1] and all(map(_near, ours, theirs))


def _near(number: str, wanted: str) -> bool:
    digits, _, exponent = wanted.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    gap = abs(float(number) - float(wanted))
    return (
        gap <= UNITS * unit * (1 + 1e-6) or max(abs(float(number)), abs(float(wanted))) < ROUNDING
    )


def write(page: str, blocks: list[Block]) -> None:
    """Replace the text blocks of a page by what its code printed; those with `...` stay."""
    printed = iter(blocks)

    def replaced(found: re.Match[str]) -> str:
        block = next(printed)
        if block.expected is None or "..." in _lines(block.expected):
            return found[0]
        at = found.start(2) - found.start()
        text = block.printed.strip("\n") + "\n"
        return found[0][:at] + text + found[0][at + len(found[2]) :]

    path = ROOT / page
    path.write_text(_BLOCK.sub(replaced, path.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="run the code of the pages")
    parser.add_argument("pages", nargs="*", default=PAGES, metavar="page")
    parser.add_argument("--write", action="store_true", help="write what is printed into the pages")
    args = parser.parse_args()
    os.environ.setdefault("MPLBACKEND", "Agg")
    problems = 0
    for page in args.pages:
        blocks = run(page)
        if args.write and not any(block.failure for block in blocks):
            write(page, blocks)
            continue
        for problem in filter(None, (block.problem() for block in blocks)):
            problems += 1
            print(problem, flush=True)
    return min(problems, 1)


if __name__ == "__main__":
    sys.exit(main())

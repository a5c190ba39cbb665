"""The gallery has every picture of `vf.plot`; its code runs with that of the other pages."""

import inspect
import re
from pathlib import Path

import pytest
from tests.code_blocks import code_of

import volform as vf

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "gallery"
# `figure_of` draws nothing.
NAMES = sorted(
    name
    for name, value in vars(vf.plot).items()
    if inspect.isfunction(value) and name != "figure_of"
)


def sections() -> list[tuple[str, str]]:
    """Heading and text of each picture."""
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    parts = re.split(r"^###? ", page, flags=re.MULTILINE)[1:]
    named = [(title, text) for title, _, text in (part.partition("\n") for part in parts)]
    return [(title, text) for title, text in named if "![" in text]


def test_every_picture_is_there_once():
    assert sorted(title for title, _ in sections()) == NAMES
    assert sorted(path.stem for path in FOLDER.iterdir()) == NAMES
    code = code_of("docs/gallery.md")
    drawn = re.findall(r"\bvf\.plot\.(\w+)\(", "\n".join(code))
    assert sorted(drawn) == NAMES
    assert all(len(re.findall(r"^vf\.plot\.", block, re.MULTILINE)) <= 1 for block in code)


@pytest.mark.parametrize("name", NAMES)
def test_a_section_has_code_words_and_a_picture(name):
    (text,) = [text for title, text in sections() if title == name]
    words, _, rest = text.strip().partition("\n\n```python\n")
    code, _, picture = rest.partition("\n```\n\n")
    assert 20 < len(words) < 300
    assert f"vf.plot.{name}(" in code
    shown = re.fullmatch(r"!\[.{10,}\]\(gallery/(\w+)\.png\)", picture.split("\n\n## ")[0])
    assert shown
    assert shown[1] == name
    file = FOLDER / f"{name}.png"
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert file.stat().st_size < 80_000

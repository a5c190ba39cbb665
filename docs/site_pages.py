"""Makes the pages of the site that are files elsewhere, and one page of names for each room.

A hook of MkDocs: README, changelog, contributing, examples, a notebook as it was run; and `api.md`,
which lists all public names, cut at its headings. Links are written for the repository, and are
turned to the pages.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
NAMES = ROOT / "docs" / "api.md"
NOTEBOOK = ROOT / "examples" / "eight_schools.ipynb"
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}


def on_config(config: Any) -> Any:
    """Put the pages of names, which are made here, into the navigation."""
    rooms: list[Any] = [{"All": "api.md"}, *({title: page} for title, page, _ in rooms_of_names())]
    for entry in config["nav"]:
        if "Public names" in entry:
            entry["Public names"] = rooms
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages before MkDocs reads the others."""
    made = {page: turned((ROOT / name).read_text(encoding="utf-8")) for name, page in PAGES.items()}
    made |= {"examples.md": examples(), "api.md": names(), "eight_schools.md": notebook()}
    made |= {page: text for _, page, text in rooms_of_names()}
    for page, text in made.items():
        known = files.get_file_from_path(page)
        if known is not None:
            files.remove(known)
        files.append(File.generated(config, page, content=text))
    return files


def rooms_of_names() -> list[tuple[str, str, str]]:
    """Title, page and text of each section of the list of public names."""
    sections = re.split(r"^## ", NAMES.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    titles = [section.partition("\n")[0] for section in sections]
    pages = [f"api/{title.lower().replace(' ', '_')}.md" for title in titles]
    return [
        (title, page, f"# {section}")
        for title, page, section in zip(titles, pages, sections, strict=True)
    ]


def names() -> str:
    """All public names in one list, each a link to its entry."""
    parts = [NAMES.read_text(encoding="utf-8").partition("\n## ")[0]]
    for title, page, text in rooms_of_names():
        blocks = re.findall(
            r"^::: (\S+)(?:\n    options:\n      members: \[(.*?)\])?", text, re.MULTILINE
        )
        links = [
            f"[{name}][{room}.{name}]"
            for room, members in blocks
            for name in members.split(", ")
            if name
        ]
        parts.append(f"## [{title}]({page})\n\n{', '.join(links)}\n")
    return "\n".join(parts)


def turned(text: str) -> str:
    """The Markdown with its links to files of the repository turned to pages of the site."""
    for name, page in PAGES.items():
        text = text.replace(f"]({name}", f"]({page}")
    text = text.replace("](examples/eight_schools.ipynb)", "](eight_schools.md)")
    return re.sub(r"\]\(docs/", "](", text).replace("](examples)", "](examples.md)")


def examples() -> str:
    """A page of the examples: the docstring of each, the command that runs it, and its code."""
    parts = ["# Examples\n\nEach runs from a checkout of the repository.\n"]
    for path in sorted((ROOT / "examples").glob("*.py")):
        code = path.read_text(encoding="utf-8")
        title, _, text = (ast.get_docstring(ast.parse(code)) or path.stem).partition("\n")
        indented = "".join(f"    {line}".rstrip() + "\n" for line in code.splitlines())
        parts.append(
            f"## {path.stem}\n\n{title}\n\n{text.strip()}\n\n"
            f"    python examples/{path.name}\n\n"
            f'??? example "examples/{path.name}"\n\n    ```python\n{indented}    ```\n'
        )
    return "\n".join(parts)


def notebook() -> str:
    """The cells of the notebook, each with the text and the picture that it left."""
    parts = []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for shown in (output["data"] for output in cell.get("outputs", ())):
            if "image/png" in shown:
                picture = "".join(shown["image/png"]).replace("\n", "")
                parts.append(f'<img src="data:image/png;base64,{picture}" alt="A picture">')
            else:
                parts.append(f"```text\n{''.join(shown['text/plain'])}\n```")
    return "\n\n".join(parts)

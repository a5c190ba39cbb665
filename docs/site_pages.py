"""Makes the pages of the site that are files elsewhere: README, changelog, contributing, examples.

A hook of MkDocs. Links of those files are written for the repository, and are turned to the pages.
"""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages before MkDocs reads the others."""
    made = {page: turned((ROOT / name).read_text(encoding="utf-8")) for name, page in PAGES.items()}
    for page, text in (made | {"examples.md": examples()}).items():
        files.append(File.generated(config, page, content=text))
    return files


def turned(text: str) -> str:
    """The Markdown with its links to files of the repository turned to pages of the site."""
    for name, page in PAGES.items():
        text = text.replace(f"]({name}", f"]({page}")
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

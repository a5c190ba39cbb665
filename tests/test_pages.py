"""The code of README and the guides runs as it stands, and prints what they say."""

import pytest
from tests import code_blocks


@pytest.mark.slow
@pytest.mark.standard_promotion  # NUTS and optax
@pytest.mark.filterwarnings("ignore::UserWarning")  # a reader sees those that NumPyro gives
@pytest.mark.parametrize("page", code_blocks.PAGES)
def test_code_runs_and_prints_what_the_page_says(page):
    problems = [block.problem() for block in code_blocks.run(page)]
    assert not any(problems), "\n".join(filter(None, problems))


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("log Z -31.445, 10 parameters", "log Z -31.446, 10 parameters", True),
        ("log Z -31.445, 10 parameters", "log Z -31.448, 10 parameters", False),
        ("log Z -31.445, 10 parameters", "log Z -31.445, 10 sites", False),
        ("|gradient| 1.6e-15", "|gradient| 8.1e-13", True),
        ("a\nb\nc", "a\n...\nc", True),
        ("a\nb\nc", "a\n...", True),
        ("a\nb\nc", "a\nb", False),
        ("a\nb\nc", "...\nd", False),
        ("", "a", False),
    ],
)
def test_last_digits_and_lines_left_out(printed, expected, same):
    assert code_blocks.agree(printed, expected) is same


def test_a_block_that_fails_is_named(tmp_path, monkeypatch):
    page = (
        "# Page\n\n```python\nx = 1\nprint(x)\n```\n\n```text\n2.00\n```\n\n```python\n1 / 0\n```\n"
    )
    (tmp_path / "page.md").write_text(page)
    monkeypatch.setattr(code_blocks, "ROOT", tmp_path)
    first, second = code_blocks.run("page.md")
    assert "page.md:4 prints\n1\n" in first.problem()
    assert second.problem() == "page.md:13: line 13: ZeroDivisionError: division by zero"
    code_blocks.write("page.md", [first, second])
    assert "```text\n1\n```" in (tmp_path / "page.md").read_text()

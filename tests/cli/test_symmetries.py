"""`volform equivalence`: what it prints, and how it fails."""

from pathlib import Path

import numpy as np
import pytest

from volform.cli import main

NETWORKS = """
import jax.numpy as jnp
import numpy as np
from volform import networks as nn

net = nn.MLP(widths=(3,), b_std=1.0)


def plain():
    random = np.random.default_rng(0)
    params = {"w": jnp.asarray(random.normal(size=(2, 2))), "v": jnp.asarray(random.normal(size=2))}
    return (lambda p, x: jnp.maximum(x @ p["w"], 0.0) @ p["v"]), params


def wrong():
    return 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    Path("net.py").write_text(NETWORKS, encoding="utf-8")
    rows = np.random.default_rng(0).normal(size=(30, 3))
    np.savetxt("in.csv", rows, delimiter=",", header="a,b,y", comments="")


def run(*arguments: str) -> int:
    return main(["equivalence", *arguments, "--data", "in.csv"])


def test_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("net.py:net", "--without", "y") == 0
    printed = capsys.readouterr().out
    assert "S3, a sign a unit: 48 elements" in printed
    assert "equivalent modes │ 48" in printed
    assert "dimension 13 of 13" in printed


def test_function(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("net.py:plain", "--without", "y") == 0
    printed = capsys.readouterr().out
    assert "S2, a scaling a unit" in printed
    assert "2 by the group, 0 hidden" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("net.py:wrong",), "a function without arguments that returns (f, params)"),
        (("net.py:net", "--without", "z"), "should leave columns of `in.csv`"),
        (("net.py:none",), "does not hold a function"),
    ],
)
def test_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err

"""`volform layers`: what it prints and writes, and how it fails."""

import csv
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import volform as vf
from volform.cli import main
from volform.layers import layerwise

NETWORKS = """
import jax.numpy as jnp
from volform import layers, networks as nn

net = nn.MLP(widths=(3,), b_std=1.0)
W = jnp.array([[0.8, -0.5], [0.3, 0.9]])
stack = nn.serial(nn.Dense(3), nn.Relu(), nn.Dense(1))
listed = [jnp.sinh, lambda h: W @ h]
classifier = layers.layerwise([lambda x: x + jnp.tanh(W @ x), lambda h: h @ W])


def trained():
    body = nn.serial(nn.Dense(2), nn.Relu(), nn.Dense(1))
    weights = [jnp.eye(2), jnp.ones((1, 2))]
    return body, [{"w": weights[0]}, {}, {"w": weights[1]}]


def maps():
    def residual(x):
        return x + jnp.tanh(W @ x)

    return [residual, residual, lambda h: h @ jnp.array([1.0, -1.0])]


def three():
    return 3


def crash():
    raise KeyError("weights")


def line():
    return [jnp.sinh]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    Path("net.py").write_text(NETWORKS, encoding="utf-8")
    inputs = np.random.default_rng(0).normal(size=(40, 2))
    names = np.where(inputs[:, 0] > 0.0, "right", "left")
    rows = [f"{a},{b},{name},0.5" for (a, b), name in zip(inputs, names, strict=True)]
    Path("in.csv").write_text("\n".join(["a,b,class,half", *rows]), encoding="utf-8")


def run(*arguments: str) -> int:
    return main(["layers", *arguments, "--data", "in.csv"])


def test_table_and_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--labels", "class", "--without", "half", "--until", "2", "--out", "out")
    assert run("net.py:maps", *options) == 0
    assert "euclidean metric behind layer 2, 40 examples" in capsys.readouterr().out
    written = {path.name for path in Path("out").iterdir()}
    assert written == {"layers.csv", "layers.png", "distinguishable.png"}
    w = jnp.array([[0.8, -0.5], [0.3, 0.9]])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 2)))
    field = layerwise([lambda x: x + jnp.tanh(w @ x)] * 2).pull_back(vf.Euclidean(), x)
    header, *rows = csv.reader(Path("out/layers.csv").read_text().splitlines())
    assert header == ["layer", "map", "coordinates", "rank", "log volume", "condition"]
    assert [row[1] for row in rows] == ["input", "residual", "residual"]
    for row, volume, condition in zip(rows, field.log_volume, field.condition, strict=True):
        assert row[2:4] == ["2", "2"]
        assert float(row[4]) == pytest.approx(np.median(volume), abs=6e-4)
        assert float(row[5]) == pytest.approx(np.median(condition), rel=6e-3)


@pytest.mark.parametrize(
    ("name", "metric", "last"),
    [
        ("net", "bernoulli", ["3", "Dense", "1", "1"]),
        ("stack", "bernoulli", ["3", "Dense", "1", "1"]),
        ("listed", "euclidean", ["2", "<lambda>", "2", "2"]),
        ("trained", "euclidean", ["3", "Dense", "1", "1"]),
        ("classifier", "categorical", ["2", "<lambda>", "2", "1"]),
    ],
)
def test_networks(
    name: str, metric: str, last: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--metric", metric, "--without", "class,half")
    assert run(f"net.py:{name}", *options) == 0
    printed = capsys.readouterr().out
    assert "inputs: a, b\n" in printed
    rows = [line for line in printed.splitlines() if line.startswith("│")]
    assert [cell.strip() for cell in rows[-1].split("│")][1:5] == last


def test_one_coordinate_has_no_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("net.py:line", "--without", "b,class,half", "--out", "out") == 0
    assert [path.name for path in Path("out").iterdir()] == ["layers.csv"]
    assert "wrote out/layers.csv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("net.py:three",), "`network` is a int; it should be a network"),
        (("net.py:crash",), "in crash: KeyError: 'weights'"),
        (("net.py:maps", "--metric", "fisher"), "`--metric fisher` is not known"),
        (("net.py:maps", "--labels", "half"), "`half` holds numbers that are no classes, as 0.5"),
        (("net.py:maps", "--labels", "c"), "`--labels c` should be a column of `in.csv`"),
        (("net.py:maps", "--without", "class,half", "--until", "9"), "`--until 9` should be"),
        (("net.py:maps", "--without", "c"), "`--without c` should leave columns of `in.csv`"),
        (("net.py:maps", "--without", "a,b,class,half"), "at least one column should stay"),
        (("net.py:maps",), "`x` has examples of shape (4,), and layer 1, residual"),
        (("net.py:residual",), "does not hold a function with the name `residual`"),
        (("net.py:jnp.sinh",), "does not hold a function"),
    ],
)
def test_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_function_that_needs_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.py").write_text("def net(depth): return depth", encoding="utf-8")
    assert run("other.py:net") == 2
    assert "a function without arguments that returns one" in capsys.readouterr().err


def test_labels_of_other_length(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("in.npz", x=np.zeros((3, 2)), c=np.zeros(4, int))
    assert main(["layers", "net.py:maps", "--data", "in.npz", "--labels", "c"]) == 2
    assert "`c` has shape (4,); it should hold one class" in capsys.readouterr().err

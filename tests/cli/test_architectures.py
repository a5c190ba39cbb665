"""`volform architectures`: what it prints and writes, and how it fails."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import volform as vf
from volform import kernels as k, networks as nn
from volform.cli import main

X = np.sin(1.0 + 0.7 * np.arange(20)[:, None] + 1.3 * np.arange(2))
Y = 100.0 + 20.0 * np.cos(X[:, 0] + X[:, 1])
FIXED = ("--fixed", "--w-std", "1.4", "--b-std", "0.3", "--noise", "0.4")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    with Path("data.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["a", "b", "y"], *np.c_[X, Y].tolist()])


def run(*arguments: str) -> int:
    return main(["architectures", "--data", "data.csv", "--target", "y", *arguments])


def test_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    choices = ("--depth", "1", "--activation", "erf", "--width", "8,inf", "--folds", "2")
    assert run(*choices, *FIXED, "--no-laplace", "--draws", "100", "--out", "out") == 0
    printed = capsys.readouterr().out
    assert "data.csv: 20 rows, 2 features, standardized; log Z of `y` in its own" in printed
    assert "erf, depth 1: w_std 1.4, b_std 0.3, noise 0.4" in printed
    written = json.loads(Path("out/architectures.json").read_text(encoding="utf-8"))
    assert len(written["entries"]) == 6
    exact = [e for e in written["entries"] if e["width"] == "inf" and e["log_z"] is not None]
    x, y = (X - X.mean(0)) / X.std(0), (Y - Y.mean()) / Y.std()
    kernel = np.asarray(
        k.kernel(vf.architectures.Architecture(1, nn.Erf(), 1.4, 0.3).layers(), x).nngp
    )
    law = scipy.stats.multivariate_normal(np.zeros(20), kernel + 0.16 * np.eye(20))
    for entry in exact:
        assert entry["log_z"] == pytest.approx(law.logpdf(y), rel=1e-10)
    own = scipy.stats.multivariate_normal(np.full(20, Y.mean()), law.cov * Y.std() ** 2).logpdf(Y)
    assert exact[0]["log_z"] - written["log_unit"] == pytest.approx(own, rel=1e-10)
    rows = list(csv.DictReader(Path("out/architectures.csv").read_text("utf-8").splitlines()))
    assert [row["parametrization"] for row in rows] == [
        entry["parametrization"] for entry in written["entries"]
    ]
    for name in ("evidence", "growth"):
        assert Path(f"out/architectures-{name}.png").stat().st_size > 1000
    assert math.isfinite(written["entries"][0]["error"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--activation", "relu,step"), "`--activation relu,step` holds 'step'"),
        (("--parametrization", "spp"), "`--parametrization spp` holds 'spp'"),
        (("--depth", "1,x"), "`--depth 1,x` should be positive whole numbers with commas"),
        (("--width", "0"), "`--width 0` should be positive whole numbers, or inf,"),
        (("--target", "z"), "`--target z` is no column of `data.csv`, which has a, b, y"),
        (("--rows", "30"), "`--rows 30` should be from 2 to 20"),
        (("--data", "data.json"), "`--data data.json` should be a file whose name ends in .csv"),
    ],
)
def test_bad_options(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,y\n1,2\nred,3\n", "row 3, column `a`: 'red' is not a number"),
        ("a,y\n1,2\n,3\n2,5\n", "`a` holds 1 missing, NaN or infinite values"),
        ("a,y\n1,2\n1,3\n", "the column `a` is the same in all of 2 rows"),
        ("y\n2\n3\n", "should have a column of features beside the target"),
        ("a,y\n" + "1,2\n" * 1001, "has 1001 rows, and an exact evidence costs the cube"),
    ],
)
def test_bad_tables(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.csv").write_text(text, encoding="utf-8")
    assert run() == 2
    assert message in capsys.readouterr().err

"""`volform compare`: what it prints and writes, and how it fails."""

import json
from pathlib import Path

import numpy as np
import pytest

from volform.cli import main

MODELS = """
import numpyro, numpyro.distributions as dist

def narrow(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

def wide(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 100.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

def flat(y):
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
"""
Y = np.array([0.5, 1.5, -0.3, 0.9])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    Path("model.py").write_text(MODELS, encoding="utf-8")
    Path("data.json").write_text(json.dumps({"y": Y.tolist()}), encoding="utf-8")
    return tmp_path


def exact(scale: float) -> float:
    covariance = np.eye(4) + scale**2
    _, log_det = np.linalg.slogdet(2 * np.pi * covariance)
    return float(-0.5 * (log_det + Y @ np.linalg.solve(covariance, Y)))


@pytest.mark.standard_promotion
def test_ranks_and_writes(capsys: pytest.CaptureFixture[str]) -> None:
    models = ["model.py:wide", "model.py:narrow"]
    assert main(["compare", *models, "--data", "data.json", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("narrow") < printed.index("wide")
    assert "strong" in printed
    written = json.loads(Path("out/comparison.json").read_text(encoding="utf-8"))
    best, other = written["models"]
    assert (best["model"], other["model"]) == ("narrow", "wide")
    for record, scale in ((best, 1.0), (other, 100.0)):
        assert record["log_z"] == pytest.approx(exact(scale), abs=4 * record["error"] + 1e-9)
        assert record["trust"] == "good"
    assert best["probability"] + other["probability"] == pytest.approx(1.0)
    assert best["stack"] + other["stack"] == pytest.approx(1.0)
    assert "stack" in printed
    assert f"{best['stack']:.3f}" in printed
    assert Path("out/evidence.png").stat().st_size > 1000


def test_an_improper_prior_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    models = ["model.py:flat", "model.py:narrow"]
    assert main(["compare", *models, "--data", "data.json"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'flat'" in error
    assert "improper" in error


@pytest.mark.standard_promotion
def test_a_second_estimate_beside_laplace(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model.py:narrow", "--data", "data.json", "--by", "quadrature"]
    assert main(["evidence", *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"log Z {exact(1.0):.3f} ±" in printed
    assert "trust good" in printed


def test_unknown_estimator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evidence", "model.py:narrow", "--data", "data.json", "--by", "magic"]) == 2
    assert "`--by magic` is not known" in capsys.readouterr().err


def test_formal_integral_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model.py:flat", "--data", "data.json", "--no-second-order"]
    assert main(["evidence", *arguments]) == 2
    assert "`allow_improper=True`" in capsys.readouterr().err
    assert main(["evidence", *arguments, "--allow-improper"]) == 0
    assert "formal integral" in capsys.readouterr().out

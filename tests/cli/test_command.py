"""`volform evidence`: what it prints and writes, and how it fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import volform as vf
from volform.cli import main

ROOT = Path(__file__).parents[2]
SIGMA = [0.9, -1.3, 0.4, 2.1, -0.6]

MODELS = """
import jax.numpy as jnp, numpyro, numpyro.distributions as dist
from numpyro.infer.reparam import TransformReparam
import volform as vf

def scale(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)

def log_scale(y):
    law = dist.TransformedDistribution(
        dist.HalfNormal(1.0), dist.transforms.ExpTransform().inv
    )
    sigma = numpyro.deterministic("sigma", jnp.exp(numpyro.sample("log_sigma", law)))
    numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)

measured = vf.attach(scale, {"sigma": vf.Fisher(lambda s: dist.Normal(0.0, s))})

def line(n, x, y):
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("data", n):
        numpyro.sample("y", dist.Normal(beta[0] + beta[1] * x, 1.0), obs=y)

def anything(**data):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=data["y"])

def unobserved(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

def runaway(y):
    a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
    b = numpyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

def broken(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(0.0, sigam), obs=y)

not_callable = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with models and data, as the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODELS)
    Path("data.json").write_text(json.dumps({"y": SIGMA}))
    return tmp_path


def posterior(metric: vf.Metric) -> vf.models.Posterior:
    """The posterior of `scale`, by the API."""
    names: dict = {}
    exec(MODELS, names)
    return vf.condition(vf.attach(names["scale"], metric), y=np.array(SIGMA))


def process(*arguments: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
    }
    command = [sys.executable, "-m", "volform", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def fails(capfd, *arguments: str) -> str:
    """The one line that a failing command leaves."""
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("volform: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


# --- As a process


def test_process(here):
    done = process(
        *("evidence", "model.py:scale", "--data", "data.json"),
        *("--metric", "likelihood-fisher", "--out", "results/here"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for text in ("sigma", "log q^G", "eigenvalues of E", "second order", "LikelihoodFisher()"):
        assert text in done.stdout
    files = {path.name for path in Path("results/here").iterdir()}
    assert files == {"evidence.json", "posterior.nc", "density-sigma.png", "spectrum.png"}
    assert done.stdout.count("wrote results/here/") == len(files)


@pytest.mark.parametrize(
    "arguments", [["missing.py:f"], ["model.py:scale", "--data", "data.json", "--metric", "fisher"]]
)
def test_process_fails_in_one_line(here, arguments):
    done = process("evidence", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("volform: ")
    assert done.stderr.count("\n") == 1


# --- Results


def test_numbers_are_those_of_the_api(here, capsys):
    arguments = ["--data", "data.json", "--metric", "likelihood-fisher", "--out", "out"]
    assert main(["evidence", "model.py:scale", *arguments]) == 0
    found = json.loads(Path("out/evidence.json").read_text())
    approx = vf.laplace(posterior(vf.LikelihoodFisher()))
    evidence = approx.evidence
    assert found["evidence"]["log_z"] == pytest.approx(float(evidence.log_z), rel=1e-12)
    assert found["evidence"]["correction"] == pytest.approx(float(evidence.correction), rel=1e-9)
    second = float(evidence.log_z_second_order)
    assert found["evidence"]["log_z_second_order"] == pytest.approx(second, rel=1e-12)
    assert found["mode"]["values"]["sigma"] == pytest.approx(float(approx.values["sigma"]))
    assert found["mode"]["log_q"] == pytest.approx(approx.mode.log_density, rel=1e-12)
    assert found["mode"]["eigenvalues"] == pytest.approx(np.asarray(approx.mode.eigenvalues))
    assert found["metric"] == "LikelihoodFisher()"
    assert found["parameters"] == 1
    printed = capsys.readouterr().out
    assert f"{float(evidence.log_z):.6f}" in printed
    assert f"{second:.6f}" in printed
    table = approx.summary()
    assert found["summary"]["probability"] == 0.9
    shown = found["summary"]["sites"]["sigma"]
    for name in ("mode", "mean", "sd", "lower", "upper"):
        assert shown[name] == pytest.approx(float(getattr(table, name)["sigma"]), rel=1e-9)
    assert shown["error"] is None
    row = next(line for line in printed.splitlines() if "│ sigma" in line)
    assert row.split()[1::2] == repr(table).splitlines()[2].split()


def test_second_estimate_has_its_own_table(here, capsys):
    assert main(["evidence", "model.py:scale", "--data", "data.json", "--by", "importance"]) == 0
    printed = capsys.readouterr().out
    assert "Posterior by importance sampling (10,000 draws)" in printed
    assert "mcse_mean" in printed


def test_netcdf_can_be_read_back(here):
    xarray = pytest.importorskip("xarray")
    arguments = ["--data", "data.json", "--no-second-order", "--out", "out"]
    assert main(["evidence", "model.py:scale", *arguments]) == 0
    with xarray.open_dataset("out/posterior.nc", group="posterior") as draws:
        assert draws["sigma"].shape == (1, 1000)
        assert float(draws["sigma"].min()) > 0
        log_z = json.loads(Path("out/evidence.json").read_text())["evidence"]["log_z"]
        assert draws.attrs["log_z"] == pytest.approx(log_z)
    with xarray.open_dataset("out/posterior.nc", group="observed_data") as data:
        np.testing.assert_allclose(data["y"], SIGMA)


@pytest.mark.parametrize(
    ("name", "metric"), [("euclidean", vf.Euclidean()), ("unconstrained", vf.Unconstrained())]
)
def test_metrics(here, capsys, name, metric):
    arguments = ["--data", "data.json", "--metric", name, "--no-second-order"]
    assert main(["evidence", "model.py:scale", *arguments]) == 0
    expected = float(vf.laplace(posterior(metric), second_order=False).evidence.log_z)
    assert f"{expected:.6f}" in capsys.readouterr().out


def test_metrics_of_the_model_itself(here, capsys):
    assert main(["evidence", "model.py:measured", "--data", "data.json"]) == 0
    fisher = float(vf.laplace(posterior(vf.LikelihoodFisher())).evidence.log_z)
    out = capsys.readouterr().out
    assert f"{fisher:.6f}" in out  # all the information on sigma is the likelihood's
    assert "Fisher(<lambda>)" in out


def test_reference_makes_two_spellings_agree(here, capsys):
    arguments = ["--data", "data.json", "--metric", "joint-fisher", "--no-second-order"]
    assert main(["evidence", "model.py:scale", *arguments, "--out", "a"]) == 0
    reference = ["--reference", "model.py:scale", "--out", "b"]
    assert main(["evidence", "model.py:log_scale", *arguments, *reference]) == 0
    a, b = (json.loads(Path(f, "evidence.json").read_text()) for f in "ab")
    assert a["evidence"]["log_z"] == pytest.approx(b["evidence"]["log_z"], rel=1e-10)
    assert a["mode"]["values"]["sigma"] == pytest.approx(
        np.exp(b["mode"]["values"]["log_sigma"]), rel=1e-8
    )
    assert b["evidence"]["correction"] is None


@pytest.mark.standard_promotion
def test_csv_and_whole_numbers(here, capsys):
    rows = "\n".join(f"{x},{0.5 + x}" for x in range(4))
    Path("data.csv").write_text(f"\ufeffx, y\n{rows}\n\n", encoding="utf-8")
    Path("data.json").write_text(json.dumps({"n": 4, "x": [0, 1, 2, 3], "y": [0.5, 1.5, 2.5, 3.5]}))
    assert "lacks `n`" in fails(capsys, "evidence", "model.py:line", "--data", "data.csv")
    out = ["--data", "data.json", "--out", "out", "--seed", "3", "--starts", "2"]
    assert main(["evidence", "model.py:line", *out]) == 0
    found = json.loads(Path("out/evidence.json").read_text())
    x = np.stack([np.ones(4), np.arange(4.0)], 1)
    y = 0.5 + np.arange(4.0)
    covariance = np.eye(4) + x @ x.T
    exact = -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(covariance)[1])
    assert found["evidence"]["log_z"] == pytest.approx(exact - 2 * np.log(2 * np.pi))
    assert found["evidence"]["correction"] == pytest.approx(0.0, abs=1e-12)
    assert (found["seed"], found["starts"]) == (3, 2)
    assert not list(Path("out").glob("density-*"))  # beta is a vector


def test_csv_columns_are_arguments(here):
    Path("data.csv").write_text("y\n0.5\n1.5\n")
    assert main(["evidence", "model.py:anything", "--data", "data.csv", "--no-second-order"]) == 0


def test_help_and_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("volform ")
    assert main(["evidence", "--help"]) == 0
    text = capsys.readouterr().out
    assert "volform evidence model.py:eight_schools --data data.json" in text
    for word in ("joint-fisher", "--reference", "--no-second-order", "--starts"):
        assert word in text


# --- Failures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model.py:function"),
        (["model.py"], "`model.py` should name a Python file and a function"),
        (["no.py:scale"], "no.py: No such file"),
        (["model.py:scal", "--data", "data.json"], "Did you mean `scale`"),
        (["model.py:zzzz"], "It defines .*`scale`"),
        (["model.py:not_callable"], "does not hold a function"),
        (["model.py:scale", "--data", "no.json"], "no.json: No such file"),
        (["model.py:scale"], r"`--data` \(not given\) lacks `y`"),
        (["model.py:scale", "--data", "data.json", "--metric", "fisher"],
         "joint-fisher, likelihood-fisher, euclidean, unconstrained"),
        (["model.py:scale", "--data", "data.json", "--reference", "model.py:scale"],
         "`--reference` needs a metric"),
        (["model.py:scale", "--data", "data.json", "--starts", "0"], "one start at least"),
        (["model.py:broken", "--data", "data.json"],
         r": model.py, line \d+, in broken: NameError: .*sigam"),
        (["model.py:runaway", "--data", "data.json"], "`a`|a, b"),
        (["model.py:scale", "--data", "data.json", "--out", "model.py"], "model.py: File exists"),
    ],
)  # fmt: skip
def test_bad_command(here, capfd, arguments, message):
    line = fails(capfd, "evidence", *arguments)

    assert re.search(message, line), line


def test_without_a_command(capfd):
    assert "command" in fails(capfd)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.json", "{", "could not be read as JSON"),
        ("d.json", "[1, 2]", "should hold a JSON object"),
        ("d.json", '{"y": [1.0, NaN]}', r"`y` holds 1 missing, NaN or infinite values.*\(1,\)"),
        ("d.json", '{"y": [[1.0], [null]]}', r"the first at index \(1, 0\)"),
        ("d.json", '{"y": Infinity}', "`y` holds 1 missing"),
        ("d.json", '{"y": null}', "`y` holds 1 missing"),
        ("d.json", '{"y": "text"}', "`y` should be a number or a list"),
        ("d.json", '{"y": ["a", "b"]}', "`y` should be a number or a list"),
        ("d.json", '{"y": [[1, 2], [3]]}', "lists of equal length"),
        ("d.json", '{"y": {"a": 1}}', "`y` should be a number or a list"),
        ("d.json", '{"y": [1.0], "z": 2}', "holds `z`, which `scale` does not take"),
        ("d.json", b"\xff\xfe{", "UTF-8"),
        ("d.csv", "", "should hold a header"),
        ("d.csv", "y\n", "at least one line"),
        ("d.csv", "y\n1.0\nx\n", "row 3, column `y`: 'x' is not a number"),
        ("d.csv", "y\n1.0\n \n", "`y` holds 1 missing"),
        ("d.csv", "y,z\n1.0\n", "row 2 has 1 cells"),
        ("d.csv", "y,y\n1.0,2.0\n", "names `y` more than once"),
        ("d.csv", "y\ninf\n", "`y` holds 1 missing, NaN or infinite"),
        ("d.txt", "1.0", "`.json` or `.csv`"),
    ],
)
def test_bad_data(here, capfd, name, text, message):
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    line = fails(capfd, "evidence", "model.py:scale", "--data", name)

    assert re.search(message, line), line


def test_model_file_that_cannot_run(here, capfd):
    Path("bad.py").write_text("def f(:\n")
    line = fails(capfd, "evidence", "bad.py:f")
    assert "`bad.py` could not be run to load its functions: SyntaxError" in line
    Path("bad.py").write_text("import no_such_module_anywhere\n")
    assert "ModuleNotFoundError" in fails(capfd, "evidence", "bad.py:f")


def test_an_error_of_the_program_itself_is_not_hidden(here, monkeypatch):
    def crash(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("volform.cli.command.find_map", crash)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["evidence", "model.py:scale", "--data", "data.json"])


def test_warnings_are_told(here, capsys, monkeypatch):
    def warn(path):
        import warnings

        warnings.warn("mind this", vf.errors.TrustWarning, stacklevel=1)
        return {"y": jax.numpy.asarray(SIGMA)}

    monkeypatch.setattr("volform.cli.command.load_data", warn)
    arguments = ["--data", "data.json", "--no-second-order"]
    assert main(["evidence", "model.py:scale", *arguments]) == 0
    assert "warning: mind this" in capsys.readouterr().out


def test_a_model_that_observes_nothing_is_told(here, capsys):
    assert main(["evidence", "model.py:unobserved", "--no-second-order"]) == 0
    out = capsys.readouterr().out
    assert "observed nothing" in out
    assert "warning: the model observes nothing of `--data` (not given)" in out

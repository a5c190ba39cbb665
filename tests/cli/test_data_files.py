"""Files of data: what is read out of them, what is left out, and what is refused."""

import csv
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from volform.cli import main
from volform.cli.data_files import load_data
from volform.cli.loading import Arguments, arguments_of
from volform.cli.output import output_folder
from volform.errors import DataError

FROGS = """density;pred;size;surv;propsurv
10;no;big;9;0.9
25;pred;small;21;0.84
35;no;small;NA;NA
"""
MODELS = """
import sys
import numpyro, numpyro.distributions as dist
from numpyro import handlers

def normal(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

def odd(y, g):
    with handlers.scope(prefix="[red]"):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    beta = numpyro.sample("[red]_mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu + beta * g.astype(float), 1.0), obs=y)

def leaves(y):
    sys.exit(3)

def stops(y):
    raise KeyboardInterrupt
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODELS)
    Path("data.json").write_text('{"y": [0.5, 1.5]}')
    return tmp_path


def read(name: str, content: str | bytes, function, exact: bool = False) -> Arguments:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return arguments_of(function, load_data(Path(name)), f"`{name}`", exact)


def refused(call) -> str:
    with pytest.raises(DataError) as caught:
        call()
    assert len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize("separator", [";", "\t", ","], ids=["semicolon", "tab", "comma"])
@pytest.mark.parametrize("names", ["none", "R", "pandas"])
def test_separators_and_names_of_rows(separator, names):
    rows = [line.split(";") for line in FROGS.splitlines()]
    if names != "none":
        rows = [[str(i), *row] for i, row in enumerate(rows)]
        rows[0] = rows[0][1:] if names == "R" else ["", *rows[0][1:]]
    text = io.StringIO()
    csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(rows)
    found = read("frogs.csv", text.getvalue(), lambda density, pred, size: None)
    assert found.left_out == ["surv", "propsurv"]  # with missing values, which nobody asked for
    assert found.levels == {"pred": ["no", "pred"], "size": ["big", "small"]}
    for name, expected in {"density": [10, 25, 35], "pred": [0, 1, 0], "size": [0, 1, 1]}.items():
        assert found.values[name].dtype == np.int64
        np.testing.assert_array_equal(found.values[name], expected)
    notes = found.notes("`frogs.csv`", "model")
    assert "`frogs.csv`: `pred` is text, taken as integers: no = 0, pred = 1" in notes
    assert notes[-1].endswith("left out, since `model` does not take it: `surv` and `propsurv`")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_of_a_table_are_read_to_the_last_bit(numbers):
    rows = "\n".join(repr(x) for x in numbers)
    found = read("d.tsv", f"y\n{rows}\n", lambda y: None)
    np.testing.assert_array_equal(found.values["y"], numbers)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", FROGS.replace("propsurv", "y"), "`y` holds 1 missing, .*the first in row 4"),
        ("d.csv", "y;x\n1,5;2\n", "row 2, column `y`: '1,5' is not a number, which has a point"),
        ("d.csv", "y\n1_000\n", "row 2, column `y`: '1_000' is not a number"),
        ("d.csv", f"y\n1\n{'7' * 31}\n", "row 3, column `y`: '7+' is an integer of more than 64"),
        ("d.csv", f"y\n{'7' * 5000}\n", r"`y` holds 1 missing, NaN or infinite"),
        ("d.csv", f"y\n{'a' * 150_000}\n", "could not be read as a table: line 2: field larger"),
        ("d.csv", 'y\n"1\n', "could not be read as a table"),
        ("d.csv", "y,x\n1,2\n3\n", "row 3 has 1 cells"),
        ("d.csv", "Y\n1\n", "lacks `y`, which .* needs; .*; it holds `Y`"),
        ("d.json", "[" * 100_000, "lists within lists, thousands deep"),
        ("d.json", '{"y": ' + "[" * 100_000 + "]" * 100_000 + "}", "lists within lists"),
        ("d.json", '{"y": ' + "[" * 70 + "1" + "]" * 70 + "}", "`y` should be a number or a list"),
        ("d.json", f'{{"y": {"7" * 31}}}', "'7+', an integer of more than 64 bits"),
        ("d.json", f'{{"y": [1, {"7" * 5000}]}}', "of 5000 characters, an integer of more than"),
        ("d.json", '{"y": [1], "y": [2]}', "names `y` more than once"),
        ("d.csv", "1.5,2\n3.5,4\n", "the first line, '1.5,2', holds numbers"),
        ("d.npz", b"", "could not be read as an archive"),
        ("d.npz", b"PK\x03\x04 cut off", "could not be read as an archive"),
        ("d.nc", b"\x89HDF\r\n\x1a\n cut off", "could not be read as a file of the kind .nc"),
        ("d.parquet", b"PAR1", "needs a package that is not installed|could not be read as a file"),
    ],
    ids=lambda value: None if len(value) < 200 else "long",
)  # fmt: skip
def test_refusals(name, content, message):
    found = refused(lambda: read(name, content, lambda y: None))
    assert re.search(message, found), found


def test_json_as_stan_writes_it():
    text = '{"N": 2, "K": 3, "x": [[1, 2, 3], [4, 5, 6.5]], "empty": [], "flag": true, "s": 0.5}'
    found = read("d.json", text, lambda **data: None, exact=True).values
    assert (found["N"], found["flag"], found["s"]) == (2, True, 0.5)
    np.testing.assert_array_equal(found["x"], [[1, 2, 3], [4, 5, 6.5]])
    assert found["empty"].shape == (0,)


def test_arrays(here):
    xarray = pytest.importorskip("xarray")
    arrays = {"n": np.array(3), "y": np.arange(3, dtype=np.float32), "g": np.array(["b", "a", "b"])}
    np.savez("d.npz", **arrays, other=np.ones(2))
    groups = {
        "/": xarray.Dataset(),
        "/observed_data": xarray.Dataset({"y": ("obs", arrays["y"])}),
        "/constant_data": xarray.Dataset({"n": arrays["n"], "g": ("obs", arrays["g"])}),
    }
    xarray.DataTree.from_dict(groups).to_netcdf("d.nc")
    for name in ("d.npz", "d.nc"):
        found = arguments_of(lambda n, y, g: None, load_data(Path(name)), name, False)
        assert found.values["n"] == 3
        assert isinstance(found.values["n"], int)
        assert found.values["y"].dtype == np.float64
        np.testing.assert_array_equal(found.values["y"], [0.0, 1.0, 2.0])
        np.testing.assert_array_equal(found.values["g"], [1, 0, 1])
        assert found.levels == {"g": ["a", "b"]}
    np.savez("d.npz", y=np.array([object()], dtype=object))
    assert "could not be read as an archive" in refused(lambda: load_data(Path("d.npz")))


def test_parquet():
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table = pandas.DataFrame({"y": [1.5, 2.5], "g": ["b", "a"], "n": [1, 2], "z": [None, 1.0]})
    table.to_parquet("d.parquet")
    found = arguments_of(lambda y, g, n: None, load_data(Path("d.parquet")), "d", False)
    np.testing.assert_array_equal(found.values["y"], [1.5, 2.5])
    np.testing.assert_array_equal(found.values["g"], [1, 0])
    assert found.left_out == ["z"]


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    Path("d.parquet").write_bytes(b"PAR1")
    assert "pip install" in refused(lambda: load_data(Path("d.parquet")))


# --- The program


def fails(capfd, code: int, *arguments: str) -> str:
    assert main(arguments) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert {path.name for path in Path().rglob("*.*")} <= {"model.py", "quits.py", "data.json"}
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1e23"], "--seed: `1e23` should be a whole number"),
        (["--seed", "9" * 23], "should be a whole number from -"),
        (["--seed", "9" * 5000], "... of 5000 characters` should be a whole number"),
        (["--starts", "10000000000000"], "--starts: `10000000000000` should be a whole number"),
        (["--starts", "2.5"], "--starts: `2.5` should be a whole number from 1 to 100000"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_whole_numbers(capfd, arguments, message):
    assert message in fails(
        capfd, 2, "evidence", "model.py:normal", "--data", "data.json", *arguments
    )


def test_a_model_that_ends_the_program(capfd):
    line = fails(capfd, 2, "evidence", "model.py:leaves", "--data", "data.json", "--out", "out")
    assert "model.py, line" in line
    assert "in leaves: SystemExit: 3" in line
    Path("quits.py").write_text("import sys\nsys.exit('enough')\n")
    assert "SystemExit: enough" in fails(capfd, 2, "evidence", "quits.py:f")


def test_an_interrupt_leaves_nothing(capfd):
    for command in ("evidence", "compare"):
        line = fails(capfd, 130, command, "model.py:stops", "--data", "data.json", "--out", "a/out")
        assert "interrupted" in line


def test_an_output_folder_is_whole_or_not_there():
    def run_out_of_space() -> None:
        with output_folder(Path("a/out")) as folder:
            (folder / "first").write_text("1")
            raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        run_out_of_space()
    assert list(Path("a").iterdir()) == []
    Path("a/out").mkdir()
    Path("a/out/kept").write_text("0")
    for content in ("1", "2"):
        with output_folder(Path("a/out")) as folder:
            (folder / "first").write_text(content)
    assert {path.name: path.read_text() for path in Path("a/out").iterdir()} == {
        "kept": "0",
        "first": "2",
    }
    with pytest.raises(FileExistsError), output_folder(Path("a/out/kept")):
        pass


@pytest.mark.standard_promotion
def test_names_that_are_markup_or_paths(capsys):
    xarray = pytest.importorskip("xarray")
    Path("d.csv").write_text('"","y","g","tank"\n"1",0.5,"b",1\n"2",1.5,"a",2\n')
    arguments = ["--data", "d.csv", "--no-second-order", "--out", "out"]
    assert main(["evidence", "model.py:odd", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "[red]/mu" in printed
    assert "`d.csv`: `g` is text, taken as integers: a = 0, b = 1" in printed
    assert "left out, since `odd` does not take it: `tank`" in printed
    written = json.loads(Path("out/evidence.json").read_text())
    assert (written["left_out"], written["levels"]) == (["tank"], {"g": ["a", "b"]})
    assert len(list(Path("out").glob("density-*.png"))) == 2
    with xarray.open_dataset("out/posterior.nc", group="posterior") as draws:
        assert set(draws.data_vars) == {"[red]_mu", "[red]_mu_"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folds", "0"], "`folds` of survey is 0"),
        (["--folds", "4"], "`folds` of survey is 4; it should be an integer from 2 to .* 3"),
        (
            ["--draws", "5", "--folds", "2"],
            "`draws` of survey is 5; it should be an integer, at least 100",
        ),
        (["--seed", "1e9"], "--seed: `1e9` should be"),
    ],
)
def test_settings_of_a_survey_are_checked_before_its_work(capfd, monkeypatch, arguments, message):
    module = sys.modules["volform.architectures.study"]
    monkeypatch.setattr(module, "learn", lambda *_, **__: pytest.fail("work"))
    Path("d.csv").write_text("x,y\n1,2\n3,4\n5,7\n")
    assert main(["architectures", "--data", "d.csv", "--target", "y", *arguments]) == 2
    assert re.search(message, capfd.readouterr().err)


def test_text_is_no_feature(capfd):
    Path("d.csv").write_text("x,y\nred,2\nblue,4\n")
    assert main(["architectures", "--data", "d.csv", "--target", "y"]) == 2
    assert "column `x` is text (`blue` and `red`), which has no order" in capfd.readouterr().err

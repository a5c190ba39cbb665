"""`import volform` is quick: what few programs need is imported by those."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import volform as vf

SOURCE = Path(vf.__file__).parents[1]
HEAVY = ("rich", "optimistix", "optax", "arviz", "matplotlib", "pandas", "diffrax")
LATER = ("architectures", "kernels", "plot")


def after(program):
    """What a fresh process prints as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_imported():
    """Packages with seconds of imports of their own, and rooms for some programs only."""
    loaded = after("import json, sys, volform; print(json.dumps(sorted(sys.modules)))")
    assert "volform.inference" in loaded
    unwanted = [*HEAVY, *(f"volform.{room}" for room in LATER)]
    assert [name for name in unwanted if name in loaded] == []


@pytest.mark.parametrize(
    "program",
    [
        "from volform import networks as nn; found = [nn.Dense]",
        "import volform.kernels as k; found = [k.kernel]",
        "from volform import *; import volform as vf; "
        "found = [vf.kernels.kernel, vf.architectures.survey, vf.plot.density, vf.sharpness]",
    ],
)
def test_rooms_are_there_when_asked_for(program):
    assert after(f"{program}\nimport json; print(json.dumps(all(map(callable, found))))")


def test_factors_after_an_import_of_arviz():
    """ArviZ 1.x leaves a NumPyro that is loaded at its first use."""
    program = """
import arviz, json, volform
import numpyro
from numpyro.handlers import seed, trace

print(json.dumps(list(trace(seed(lambda: numpyro.factor("a", 1.0), 0)).get_trace())))
"""
    assert after(program) == ["a"]


def test_all_rooms_are_listed():
    rooms = {path.parent.name for path in Path(vf.__file__).parent.glob("*/__init__.py")}
    assert rooms - {"cli"} <= set(dir(vf))

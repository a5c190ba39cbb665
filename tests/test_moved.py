"""Old names of the package: each says where it is now, and is there."""

import importlib
import re
import subprocess
import sys

import pytest

import volform as vf
from volform.errors import MovedError
from volform.moved import _MOVED

OLD = [
    (room, old, f"{home}.{new}".rstrip("."))
    for room, homes in _MOVED.items()
    for home, names in homes.items()
    for old, new in names.items()
]


def found(path: str):
    here, rest = vf, path.split(".")[1:]
    for name in rest:
        here = getattr(here, name) if hasattr(here, name) else importlib.import_module(path)
    return here


@pytest.mark.parametrize(("room", "old", "new"), OLD)
def test_old_names_say_where_they_are(room, old, new):
    with pytest.raises(MovedError, match=re.escape(f"`{room}.{old}` is now `{new}`")):
        getattr(importlib.import_module(room), old)
    assert found(new) is not None


def test_the_message_survives_an_import():
    with pytest.raises(ImportError, match=r"now `volform\.networks\.SP`"):
        exec("from volform.geometry import SP")


def test_a_name_of_a_room_that_is_not_imported_yet():
    program = "import volform as vf; vf.empirical_ntk"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "it stands in `volform.kernels`" in done.stderr


def test_other_names_are_missing_as_ever():
    assert not hasattr(vf, "no_such_name")
    with pytest.raises(AttributeError, match="no attribute `laplase`"):
        vf.kernels.laplase  # noqa: B018

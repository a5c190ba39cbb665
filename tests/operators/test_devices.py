"""Several devices, several processes, and runs that are killed: programs of their own."""

import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform.errors import DataError, OperatorError

HERE = Path(__file__).parent
DEVICES, RUN = HERE / "devices.py", HERE / "spectrum_run.py"


def started(program: Path, *arguments: Any) -> subprocess.Popen:
    words = [sys.executable, str(program), *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def printed(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()[-2000:]
    return out.decode().splitlines()[-1]


@pytest.fixture(scope="module")
def alone() -> dict[str, float]:
    return runpy.run_path(str(DEVICES))["measured"]()


def assert_same(found: dict[str, float], alone: dict[str, float]) -> None:
    assert found == pytest.approx(alone | {"shards": 4, "shards of kernels": 4}, rel=1e-10)


def test_four_devices_give_the_same_numbers(alone: dict[str, float]) -> None:
    assert_same(json.loads(printed(started(DEVICES, 4))), alone)


def test_two_processes_give_the_same_numbers(alone: dict[str, float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [started(DEVICES, 2, number, 2, port) for number in range(2)]
    for process in both:
        assert_same(json.loads(printed(process)), alone)


def test_examples_that_cannot_be_shared_out() -> None:
    two = [*jax.devices(), *jax.devices()]
    with pytest.raises(DataError, match=r"`data` has 5 examples for 2 devices.*Leave 1 out"):
        vf.operators.sharded(jnp.ones(5), two)


def test_killed_and_resumed_it_is_the_same_run(tmp_path: Path) -> None:
    killed = started(RUN, tmp_path / "run.npz", 2)
    killed.communicate(timeout=300)
    assert killed.returncode == -9
    with np.load(tmp_path / "run.npz") as half:
        assert half["nodes"].shape == (4, 12)
    resumed = printed(started(RUN, tmp_path / "run.npz"))
    assert resumed == printed(started(RUN, tmp_path / "whole.npz"))


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    A = vf.operators.hessian(lambda x: jnp.sum(x**4), jnp.arange(1.0, 5.0))
    path = str(tmp_path / "run.npz")
    by = vf.Krylov(jax.random.key(0), probes=4, checkpoint=path)
    plain = vf.Krylov(jax.random.key(0), probes=4)
    first = vf.linalg.logdet(A, by=by)
    assert_allclose(first.value, vf.linalg.logdet(A, by=plain).value, rtol=1e-12)
    assert_allclose(vf.linalg.logdet(A, by=by).value, first.value, rtol=0)
    with pytest.raises(OperatorError, match="is of another operator or other settings"):
        vf.linalg.logdet(A + 1.0, by=by)
    with pytest.raises(OperatorError, match="nothing can be written under `jit`"):
        jax.jit(lambda c: vf.linalg.logdet(A * c, by=by).value)(1.0)
    (tmp_path / "run.npz").write_text("no file of numpy's")
    with pytest.raises(OperatorError, match="is no file of such a run"):
        vf.linalg.logdet(A, by=by)

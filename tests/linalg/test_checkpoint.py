"""Files that long runs keep: of which run they are, and what becomes of them in trouble."""

import errno
from pathlib import Path

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from numpy.testing import assert_allclose

import volform as vf
from volform.errors import OperatorError
from volform.linalg import checkpoint
from volform.linalg.run_identity import _checksum

SPREAD = jnp.linspace(1.0, 3.0, 64)
KEY = jax.random.key(0)


def log_det(diagonal, path, key=KEY, probes=8, depth=8, batch: int | None = 2):
    by = vf.Krylov(key, probes=probes, depth=depth, batch=batch, checkpoint=path)
    return vf.linalg.logdet(lx.DiagonalLinearOperator(diagonal), by=by).value


def refused(path: Path, *arguments, **settings) -> str:
    before = path.read_bytes()
    with pytest.raises(OperatorError) as caught:
        log_det(*arguments, path, **settings)
    assert path.read_bytes() == before
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.npz"


def test_other_runs_are_refused_by_what_differs(path):
    log_det(SPREAD, path)
    assert log_det(SPREAD, path) == log_det(SPREAD, None)
    equal_trace = jnp.concatenate([jnp.full(32, 0.001), jnp.full(32, 3.999)])
    assert_allclose(jnp.sum(equal_trace), jnp.sum(SPREAD))
    others = {
        "products with random vectors": (equal_trace, {}),
        "the arrays that the operator is made of should": (SPREAD.at[0].add(1e-10), {}),
        "`key` should": (SPREAD, {"key": jax.random.key(1)}),
        "`probes` (8 there, 9 here) should": (SPREAD, {"probes": 9}),
        "`depth` (8 there, 7 here) should": (SPREAD, {"depth": 7}),
        "`batch` (2 there, None here) should": (SPREAD, {"batch": None}),
        "the dtype (float64 there, float32 here)": (SPREAD.astype(jnp.float32), {}),
        "the shapes of the parameters": (jnp.append(SPREAD, 2.0), {}),
    }
    for text, (diagonal, settings) in others.items():
        assert text in refused(path, diagonal, **settings)


def test_other_functions_of_the_same_arrays_are_refused(path):
    x = jnp.arange(1.0, 4.0)
    by = vf.Krylov(KEY, probes=2, checkpoint=path)
    vf.linalg.logdet(vf.operators.hessian(lambda x: jnp.sum(x**4), x), by=by)
    with pytest.raises(OperatorError, match="settings: its products with random vectors should"):
        vf.linalg.logdet(vf.operators.hessian(lambda x: jnp.sum(x**2), x), by=by)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"PK\x03\x04 cut off", "npy", "half", "foreign", "pickle"]
)
def test_files_that_are_none_of_a_run_are_left_alone(path, content, monkeypatch):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "npy":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif content == "half":
        log_det(SPREAD, path)
        path.write_bytes(path.read_bytes()[:-100])
    else:
        odd = np.ones(3) if content == "foreign" else np.array([print], dtype=object)
        np.savez(path, key=odd)
    monkeypatch.setattr(checkpoint, "identity_of", lambda *_: pytest.fail("work"))
    assert "is no file of such a run, or was cut off" in refused(path, SPREAD)


def test_places_that_cannot_be_used_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "identity_of", lambda *_: pytest.fail("work"))
    with pytest.raises(OperatorError, match="in a folder that does not exist; make the folder"):
        log_det(SPREAD, tmp_path / "none" / "run.npz")
    with pytest.raises(OperatorError, match="is no file of such a run"):
        log_det(SPREAD, tmp_path)
    with pytest.raises(OperatorError, match="`checkpoint` of Krylov is 3; it should be a path"):
        log_det(SPREAD, 3)


def test_a_full_disk_keeps_what_was_written(path, monkeypatch):
    whole, left = checkpoint.os.fsync, [3]

    def full(number: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(number)

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OperatorError, match=r"with 4 of 8 probes: No space left.*goes on from it"):
        log_det(SPREAD, path)
    assert [file.name for file in path.parent.iterdir()] == ["run.npz"]
    with np.load(path) as stored:
        assert stored["nodes"].shape == (2, 8)
    assert log_det(SPREAD, path) == log_det(SPREAD, None)
    monkeypatch.setattr(checkpoint, "_of_probes", lambda *_: pytest.fail("work"))
    left[0] = 1
    with pytest.raises(OperatorError, match="with 0 of 8 probes"):
        log_det(SPREAD, path.with_name("other.npz"))


def test_of_two_runs_with_one_file_neither_loses_anything(path, monkeypatch):
    work = checkpoint._of_probes

    def meanwhile(form, by, probes):
        """The other run finishes while the first is at its first batch."""
        monkeypatch.setattr(checkpoint, "_of_probes", work)
        assert "other settings: `key`" in refused(path, SPREAD, key=jax.random.key(1))
        log_det(SPREAD, path)
        whole.append(path.read_bytes())
        return work(form, by, probes)

    whole: list[bytes] = []
    monkeypatch.setattr(checkpoint, "_of_probes", meanwhile)
    assert log_det(SPREAD, path) == log_det(SPREAD, None)
    assert path.read_bytes() == whole[0]


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "int8", "uint32", "bool", "complex64"]
)
def test_checksums_see_every_bit_and_every_place(dtype):
    x = (np.arange(12).reshape(3, 4) % 7).astype(dtype)
    sums = {str(np.asarray(_checksum(jnp.asarray(y)))) for y in (x, x[::-1].copy(), x + x, 0 * x)}
    assert len(sums) == (4 if dtype != "bool" else 3)

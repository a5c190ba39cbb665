"""Spectra of long runs, kept on disk after each batch of probes."""

import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.errors import OperatorError
from volform.linalg.lanczos import Decomposition, LanczosQuadrature, measures, quadrature
from volform.linalg.methods import Krylov
from volform.linalg.operator import is_known
from volform.linalg.pencil import Pencil
from volform.linalg.run_identity import DIFFERENCES, SETTINGS, identity_of
from volform.linalg.stepping import decompositions, probes_of, runs_in_steps
from volform.progress import waiting


def quadratures(form: Pencil, by: Krylov) -> LanczosQuadrature:
    """Gauss quadrature of the spectral measure of each probe, compiled; resumed where it stopped.

    Raises:
        OperatorError: when `checkpoint` of `by` is no file of such a run, is of another one, or
            cannot be written.
    """
    probes = probes_of(form, by)
    if by.checkpoint is None:
        return _of_probes(form, by, probes)
    path = Path(by.checkpoint)
    if not is_known(form, by):
        raise OperatorError(
            f"`checkpoint` of Krylov is '{path}', but nothing can be written under `jit`; call the "
            "functional outside of it."
        )
    found = _read(path)  # a place that cannot be used is refused before any product
    run = identity_of(form, by)
    if found is None:
        found = Stored(run, *(np.zeros((0, min(by.depth, form.size())), form.dtype()),) * 2)
        _save(path, found, by)  # the place is taken, and can be written to
    _require_same(path, found.run, run)
    nodes, weights = found.nodes, found.weights
    batch = by.probes if by.batch is None else by.batch
    with waiting("spectrum", show=True) as phase:
        while len(nodes) < by.probes:
            phase(f"probes in {form.size():,} dimensions", len(nodes), by.probes)
            part = _of_probes(form, by, probes[len(nodes) : len(nodes) + batch])
            nodes = np.concatenate([nodes, np.asarray(part.nodes)])
            weights = np.concatenate([weights, np.asarray(part.weights)])
            _write(path, Stored(run, nodes, weights), by)
    return LanczosQuadrature(jnp.asarray(nodes), jnp.asarray(weights))


def _of_probes(form: Pencil, by: Krylov, probes: Float[Array, "b n"]) -> LanczosQuadrature:
    if not runs_in_steps(form):
        return _together(form, by, probes)
    batch = len(probes) if by.batch is None else by.batch
    depth = min(by.depth, form.size())
    parts = [probes[start : start + batch] for start in range(0, len(probes), batch)]
    found = [_measured(decompositions(form, by.key, part, depth)) for part in parts]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


@eqx.filter_jit
def _together(form: Pencil, by: Krylov, probes: Float[Array, "b n"]) -> LanczosQuadrature:
    return quadrature(form, by, probes)


@eqx.filter_jit
def _measured(found: Decomposition) -> LanczosQuadrature:
    return measures(found.diagonal, found.off_diagonal)


class Stored(NamedTuple):
    """Contents of a file: the run that it is of, and the quadrature of its first probes."""

    run: dict[str, np.ndarray]
    nodes: np.ndarray
    weights: np.ndarray


def _read(path: Path) -> Stored | None:
    """The contents of a file, None where there is none.

    Raises:
        OperatorError: for a folder that does not exist, and for a file that is none of such a run.
    """
    try:
        if not path.parent.is_dir():
            raise OperatorError(
                f"`checkpoint` of Krylov is '{path}', in a folder that does not exist; make the "
                "folder, or give another path."
            )
        if not path.exists():
            return None
        with path.open("rb") as file, np.lib.npyio.NpzFile(file) as stored:
            kept = {name: stored[name] for name in (*DIFFERENCES, "nodes", "weights")}
        nodes, weights = kept.pop("nodes"), kept.pop("weights")
        if nodes.ndim != 2 or nodes.shape != weights.shape:
            raise OperatorError(
                f"`checkpoint` of Krylov is '{path}', whose nodes and weights have the shapes "
                f"{nodes.shape} and {weights.shape}; it is no file of such a run: give another."
            )
    except OperatorError:
        raise
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise OperatorError(
            f"`checkpoint` of Krylov is '{path}', which is no file of such a run, or was cut off "
            f"({type(error).__name__}: {error}); it was left as it is. Give a path that does not "
            "exist, or that of the run to go on with."
        ) from error
    return Stored(kept, nodes, weights)


def _require_same(path: Path, kept: dict[str, np.ndarray], run: dict[str, np.ndarray]) -> None:
    """Check that a file is of this run; says what differs."""
    differing = [
        f"{text} ({kept[name]} there, {run[name]} here)" if name in SETTINGS else text
        for name, text in DIFFERENCES.items()
        if not _is_same(kept[name], run[name])
    ]
    if differing:
        raise OperatorError(
            f"`checkpoint` of Krylov, '{path}', is of another operator or other settings: "
            f"{', '.join(differing)} should be as in the run that wrote it. Give another path, or "
            "remove the file."
        )


def _is_same(kept: np.ndarray, here: np.ndarray) -> bool:
    if not np.issubdtype(here.dtype, np.floating) or kept.shape != here.shape:
        return np.array_equal(kept, here)
    # Sums over devices, and programs of other machines, differ by rounding.
    tolerance = max(1e-6, 1e3 * float(jnp.finfo(here.dtype).eps))
    return np.allclose(kept, here, rtol=0.0, atol=tolerance * np.abs(here).max(), equal_nan=True)


def _write(path: Path, found: Stored, by: Krylov) -> None:
    """Write unless the file has become that of another run, or is further on."""
    there = _read(path)
    if there is not None:
        _require_same(path, there.run, found.run)
    if there is None or len(there.nodes) < len(found.nodes):
        _save(path, found, by)


def _save(path: Path, found: Stored, by: Krylov) -> None:
    # Renaming is atomic: a run that is killed leaves the file before or the file after. Of two
    # runs each has a partial file of its own.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    arrays: Any = found.run | {"nodes": found.nodes, "weights": found.weights}
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OperatorError(
            f"`checkpoint` of Krylov, '{path}', could not be written with {len(found.nodes)} of "
            f"{by.probes} probes: {error.strerror or error}. What it held before is still there; "
            "make room, and the same call goes on from it."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)

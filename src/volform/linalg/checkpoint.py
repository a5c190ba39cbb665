"""Spectra of long runs, kept on disk after each batch of probes."""

import os
import zipfile
from pathlib import Path
from typing import Any

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
from volform.linalg.stepping import decompositions, probes_of, runs_in_steps


def quadratures(form: Pencil, by: Krylov) -> LanczosQuadrature:
    """Gauss quadrature of the spectral measure of each probe, compiled; resumed where it stopped.

    Raises:
        OperatorError: when `checkpoint` of `by` is no file of such a run, or of another one.
    """
    probes = probes_of(form, by)
    if by.checkpoint is None:
        return _of_probes(form, by, probes)
    path = Path(by.checkpoint)
    if not is_known(form):
        raise OperatorError(
            f"`checkpoint` of Krylov is '{path}', but nothing can be written under `jit`; call the "
            "functional outside of it."
        )
    run = {
        "key": np.asarray(jax.random.key_data(by.key)),
        "shape": np.array([by.probes, by.depth, form.size()]),
        "product": np.asarray(_square(form, probes[0])),
    }
    nodes, weights = _read(path, run)
    batch = by.probes if by.batch is None else by.batch
    while len(nodes) < by.probes:
        part = _of_probes(form, by, probes[len(nodes) : len(nodes) + batch])
        nodes = np.concatenate([nodes, np.asarray(part.nodes)])
        weights = np.concatenate([weights, np.asarray(part.weights)])
        _write(path, run, nodes, weights)
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


@eqx.filter_jit
def _square(form: Pencil, probe: Float[Array, " n"]) -> Float[Array, ""]:
    return probe @ form.mv()(probe)


def _read(path: Path, run: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    depth = min(run["shape"][1], run["shape"][2])
    if not path.exists():
        nothing = np.zeros((0, depth), run["product"].dtype)
        return nothing, nothing
    try:
        with np.load(path) as stored:
            kept = {name: stored[name] for name in (*run, "nodes", "weights")}
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise OperatorError(
            f"`checkpoint` of Krylov is '{path}', which is no file of such a run ({error}); give a "
            "path that does not exist, or that of the run to go on with."
        ) from error
    same = all(np.array_equal(kept[name], run[name]) for name in ("key", "shape"))
    if not same or not np.allclose(kept["product"], run["product"], rtol=1e-6):
        raise OperatorError(
            f"`checkpoint` of Krylov, '{path}', is of another operator or other settings: key, "
            "probes, depth, and the product with the first probe should be those of the first run. "
            "Give another path, or remove the file."
        )
    return kept["nodes"], kept["weights"]


def _write(path: Path, run: dict[str, np.ndarray], nodes: np.ndarray, weights: np.ndarray) -> None:
    # Renaming is atomic: a run that is killed leaves the file before or the file after.
    partial = path.with_name(f".{path.name}.partial")
    arrays: Any = run | {"nodes": nodes, "weights": weights}
    with partial.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)

"""Results in a file: arrays and names, and no code."""

import dataclasses
import enum
import importlib
import io
import json
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from volform.errors import DataError, ModelError, VolformError
from volform.geometry.metric import Metric
from volform.inference.attached_metrics import SiteMetrics
from volform.inference.evidence.comparison import Comparison, Row
from volform.inference.evidence.empirical_bayes import EmpiricalBayes
from volform.inference.laplace.approximation import LaplaceApproximation
from volform.inference.laplace.samples import Samples
from volform.inference.modes.mode import ExpansionPoint
from volform.inference.summary import Summary
from volform.models.attaching import FixedSites
from volform.models.conditioned_again import with_sites_fixed
from volform.models.posterior import Posterior
from volform.models.signature import Signature, signature_of
from volform.results import Evidence

FORMAT = 1
HEADER = "result.json"
BROKEN = (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, AttributeError, EOFError)
# Classes of these packages are made again from a file, field by field, without a call.
PACKAGES = ("volform", "lineax", "numpyro", "equinox")
RESULTS = (
    ExpansionPoint,
    LaplaceApproximation,
    Evidence,
    Comparison,
    EmpiricalBayes,
    Summary,
    Samples,
)


class Text:
    """A metric of which the file holds the words alone, since it calls a function of the user's."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def save(result: Any, path: str | Path) -> Path:
    """Write a result to a file, which `load` reads: arrays and names, no pickled code.

    A zip archive of arrays of NumPy and one text in JSON. The posterior is not in it, only marks
    to know it by: names and shapes of its sites, the metric, a digest of the data, log q^G at the
    mode.

    Args:
        result: a MAP, Laplace approximation, evidence, comparison, summary or draws.
        path: of the file; its folder is made.

    Returns:
        The path.

    Raises:
        ModelError: when it is no result, or holds a function of yours.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, tempfile, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> posterior = vf.condition(model, jnp.array([0.5, 1.5]))
    >>> path = vf.save(vf.laplace(posterior), tempfile.mkdtemp() + "/fit.vf")
    >>> vf.load(path, posterior).values["mu"].round(3).tolist()
    0.667
    """
    if not isinstance(result, RESULTS):
        names = ", ".join(kind.__name__ for kind in RESULTS)
        raise ModelError(
            f"`result` of save is of type {type(result).__name__}; it should be one of {names}. A "
            "posterior is pickled, or made anew by `vf.condition`."
        )
    writer = _Writer()
    header: dict[str, Any] = {"format": FORMAT, "result": writer.written(result, "result")}
    if writer.posterior is not None:
        mode = _mode_of(result)
        signature = signature_of(writer.posterior, mode.at.u)
        header["posterior"] = writer.written(signature, "posterior")
        if isinstance(model := writer.posterior.model, FixedSites):  # of some sites, as `LastLayer`
            header["fixed"] = writer.written(dict(model.values), "fixed")
            header["values"] = writer.written(dict(mode.values), "values")
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(HEADER, json.dumps(header, indent=1))
        for name, array in writer.arrays.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            archive.writestr(name, content.getvalue())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")  # a file of before stays until this one is whole
    part.write_bytes(held.getvalue())
    part.replace(path)
    return path


def load(path: str | Path, posterior: Posterior | None = None) -> Any:
    """Read a result that `save` wrote.

    Args:
        path: of the file.
        posterior: the posterior that the result is of, conditioned anew: for a MAP and a Laplace
            approximation; the others are complete without.

    Returns:
        The result, equal to what was saved.

    Raises:
        DataError: when there is no such file, or it is none of `save`.
        ModelError: when a posterior is missing, or is of another model, metric or data.
    """
    if not isinstance(posterior, Posterior | None):
        raise ModelError(
            f"`posterior` of load is of type {type(posterior).__name__}; it should be the "
            "posterior of the model, `vf.condition(model, data)`."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path, posterior)
    except VolformError:
        raise
    except (OSError, *BROKEN) as error:
        raise DataError(
            f"`path` {str(path)!r} is no file that `vf.save` wrote, or a damaged one "
            f"({type(error).__name__}: {error})."
        ) from error


def _read(archive: zipfile.ZipFile, path: str | Path, posterior: Posterior | None) -> Any:
    header = json.loads(archive.read(HEADER))
    if header["format"] != FORMAT:
        raise DataError(
            f"`path` {str(path)!r} is in format {header['format']}, of another version of volform; "
            f"this one reads format {FORMAT}."
        )
    read = _Reader(archive, None).read
    if "posterior" not in header:
        return read(header["result"])
    signature: Signature = read(header["posterior"])
    if posterior is None:
        raise ModelError(
            f"`path` {str(path)!r} holds a result of `{signature.model}` "
            f"({signature.sites_in_words}; metric {signature.metric}), and no model. Pass its "
            "posterior: `vf.load(path, vf.condition(model, data))`."
        )
    if "fixed" in header:
        fixed = read(header["fixed"])
        values = {**fixed, **read(header["values"])}
        if set(values) == set(posterior.names):
            posterior = with_sites_fixed(posterior, posterior.unconstrain(values), list(fixed))
    signature.require(posterior, "the saved one")
    return _Reader(archive, posterior).read(header["result"])


def _mode_of(result: Any) -> ExpansionPoint:
    approx = result.approx if isinstance(result, EmpiricalBayes) else result
    return approx.mode if isinstance(approx, LaplaceApproximation) else approx


class _Writer:
    """Values as what JSON holds, arrays by their names."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.posterior: Posterior | None = None

    def written(self, value: Any, where: str) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Posterior):
            self.posterior = value
            return {"posterior": True}
        if isinstance(value, np.generic | np.ndarray | jax.Array):
            return self._array(value)
        if isinstance(value, enum.Enum):
            return {"enum": _name_of(type(value), where), "name": value.name}
        if isinstance(value, jax.ShapeDtypeStruct):  # an operator's domain
            return {"shape": list(value.shape), "dtype": str(value.dtype)}
        if isinstance(value, type):
            return {"type": _name_of(value, where)}
        return self._compound(value, where)

    def _array(self, value: Any) -> dict[str, Any]:
        name, kind = f"{len(self.arrays)}.npy", "jax" if isinstance(value, jax.Array) else "numpy"
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value, kind = jax.random.key_data(value), str(jax.random.key_impl(value))
        self.arrays[name] = np.asarray(value)
        return {"array": name, "kind": kind}

    def _compound(self, value: Any, where: str) -> Any:
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return {"tuple": self._items(value, where)}
        if isinstance(value, list):
            return self._items(value, where)
        if isinstance(value, dict):
            pairs = [self._items(pair, f"{where}[{pair[0]!r}]") for pair in value.items()]
            return {"dict": pairs, "ordered": isinstance(value, OrderedDict)}
        fields = _fields_of(value)
        try:
            name = _name_of(type(value), where)
            inside = {k: self.written(v, f"{where}.{k}") for k, v in fields.items()}
        except ModelError:
            if isinstance(value, Metric | SiteMetrics):
                return {"text": repr(value)}
            raise
        return {"class": name, "fields": inside}

    def _items(self, values: Any, where: str) -> list[Any]:
        return [self.written(value, f"{where}[{i}]") for i, value in enumerate(values)]


class _Reader:
    """The values again."""

    def __init__(self, archive: zipfile.ZipFile, posterior: Posterior | None):
        self._archive, self._posterior = archive, posterior

    def read(self, kept: Any) -> Any:
        if isinstance(kept, list):
            return [self.read(item) for item in kept]
        if not isinstance(kept, dict):
            return kept
        if "posterior" in kept:
            return self._posterior
        if "array" in kept:
            array = np.load(io.BytesIO(self._archive.read(kept["array"])), allow_pickle=False)
            if kept["kind"] == "numpy":
                return array
            if kept["kind"] == "jax":
                return jax.device_put(array)
            return jax.random.wrap_key_data(array, impl=kept["kind"])
        if "tuple" in kept:
            return tuple(self.read(kept["tuple"]))
        if "dict" in kept:
            made = OrderedDict if kept["ordered"] else dict
            return made((self.read(key), self.read(value)) for key, value in kept["dict"])
        if "shape" in kept:
            return jax.ShapeDtypeStruct(tuple(kept["shape"]), kept["dtype"])
        if "text" in kept:
            return Text(kept["text"])
        if "type" in kept:
            return _found(kept["type"])
        if "enum" in kept:
            return _found(kept["enum"])[kept["name"]]
        return _made(_found(kept["class"]), {k: self.read(v) for k, v in kept["fields"].items()})


def _fields_of(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Samples | Row):
        return value.__getstate__()
    if isinstance(value, tuple):
        return value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    return getattr(value, "__dict__", {})


def _name_of(kind: type, where: str) -> str:
    name = f"{kind.__module__}:{kind.__qualname__}"
    if kind.__module__.partition(".")[0] not in PACKAGES or "<locals>" in name:
        raise ModelError(
            f"`{where}` of the result is of the type {name}, of which a file would have to hold "
            "the code. `pickle` keeps results whose model and metric can be imported."
        )
    return name


def _found(name: str) -> Any:
    module, _, path = name.partition(":")
    if module.partition(".")[0] not in PACKAGES:
        raise DataError(f"`path` names the class `{name}`, which `vf.save` would not have written.")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        raise DataError(f"`path` names the class `{name}`, which this version does not have.")
    return found


def _made(kind: type, fields: Mapping[str, Any]) -> Any:
    if issubclass(kind, tuple):
        return kind(**fields)
    made = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made

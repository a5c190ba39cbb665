"""Names that stand elsewhere than they did, so that asking for an old one says where it is now."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

from volform.errors import MovedError


def _as_they_were(*names: str) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


# Old room: new room: old name: new name, empty where the whole room is meant.
_MOVED = {
    "volform": {
        "volform": {"metric_of": "optimizer_metric"},
        "volform.plot": {"plotting": ""},
    },
    "volform.geometry": {
        "volform.geometry": {"relative": "raise_index", "eigenvalues": "generalized_eigenvalues"},
        "volform.linalg": {
            "BlockDiagonal": "BlockDiagonal",
            "Dense": "DenseOperator",
            "logdet": "exact_logdet",
            "whiten": "whiten",
        },
        "volform.networks": _as_they_were(
            "NTP", "SP", "Fans", "ImprovedSP", "MuP", "Parametrization", "Scaling", "WithPrior"
        ),
    },
    "volform.operators": {
        "volform.operators": {"metric_of": "optimizer_metric"},
        "volform.linalg": _as_they_were(
            "Combination",
            "Eigenpairs",
            "Estimate",
            "Exact",
            "Krylov",
            "Method",
            "SpectralDensity",
            "UnderMetric",
            "XTrace",
            "condition_number",
            "diagonal",
            "effective_dimension",
            "eigenvalues",
            "logdet",
            "spectral_density",
            "trace",
            "under_metric",
        ),
    },
    "volform.models": {"volform.networks": {"networks": ""}},
    "volform.inference": {"volform.results": {"Evidence": "Evidence"}},
    "volform.kernels": {
        "volform.networks": _as_they_were(
            "ABRelu",
            "Abs",
            "Activation",
            "AvgPool",
            "Conv",
            "Cos",
            "Dense",
            "Dropout",
            "Elementwise",
            "Erf",
            "Exp",
            "Flatten",
            "Gaussian",
            "Gelu",
            "GlobalAvgPool",
            "GlobalSelfAttention",
            "Hermite",
            "Identity",
            "Layer",
            "LayerNorm",
            "LeakyRelu",
            "Monomial",
            "Padding",
            "Polynomial",
            "Rbf",
            "RectifiedMonomial",
            "Relu",
            "Serial",
            "Sign",
            "Sin",
            "concatenated",
            "multiplied",
            "serial",
            "summed",
        ),
        "volform.architectures": _as_they_were(
            "Architecture",
            "Candidate",
            "Entry",
            "Learned",
            "Survey",
            "finite_evidence",
            "learn",
            "ntk_by_layer",
            "ntk_growth",
        )
        | {"architectures": "survey"},
    },
}


def moved_from(room: str) -> Callable[[str], NoReturn]:
    """The `__getattr__` of a room that names used to stand in.

    Args:
        room: the module's `__name__`.

    Raises:
        MovedError: for a name that moved, with the new one.
        AttributeError: for any other.
    """

    def lookup(name: str) -> NoReturn:
        for home, names in _MOVED[room].items():
            if name in names:
                new = f"{home}.{names[name]}".rstrip(".")
                raise MovedError(f"`{room}.{name}` is now `{new}`: use the new name in your code.")
        where = _elsewhere(room, name)
        raise AttributeError(f"module `{room}` has no attribute `{name}`, now or before{where}.")

    return lookup


def _elsewhere(room: str, name: str) -> str:
    """The rooms that have the name, as the end of a sentence."""
    package = sys.modules[room.partition(".")[0]]
    # Some rooms are imported when they are asked for. Private names stand in none: who probes a
    # module for `__path__` or `__wrapped__`, as test runners do by the thousand, waits for nothing.
    members = [] if name.startswith("_") else [getattr(package, m) for m in dir(package)]
    rooms = [m.__name__ for m in members if isinstance(m, ModuleType) and name in vars(m)]
    return f"; it stands in `{'` and in `'.join(rooms)}`" if rooms else f"; `dir({room})` lists all"

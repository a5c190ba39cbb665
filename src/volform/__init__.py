"""volform: Bayesian inference with invariant densities, on NumPyro models."""

import importlib as _importlib
import typing as _typing

# ArviZ 1.x, imported before, leaves a NumPyro that is loaded at its first use. Loaded by an import
# of `numpyro.distributions` it loses one of its submodules, and `numpyro.factor` fails.
from numpyro import handlers as _handlers  # noqa: F401

from volform import (
    equivalence as equivalence,
    geometry as geometry,
    inference as inference,
    linalg as linalg,
    models as models,
    networks as networks,
    operators as operators,
)
from volform.geometry import (
    Euclidean as Euclidean,
    Fisher as Fisher,
    Metric as Metric,
    pullback as pullback,
)
from volform.inference import (
    GGN as GGN,
    RMHMC as RMHMC,
    Bridge as Bridge,
    Importance as Importance,
    Kronecker as Kronecker,
    Laplace as Laplace,
    Linearized as Linearized,
    Quadrature as Quadrature,
    Tempered as Tempered,
    compare as compare,
    credible_region as credible_region,
    evidence as evidence,
    find_map as find_map,
    laplace as laplace,
    load as load,
    marginalize as marginalize,
    maximize_evidence as maximize_evidence,
    nuts as nuts,
    save as save,
    sensitivity as sensitivity,
    to_arviz as to_arviz,
    to_blackjax as to_blackjax,
    tune as tune,
)
from volform.linalg import (
    Exact as Exact,
    Krylov as Krylov,
)
from volform.models import (
    Batches as Batches,
    Jeffreys as Jeffreys,
    JointFisher as JointFisher,
    LikelihoodFisher as LikelihoodFisher,
    PCPrior as PCPrior,
    Unconstrained as Unconstrained,
    VolumeDensity as VolumeDensity,
    attach as attach,
    check_invariance as check_invariance,
    condition as condition,
    flow_metric as flow_metric,
    glm as glm,
)
from volform.moved import moved_from as _moved_from
from volform.operators import (
    optimizer_metric as optimizer_metric,
    sharpness as sharpness,
)

if _typing.TYPE_CHECKING:
    from volform import (
        architectures as architectures,
        kernels as kernels,
        layers as layers,
        optimizers as optimizers,
        plot as plot,
    )

# Rooms that are imported when they are first asked for: .1 s that few programs need.
_LATER = ("architectures", "kernels", "layers", "optimizers", "plot")


def __getattr__(name: str) -> _typing.Any:
    if name in _LATER:
        return _importlib.import_module(f"{__name__}.{name}")
    return _moved_from(__name__)(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})

"""volform: Bayesian inference with invariant densities, on NumPyro models."""

from volform import (
    geometry as geometry,
    kernels as kernels,
    operators as operators,
    plotting as _plotting,
)
from volform.geometry import (
    Euclidean as Euclidean,
    Fisher as Fisher,
    Metric as Metric,
    pullback as pullback,
)
from volform.inference import (
    GGN as GGN,
    Bridge as Bridge,
    Importance as Importance,
    Kronecker as Kronecker,
    Laplace as Laplace,
    Linearized as Linearized,
    Quadrature as Quadrature,
    compare as compare,
    evidence as evidence,
    find_map as find_map,
    laplace as laplace,
    maximize_evidence as maximize_evidence,
    nuts as nuts,
    to_arviz as to_arviz,
)
from volform.models import (
    Jeffreys as Jeffreys,
    JointFisher as JointFisher,
    LikelihoodFisher as LikelihoodFisher,
    Unconstrained as Unconstrained,
    VolumeDensity as VolumeDensity,
    attach as attach,
    condition as condition,
    networks as networks,
)
from volform.operators import (
    Exact as Exact,
    Krylov as Krylov,
    metric_of as metric_of,
    sharpness as sharpness,
)

plot = _plotting

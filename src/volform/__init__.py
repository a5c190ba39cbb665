"""volform: Bayesian inference with invariant densities, on NumPyro models."""

from volform import geometry as geometry, plotting as _plotting
from volform.geometry import (
    Euclidean as Euclidean,
    Fisher as Fisher,
    Metric as Metric,
    pullback as pullback,
)
from volform.models import (
    JointFisher as JointFisher,
    LikelihoodFisher as LikelihoodFisher,
    Jeffreys as Jeffreys,
    Posterior as Posterior,
    VolumeDensity as VolumeDensity,
    Unconstrained as Unconstrained,
    attach as attach,
    condition as condition,
)
from volform.inference import (
    MAP as MAP,
    Evidence as Evidence,
    Laplace as Laplace,
    find_map as find_map,
    laplace as laplace,
    nuts as nuts,
    to_arviz as to_arviz,
)

plot = _plotting

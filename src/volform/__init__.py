"""volform: Bayesian inference with invariant densities, on NumPyro models."""

from volform import geometry as geometry
from volform.geometry import (
    Euclidean as Euclidean,
    Fisher as Fisher,
    Metric as Metric,
    pullback as pullback,
)
from volform.models import (
    JointFisher as JointFisher,
    LikelihoodFisher as LikelihoodFisher,
    Posterior as Posterior,
    Unconstrained as Unconstrained,
    attach as attach,
    condition as condition,
)

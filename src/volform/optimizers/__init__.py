"""Optimizers under a metric, as transformations of optax; and gradient flows."""

from volform.optimizers.cubature import CubatureELBO as CubatureELBO
from volform.optimizers.damping import (
    AdaptiveDamping as AdaptiveDamping,
    AdaptiveDampingState as AdaptiveDampingState,
)
from volform.optimizers.dissimilarities import (
    Dissimilarity as Dissimilarity,
    PulledBack as PulledBack,
    SquaredDistance as SquaredDistance,
)
from volform.optimizers.divergences import (
    Bregman as Bregman,
    KullbackLeibler as KullbackLeibler,
    log_sum_exp as log_sum_exp,
    negative_entropy as negative_entropy,
)
from volform.optimizers.flows import (
    FlowPath as FlowPath,
    PathComparison as PathComparison,
    compare_paths as compare_paths,
    gradient_flow as gradient_flow,
)
from volform.optimizers.geodesic_steps import along_geodesics as along_geodesics
from volform.optimizers.guides import (
    GuideFisher as GuideFisher,
    natural_variational_inference as natural_variational_inference,
)
from volform.optimizers.newton_steps import (
    TrustRegionState as TrustRegionState,
    damped_newton as damped_newton,
    trust_region as trust_region,
)
from volform.optimizers.output_distances import (
    function_space_distance as function_space_distance,
    gn_hvp as gn_hvp,
    pullback_mvp as pullback_mvp,
)
from volform.optimizers.preconditioning import (
    natural_gradient as natural_gradient,
    precondition as precondition,
)
from volform.optimizers.proximal import (
    implicit_gradient_descent as implicit_gradient_descent,
    mirror_descent as mirror_descent,
    output_space_descent as output_space_descent,
    proximal_point as proximal_point,
)

"""Infinitely wide networks: NNGP and neural tangent kernels, and Gaussian processes by them."""

from volform.kernels.checks import (
    require_targets as require_targets,
)
from volform.kernels.cross_validation import (
    Score as Score,
    held_out as held_out,
)
from volform.kernels.empirical import (
    empirical_nngp as empirical_nngp,
    empirical_ntk as empirical_ntk,
    empirical_ntk_diagonal as empirical_ntk_diagonal,
)
from volform.kernels.empirical_operator import (
    TangentKernel as TangentKernel,
    empirical_ntk_operator as empirical_ntk_operator,
)
from volform.kernels.gaussian_process import (
    Prediction as Prediction,
    evidence as evidence,
    gaussian_process as gaussian_process,
    predict as predict,
    provenance_of_targets as provenance_of_targets,
)
from volform.kernels.gradient_flow import (
    predict_trained as predict_trained,
)
from volform.kernels.gradients import (
    OutputPairs as OutputPairs,
)
from volform.kernels.gram_matrix import (
    GramMatrix as GramMatrix,
    nngp_operator as nngp_operator,
    ntk_operator as ntk_operator,
)
from volform.kernels.kernel import (
    Kernel as Kernel,
    context_of as context_of,
    kernel as kernel,
    kernel_block as kernel_block,
    lists_of as lists_of,
    tile_side as tile_side,
)
from volform.kernels.layers import (
    covariance as covariance,
    image_moments as image_moments,
    joined_kernels as joined_kernels,
    pairs_needed as pairs_needed,
    propagate as propagate,
    propagate_needed as propagate_needed,
    quadrature_error as quadrature_error,
    slope_covariance as slope_covariance,
)
from volform.kernels.propagation import (
    KernelState as KernelState,
    LayerContext as LayerContext,
    Moments as Moments,
    Pairs as Pairs,
    floats_as_arrays as floats_as_arrays,
    of_examples as of_examples,
)
from volform.moved import moved_from as _moved_from

__getattr__ = _moved_from(__name__)

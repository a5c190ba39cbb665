"""Infinitely wide networks: NNGP and neural tangent kernels, and Gaussian processes by them."""

from volform.kernels.checks import (
    require_inputs as require_inputs,
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
from volform.kernels.layers import (
    ABRelu as ABRelu,
    Abs as Abs,
    Activation as Activation,
    AvgPool as AvgPool,
    Conv as Conv,
    Cos as Cos,
    Dense as Dense,
    Dropout as Dropout,
    Elementwise as Elementwise,
    Erf as Erf,
    Exp as Exp,
    Flatten as Flatten,
    Gaussian as Gaussian,
    Gelu as Gelu,
    GlobalAvgPool as GlobalAvgPool,
    GlobalSelfAttention as GlobalSelfAttention,
    Hermite as Hermite,
    Identity as Identity,
    Kernel as Kernel,
    Layer as Layer,
    LayerNorm as LayerNorm,
    LeakyRelu as LeakyRelu,
    Monomial as Monomial,
    Polynomial as Polynomial,
    Rbf as Rbf,
    RectifiedMonomial as RectifiedMonomial,
    Relu as Relu,
    Serial as Serial,
    Sign as Sign,
    Sin as Sin,
    concatenated as concatenated,
    multiplied as multiplied,
    serial as serial,
    summed as summed,
)
from volform.kernels.propagation import (
    LayerContext as LayerContext,
    Padding as Padding,
    Pairs as Pairs,
    floats_as_arrays as floats_as_arrays,
    of_examples as of_examples,
)
from volform.moved import moved_from as _moved_from

__getattr__ = _moved_from(__name__)

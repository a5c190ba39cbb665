"""Infinitely wide networks: NNGP and neural tangent kernels, and Gaussian processes by them."""

from volform.kernels.activation import Activation as Activation
from volform.kernels.architecture import Architecture as Architecture
from volform.kernels.attention import GlobalSelfAttention as GlobalSelfAttention
from volform.kernels.composition import (
    concatenated as concatenated,
    multiplied as multiplied,
    serial as serial,
    summed as summed,
)
from volform.kernels.dropout import Dropout as Dropout
from volform.kernels.empirical import (
    empirical_nngp as empirical_nngp,
    empirical_ntk as empirical_ntk,
)
from volform.kernels.expansion import (
    Elementwise as Elementwise,
    Hermite as Hermite,
    Monomial as Monomial,
    Polynomial as Polynomial,
)
from volform.kernels.finite import finite_evidence as finite_evidence
from volform.kernels.gram import (
    GramMatrix as GramMatrix,
    nngp_operator as nngp_operator,
    ntk_operator as ntk_operator,
)
from volform.kernels.growth import ntk_by_layer as ntk_by_layer, ntk_growth as ntk_growth
from volform.kernels.heldout import Score as Score, held_out as held_out
from volform.kernels.layer import Kernel as Kernel, Layer as Layer
from volform.kernels.learning import Learned as Learned, learn as learn
from volform.kernels.linear import Dense as Dense
from volform.kernels.normalization import LayerNorm as LayerNorm
from volform.kernels.process import (
    Prediction as Prediction,
    evidence as evidence,
    gaussian_process as gaussian_process,
    predict as predict,
)
from volform.kernels.rectified import (
    ABRelu as ABRelu,
    Abs as Abs,
    LeakyRelu as LeakyRelu,
    RectifiedMonomial as RectifiedMonomial,
    Relu as Relu,
    Sign as Sign,
)
from volform.kernels.smooth import (
    Cos as Cos,
    Erf as Erf,
    Exp as Exp,
    Gaussian as Gaussian,
    Gelu as Gelu,
    Rbf as Rbf,
    Sin as Sin,
)
from volform.kernels.spatial import (
    AvgPool as AvgPool,
    Conv as Conv,
    Flatten as Flatten,
    GlobalAvgPool as GlobalAvgPool,
    Identity as Identity,
)
from volform.kernels.survey import (
    Candidate as Candidate,
    Entry as Entry,
    Survey as Survey,
    architectures as architectures,
)
from volform.kernels.training import predict_trained as predict_trained
from volform.kernels.window import Padding as Padding

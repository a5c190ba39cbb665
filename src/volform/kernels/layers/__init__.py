"""The kernel rule of each layer."""

from volform.kernels.layers.activation import (
    Activation as Activation,
)
from volform.kernels.layers.attention import (
    GlobalSelfAttention as GlobalSelfAttention,
)
from volform.kernels.layers.composition import (
    Serial as Serial,
    concatenated as concatenated,
    multiplied as multiplied,
    serial as serial,
    summed as summed,
)
from volform.kernels.layers.conv import (
    AvgPool as AvgPool,
    Conv as Conv,
    Flatten as Flatten,
    GlobalAvgPool as GlobalAvgPool,
    Identity as Identity,
)
from volform.kernels.layers.dense import (
    Dense as Dense,
)
from volform.kernels.layers.dropout import (
    Dropout as Dropout,
)
from volform.kernels.layers.layer import (
    Kernel as Kernel,
    Layer as Layer,
    whole as whole,
)
from volform.kernels.layers.normalization import (
    LayerNorm as LayerNorm,
)
from volform.kernels.layers.polynomial import (
    Elementwise as Elementwise,
    Hermite as Hermite,
    Monomial as Monomial,
    Polynomial as Polynomial,
)
from volform.kernels.layers.rectified import (
    ABRelu as ABRelu,
    Abs as Abs,
    LeakyRelu as LeakyRelu,
    RectifiedMonomial as RectifiedMonomial,
    Relu as Relu,
    Sign as Sign,
)
from volform.kernels.layers.smooth import (
    Cos as Cos,
    Erf as Erf,
    Exp as Exp,
    Gaussian as Gaussian,
    Gelu as Gelu,
    Rbf as Rbf,
    Sin as Sin,
)

"""Neural networks as NumPyro models, with parametrizations as values."""

from volform.networks.activations import (
    ABRelu as ABRelu,
    Abs as Abs,
    Activation as Activation,
    Cos as Cos,
    Elementwise as Elementwise,
    Erf as Erf,
    Exp as Exp,
    Gaussian as Gaussian,
    Gelu as Gelu,
    Hermite as Hermite,
    LeakyRelu as LeakyRelu,
    Monomial as Monomial,
    Polynomial as Polynomial,
    Rbf as Rbf,
    RectifiedMonomial as RectifiedMonomial,
    Relu as Relu,
    Sign as Sign,
    Sin as Sin,
    Wave as Wave,
)
from volform.networks.architectures import (
    MLP as MLP,
    LeNet as LeNet,
)
from volform.networks.attention import (
    GlobalSelfAttention as GlobalSelfAttention,
)
from volform.networks.composition import (
    Concatenated as Concatenated,
    Multiplied as Multiplied,
    Parallel as Parallel,
    Serial as Serial,
    Summed as Summed,
    concatenated as concatenated,
    multiplied as multiplied,
    residual as residual,
    serial as serial,
    summed as summed,
)
from volform.networks.conv import (
    Conv as Conv,
    ConvLocal as ConvLocal,
    ConvTranspose as ConvTranspose,
    WindowLayer as WindowLayer,
)
from volform.networks.dense import (
    Dense as Dense,
    WeightLayer as WeightLayer,
)
from volform.networks.embedding import (
    Embedding as Embedding,
)
from volform.networks.functions import (
    from_function as from_function,
)
from volform.networks.graph import (
    Aggregate as Aggregate,
)
from volform.networks.inputs import (
    as_array as as_array,
    require_finite as require_finite,
    require_inputs as require_inputs,
    require_rows as require_rows,
    require_tokens as require_tokens,
)
from volform.networks.layer import (
    CenteredLayer as CenteredLayer,
    Composite as Composite,
    Flatten as Flatten,
    Identity as Identity,
    Layer as Layer,
    ParameterArray as ParameterArray,
    Place as Place,
    Pointwise as Pointwise,
    Wide as Wide,
    whole as whole,
)
from volform.networks.likelihoods import (
    classification as classification,
    regression as regression,
    supervised as supervised,
)
from volform.networks.network import (
    Network as Network,
)
from volform.networks.normalization import (
    Dropout as Dropout,
    LayerNorm as LayerNorm,
    Softmax as Softmax,
)
from volform.networks.parametrization import (
    NTP as NTP,
    SP as SP,
    Fans as Fans,
    ImprovedSP as ImprovedSP,
    MuP as MuP,
    Parametrization as Parametrization,
    Scaling as Scaling,
    WithPrior as WithPrior,
    require_parametrization as require_parametrization,
)
from volform.networks.pooling import (
    AvgPool as AvgPool,
    GlobalAvgPool as GlobalAvgPool,
    GlobalPool as GlobalPool,
    GlobalSumPool as GlobalSumPool,
    SumPool as SumPool,
    WindowPool as WindowPool,
)
from volform.networks.programs import (
    evaluate as evaluate,
    outputs_of as outputs_of,
    read as read,
    windows as windows,
    written_out as written_out,
)
from volform.networks.weight_norm import (
    PolarTransform as PolarTransform,
    log_polar as log_polar,
    naive_weight_norm as naive_weight_norm,
    weight_norm as weight_norm,
)
from volform.networks.window import (
    Padding as Padding,
)

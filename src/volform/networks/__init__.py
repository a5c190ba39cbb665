"""Neural networks as NumPyro models, with parametrizations as values."""

from volform.networks.architectures import (
    MLP as MLP,
    LeNet as LeNet,
)
from volform.networks.functions import (
    from_function as from_function,
)
from volform.networks.hooks import (
    LayerHooks as LayerHooks,
    LayerRecord as LayerRecord,
)
from volform.networks.layers import (
    Conv as Conv,
    Dense as Dense,
    Stage as Stage,
)
from volform.networks.likelihoods import (
    classification as classification,
    regression as regression,
    supervised as supervised,
)
from volform.networks.network import (
    Network as Network,
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
from volform.networks.weight_norm import (
    PolarTransform as PolarTransform,
    log_polar as log_polar,
    naive_weight_norm as naive_weight_norm,
    weight_norm as weight_norm,
)

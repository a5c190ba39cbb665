"""Neural networks as NumPyro models, with parametrizations as values."""

from volform.geometry import (
    NTP as NTP,
    SP as SP,
    Fans as Fans,
    ImprovedSP as ImprovedSP,
    MuP as MuP,
    Parametrization as Parametrization,
    Scaling as Scaling,
    WithPrior as WithPrior,
)
from volform.models.networks.architectures import MLP as MLP, LeNet as LeNet
from volform.models.networks.functions import from_function as from_function
from volform.models.networks.layers import Conv as Conv, Dense as Dense, Stage as Stage
from volform.models.networks.likelihoods import (
    classification as classification,
    regression as regression,
    supervised as supervised,
)
from volform.models.networks.network import Network as Network
from volform.models.networks.weight_norm import (
    PolarTransform as PolarTransform,
    log_polar as log_polar,
    naive_weight_norm as naive_weight_norm,
    weight_norm as weight_norm,
)

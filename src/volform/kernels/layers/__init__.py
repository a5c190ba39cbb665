"""The kernel rule of each layer."""

from volform.kernels.layers import (
    attention as attention,
    normalization as normalization,
    pooling as pooling,
    rectified as rectified,
    smooth as smooth,
    weighted as weighted,
)
from volform.kernels.layers.composition import (
    joined_kernels as joined_kernels,
)
from volform.kernels.layers.expectations import (
    covariance as covariance,
    image_moments as image_moments,
    slope_covariance as slope_covariance,
)
from volform.kernels.layers.hermite import (
    quadrature_error as quadrature_error,
)
from volform.kernels.layers.rules import (
    pairs_needed as pairs_needed,
    propagate as propagate,
    propagate_needed as propagate_needed,
)

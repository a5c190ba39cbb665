"""Curvature as operators on pytrees of parameters, and functionals of them with an error bar."""

from volform.operators.base import Combination as Combination
from volform.operators.curvature import (
    Hessian as Hessian,
    SummedHessian as SummedHessian,
    UnderMetric as UnderMetric,
    hessian as hessian,
    under_metric as under_metric,
)
from volform.operators.functionals import (
    diagonal as diagonal,
    effective_dimension as effective_dimension,
    logdet as logdet,
    trace as trace,
)
from volform.operators.gauss_newton import (
    empirical_fisher as empirical_fisher,
    fisher as fisher,
    ggn as ggn,
    monte_carlo_fisher as monte_carlo_fisher,
)
from volform.operators.gram import Gram as Gram, OutputHessian as OutputHessian
from volform.operators.methods import (
    Estimate as Estimate,
    Exact as Exact,
    Krylov as Krylov,
    Method as Method,
    XTrace as XTrace,
)
from volform.operators.sharding import sharded as sharded
from volform.operators.sharpness import (
    Sharpness as Sharpness,
    metric_of as metric_of,
    sharpness as sharpness,
)
from volform.operators.spectrum import (
    Eigenpairs as Eigenpairs,
    SpectralDensity as SpectralDensity,
    condition_number as condition_number,
    eigenvalues as eigenvalues,
    spectral_density as spectral_density,
)

"""Curvature as operators on pytrees of parameters, and functionals of them with an error bar."""

from volform.moved import moved_from as _moved_from
from volform.operators.gauss_newton import (
    empirical_fisher as empirical_fisher,
    fisher as fisher,
    ggn as ggn,
    monte_carlo_fisher as monte_carlo_fisher,
)
from volform.operators.gram import (
    Gram as Gram,
    OutputHessian as OutputHessian,
)
from volform.operators.hessian import (
    Hessian as Hessian,
    SummedHessian as SummedHessian,
    hessian as hessian,
)
from volform.operators.sharding import (
    sharded as sharded,
)
from volform.operators.sharpness import (
    Sharpness as Sharpness,
    optimizer_metric as optimizer_metric,
    sharpness as sharpness,
)

__getattr__ = _moved_from(__name__)

"""Metrics, volume forms, Fisher information, and the rules by which they change coordinates."""

from volform.geometry.connection import (
    christoffel as christoffel,
    christoffel_along as christoffel_along,
    covariant_hessian as covariant_hessian,
    eigenvalues as eigenvalues,
    relative as relative,
    scalar_curvature as scalar_curvature,
)
from volform.geometry.fisher import Fisher as Fisher
from volform.geometry.metric import (
    DiagonalField as DiagonalField,
    Euclidean as Euclidean,
    MatrixField as MatrixField,
    Metric as Metric,
    Product as Product,
    Pullback as Pullback,
    Scaled as Scaled,
    Sum as Sum,
    pullback as pullback,
)
from volform.geometry.parametrization import (
    NTP as NTP,
    SP as SP,
    Fans as Fans,
    ImprovedSP as ImprovedSP,
    MuP as MuP,
    Parametrization as Parametrization,
    Scaling as Scaling,
    WithPrior as WithPrior,
)
from volform.geometry.structure import (
    BlockDiagonal as BlockDiagonal,
    Dense as Dense,
    logdet as logdet,
    whiten as whiten,
)
from volform.geometry.tensors import (
    flat as flat,
    gradient as gradient,
    inner as inner,
    norm as norm,
    pull_covector as pull_covector,
    push_bilinear as push_bilinear,
    push_covector as push_covector,
    push_operator as push_operator,
    pushforward as pushforward,
    sharp as sharp,
)
from volform.geometry.volume import log_volume as log_volume

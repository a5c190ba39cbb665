"""Metrics, volume forms, Fisher information, and the rules by which they change coordinates."""

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
from volform.geometry.structure import (
    BlockDiagonal as BlockDiagonal,
    Dense as Dense,
    logdet as logdet,
    whiten as whiten,
)
from volform.geometry.volume import log_volume as log_volume

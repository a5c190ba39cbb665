"""Inference on a `Posterior`: invariant MAP, Laplace approximation, evidence."""

from volform.inference.approximation import (
    LaplaceApproximation as LaplaceApproximation,
    laplace as laplace,
)
from volform.inference.bridging import Bridge as Bridge
from volform.inference.comparison import Comparison as Comparison, compare as compare
from volform.inference.curvature import GGN as GGN, Curvature as Curvature
from volform.inference.empirical import (
    EmpiricalBayes as EmpiricalBayes,
    maximize_evidence as maximize_evidence,
)
from volform.inference.escalation import Automatic as Automatic
from volform.inference.estimating import (
    Estimator as Estimator,
    Laplace as Laplace,
    evidence as evidence,
)
from volform.inference.evidence import Evidence as Evidence
from volform.inference.exporting import to_arviz as to_arviz
from volform.inference.importance import Importance as Importance
from volform.inference.linearized import Linearized as Linearized
from volform.inference.mode import MAP as MAP, find_map as find_map
from volform.inference.quadrature import Quadrature as Quadrature
from volform.inference.structures import (
    BySite as BySite,
    Diagonal as Diagonal,
    Full as Full,
    Kronecker as Kronecker,
    LastLayer as LastLayer,
    LowRank as LowRank,
    Structure as Structure,
    Subset as Subset,
)
from volform.inference.training import train_by_evidence as train_by_evidence
from volform.inference.warmstart import nuts as nuts

"""Estimators of the evidence, comparison, and learning by evidence."""

from volform.inference.evidence.automatic import (
    Automatic as Automatic,
    evidence as evidence,
)
from volform.inference.evidence.bridge import (
    Bridge as Bridge,
)
from volform.inference.evidence.comparison import (
    Comparison as Comparison,
    Row as Row,
    compare as compare,
)
from volform.inference.evidence.empirical_bayes import (
    EmpiricalBayes as EmpiricalBayes,
    maximize_evidence as maximize_evidence,
)
from volform.inference.evidence.estimator import (
    Estimator as Estimator,
    Laplace as Laplace,
)
from volform.inference.evidence.executing import (
    by_executor as by_executor,
    require_executor as require_executor,
)
from volform.inference.evidence.hyperparameters import (
    Sensitivity as Sensitivity,
    sensitivity as sensitivity,
)
from volform.inference.evidence.importance import (
    FEWEST_DRAWS as FEWEST_DRAWS,
    Importance as Importance,
    SmoothedWeights as SmoothedWeights,
    log_mean as log_mean,
    trust_of as trust_of,
)
from volform.inference.evidence.learning import (
    LearningCoefficient as LearningCoefficient,
    TemperedNUTS as TemperedNUTS,
    learning_coefficient as learning_coefficient,
)
from volform.inference.evidence.marginalize import (
    Marginalized as Marginalized,
    marginalize as marginalize,
)
from volform.inference.evidence.quadrature import (
    Quadrature as Quadrature,
)
from volform.inference.evidence.savage_dickey import (
    DensityRatio as DensityRatio,
    savage_dickey as savage_dickey,
)
from volform.inference.evidence.tempered import (
    Tempered as Tempered,
)
from volform.inference.evidence.thermodynamic import (
    Thermodynamic as Thermodynamic,
)
from volform.inference.evidence.training import (
    train_by_evidence as train_by_evidence,
)

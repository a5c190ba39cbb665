"""Inference on a `Posterior`: invariant MAP, Laplace approximation, evidence."""

from volform.inference.arviz_compat import (
    smoothed as smoothed,
    without_slashes as without_slashes,
)
from volform.inference.arviz_export import (
    to_arviz as to_arviz,
)
from volform.inference.attached_metrics import (
    SiteMetrics as SiteMetrics,
)
from volform.inference.axis_names import (
    names_of_elements as names_of_elements,
)
from volform.inference.credible import (
    CredibleRegion as CredibleRegion,
    credible_region as credible_region,
)
from volform.inference.evidence import (
    FEWEST_DRAWS as FEWEST_DRAWS,
    Automatic as Automatic,
    Bridge as Bridge,
    Comparison as Comparison,
    DensityRatio as DensityRatio,
    EmpiricalBayes as EmpiricalBayes,
    Estimator as Estimator,
    Importance as Importance,
    Laplace as Laplace,
    LearningCoefficient as LearningCoefficient,
    Marginalized as Marginalized,
    Quadrature as Quadrature,
    Sensitivity as Sensitivity,
    SmoothedWeights as SmoothedWeights,
    Tempered as Tempered,
    TemperedNUTS as TemperedNUTS,
    Thermodynamic as Thermodynamic,
    by_executor as by_executor,
    compare as compare,
    evidence as evidence,
    learning_coefficient as learning_coefficient,
    log_mean as log_mean,
    marginalize as marginalize,
    maximize_evidence as maximize_evidence,
    require_executor as require_executor,
    savage_dickey as savage_dickey,
    sensitivity as sensitivity,
    train_by_evidence as train_by_evidence,
    trust_of as trust_of,
)
from volform.inference.guide_check import (
    GuideCheck as GuideCheck,
    check_guide as check_guide,
)
from volform.inference.laplace import (
    GGN as GGN,
    AtMode as AtMode,
    BySite as BySite,
    Curvature as Curvature,
    Diagonal as Diagonal,
    EmpiricalFisher as EmpiricalFisher,
    ExpectedFisher as ExpectedFisher,
    Explanation as Explanation,
    ExponentialMap as ExponentialMap,
    Full as Full,
    FunctionSpace as FunctionSpace,
    HeldOut as HeldOut,
    Kronecker as Kronecker,
    LaplaceApproximation as LaplaceApproximation,
    LaplaceBridge as LaplaceBridge,
    LaplaceGuide as LaplaceGuide,
    LastLayer as LastLayer,
    Linearized as Linearized,
    Link as Link,
    LogitDraws as LogitDraws,
    LowRank as LowRank,
    MeanField as MeanField,
    MonteCarloFisher as MonteCarloFisher,
    Nystrom as Nystrom,
    OneScale as OneScale,
    PerLayer as PerLayer,
    PerSite as PerSite,
    PriorScales as PriorScales,
    Probit as Probit,
    Samples as Samples,
    SiteShare as SiteShare,
    Structure as Structure,
    Subset as Subset,
    Tuned as Tuned,
    is_few as is_few,
    laplace as laplace,
    marginal_densities as marginal_densities,
    tune as tune,
)
from volform.inference.modes import (
    MAP as MAP,
    find_map as find_map,
)
from volform.inference.samplers import (
    RMHMC as RMHMC,
    BlackjaxTarget as BlackjaxTarget,
    RMHMCState as RMHMCState,
    nuts as nuts,
    to_blackjax as to_blackjax,
)
from volform.inference.saving import (
    load as load,
    save as save,
)
from volform.inference.scoring import (
    ClassScores as ClassScores,
    ScoreEstimate as ScoreEstimate,
    ScoreTable as ScoreTable,
    class_scores as class_scores,
)
from volform.inference.summary import (
    Summary as Summary,
    element_labels as element_labels,
    require_probability as require_probability,
)
from volform.moved import moved_from as _moved_from

__getattr__ = _moved_from(__name__)

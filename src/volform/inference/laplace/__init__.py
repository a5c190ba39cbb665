"""The Laplace approximation: curvature, its structure, draws, predictions, evidence."""

from volform.inference.laplace.approximation import (
    LaplaceApproximation as LaplaceApproximation,
    laplace as laplace,
)
from volform.inference.laplace.correction import (
    correction as correction,
)
from volform.inference.laplace.curvatures import (
    GGN as GGN,
    EmpiricalFisher as EmpiricalFisher,
    ExpectedFisher as ExpectedFisher,
    MonteCarloFisher as MonteCarloFisher,
)
from volform.inference.laplace.draws import (
    draws_of_sites as draws_of_sites,
    located as located,
    predicted as predicted,
)
from volform.inference.laplace.equivalent_modes import (
    are_copies as are_copies,
    count_copies as count_copies,
    without_copies as without_copies,
)
from volform.inference.laplace.explanation import (
    Explanation as Explanation,
    SiteShare as SiteShare,
)
from volform.inference.laplace.function_space import (
    FunctionSpace as FunctionSpace,
    Nystrom as Nystrom,
)
from volform.inference.laplace.gauss_newton import (
    Curvature as Curvature,
)
from volform.inference.laplace.gaussian_chart import (
    LEBESGUE as LEBESGUE,
    FlatChart as FlatChart,
    UnconstrainedChart as UnconstrainedChart,
    densities_at as densities_at,
    sampling_chart as sampling_chart,
)
from volform.inference.laplace.geodesic_chart import (
    ExponentialMap as ExponentialMap,
    NormalChart as NormalChart,
    placed_at as placed_at,
)
from volform.inference.laplace.guide import (
    LaplaceGuide as LaplaceGuide,
)
from volform.inference.laplace.layer_structures import (
    Diagonal as Diagonal,
    Kronecker as Kronecker,
)
from volform.inference.laplace.linearized import (
    Linearized as Linearized,
)
from volform.inference.laplace.links import (
    AtMode as AtMode,
    LaplaceBridge as LaplaceBridge,
    Link as Link,
    LogitDraws as LogitDraws,
    MeanField as MeanField,
    Probit as Probit,
)
from volform.inference.laplace.log_evidence import (
    errors_of as errors_of,
    first_order as first_order,
    laplace_evidence as laplace_evidence,
)
from volform.inference.laplace.marginals import (
    marginal_densities as marginal_densities,
    marginals_of as marginals_of,
)
from volform.inference.laplace.mixture import (
    Proposal as Proposal,
    adapted as adapted,
    proposal_at as proposal_at,
)
from volform.inference.laplace.samples import (
    FEWEST_FOR_TIMES as FEWEST_FOR_TIMES,
    Samples as Samples,
)
from volform.inference.laplace.structure import (
    Structure as Structure,
)
from volform.inference.laplace.structures import (
    BySite as BySite,
    Full as Full,
    LastLayer as LastLayer,
    LowRank as LowRank,
    Subset as Subset,
)
from volform.inference.laplace.tempering import (
    HeldOut as HeldOut,
)
from volform.inference.laplace.tuning import (
    OneScale as OneScale,
    PerLayer as PerLayer,
    PerSite as PerSite,
    PriorScales as PriorScales,
    Tuned as Tuned,
    tune as tune,
)
from volform.inference.laplace.weighing import (
    weighted_quantiles as weighted_quantiles,
    widening as widening,
)
from volform.inference.laplace.woodbury import (
    is_few as is_few,
)

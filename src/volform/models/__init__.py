"""NumPyro models with metrics: attaching, conditioning, model-wide Fisher metrics, priors."""

from volform.models.attaching import (
    Attached as Attached,
    FixedSites as FixedSites,
    attach as attach,
    require_metric as require_metric,
    without_handlers as without_handlers,
)
from volform.models.batches import (
    Batches as Batches,
)
from volform.models.binding import (
    Unconstrained as Unconstrained,
)
from volform.models.bound_model import (
    BoundModel as BoundModel,
)
from volform.models.charts import (
    StereographicTransform as StereographicTransform,
)
from volform.models.conditioned_again import (
    with_arguments as with_arguments,
    with_model as with_model,
    with_sites_fixed as with_sites_fixed,
)
from volform.models.constant import (
    ById as ById,
)
from volform.models.curvature_metrics import (
    ObservedInformation as ObservedInformation,
    SoftAbs as SoftAbs,
)
from volform.models.data_checks import (
    advice_on as advice_on,
    core_of as core_of,
    require_in_support as require_in_support,
    require_observed as require_observed,
    require_whole_labels as require_whole_labels,
)
from volform.models.distance_priors import (
    PCPrior as PCPrior,
)
from volform.models.fingerprint import fingerprint as fingerprint
from volform.models.fisher_metrics import (
    JointFisher as JointFisher,
    LikelihoodFisher as LikelihoodFisher,
)
from volform.models.flows import (
    BoundFlow as BoundFlow,
    FlowMetric as FlowMetric,
    flow_metric as flow_metric,
)
from volform.models.formulas import (
    LinearModel as LinearModel,
    glm as glm,
)
from volform.models.labels import (
    LabeledModel as LabeledModel,
    NamedAxis as NamedAxis,
    named_arguments as named_arguments,
)
from volform.models.layout import (
    Layout as Layout,
    Site as Site,
)
from volform.models.model_metric import (
    ModelMetric as ModelMetric,
)
from volform.models.model_with_batches import (
    ModelWithBatches as ModelWithBatches,
    first_of as first_of,
    joined_batches as joined_batches,
)
from volform.models.model_with_data import (
    UNTRACEABLE as UNTRACEABLE,
    ModelWithData as ModelWithData,
    make_program as make_program,
)
from volform.models.posterior import (
    Posterior as Posterior,
    condition as condition,
)
from volform.models.prior_draws import (
    PRIOR_DRAWS as PRIOR_DRAWS,
    highest_power as highest_power,
    prior_draws as prior_draws,
    tempered as tempered,
    weighed_draws as weighed_draws,
)
from volform.models.priors import (
    Jeffreys as Jeffreys,
    VolumeDensity as VolumeDensity,
)
from volform.models.rotations import (
    Rotations as Rotations,
)
from volform.models.signature import (
    Signature as Signature,
    signature_of as signature_of,
)
from volform.models.some_examples import with_examples as with_examples
from volform.models.symmetries import (
    SAME as SAME,
    Symmetry as Symmetry,
    count_images as count_images,
    find_rotations as find_rotations,
    find_symmetries as find_symmetries,
    images as images,
    is_fixed_point as is_fixed_point,
)
from volform.models.transformation_rules import (
    Invariance as Invariance,
    check_invariance as check_invariance,
)
from volform.moved import moved_from as _moved_from

__getattr__ = _moved_from(__name__)

"""NumPyro models with metrics: attaching, conditioning, model-wide Fisher metrics, priors."""

from volform.models import networks as networks
from volform.models.attaching import Attached as Attached, attach as attach
from volform.models.binding import Unconstrained as Unconstrained
from volform.models.charts import StereographicTransform as StereographicTransform
from volform.models.information import (
    JointFisher as JointFisher,
    LikelihoodFisher as LikelihoodFisher,
)
from volform.models.posterior import Posterior as Posterior, condition as condition
from volform.models.priors import Jeffreys as Jeffreys, VolumeDensity as VolumeDensity

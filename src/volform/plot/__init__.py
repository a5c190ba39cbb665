"""Pictures, one function each; public as `volform.plot`. matplotlib is imported when one is drawn.

No function changes matplotlib's global settings. Each draws on the axes that it is given, or makes
a figure of its own, and leaves showing and saving to the caller.
"""

from volform.plot.calibration import (
    reliability as reliability,
)
from volform.plot.canvas import (
    figure_of as figure_of,
)
from volform.plot.density import (
    density as density,
)
from volform.plot.equivalence_pictures import (
    equivalents as equivalents,
    learning as learning,
    rank as rank,
)
from volform.plot.evidence_search import (
    evidence_trace as evidence_trace,
)
from volform.plot.forest import (
    forest as forest,
)
from volform.plot.hidden_units import (
    units as units,
)
from volform.plot.importance_weights import (
    k_hat as k_hat,
)
from volform.plot.intervals import (
    credible as credible,
)
from volform.plot.kernels import (
    kernel_by_angle as kernel_by_angle,
    prior_functions as prior_functions,
    prior_readings as prior_readings,
)
from volform.plot.layer_pictures import (
    distinguishable as distinguishable,
    layers as layers,
)
from volform.plot.marginals import (
    marginals as marginals,
)
from volform.plot.predictions import (
    predictive_band as predictive_band,
)
from volform.plot.profiles import (
    profile as profile,
)
from volform.plot.ranking import (
    evidence as evidence,
)
from volform.plot.spectrum import (
    spectrum as spectrum,
)
from volform.plot.widths import (
    evidence_by_width as evidence_by_width,
    kernel_convergence as kernel_convergence,
    tangent_growth as tangent_growth,
)

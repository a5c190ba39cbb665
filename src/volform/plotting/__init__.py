"""Pictures, one function each; public as `volform.plot`. matplotlib is imported when one is drawn.

No function changes matplotlib's global settings. Each draws on the axes that it is given, or makes
a figure of its own, and leaves showing and saving to the caller.
"""

from volform.plotting.density import density as density
from volform.plotting.kernels import (
    kernel_by_angle as kernel_by_angle,
    prior_functions as prior_functions,
    prior_readings as prior_readings,
)
from volform.plotting.ranking import evidence as evidence
from volform.plotting.spectrum import spectrum as spectrum
from volform.plotting.widths import (
    evidence_by_width as evidence_by_width,
    kernel_convergence as kernel_convergence,
    tangent_growth as tangent_growth,
)

"""Comparison of architectures by their evidence, at finite and at infinite width."""

from volform.architectures.architecture import (
    Architecture as Architecture,
)
from volform.architectures.entry import (
    Candidate as Candidate,
    Entry as Entry,
    rank as rank,
)
from volform.architectures.finite_width import (
    finite_evidence as finite_evidence,
)
from volform.architectures.learning import (
    Learned as Learned,
    learn as learn,
)
from volform.architectures.survey import (
    Survey as Survey,
    survey as survey,
)
from volform.architectures.width_scaling import (
    ntk_by_layer as ntk_by_layer,
    ntk_growth as ntk_growth,
)

"""Posterior draws by Markov chains."""

from volform.inference.samplers.blackjax_target import (
    BlackjaxTarget as BlackjaxTarget,
    to_blackjax as to_blackjax,
)
from volform.inference.samplers.nuts import (
    Chains as Chains,
    chains_of as chains_of,
    run_nuts as run_nuts,
)
from volform.inference.samplers.rmhmc import RMHMC as RMHMC, RMHMCState as RMHMCState
from volform.inference.samplers.warm_start import nuts as nuts

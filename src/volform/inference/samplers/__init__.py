"""Posterior draws by Markov chains."""

from volform.inference.samplers.nuts import (
    Chains as Chains,
    chains_of as chains_of,
    run_nuts as run_nuts,
)
from volform.inference.samplers.rmhmc import RMHMC as RMHMC, RMHMCState as RMHMCState
from volform.inference.samplers.warm_start import nuts as nuts

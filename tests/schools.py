"""Eight schools (Rubin 1981), centered, as the README writes it."""

from typing import Any

import numpy as np
import numpyro
import numpyro.distributions as dist

Y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


def eight_schools(sigma: Any, y: Any = None) -> None:
    """The hierarchical model of the effects."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

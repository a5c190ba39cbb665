"""NUTS started from a Laplace approximation."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.infer import NUTS, init_to_value

from volform.inference.laplace.approximation import LaplaceApproximation


def nuts(approx: LaplaceApproximation, **options: Any) -> NUTS:
    """NumPyro's NUTS with starting point and dense mass matrix from a Laplace approximation.

    The inverse mass matrix is the covariance H^-1 at the mode of q^G in unconstrained
    coordinates, where NUTS moves. NUTS then spends its warm-up on the step size only, so that a
    short warm-up is enough; pass `adapt_mass_matrix=True` to go on adapting.

    Args:
        approx: from `laplace`.
        **options: further options of `numpyro.infer.NUTS`.

    Returns:
        A kernel for `numpyro.infer.MCMC`.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> y = jnp.array([0.5, 1.5])
    >>> kernel = vf.nuts(vf.laplace(vf.condition(model, y)))
    >>> type(kernel).__name__
    'NUTS'
    """
    layout = approx.posterior.layout
    # NumPyro lays the sites of a dense mass matrix out in alphabetical order.
    order = np.concatenate(
        [np.arange(s.start, s.start + s.size) for s in sorted(layout.sites, key=lambda s: s.name)]
    )
    settings = {
        "dense_mass": True,
        "adapt_mass_matrix": False,
        "inverse_mass_matrix": jnp.asarray(approx.covariance)[np.ix_(order, order)],
        "init_strategy": init_to_value(values=approx.values),
    }
    return NUTS(approx.posterior.model, **(settings | options))

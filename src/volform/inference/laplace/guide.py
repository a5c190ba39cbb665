"""A Laplace approximation as a guide of NumPyro."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer import init_to_value
from numpyro.infer.autoguide import AutoMultivariateNormal

from volform.compilation import steady
from volform.errors import ModelError
from volform.inference.laplace.draws import TangentGaussian


class LaplaceGuide(AutoMultivariateNormal):
    """A multivariate normal guide in NumPyro's unconstrained coordinates, begun at a mode of q^G.

    Its mean is the mode and its covariance the approximation's there, so that it goes where
    NumPyro's `AutoMultivariateNormal` goes, in `SVI`, `Predictive(guide=...)` and `NeuTraReparam`,
    and needs no training to begin with. `SVI` moves both on. Draws of `approx.sample` are Gaussian
    in other coordinates where the metric is flat in those: here every draw is in the support.

    Attributes:
        params: mean and Cholesky factor of the covariance to begin with, for `Predictive` and
            `NeuTraReparam`.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> from numpyro.infer import Predictive
    >>> def model(y=None):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(mu, 1.0).expand([2]).to_event(1), obs=y)
    >>> guide = vf.laplace(vf.condition(model, jnp.array([0.5, 1.5]))).guide()
    >>> draw = Predictive(model, guide=guide, params=guide.params, num_samples=100)
    >>> draw(jax.random.key(0))["y"].shape
    (100, 2)
    """

    def __init__(self, tangent: TangentGaussian, values: dict[str, Any]):
        posterior = tangent.posterior
        if tangent.orbit is not None or posterior.layout.moving:
            raise ModelError(
                f"`guide` of an approximation of `{posterior.program.name}` is none of NumPyro's: "
                "the mode is a point of an orbit, or a support depends on another site. Take the "
                "draws of `approx.sample(key)`."
            )
        super().__init__(posterior.model, init_loc_fn=init_to_value(values=values))
        args, kwargs = posterior.program.arguments()
        with posterior.program.staging(), handlers.seed(rng_seed=0):
            self._setup_prototype(*args, **kwargs)
        entries = self._unpack_latent(jnp.arange(posterior.dim))  # of the guide's flat vector
        trace: Any = self.prototype_trace
        supports = {name: trace[name]["fn"].support for name in values}

        def own(u: Float[Array, " d"]) -> Float[Array, " d"]:
            """The guide's coordinates: in another order, and of angles with other cuts."""
            found = posterior.layout.constrain(u)
            own = jnp.zeros_like(u)
            for name, value in found.items():
                own = own.at[entries[name]].set(biject_to(supports[name]).inv(value))
            return own

        loc, scale_tril = _moved(own, tangent.u, tangent.covariance)
        self.params = {f"{self.prefix}_loc": loc, f"{self.prefix}_scale_tril": scale_tril}

    def _get_posterior(self) -> dist.Distribution:
        loc, scale_tril = (f"{self.prefix}_{name}" for name in ("loc", "scale_tril"))
        return dist.MultivariateNormal(
            numpyro.param(loc, self.params[loc]),
            scale_tril=numpyro.param(
                scale_tril, self.params[scale_tril], constraint=self.scale_tril_constraint
            ),
        )


@steady
def _moved(own: Any, u: Float[Array, " d"], covariance: Float[Array, "d d"]) -> tuple[Array, Array]:
    slopes = jax.jacfwd(own)(u)
    return own(u), jnp.linalg.cholesky(slopes @ covariance @ slopes.T)

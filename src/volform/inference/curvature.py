"""What takes the place of the Hessian of -log q^G in Laplace's method."""

import abc

import equinox as eqx
from jaxtyping import Array, Float

from volform.errors import ModelError
from volform.inference.splitting import Split, data_sites, gauss_newton
from volform.models import Posterior


class Curvature(eqx.Module):
    """A symmetric matrix in place of the Hessian, as a value: `vf.laplace(fit, curvature=...)`."""

    @abc.abstractmethod
    def matrix(self, posterior: Posterior, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """The matrix in unconstrained coordinates at u."""

    @abc.abstractmethod
    def split(self, posterior: Posterior, u: Float[Array, " d"]) -> Split:
        """What of -log q^G is data and what is not, for a `Structure`."""


class GGN(Curvature):
    """Generalized Gauss-Newton: the Hessian with the curvature of the model's map left out.

    With z(theta) the parameters of the distributions of the observed sites, as the model computes
    them, and J = dz/du,

        H = J^T L J + covariant Hessian of the rest,    L = - d^2 log p(y | z) / dz^2

    The rest (priors, volume, `numpyro.factor`) is taken exactly, and covariantly since its own
    gradient does not vanish at a mode: so the evidence is invariant at every point. Where z is
    linear this is the Hessian itself; in a network it is not, and their evidences may be tens of
    nats apart. L is positive semi-definite where the likelihood is log-concave in z, as for logits,
    log rates and the mean of a normal: then H is positive definite at the ends of a training that
    are no modes, too.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products; Martens (2020), New insights and
        perspectives on the natural gradient method, section 8.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(a**2, 1.0), obs=y)
    >>> posterior = vf.condition(model, jnp.array([1.5]))
    >>> approx = vf.laplace(posterior, curvature=vf.GGN())
    >>> approx.at.hessian.round(6).tolist()  # 4 a^2 + 1 at a = 1; the Hessian itself is 4
    [[5.0]]
    """

    def matrix(self, posterior: Posterior, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """`J^T L J` and the covariant Hessian of the rest.

        Raises:
            ModelError: when no site is observed.
        """
        return gauss_newton(self.split(posterior, u))

    def split(self, posterior: Posterior, u: Float[Array, " d"]) -> Split:
        """The likelihoods of all observed sites, and the rest.

        Raises:
            ModelError: when no site is observed.
        """
        names = data_sites(posterior, u)
        if not names:
            raise ModelError(
                "`curvature=GGN()` needs an observed site, `numpyro.sample(..., obs=...)`; the "
                f"posterior of `{posterior.program.name}` has none (a `numpyro.factor` has no "
                "distribution). Leave `curvature` out."
            )
        return Split(posterior, u, names)

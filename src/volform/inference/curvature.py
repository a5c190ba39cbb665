"""What takes the place of the Hessian of -log q^G in Laplace's method."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float
from numpyro.distributions import Unit

from volform.errors import ModelError
from volform.geometry import christoffel_along
from volform.inference.local import hessian_of, objective
from volform.models import Posterior
from volform.models.observations import core_of

Outputs = Any  # by site: the floating-point leaves of its distribution, and its value


class Curvature(eqx.Module):
    """A symmetric matrix in place of the Hessian, as a value: `vf.laplace(fit, curvature=...)`."""

    @abc.abstractmethod
    def matrix(self, posterior: Posterior, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """The matrix in unconstrained coordinates at u."""


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
    >>> approx = vf.laplace(posterior, curvature=vf.inference.GGN())
    >>> approx.at.hessian.round(6).tolist()  # 4 a^2 + 1 at a = 1; the Hessian itself is 4
    [[5.0]]
    """

    def matrix(self, posterior: Posterior, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """`J^T L J` and the covariant Hessian of the rest.

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
        return _gauss_newton(posterior, u, names)


def data_sites(posterior: Posterior, u: Float[Array, " d"]) -> tuple[str, ...]:
    """Observed sites with a distribution, `numpyro.factor` left out."""
    trace = posterior.program.run(posterior.values(u))
    return tuple(n for n in posterior.observed if not isinstance(core_of(trace[n]["fn"]), Unit))


@eqx.filter_jit
def _gauss_newton(
    posterior: Posterior, u: Float[Array, " d"], names: tuple[str, ...], batch: int = 64
) -> Float[Array, "d d"]:
    def outputs(u: Float[Array, " d"]) -> tuple[Outputs, Any]:
        trace = posterior.program.run(posterior.values(u))
        sites = {name: (trace[name]["fn"], trace[name]["value"]) for name in names}
        scales = {name: trace[name]["scale"] for name in names}
        moving, fixed = eqx.partition(sites, _is_floating)
        return jax.tree.map(jnp.asarray, moving), (fixed, scales)

    fixed, scales = outputs(u)[1]

    def loss(z: Outputs) -> Float[Array, ""]:
        sites = eqx.combine(z, fixed)
        terms = [
            (1.0 if scales[name] is None else scales[name]) * jnp.sum(fn.log_prob(value))
            for name, (fn, value) in sites.items()
        ]
        return -sum(terms, jnp.zeros((), u.dtype))

    def rest(u: Float[Array, " d"]) -> Float[Array, ""]:
        return objective(u, posterior) - loss(outputs(u)[0])

    z, push = jax.linearize(lambda u: outputs(u)[0], u)
    pull = jax.linear_transpose(push, u)

    def column(direction: Float[Array, " d"]) -> Float[Array, " d"]:
        return pull(jax.jvp(jax.grad(loss), (z,), (push(direction),))[1])[0]

    columns = jax.lax.map(column, jnp.eye(u.size, dtype=u.dtype), batch_size=min(batch, u.size))
    _, slope, plain = hessian_of(rest, u)
    raised = cho_solve((jnp.linalg.cholesky(posterior.metric(u).as_matrix()), True), slope)
    bend = christoffel_along(posterior.metric, u, raised)
    return 0.5 * (columns + columns.T) + plain - bend


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)

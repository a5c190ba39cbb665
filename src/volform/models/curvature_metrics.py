"""Metrics made of second derivatives of a model's densities: SoftAbs and observed information."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from volform.checks import is_positive_number
from volform.errors import MetricError
from volform.geometry.jacobians import lacks_forward_mode
from volform.geometry.questions import is_symmetric
from volform.linalg.matrix_functions import soft_absolute
from volform.models.bound_model import BoundModel
from volform.models.model_metric import ModelMetric, Respelled


class SoftAbs(ModelMetric):
    """The Hessian of -log p with smoothed absolute eigenvalues, `G = H coth(alpha H)`.

    H is the Hessian of -log p(data, u) in the model's unconstrained coordinates u, with p the joint
    density with respect to Lebesgue measure in u. An eigenvalue lambda of it becomes
    lambda coth(alpha lambda), which is |lambda| where that is large against 1 / alpha, and
    1 / alpha at zero: G is positive definite everywhere, and smooth, at repeated eigenvalues too.

    Caveat: the second derivatives of a density are no tensor. G depends on how the model is
    spelled (`theta`, or `mu + tau * z`), and the mode of q^G and the evidence with it; the
    absolute value depends on the units of u, unless all eigenvalues have one sign. With
    `reference=` the Hessian is that of one spelling, and G one and the same tensor for all.
    `JointFisher()` needs no choice of coordinates.

    Args:
        alpha: positive number, in units of 1 / lambda: curvatures below 1 / alpha are rounded off.
            Large values follow |lambda| closely, and have large derivatives where one vanishes.
        reference: another spelling of the same model to take the Hessian in.

    Raises:
        MetricError: when `alpha` is not a positive, finite number.

    Cost: d gradients of the log density, and O(d^3 log(alpha |lambda|)).

    References:
        Betancourt (2013), A general metric for Riemannian manifold Hamiltonian Monte Carlo.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model():
    ...     numpyro.sample("x", dist.Normal(0.0, 0.5))
    >>> posterior = vf.condition(vf.attach(model, vf.models.SoftAbs(alpha=10.0)))
    >>> posterior.metric(jnp.zeros(1)).as_matrix().tolist()
    [[4.0]]
    """

    alpha: Any
    reference: Callable | None = eqx.field(static=True, default=None)

    def __init__(self, alpha: Any, reference: Callable | None = None):
        if not isinstance(alpha, Tracer) and (np.ndim(alpha) or not is_positive_number(alpha)):
            raise MetricError(
                f"`alpha` of SoftAbs should be a positive, finite number; got {alpha!r}. "
                "Curvatures below 1 / alpha are rounded off: choose it so that those that matter "
                "are larger."
            )
        self.alpha, self.reference = alpha, reference

    def gram(self, model: BoundModel, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """`H coth(alpha H)` with H the Hessian of -log p(data, u)."""
        return soft_absolute(_hessian(lambda u: -model.log_density(u), u), self.alpha)


class ObservedInformation(ModelMetric):
    """The observed information in u, `G = - d^2 log p(data | u) / du^2`, without the prior.

    u are the model's unconstrained coordinates. log p(data | u) is the sum over the observed sites,
    `numpyro.factor` included. Where the data have Normal noise or a canonical link and u enters
    linearly, G is `LikelihoodFisher()`; elsewhere it holds the data's deviation from their
    expectation as well.

    Caveats: away from a stationary point of the likelihood its second derivatives are no tensor,
    so that G depends on how the model is spelled; with `reference=` the spelling is fixed. G is
    positive definite only where the likelihood is strictly log-concave in u. Elsewhere there is no
    q^G, and a search that ends or must begin there raises SingularMetricError. A sum with another
    metric helps: `ObservedInformation() + Euclidean(s)` adds the information of priors
    Normal(m, s) on real sites. `SoftAbs(alpha)` takes the prior in, and no sign can harm it.

    Args:
        reference: another spelling of the same model to take the Hessian in.

    Raises:
        MetricError: at `condition`, when no site is observed.

    Cost: d gradients of the log likelihood.

    References:
        Efron & Hinkley (1978), Assessing the accuracy of the maximum likelihood estimator.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    ...     numpyro.sample("y", dist.Normal(mu, 0.5), obs=y)
    >>> metric = vf.models.ObservedInformation()
    >>> posterior = vf.condition(vf.attach(model, metric), jnp.array([0.3, -0.5]))
    >>> posterior.metric(jnp.zeros(1)).as_matrix().tolist()  # 2 / 0.5^2
    [[8.0]]
    """

    reference: Callable | None = eqx.field(static=True, default=None)

    def bind(self, model: BoundModel) -> ModelMetric:
        """Refuses a model without data."""
        if not model.observed:
            raise MetricError(
                "`ObservedInformation` is read off the likelihood, and the model "
                f"`{model.program.name}` has no observed site. Condition it on data, by "
                "`numpyro.sample(..., obs=...)`, or use `JointFisher()`."
            )
        bound = super().bind(model)
        if isinstance(bound, Respelled) and not bound.spelling.observed:
            raise MetricError(
                "`ObservedInformation` is read off the likelihood, and its `reference` "
                f"`{bound.spelling.program.name}` has no observed site: give a spelling of the "
                "same model, with its data."
            )
        return bound

    def gram(self, model: BoundModel, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """The Hessian of -log p(data | u)."""
        return _hessian(lambda u: -model.log_likelihood(u), u)


@is_symmetric.register
def _(metric: SoftAbs | ObservedInformation) -> bool:
    return True


def _hessian(f: Callable[[Array], Array], u: Float[Array, " d"]) -> Float[Array, "d d"]:
    try:
        matrix = jax.hessian(f)(u)
    except (TypeError, NotImplementedError) as error:
        if not lacks_forward_mode(error):
            raise
        matrix = jax.jacrev(jax.grad(f))(u)
    return 0.5 * (matrix + matrix.T)

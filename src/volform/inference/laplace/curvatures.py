"""Curvatures in place of the Hessian, as values: Gauss-Newton and three Fisher matrices."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from volform.checks import require_key, require_whole
from volform.errors import ModelError
from volform.inference.laplace.gauss_newton import (
    Curvature,
    DataPriorSplit,
    OutputProduct,
)
from volform.inference.laplace.observed_sites import ObservedSites, SiteOutputs
from volform.models.fisher_metrics import LikelihoodFisher


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

    Args:
        chunk: examples worked on at once, which bounds the memory; all if left out. They lie along
            the first axis of those arguments of the model that have as many rows as there are data,
            and are independent given the parameters, which is checked on all pairs of neighboring
            chunks (but not under `jit`). The model is run again on each.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products; Martens (2020), New insights and
        perspectives on the natural gradient method, section 8.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(a**2, 1.0), obs=y)
    >>> posterior = vf.condition(model, jnp.array([1.5]))
    >>> approx = vf.laplace(posterior, at={"a": 1.0}, curvature=vf.GGN())
    >>> approx.at.hessian.round(6).tolist()  # 4 a^2 + 1 at a = 1; the Hessian itself is 4
    [[5.0]]
    """

    def at_outputs(self, split: DataPriorSplit, z: SiteOutputs) -> OutputProduct:
        """The Hessian of `-log p(y | z)`."""
        return jax.linearize(jax.grad(split.observed().loss), z)[1]


class ExpectedFisher(Curvature):
    """The Fisher matrix of the likelihood: `J^T F J` in place of `J^T L J` in `GGN`.

    With F the Fisher information of the observed sites in their parameters z, labels drawn from
    the model. Where L does not depend on the data (logits, log rates, the mean of a normal) it is
    `GGN()`; elsewhere it is positive semi-definite where L is not: for a network that gives the
    location and the scale of its data, L has the determinant `-(r^2 + s^2) / s^6` in (location,
    scale) at a residual r, and F is `diag(1, 2) / s^2`.

    Args:
        key: key for families that only Monte Carlo can do.
        draws: number of Monte Carlo draws.
        chunk: as of `GGN`.

    Raises:
        MetricError: when a family needs `key`.

    References:
        Martens (2020), New insights and perspectives on the natural gradient method, section 5.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(0.0, jnp.exp(a)), obs=y)
    >>> posterior = vf.condition(model, jnp.array([0.1, 0.2]))
    >>> fisher = vf.inference.ExpectedFisher()
    >>> fisher.matrix(posterior, jnp.zeros(1)).tolist()  # two for each datum, one of the prior
    [[5.0]]
    """

    key: PRNGKeyArray | None = None
    draws: int = eqx.field(static=True, default=1024)

    def at_outputs(self, split: DataPriorSplit, z: SiteOutputs) -> OutputProduct:
        """Half the gradient of `dz^T F dz`, by the routes of `LikelihoodFisher`."""
        metric = LikelihoodFisher(key=self.key, draws=self.draws)
        information = metric.bind(split.posterior.bound_model)
        observed = split.observed()

        def trace(z: SiteOutputs) -> dict[str, Any]:
            kind = {"type": "sample", "is_observed": True}
            return {
                name: {**kind, "fn": fn, "value": value, "scale": observed.scales[name]}
                for name, (fn, value) in observed.sites(z).items()
            }

        return jax.grad(lambda dz: 0.5 * information.along(trace, z, dz))


class ScoreCurvature(Curvature):
    """Second moments of scores `d log p(y_n | z_n) / dz` of some data."""

    @abc.abstractmethod
    def data(self, observed: ObservedSites, z: SiteOutputs) -> dict[str, Array]:
        """The data of each site, with a leading axis over which the mean is taken."""

    def at_outputs(self, split: DataPriorSplit, z: SiteOutputs) -> OutputProduct:
        """The mean over the data, and the sum over examples, of the products of scores."""
        _, push = jax.linearize(self._log_densities(split.observed(), z), z)
        pull = jax.linear_transpose(push, z)
        return lambda dz: pull(push(dz))[0]

    def scores(self, split: DataPriorSplit, z: SiteOutputs) -> SiteOutputs:
        """The scores of all examples, a column for each entry of the leading axis."""
        values, pull = jax.vjp(self._log_densities(split.observed(), z), z)

        def column(k: Array) -> SiteOutputs:
            return pull([jnp.zeros_like(value).at[k].set(1.0) for value in values])[0]

        return jax.vmap(column)(jnp.arange(len(values[0])))

    def _log_densities(
        self, observed: ObservedSites, z: SiteOutputs
    ) -> Callable[[SiteOutputs], list[Float[Array, "k n"]]]:
        data = jax.lax.stop_gradient(self.data(observed, z))
        count = len(next(iter(data.values())))

        def found(z: SiteOutputs) -> list[Float[Array, "k n"]]:
            each = jax.vmap(lambda data: observed.of_examples(z, data))(data)
            return [part / jnp.sqrt(jnp.asarray(count, part.dtype)) for part in each]

        return found


class MonteCarloFisher(ScoreCurvature):
    """The `ExpectedFisher` with data drawn from the model in place of the expectation.

    Unbiased for it. With `Kronecker()` each layer takes `samples` backward passes and not one for
    each output: for hundreds of classes. The draws are one set, made with the key: the evidence is
    a function of the parameters as it is with the others.

    Args:
        key: key of the draws.
        samples: draws S of all data.
        chunk: as of `GGN`; each has draws of its own.

    References:
        Martens & Grosse (2015), Optimizing neural networks with Kronecker-factored approximate
        curvature, section 5.

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(a, 0.1).expand([1000]).to_event(0), obs=y)
    >>> posterior = vf.condition(model, jnp.zeros(1000))
    >>> fisher = vf.inference.MonteCarloFisher(jax.random.key(0))
    >>> 0.9e5 < fisher.matrix(posterior, jnp.zeros(1)).item() < 1.1e5
    True
    """

    key: PRNGKeyArray
    samples: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        require_key(self.key, "key", "MonteCarloFisher", ModelError)
        require_whole(self.samples, "samples", "MonteCarloFisher", ModelError)

    def of_chunk(self, number: Any) -> "MonteCarloFisher":
        """With a key of its own."""
        return eqx.tree_at(lambda c: c.key, self, jax.random.fold_in(self.key, number))

    def data(self, observed: ObservedSites, z: SiteOutputs) -> dict[str, Array]:
        """Draws from the observed sites' distributions."""
        found = {}
        for number, (name, (fn, value)) in enumerate(sorted(observed.sites(z).items())):
            batch = jnp.shape(value)[: jnp.ndim(value) - len(fn.event_shape)]
            fn = fn if batch == fn.batch_shape else fn.expand(batch)
            found[name] = fn.sample(jax.random.fold_in(self.key, number), (self.samples,))
        return found

    def __repr__(self) -> str:
        return f"MonteCarloFisher(samples={self.samples})"


class EmpiricalFisher(ScoreCurvature):
    """Second moments of the scores of the data themselves, example by example.

    Examples lie along the first axis of the data; sites with as many are taken together. Not the
    Fisher matrix: it vanishes where the fit is perfect, and is no approximation of the Hessian in
    general. It has the determinant that the sandwich estimator and some optimizers speak of.

    Args:
        chunk: as of `GGN`.

    References:
        Kunstner, Balles & Hennig (2019), Limitations of the empirical Fisher approximation.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(a, 1.0), obs=y)
    >>> posterior = vf.condition(model, jnp.array([1.0, 2.0]))
    >>> fisher = vf.inference.EmpiricalFisher()
    >>> fisher.matrix(posterior, jnp.zeros(1)).tolist()  # 1 + 4, and one of the prior
    [[6.0]]
    """

    def data(self, observed: ObservedSites, z: SiteOutputs) -> dict[str, Array]:
        """The data, once."""
        sites = observed.sites(z).items()
        return {name: jnp.asarray(value)[None] for name, (_, value) in sites}

"""Priors given by densities with respect to a volume form, as NumPyro distributions."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from volform.errors import MetricError
from volform.geometry.metric import Metric, log_volume


class VolumeDensity(dist.Distribution):
    """A prior whose density is given with respect to dV_G, as a NumPyro distribution.

    If q is the density with respect to the volume form of `metric`, the density with respect to
    Lebesgue measure in the value, which `log_prob` returns, is `log q(v) + 1/2 log det G(v)`. q may
    be unnormalized or improper; then so is the prior. There is no sampler: NUTS starts such sites
    as it starts `ImproperUniform`.

    Args:
        log_density: log q, a function of the value or a NumPyro distribution.
        metric: metric on the value.
        support: NumPyro constraint of the value.
        event_shape: shape of one value.

    Raises:
        MetricError: when `metric` is no metric.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> prior = vf.VolumeDensity(
    ...     lambda s: -s, vf.Fisher(lambda s: dist.Normal(0.0, s)), dist.constraints.positive
    ... )
    >>> float(prior.log_prob(jnp.array(2.0)))  # -2 + 1/2 log(2 / 2^2)
    -2.3465...
    """

    arg_constraints = {}  # noqa: RUF012 - NumPyro declares it so
    pytree_data_fields = ("_arrays",)
    pytree_aux_fields = ("_others", "_support")

    def __init__(
        self,
        log_density: Callable[[Any], Any] | dist.Distribution,
        metric: Metric,
        support: constraints.Constraint,
        event_shape: tuple[int, ...] = (),
        *,
        validate_args: bool | None = None,
    ):
        if not isinstance(metric, Metric):
            raise MetricError(
                f"`metric` should be a volform metric such as `Fisher(family)`; got {metric!r}."
            )
        # Density and metric hold functions, which are no JAX values: they go into the treedef.
        leaves, treedef = jax.tree.flatten((log_density, metric))
        self._arrays = tuple(leaf if eqx.is_array(leaf) else None for leaf in leaves)
        others = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
        self._others = others, treedef
        self._support = constraints.independent(support, len(event_shape) - support.event_dim)
        super().__init__((), event_shape, validate_args=validate_args)

    @property
    def log_density(self) -> Callable[[Any], Any] | dist.Distribution:
        """log q, with respect to dV_G."""
        return self._parts()[0]

    @property
    def metric(self) -> Metric:
        """The metric on the value."""
        return self._parts()[1]

    def _parts(self) -> tuple[Any, Metric]:
        others, treedef = self._others
        pairs = zip(self._arrays, others, strict=True)
        leaves = [other if array is None else array for array, other in pairs]
        return jax.tree.unflatten(treedef, leaves)

    @constraints.dependent_property
    def support(self) -> Any:
        """The constraint of the value."""
        return self._support

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "*batch"]:
        """Log density with respect to Lebesgue measure in the value."""
        event = len(self.event_shape)
        batch = jnp.shape(value)[: jnp.ndim(value) - event]
        flat = jnp.reshape(value, (math.prod(batch), *self.event_shape))
        return jax.vmap(self._one)(flat).reshape(batch)

    def _one(self, value: Array) -> Float[Array, ""]:
        density = self.log_density
        of = density.log_prob if isinstance(density, dist.Distribution) else density
        return jnp.sum(of(value)) + log_volume(self.metric, value)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Not implemented: the density has no sampler."""
        raise NotImplementedError(
            "`VolumeDensity` has no sampler; run it under MCMC, which starts it by "
            "`init_to_uniform`, or give the site a value."
        )


def Jeffreys(
    metric: Metric, support: constraints.Constraint, event_shape: tuple[int, ...] = ()
) -> VolumeDensity:
    """Jeffreys' prior: the uniform density with respect to dV_G, `log_prob = 1/2 log det G(v)`.

    With a Fisher metric it is the prior of Jeffreys (1946); unnormalized, and improper where the
    volume of the manifold is infinite, so that no evidence is defined with it.

    Args:
        metric: metric on the value, usually `Fisher(family)`.
        support: NumPyro constraint of the value.
        event_shape: shape of one value.

    Raises:
        MetricError: when `metric` is no metric.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> prior = vf.Jeffreys(vf.Fisher(dist.Bernoulli), dist.constraints.unit_interval)
    >>> float(jnp.exp(prior.log_prob(jnp.array(0.5))))  # pi times the density of Beta(1/2, 1/2)
    2.0
    """
    return VolumeDensity(_zero, metric, support, event_shape)


def _zero(value: Any) -> Any:
    return jnp.zeros(())

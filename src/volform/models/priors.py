"""Priors given by densities with respect to a volume form, as NumPyro distributions."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import IdentityTransform

from volform.checks import require_untraced
from volform.compilation import QUICK, Compiled
from volform.errors import MetricError, ModelError
from volform.geometry.metric import Metric, log_volume, pulled_back
from volform.linalg.structured import exact_logdet
from volform.models.hidden_leaves import HiddenLeaves
from volform.models.line_laws import TAIL_FROM, LineLaw, line_law

_SEEDS = 500  # draws of a density that is a mixture, to find its components


class VolumeDensity(dist.Distribution):
    """A prior whose density is given with respect to dV_G, as a NumPyro distribution.

    If q is the density with respect to the volume form of `metric`, the density with respect to
    Lebesgue measure in the value, which `log_prob` returns, is `log q(v) + 1/2 log det G(v)`. q may
    be unnormalized or improper; then so is the prior. `normalized()` divides by the integral where
    it is finite, and has a sampler; NUTS starts other sites as it starts `ImproperUniform`.

    Args:
        log_density: log q, a function of the value or a NumPyro distribution.
        metric: metric on the value.
        support: NumPyro constraint of the value.
        event_shape: shape of one value.

    Raises:
        MetricError: when `metric` is no metric.
        ModelError: when `support` is discrete, or `event_shape` of fewer dimensions than it.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> prior = vf.VolumeDensity(
    ...     lambda s: -s, vf.Fisher(lambda s: dist.Normal(0.0, s)), dist.constraints.positive
    ... )
    >>> float(prior.log_prob(jnp.array(2.0)))  # -2 + 1/2 log(2 / 2^2)
    -2.3465...
    """

    arg_constraints = {}  # noqa: RUF012 - NumPyro declares it so
    pytree_data_fields = ("_hidden", "_log_integral", "_law")
    pytree_aux_fields = ("_support",)

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
        _require_support(support, event_shape)
        self._log_integral: Any = None
        self._law: LineLaw | None = None
        self._hidden = HiddenLeaves.of((log_density, metric))
        self._support = constraints.independent(support, len(event_shape) - support.event_dim)
        super().__init__((), event_shape, validate_args=validate_args)

    @property
    def log_density(self) -> Callable[[Any], Any] | dist.Distribution:
        """log q, with respect to dV_G."""
        return self._hidden.shown()[0]

    @property
    def metric(self) -> Metric:
        """The metric on the value."""
        return self._hidden.shown()[1]

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
        found = jnp.sum(of(value)) + self._log_volume(value)
        return found if self._log_integral is None else found - self._log_integral

    def _log_volume(self, value: Array) -> Float[Array, ""]:
        chart = biject_to(self._support)
        if chart.inverse_shape(self.event_shape) == self.event_shape:
            return log_volume(self.metric, value)
        # Embedded, as a simplex: the volume of its tangent space, and NumPyro's measure on it.
        u = chart.inv(value)
        form = pulled_back(self.metric, chart, u, elementwise=False)
        return 0.5 * exact_logdet(form) - jnp.sum(chart.log_abs_det_jacobian(u, value))

    @property
    def is_normalized(self) -> bool:
        """Tell whether the density was divided by its integral."""
        return self._log_integral is not None

    @property
    def log_integral(self) -> Any:
        """Log of the integral that the density was divided by; None where it was not."""
        return self._log_integral

    def normalized(self, log_integral: float | None = None) -> "VolumeDensity":
        """The prior divided by its integral: proper, so that it has an evidence.

        Of one number the integral is computed, by Gauss-Legendre on cells that are halved where
        they need it, to 1e-10, and `sample` is by the inverse of the distribution function. What
        is in doubt by more than 1e-6 is refused; mass in a region that no node sees is not seen.

        Args:
            log_integral: log of the integral where it is known, of priors of several numbers.

        Raises:
            ModelError: when the integral is infinite, as of Jeffreys' prior of a scale; when it
                is not settled by quadrature, or of several numbers, and is not given; when the
                given one is not finite; inside `jit` and `vmap`.

        >>> import jax, numpyro.distributions as dist, volform as vf
        >>> prior = vf.Jeffreys(vf.Fisher(dist.Bernoulli), dist.constraints.unit_interval)
        >>> proper = prior.normalized()
        >>> round(float(proper.log_integral), 6)  # log pi: the prior is Beta(1/2, 1/2)
        1.14473
        """
        require_untraced(
            self, "self", "normalized", "call it once, outside of the model", ModelError
        )
        if log_integral is not None:
            if not np.isfinite(log_integral):
                raise ModelError(
                    f"`log_integral` of normalized is {log_integral}; it should be one finite "
                    "number. An improper prior has no evidence."
                )
            return self._divided(jnp.asarray(log_integral, jnp.result_type(float)), None)
        if math.prod(biject_to(self._support).inverse_shape(self.event_shape)) != 1:
            raise ModelError(
                f"A prior of values of shape {self.event_shape} has no integral that is computed "
                "here; give it, `normalized(log_integral=...)`: that of Jeffreys' prior of k "
                "probabilities is log(pi^(k/2) / Gamma(k/2))."
            )
        law = line_law(_log_density_on_line(self), _value_at(self), _seeds(self))
        return self._divided(law.log_integral, law)

    def _divided(self, log_integral: Any, law: LineLaw | None) -> "VolumeDensity":
        log_density, metric = self._hidden.shown()
        found = VolumeDensity(log_density, metric, self._support, self.event_shape)
        found._log_integral, found._law = log_integral, law
        return found

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draws of a normalized prior of one number; others have no sampler."""
        law = self._law
        if law is None:
            raise NotImplementedError(
                "`VolumeDensity` has no sampler; `prior.normalized()` has one where the prior is "
                "of one number and proper. Run others under MCMC, which starts them by "
                "`init_to_uniform`, or give the site a value."
            )
        values = _drawn(self, law, key, math.prod(sample_shape))
        return values.reshape(*sample_shape, *self.event_shape)


def _require_support(support: Any, event_shape: Any) -> None:
    if not isinstance(support, constraints.Constraint) or support.is_discrete:
        raise ModelError(
            f"`support` of a volume density is {support!r}; it should be a NumPyro constraint of "
            "real numbers, such as `constraints.positive`. Discrete values have no volume."
        )
    is_shape = isinstance(event_shape, tuple) and all(isinstance(n, int) for n in event_shape)
    if not is_shape or len(event_shape) < support.event_dim:
        raise ModelError(
            f"`event_shape` of a volume density is {event_shape!r}; it should be a tuple of at "
            f"least {support.event_dim} sizes for values of {support}, such as "
            "`Jeffreys(metric, constraints.simplex, event_shape=(3,))` for three probabilities."
        )


def _is_line(chart: Any) -> bool:
    return isinstance(getattr(chart, "base_transform", chart), IdentityTransform)


def _placed(prior: VolumeDensity, s: Float[Array, ""]) -> tuple[Array, Float[Array, ""]]:
    """The value at a point of a line on which tails are exponential, and the log derivative."""
    chart = biject_to(prior._support)
    is_line = _is_line(chart)
    u, stretch = (jnp.sinh(s), jnp.log(jnp.cosh(s))) if is_line else (s, jnp.zeros_like(s))
    u = u.reshape(chart.inverse_shape(prior.event_shape))
    value = chart(u)
    return value, stretch + jnp.sum(chart.log_abs_det_jacobian(u, value))


def _log_density_at(prior: VolumeDensity, s: Float[Array, ""]) -> Float[Array, ""]:
    """Log density with respect to ds, before it is divided by its integral."""
    value, log_slope = _placed(prior, s)
    found = prior.log_prob(value) + log_slope
    return found if prior.log_integral is None else found + prior.log_integral


def _log_density_on_line(prior: VolumeDensity) -> Callable[[Any], Any]:
    compiled = Compiled(jax.vmap(_log_density_at, (None, 0)), QUICK)
    return lambda s: compiled(prior, jnp.asarray(s, jnp.result_type(float)))


def _value_at(prior: VolumeDensity) -> Callable[[float], str]:
    return lambda s: f"{np.ravel(_placed(prior, jnp.asarray(s, float))[0])[0]:.6g}"


def _seeds(prior: VolumeDensity) -> Float[np.ndarray, " n"]:
    """Draws of a density that is a mixture, of which a narrow component is seen from nowhere."""
    density, none = prior.log_density, np.zeros(0)
    if not isinstance(density, dist.MixtureSameFamily | dist.MixtureGeneral):
        return none
    try:
        drawn = density.sample(jax.random.key(0), (_SEEDS,))
    except NotImplementedError:
        return none
    if np.size(drawn) != _SEEDS:
        return none
    chart = biject_to(prior._support)
    values = jnp.reshape(jnp.asarray(drawn, float), (_SEEDS, *prior.event_shape))
    u = np.ravel(jax.vmap(chart.inv)(values))
    s = np.arcsinh(u) if _is_line(chart) else u
    return s[np.abs(s) < TAIL_FROM]


def _draws(prior: VolumeDensity, law: LineLaw, key: Any, count: int) -> Array:
    s = law.sample(lambda s: _log_density_at(prior, s), key, count)
    return jax.vmap(lambda s: _placed(prior, s)[0])(s)


_drawn = Compiled(_draws, QUICK)


def Jeffreys(
    metric: Metric, support: constraints.Constraint, event_shape: tuple[int, ...] = ()
) -> VolumeDensity:
    """Jeffreys' prior: the uniform density with respect to dV_G, `log_prob = 1/2 log det G(v)`.

    With a Fisher metric it is the prior of Jeffreys (1946); unnormalized, and improper where the
    volume of the manifold is infinite, so that no evidence is defined with it. Where the volume is
    finite, `Jeffreys(...).normalized()` is proper.

    Args:
        metric: metric on the value, usually `Fisher(family)`.
        support: NumPyro constraint of the value.
        event_shape: shape of one value.

    Raises:
        MetricError: when `metric` is no metric.
        ModelError: when `support` is discrete, or `event_shape` of fewer dimensions than it.

    >>> import jax.numpy as jnp, numpyro.distributions as dist, volform as vf
    >>> prior = vf.Jeffreys(vf.Fisher(dist.Bernoulli), dist.constraints.unit_interval)
    >>> float(jnp.exp(prior.log_prob(jnp.array(0.5))))  # pi times the density of Beta(1/2, 1/2)
    2.0
    """
    return VolumeDensity(_zero, metric, support, event_shape)


def _zero(value: Any) -> Any:
    return jnp.zeros(())

"""A model with its data, as a metric that is read off the whole of it sees it."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from volform.models.layout import Layout, named_values
from volform.models.model_with_data import ModelWithData


class BoundModel(eqx.Module):
    """A model with its data, as functions of an unconstrained point u in R^d.

    u is flat: the latent sites in the order in which the model samples them, each in NumPyro's
    `biject_to` coordinates. A `ModelMetric` is given one, and reads its matrix off it.

    Attributes:
        program: the NumPyro model with its data.
        layout: latent sites and their charts.
        observed: names of the observed sites, `numpyro.factor` among them.
        known: names of the latent and the deterministic sites.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    ...     numpyro.sample("y", dist.Normal(0.0, scale), obs=y)
    >>> bound = vf.condition(model, jnp.array([0.3, -0.5])).bound_model
    >>> u = jnp.array([0.5])  # log scale
    >>> bound.dim, bound.names, bound.observed
    (1, ('scale',), ('y',))
    >>> float(bound.values(u)["scale"])
    1.648...
    >>> float(bound.log_density(u) - bound.log_likelihood(u))  # log prior, with log |dv/du|
    -1.084...
    >>> bound.trace(u)["y"]["fn"].scale
    Array(1.648..., dtype=float64)
    """

    program: ModelWithData
    layout: Layout
    observed: tuple[str, ...] = eqx.field(static=True)
    known: tuple[str, ...] = eqx.field(static=True)

    # By identity, since arrays have no hash: `jax.jit(bound.log_density)` asks for one.
    __hash__ = object.__hash__

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates d."""
        return self.layout.dim

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the latent sites."""
        return self.layout.names

    @property
    def numbers_read(self) -> float:
        """Numbers that a run reads besides its arguments; infinite in a loop of unknown length."""
        return self.program.source.numbers_read

    def values(self, u: Float[Array, " d"], names: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Named values at u, of the latent sites or of any sites, deterministic ones included.

        Args:
            u: unconstrained point, shape (d,).
            names: sites; all latent sites by default.

        Raises:
            UnknownSiteError: when the model has no site of such a name.
        """
        if names is None:
            return self.layout.constrain(u)
        return named_values(self.layout, self.program, u, names)

    def trace(self, u: Float[Array, " d"]) -> dict[str, Any]:
        """NumPyro's trace of the model at u: for each site a dict with `fn`, `value`, `scale`, ...

        Args:
            u: unconstrained point, shape (d,).
        """
        return self.program.run(self.layout.constrain(u))

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """log p(data, u): the joint density with respect to Lebesgue measure in u.

        It holds `log |det dv/du|`, so that it belongs to this spelling of the model.

        Args:
            u: unconstrained point, shape (d,).
        """
        values, log_det = self.layout.constrain_with_log_det(u)
        return self.program.log_density(values) + log_det

    def log_likelihood(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """log p(data | u): the sum over the observed sites, `numpyro.factor` included.

        It is a density of the data, and a function of the parameters: the same in every spelling.

        Args:
            u: unconstrained point, shape (d,).
        """
        return self.log_prior_and_likelihood(u)[1]

    def log_prior_and_likelihood(
        self, u: Float[Array, " d"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The summands of `log_density`: of the latent sites, with `log |det dv/du|`; of the data.

        Args:
            u: unconstrained point, shape (d,).

        Returns:
            log p(u), with respect to Lebesgue measure in u, and log p(data | u).
        """
        values, log_det = self.layout.constrain_with_log_det(u)
        densities = self.program.site_densities(values)
        zero = jnp.zeros((), u.dtype)
        likelihood = sum((densities.pop(name) for name in self.observed), zero)
        return sum(densities.values(), zero) + log_det, likelihood

    def point_in(self, other: "BoundModel", u: Float[Array, " d"]) -> Float[Array, " e"]:
        """The unconstrained point of another spelling that has the same values as u.

        Args:
            other: the other spelling, of the same data; its latent sites are sites of this one.
            u: unconstrained point of this spelling, shape (d,).

        Returns:
            Unconstrained point of the other spelling, shape (e,).
        """
        return other.layout.unconstrain(self.values(u, other.names))

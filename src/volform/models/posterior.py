"""A NumPyro model with data and metric: densities and geometry on R^d."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from volform.errors import ModelError
from volform.geometry import Euclidean, Metric, logdet
from volform.models.attaching import (
    Attached,
    HeldAt,
    Sites,
    attach,
    attached_metrics,
    require_model,
)
from volform.models.binding import Binder, Part, assemble, bind
from volform.models.carriers import find_carriers
from volform.models.layout import Layout, inspect_model, named_values
from volform.models.program import Program, make_program


class Attachment(eqx.Module):
    """A metric and the sites that it was attached to; None for the whole model."""

    sites: Sites | None = eqx.field(static=True)
    metric: Metric


class Posterior(eqx.Module):
    """A model, its data and a metric, as functions on unconstrained points u in R^d.

    Built by `condition`. u is flat: the latent sites in the order in which the model samples
    them, each in NumPyro's `biject_to` coordinates. Densities are unnormalized posteriors, that
    is, joint densities p(data, parameters).

    Attributes:
        layout: latent sites and their charts.
        program: the model with its data.
        parts: the summands of the metric.
        observed: names of observed sites.
        known: names of all values that a metric may be attached to.
        metric_name: the metric in words, shown with every result.
        attachments: the metrics that were attached to the model from outside.
    """

    layout: Layout
    program: Program
    parts: tuple[Part, ...]
    observed: tuple[str, ...] = eqx.field(static=True)
    known: tuple[str, ...] = eqx.field(static=True)
    metric_name: str = eqx.field(static=True)
    attachments: tuple[Attachment, ...] = ()

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates d."""
        return self.layout.dim

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the latent sites."""
        return self.layout.names

    @property
    def model(self) -> Callable:
        """The NumPyro model."""
        return self.program.model

    def values(self, u: Float[Array, " d"], names: tuple[str, ...] | None = None) -> dict[str, Any]:
        """Named values at u, of the latent sites or of any sites, deterministic ones included.

        Args:
            u: unconstrained point, shape (d,).
            names: sites; all latent sites by default.
        """
        latent = self.layout.constrain(u)
        if names is None:
            return latent
        return named_values(self.layout, self.program, u, names)

    def unconstrain(self, values: Mapping[str, Any]) -> Float[Array, " d"]:
        """The point u with the given latent values.

        Args:
            values: value of every latent site, inside its support.

        Raises:
            UnknownSiteError: when a latent site is missing.
        """
        return self.layout.unconstrain(values)

    def log_density(
        self, u: Float[Array, " d"], base: Literal["volume", "lebesgue"] = "volume"
    ) -> Float[Array, ""]:
        """Log joint density at u, with respect to dV_G or to Lebesgue measure in u.

        `log q^G(u) = log p_u(u) - 1/2 log det G_u(u)` with p_u NumPyro's unconstrained density,
        which holds `log |det dv/du|`. q^G transforms as a function; p_u does not.

        Args:
            u: unconstrained point, shape (d,).
            base: "volume" for dV_G, "lebesgue" for du.

        Raises:
            ValueError: for any other `base`.
        """
        if base not in _BASES:
            raise ValueError(f"`base` should be one of {list(_BASES)}; got {base!r}.")
        values, log_det = self.layout.constrain_with_log_det(u)
        lebesgue = self.program.run_with_density(values)[0] + log_det
        return _BASES[base](self, u, lebesgue)

    def metric(self, u: Float[Array, " d"]) -> lx.AbstractLinearOperator:
        """The metric in u, `G_u = J_uv^T G_v J_uv`: an operator on flat vectors, shape (d, d).

        Identity, diagonal and block-diagonal metrics stay so.
        """
        return assemble(self.parts, self.layout, self.program, self._named, u)

    def log_volume(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """`1/2 log det G_u(u)`: the volume element against Lebesgue measure in u."""
        return 0.5 * logdet(self.metric(u))

    def _named(self, u: Float[Array, " d"], names: tuple[str, ...]) -> dict[str, Any]:
        return named_values(self.layout, self.program, u, names)

    def __repr__(self) -> str:
        sites = ", ".join(f"{site.name}{list(site.shape) or ''}" for site in self.layout.sites)
        parts = "\n  ".join(part.label() for part in self.parts)
        return (
            f"Posterior of {self.program.name}: {self.dim} parameters "
            f"({sites}), observed {', '.join(self.observed) or 'nothing'}\n"
            f"metric {self.metric_name}\n  {parts}"
        )


_BASES: dict[str, Callable] = {
    "volume": lambda posterior, u, density: density - posterior.log_volume(u),
    "lebesgue": lambda posterior, u, density: density,
}


def condition(model: Callable, *args: Any, **kwargs: Any) -> Posterior:
    """Condition a NumPyro model on data, with the metrics attached to it.

    Args:
        model: a NumPyro model, usually from `attach`; without metrics every site has
            `Euclidean()` in its own value coordinates.
        *args: the model's arguments.
        **kwargs: the model's keyword arguments, the data among them.

    Returns:
        A `Posterior`: densities and metric as functions of an unconstrained point.

    Raises:
        ModelError: discrete or subsampled latent sites, no latent site, moving support.
        UnknownSiteError: a metric attached to a site that the model does not have.
        DataError: observed data that are NaN, infinite, empty or of unequal length.
        MetricError: a metric that cannot be bound to the model.

    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    ...     numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)
    >>> posterior = vf.condition(vf.attach(model, vf.LikelihoodFisher()), jnp.array([0.3, -0.5]))
    >>> posterior
    Posterior of model: 1 parameters (sigma), observed y
    metric LikelihoodFisher()
      LikelihoodFisher() [y: closed form]
    """
    require_model(model)
    return _conditioned(model, args, kwargs, frozenset())


def _conditioned(
    model: Callable, args: tuple, kwargs: dict[str, Any], fixed: frozenset[str]
) -> Posterior:
    """As `condition`, without the metrics of values that are known to be constants."""
    by_site, wide = attached_metrics(model)
    if fixed:
        by_site = {sites: m for sites, m in by_site.items() if not set(_names(sites)) <= fixed}
    attachments = tuple(Attachment(sites, metric) for sites, metric in by_site.items())
    if wide is not None:
        attachments += (Attachment(None, wide),)
    program = make_program(_unwrapped(model), args, kwargs)
    inspection = inspect_model(program)
    layout, program = inspection.layout, inspection.program
    known = (*layout.names, *inspection.deterministic)
    if wide is None:
        outside = _named_in(by_site)  # which wins, also where it is a group
        found = inspection.metrics.items()
        by_site = {**{n: m for n, m in found if n in known and n not in outside | fixed}, **by_site}

    def carriers() -> tuple[str, ...]:
        return find_carriers(inspection, by_site)

    def named(u: Any, names: tuple[str, ...]) -> dict[str, Any]:
        return named_values(layout, program, u, names)

    binder = Binder(layout, program, named, carriers, known)
    parts, title = _bind_all(binder, by_site, wide)
    for part in parts:
        binder.check(part)
    return Posterior(layout, program, parts, inspection.observed, known, title, attachments)


def held_at(posterior: Posterior, u: Float[Array, " d"], names: Sequence[str]) -> Posterior:
    """The posterior of the model with some latent sites as constants, without their priors.

    Metrics of values that depend on these sites alone are dropped; others measure what is left.

    Args:
        posterior: the posterior.
        u: where the values of the constants are taken.
        names: latent sites, not all of them.
    """
    tangent = jax.random.normal(jax.random.key(0), u.shape, u.dtype)
    for name in names:
        tangent = tangent.at[posterior.layout.site(name).segment].set(0.0)

    def reals(u: Float[Array, " d"]) -> dict[str, Any]:
        found = posterior.values(u, posterior.known)
        return {n: v for n, v in found.items() if jnp.issubdtype(jnp.result_type(v), jnp.floating)}

    _, moved = jax.jvp(reals, (u,), (tangent,))
    fixed = frozenset(name for name, by in moved.items() if not jnp.any(by != 0.0))
    groups = {n for a in posterior.attachments if a.sites for n in _names(a.sites)}
    values = {name: value for name, value in posterior.values(u).items() if name in names}
    model: Any = HeldAt(posterior.model, values, shown=groups)
    for a in posterior.attachments:
        model = attach(model, a.metric if a.sites is None else {a.sites: a.metric})
    args, kwargs = posterior.program.arguments()
    return _conditioned(model, args, kwargs, fixed)


def _named_in(by_site: dict[Sites, Metric]) -> set[str]:
    return {n for sites in by_site for n in _names(sites)}


def _names(sites: Sites) -> tuple[str, ...]:
    return sites if isinstance(sites, tuple) else (sites,)


def _unwrapped(model: Callable) -> Callable:
    # Attached only annotates; without it, equal models are equal keys of the compilation cache.
    while isinstance(model, Attached) and model.fn is not None:
        model = model.fn
    return model


def _bind_all(
    binder: Binder, by_site: dict[Sites, Metric], wide: Metric | None
) -> tuple[tuple[Part, ...], str]:
    for sites in by_site:
        binder.check_sites(sites)
    named = _named_in(by_site)
    parts = tuple(p for sites, m in by_site.items() for p in bind(m, sites, binder, 1.0))
    if wide is not None and not by_site:
        return bind(wide, None, binder, 1.0), repr(wide)
    default = Euclidean() if wide is None else wide
    if not isinstance(default, Euclidean):
        raise ModelError(
            f"The model-wide metric `{default!r}` and metrics on {list(by_site)} are both "
            "attached; a model-wide metric already covers every site. Attach one of the two."
        )
    rest = tuple(name for name in binder.carriers if name not in named)
    parts += tuple(p for name in rest for p in bind(default, name, binder, 1.0))
    own = {
        sites: repr(metric) for sites, metric in by_site.items() if repr(metric) != repr(default)
    }
    labels = [f"{sites}: {metric}" for sites, metric in own.items()]
    if rest or len(own) < len(by_site):
        labels.append(f"{default!r} elsewhere" if labels else repr(default))
    return parts, ", ".join(labels)

"""From metrics on sites to one metric on the flat unconstrained vector u."""

import abc
from collections.abc import Callable
from functools import cached_property, singledispatch
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from volform.errors import MetricError, UnknownSiteError
from volform.geometry.jacobians import along_coordinates
from volform.geometry.metric import Euclidean, Metric, Scaled, Sum, congruence, pulled_back
from volform.geometry.questions import (
    Coordinates,
    is_elementwise,
    is_flat_in,
    is_symmetric,
    name_of,
)
from volform.linalg.structured import added, flat_blocks, identity, scaled
from volform.models.attaching import Sites
from volform.models.bound_model import BoundModel
from volform.models.layout import Site
from volform.models.metric_checks import require_valid_metric


class Unconstrained(Metric):
    """The flat metric of NumPyro's unconstrained coordinates u, `ds^2 = |du|^2`.

    With it the invariant Laplace evidence is NumPyro's `AutoLaplaceApproximation` on the same
    spelling of the model. It belongs to the spelling: another one has other coordinates u.

    >>> import numpyro, numpyro.distributions as dist, volform as vf
    >>> def model():
    ...     numpyro.sample("sigma", dist.HalfNormal(1.0))
    >>> posterior = vf.condition(vf.attach(model, vf.Unconstrained()))
    >>> posterior.metric(posterior.unconstrain({"sigma": 3.0})).as_matrix().tolist()
    [[1.0]]
    """

    def __call__(self, point: Any) -> lx.AbstractLinearOperator:
        """Not defined on values: the chart is known only to the model."""
        raise MetricError(
            "`Unconstrained` is flat in a site's unconstrained coordinates, which only a model "
            "knows; attach it with `vf.attach(model, metric)` and use `vf.condition`."
        )


class MetricTerm(eqx.Module):
    """One summand of the metric in u."""

    metric: Metric
    weight: Any = eqx.field(default=1.0, kw_only=True)

    @property
    def site(self) -> str | None:
        """The latent site that the summand is local to, None where it may couple sites."""
        return None

    @property
    def pulled_from(self) -> tuple[str, ...]:
        """The named values whose Jacobians in u the summand needs."""
        return ()

    @abc.abstractmethod
    def in_u(self, model: BoundModel, u: Float[Array, " d"], moved: "MovingValues") -> Any:
        """An operator on the coordinates of `site`; where that is None, a matrix, shape (d, d).

        Args:
            model: the model.
            u: unconstrained point, shape (d,).
            moved: the values of `pulled_from` at u, among others, with their Jacobians.
        """

    @abc.abstractmethod
    def require_valid(self, model: BoundModel, u: Float[Array, " d"]) -> None:
        """Raises MetricError when the metric is none on what it was attached to."""

    @abc.abstractmethod
    def label(self) -> str:
        """Text by which the summand is shown."""


class MovingValues(eqx.Module):
    """Named values at a point u, and how they move with it.

    Attributes:
        values: the values.
        jacobians: for each a matrix, one row for each entry of the value.
    """

    values: dict[str, Array]
    jacobians: dict[str, Float[Array, "m d"]]


class SiteTerm(MetricTerm):
    """A metric on the value of one latent site, or on its unconstrained coordinates."""

    name: str = eqx.field(static=True)

    @property
    def site(self) -> str | None:
        """The name of the site."""
        return self.name

    def in_u(self, model: BoundModel, u: Float[Array, " d"], moved: MovingValues) -> Any:
        """The pull-back to the site's unconstrained coordinates, structure kept."""
        site = model.layout.site(self.name)
        local = on_coordinates(self.metric, site, site.part(u))
        return local if _is_one(self.weight) else scaled(self.weight, local)

    def require_valid(self, model: BoundModel, u: Float[Array, " d"]) -> None:
        """Checks the metric on the value of the site."""
        site = model.layout.site(self.name)
        require_valid_metric(self.metric, self.name, lambda u: site.chart(site.part(u)), u)

    def label(self) -> str:
        """The site and its metric."""
        return f"{self.name}: {weighted_name(self.weight, self.metric)}"


class ValueTerm(MetricTerm):
    """A metric on named values, sampled or deterministic: one value, a tuple, or a dict."""

    names: tuple[str, ...] = eqx.field(static=True)
    as_dict: bool = eqx.field(static=True, default=False)

    @property
    def pulled_from(self) -> tuple[str, ...]:
        """All the values that the metric is a metric on."""
        return self.names

    def in_u(self, model: BoundModel, u: Float[Array, " d"], moved: MovingValues) -> Any:
        """`J^T G J` with J the Jacobian of the named values."""
        jacobian = jnp.concatenate(jax.tree.leaves(self._point(moved.jacobians)))
        return self.weight * congruence(self.metric(self._point(moved.values)), jacobian)

    def require_valid(self, model: BoundModel, u: Float[Array, " d"]) -> None:
        """Checks the metric on the named values."""
        of_point = lambda u: self._point(model.values(u, self.names))  # noqa: E731
        require_valid_metric(self.metric, "`, `".join(self.names), of_point, u)

    def _point(self, found: dict[str, Array]) -> Any:
        if self.as_dict:
            return {name: found[name] for name in self.names}
        point = [found[name] for name in self.names]
        return tuple(point) if len(point) > 1 else point[0]

    def label(self) -> str:
        """The sites and their metric."""
        return f"({', '.join(self.names)}): {weighted_name(self.weight, self.metric)}"


@singledispatch
def on_coordinates(metric: Metric, site: Site, part: Array) -> lx.AbstractLinearOperator:
    """A metric on the value of a site, as an operator on the site's unconstrained coordinates."""
    return pulled_back(metric, site.chart, part, elementwise=is_elementwise(site.chart))


@on_coordinates.register
def _(metric: Unconstrained, site: Site, part: Array) -> lx.AbstractLinearOperator:
    return identity(part)


@require_valid_metric.register
def _(metric: Unconstrained, sites: str, values: Callable[[Array], Any], u: Array) -> None:
    """Nothing to check: it has no matrix on values, and fits every site."""


@is_symmetric.register
def _(metric: Unconstrained) -> bool:
    return True


@is_flat_in.register
def _(metric: Unconstrained, coordinates: Coordinates) -> bool:
    return coordinates is Coordinates.UNCONSTRAINED


def assemble(
    parts: tuple[MetricTerm, ...], model: BoundModel, u: Float[Array, " d"]
) -> lx.AbstractLinearOperator:
    """The metric in u: on segments while every summand is local, dense otherwise."""
    local: dict[str, Any] = {}
    dense = None
    names = dict.fromkeys(name for part in parts for name in part.pulled_from)
    moved = _moved(model, tuple(names), u)
    for part in parts:
        found, site = part.in_u(model, u, moved), part.site
        if site is None:
            dense = found if dense is None else dense + found
        else:
            local[site] = added(local[site], found) if site in local else found
    if dense is None:
        return flat_blocks([local[name] for name in model.names])
    for name, operator in local.items():
        segment = model.layout.site(name).segment
        dense = dense.at[segment, segment].add(operator.as_matrix())
    return lx.MatrixLinearOperator(dense, lx.positive_semidefinite_tag)


def _moved(model: BoundModel, names: tuple[str, ...], u: Float[Array, " d"]) -> MovingValues:
    """Named values and their Jacobians, by one run of the model for all of them."""
    if not names:
        return MovingValues({}, {})

    values, moved = along_coordinates(lambda u: model.values(u, names), u)
    return MovingValues(values, {name: m.reshape(u.size, -1).T for name, m in moved.items()})


class TermBinder:
    """Knowledge of a model that `bind` needs: which names it has, and which carry metrics."""

    def __init__(self, model: BoundModel, metric_sites: Callable[[], tuple[str, ...]]):
        self.model, self._metric_sites = model, metric_sites

    @cached_property
    def metric_sites(self) -> tuple[str, ...]:
        """The names that carry the default metric, one for each latent site not covered."""
        return self._metric_sites()

    @cached_property
    def generic(self) -> Float[Array, " d"]:
        """A point that is special in no coordinate."""
        values = np.random.default_rng(0).uniform(-1.0, 1.0, self.model.dim)
        return jax.device_put(values.astype(jnp.result_type(float)))

    def require_sites(self, sites: Sites) -> None:
        """Raises an error unless every name is a site of the model with real values."""
        names, known = sites if isinstance(sites, tuple) else (sites,), self.model.known
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise UnknownSiteError(
                f"A metric is attached to `{unknown[0] if unknown else sites}`, which is no latent "
                f"or deterministic site of the model; it has {sorted(known)}."
            )
        values = jax.eval_shape(lambda u: self.model.values(u, names), self.generic)
        for name, value in values.items():
            if not jnp.issubdtype(value.dtype, jnp.floating):
                raise MetricError(
                    f"A metric is attached to `{name}`, whose values are {value.dtype}; it can "
                    "be attached to real values only."
                )

    def require_valid(self, part: MetricTerm) -> None:
        """Raises MetricError when the metric of a summand is none on what it was attached to."""
        part.require_valid(self.model, self.generic)


@singledispatch
def bind(
    metric: Metric, sites: Sites | None, binder: TermBinder, weight: Any
) -> tuple[MetricTerm, ...]:
    """The summands of a metric on `sites` (None: the whole model)."""
    if sites is None:
        return (ValueTerm(metric, binder.metric_sites, as_dict=True, weight=weight),)
    if isinstance(sites, tuple):
        return (ValueTerm(metric, sites, weight=weight),)
    # A value whose support moves is a function of the coordinates of other sites as well.
    if sites in binder.model.names and sites not in binder.model.layout.moving:
        return (SiteTerm(metric, sites, weight=weight),)
    return (ValueTerm(metric, (sites,), weight=weight),)


@bind.register
def _(metric: Sum, sites: Sites | None, binder: TermBinder, weight: Any) -> tuple[MetricTerm, ...]:
    return tuple(part for term in metric.terms for part in bind(term, sites, binder, weight))


@bind.register
def _(
    metric: Scaled, sites: Sites | None, binder: TermBinder, weight: Any
) -> tuple[MetricTerm, ...]:
    return bind(metric.metric, sites, binder, weight * metric.factor)


@bind.register
def _(
    metric: Euclidean, sites: Sites | None, binder: TermBinder, weight: Any
) -> tuple[MetricTerm, ...]:
    if sites is not None:
        return bind.dispatch(Metric)(metric, sites, binder, weight)
    return tuple(
        part for name in binder.metric_sites for part in bind(metric, name, binder, weight)
    )


@bind.register
def _(
    metric: Unconstrained, sites: Sites | None, binder: TermBinder, weight: Any
) -> tuple[MetricTerm, ...]:
    names = binder.model.names if sites is None else sites
    names = names if isinstance(names, tuple) else (names,)
    for name in names:
        if name not in binder.model.names:
            raise MetricError(
                f"`Unconstrained` was attached to `{name}`, which is no latent site and has no "
                f"unconstrained coordinates; latent sites are {list(binder.model.names)}."
            )
    return tuple(SiteTerm(metric, name, weight=weight) for name in names)


def _is_one(weight: Any) -> bool:
    return not isinstance(weight, jax.Array) and weight == 1.0


def weighted_name(weight: Any, metric: Metric) -> str:
    """Text by which a multiple of a metric is shown: `0.1 * Euclidean()`."""
    return name_of(metric if _is_one(weight) else Scaled(metric, weight))

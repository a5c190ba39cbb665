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

from volform.errors import MetricError, ModelError, UnknownSiteError
from volform.geometry import Euclidean, Metric, Scaled, Sum
from volform.geometry.metric import congruence, is_elementwise, pulled_back
from volform.geometry.structure import added, identity, scaled, segments
from volform.models.attaching import Sites, require_model
from volform.models.information import Information, ModelMetric, bind_information
from volform.models.layout import Layout, inspect_model
from volform.models.program import Program
from volform.models.soundness import check_metric


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


class Part(eqx.Module):
    """One summand of the metric in u."""

    @abc.abstractmethod
    def label(self) -> str:
        """How the summand is shown."""


class LocalPart(Part):
    """A metric on the value of one latent site, or on its unconstrained coordinates."""

    name: str = eqx.field(static=True)
    metric: Metric
    weight: Any = 1.0

    def operator(self, layout: Layout, u: Float[Array, " d"]) -> lx.AbstractLinearOperator:
        """The pull-back to the site's unconstrained coordinates, structure kept."""
        site = layout.site(self.name)
        part = site.part(u)
        if isinstance(self.metric, Unconstrained):
            local = identity(part)
        else:
            local = pulled_back(
                self.metric, site.chart, part, elementwise=is_elementwise(site.chart)
            )
        return local if _is_one(self.weight) else scaled(self.weight, local)

    def check(self, layout: Layout, u: Float[Array, " d"]) -> None:
        """Raises MetricError when the metric is none on the value of the site."""
        if not isinstance(self.metric, Unconstrained):
            site = layout.site(self.name)
            check_metric(self.metric, self.name, lambda u: site.chart(site.part(u)), u)

    def label(self) -> str:
        """The site and its metric."""
        return f"{self.name}: {_weighted(self.weight, self.metric)}"


class NamedPart(Part):
    """A metric on named values, sampled or deterministic: one value, a tuple, or a dict."""

    names: tuple[str, ...] = eqx.field(static=True)
    metric: Metric
    as_dict: bool = eqx.field(static=True, default=False)
    weight: Any = 1.0

    def gram(self, values: dict[str, Array], jacobians: dict[str, Array]) -> Float[Array, "d d"]:
        """`J^T G J` with J the Jacobian of the named values."""
        jacobian = jnp.concatenate(jax.tree.leaves(self._point(jacobians)))
        return self.weight * congruence(self.metric(self._point(values)), jacobian)

    def check(self, named: Callable[..., dict], u: Float[Array, " d"]) -> None:
        """Raises MetricError when the metric is none on the named values."""
        of_point = lambda u: self._point(named(u, self.names))  # noqa: E731
        check_metric(self.metric, "`, `".join(self.names), of_point, u)

    def _point(self, found: dict[str, Array]) -> Any:
        if self.as_dict:
            return {name: found[name] for name in self.names}
        point = [found[name] for name in self.names]
        return tuple(point) if len(point) > 1 else point[0]

    def label(self) -> str:
        """The sites and their metric."""
        return f"({', '.join(self.names)}): {_weighted(self.weight, self.metric)}"


class ModelPart(Part):
    """A metric read off the model, or off a reference spelling of it."""

    metric: ModelMetric
    information: Information
    reference: Program | None
    needed: tuple[str, ...] = eqx.field(static=True)
    weight: Any = 1.0

    def gram(
        self, program: Program, named: Callable[..., dict], u: Float[Array, " d"]
    ) -> Float[Array, "d d"]:
        """The Gram matrix in u."""
        trace_at = _trace_at(program, self.reference, named, self.needed)
        return self.weight * self.information.gram(trace_at, u)

    def label(self) -> str:
        """The metric with the route of each site."""
        routes = ", ".join(f"{name}: {route}" for name, route in self.information.routes.items())
        return f"{_weighted(self.weight, self.metric)} [{routes}]"


def _trace_at(
    program: Program,
    reference: Program | None,
    named: Callable[..., dict],
    needed: tuple[str, ...],
) -> Callable[[Array], dict[str, Any]]:
    if reference is None:
        return lambda u: program.run(named(u, needed))
    return lambda u: reference.run(named(u, needed))


def assemble(
    parts: tuple[Part, ...],
    layout: Layout,
    program: Program,
    named: Callable[..., dict],
    u: Float[Array, " d"],
) -> lx.AbstractLinearOperator:
    """The metric in u: on segments while every summand is local, dense otherwise."""
    local: dict[str, Any] = {}
    dense = None
    names = [name for part in parts if isinstance(part, NamedPart) for name in part.names]
    values, jacobians = _through_model(named, tuple(dict.fromkeys(names)), u) if names else ({}, {})
    for part in parts:
        match part:
            case LocalPart():
                operator = part.operator(layout, u)
                before = local.get(part.name)
                local[part.name] = operator if before is None else added(before, operator)
            case NamedPart():
                dense = _plus(dense, part.gram(values, jacobians))
            case ModelPart():
                dense = _plus(dense, part.gram(program, named, u))
    if dense is None:
        return segments([local[name] for name in layout.names])
    for name, operator in local.items():
        segment = layout.site(name).segment
        dense = dense.at[segment, segment].add(operator.as_matrix())
    return lx.MatrixLinearOperator(dense, lx.positive_semidefinite_tag)


def _through_model(
    named: Callable[..., dict], names: tuple[str, ...], u: Float[Array, " d"]
) -> tuple[dict[str, Array], dict[str, Float[Array, "m d"]]]:
    """Named values and their Jacobians, by one run of the model for all of them."""

    def rows(u: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        found = named(u, names)
        return {name: jnp.ravel(value) for name, value in found.items()}, found

    jacobians, values = jax.jacfwd(rows, has_aux=True)(u)
    return values, jacobians


def _plus(total: Any, term: Any) -> Any:
    return term if total is None else total + term


class Binder:
    """What `bind` needs to know of a model: layout, program, and which names carry metrics."""

    def __init__(
        self,
        layout: Layout,
        program: Program,
        named: Callable[..., dict],
        carriers: Callable[[], tuple[str, ...]],
        known: tuple[str, ...],
    ):
        self.layout, self.program, self.named = layout, program, named
        self._carriers, self.known = carriers, known

    @cached_property
    def carriers(self) -> tuple[str, ...]:
        """The names that carry the default metric, one for each latent site not covered."""
        return self._carriers()

    @cached_property
    def generic(self) -> Float[Array, " d"]:
        """A point that is special in no coordinate."""
        values = np.random.default_rng(0).uniform(-1.0, 1.0, self.layout.dim)
        return jnp.asarray(values, jnp.result_type(float))

    def model_part(self, metric: ModelMetric, weight: Any) -> ModelPart:
        """A model-wide metric with its routes chosen and its reference checked."""
        reference, needed = None, self.layout.names
        if metric.reference is not None:
            require_model(metric.reference, "reference")
            other = inspect_model(Program(metric.reference, self.program.data))
            reference, needed = other.program, other.layout.names
            self.check_reference(other.layout)
        trace_at = _trace_at(self.program, reference, self.named, needed)
        information = bind_information(metric, trace_at, jnp.zeros(self.layout.dim))
        return ModelPart(metric, information, reference, needed, weight)

    def check_reference(self, reference: Layout) -> None:
        """Raises an error unless the model computes every latent site of its reference."""
        missing = [name for name in reference.names if name not in self.known]
        if missing:
            raise UnknownSiteError(
                f"The `reference` model has latent sites {missing} that the model does not "
                f"compute; it has {sorted(self.known)}. Name them with `numpyro.deterministic`."
            )
        values = jax.eval_shape(lambda u: self.named(u, reference.names), self.generic)
        for site in reference.sites:
            if values[site.name].shape != site.shape:
                raise ModelError(
                    f"The site `{site.name}` has shape {values[site.name].shape} in the model and "
                    f"{site.shape} in its `reference`; they should be one and the same value."
                )

    def check_sites(self, sites: Sites) -> None:
        """Raises an error unless every name is a site of the model with real values."""
        names = sites if isinstance(sites, tuple) else (sites,)
        unknown = [name for name in names if name not in self.known]
        if unknown or not names:
            raise UnknownSiteError(
                f"A metric is attached to `{unknown[0] if unknown else sites}`, which is no latent "
                f"or deterministic site of the model; it has {sorted(self.known)}."
            )
        values = jax.eval_shape(lambda u: self.named(u, names), self.generic)
        for name, value in values.items():
            if not jnp.issubdtype(value.dtype, jnp.floating):
                raise MetricError(
                    f"A metric is attached to `{name}`, whose values are {value.dtype}; it can "
                    "be attached to real values only."
                )

    def check(self, part: Part) -> None:
        """Raises MetricError when the metric of a summand is none on its values."""
        match part:
            case LocalPart():
                part.check(self.layout, self.generic)
            case NamedPart():
                part.check(self.named, self.generic)


@singledispatch
def bind(metric: Metric, sites: Sites | None, binder: Binder, weight: Any) -> tuple[Part, ...]:
    """The summands of a metric on `sites` (None: the whole model)."""
    if sites is None:
        return (NamedPart(binder.carriers, metric, as_dict=True, weight=weight),)
    if isinstance(sites, tuple):
        return (NamedPart(sites, metric, weight=weight),)
    if sites in binder.layout.names:
        return (LocalPart(sites, metric, weight=weight),)
    return (NamedPart((sites,), metric, weight=weight),)


@bind.register
def _(metric: Sum, sites: Sites | None, binder: Binder, weight: Any) -> tuple[Part, ...]:
    return tuple(part for term in metric.terms for part in bind(term, sites, binder, weight))


@bind.register
def _(metric: Scaled, sites: Sites | None, binder: Binder, weight: Any) -> tuple[Part, ...]:
    return bind(metric.metric, sites, binder, weight * metric.factor)


@bind.register
def _(metric: Euclidean, sites: Sites | None, binder: Binder, weight: Any) -> tuple[Part, ...]:
    if sites is not None:
        return bind.dispatch(Metric)(metric, sites, binder, weight)
    return tuple(part for name in binder.carriers for part in bind(metric, name, binder, weight))


@bind.register
def _(metric: Unconstrained, sites: Sites | None, binder: Binder, weight: Any) -> tuple[Part, ...]:
    names = binder.layout.names if sites is None else sites
    names = names if isinstance(names, tuple) else (names,)
    for name in names:
        if name not in binder.layout.names:
            raise MetricError(
                f"`Unconstrained` was attached to `{name}`, which is no latent site and has no "
                f"unconstrained coordinates; latent sites are {list(binder.layout.names)}."
            )
    return tuple(LocalPart(name, metric, weight=weight) for name in names)


@bind.register
def _(metric: ModelMetric, sites: Sites | None, binder: Binder, weight: Any) -> tuple[Part, ...]:
    if sites is not None:
        raise MetricError(
            f"`{type(metric).__name__}` was attached to `{sites}`; it is read off the whole "
            "model: use `vf.attach(model, metric)` without naming sites."
        )
    return (binder.model_part(metric, weight),)


def _is_one(weight: Any) -> bool:
    return not isinstance(weight, jax.Array) and weight == 1.0


def _weighted(weight: Any, metric: Metric) -> str:
    return repr(metric) if _is_one(weight) else f"{weight} * {metric!r}"

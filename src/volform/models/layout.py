"""The latent sites of a model and the map from flat unconstrained points to named values."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import Unit, biject_to
from numpyro.distributions.transforms import Transform

from volform.errors import DataError, ModelError, UnknownSiteError
from volform.geometry.dependence import dependence, moves
from volform.models.attaching import Observer
from volform.models.program import Program, with_constant_data


class Site(eqx.Module):
    """One latent site: its chart and its segment of the flat unconstrained vector.

    Attributes:
        name: name of the site.
        chart: NumPyro's transform from unconstrained coordinates to the site's value.
        shape: shape of the value.
        coordinates: shape of the unconstrained coordinates (smaller for embedded supports).
        start: first entry in the flat vector.
    """

    name: str = eqx.field(static=True)
    chart: Transform
    shape: tuple[int, ...] = eqx.field(static=True)
    coordinates: tuple[int, ...] = eqx.field(static=True)
    start: int = eqx.field(static=True)

    @property
    def size(self) -> int:
        """Number of unconstrained coordinates."""
        return math.prod(self.coordinates)

    @property
    def segment(self) -> slice:
        """The site's entries of the flat vector."""
        return slice(self.start, self.start + self.size)

    def part(self, u: Float[Array, " d"]) -> Array:
        """The site's unconstrained coordinates in their own shape."""
        return u[self.segment].reshape(self.coordinates)


class Layout(eqx.Module):
    """The latent sites of a model in the order in which it samples them."""

    sites: tuple[Site, ...]

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates d."""
        return sum(site.size for site in self.sites)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the latent sites."""
        return tuple(site.name for site in self.sites)

    def site(self, name: str) -> Site:
        """The latent site called `name`."""
        return self.sites[self.names.index(name)]

    def constrain(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Values of the latent sites at the flat unconstrained point u."""
        return {site.name: site.chart(site.part(u)) for site in self.sites}

    def constrain_with_log_det(
        self, u: Float[Array, " d"]
    ) -> tuple[dict[str, Array], Float[Array, ""]]:
        """Values, and the sum of `log |det dv/du|` over the charts."""
        values, total = {}, jnp.zeros((), u.dtype)
        for site in self.sites:
            part = site.part(u)
            values[site.name] = site.chart(part)
            total += jnp.sum(site.chart.log_abs_det_jacobian(part, values[site.name]))
        return values, total

    def unconstrain(self, values: Mapping[str, Any]) -> Float[Array, " d"]:
        """The flat unconstrained point of the latent values.

        Raises:
            UnknownSiteError: when a latent site is missing from `values`.
        """
        missing = [name for name in self.names if name not in values]
        if missing:
            raise UnknownSiteError(
                f"`values` lacks the latent sites {missing}; it should hold all of "
                f"{list(self.names)}."
            )
        parts = [
            jnp.ravel(site.chart.inv(jnp.broadcast_to(jnp.asarray(values[site.name]), site.shape)))
            for site in self.sites
        ]
        return jnp.concatenate(parts)

    def labels(self) -> list[str]:
        """One name for each entry of the flat vector: `theta[3]`."""
        return [
            f"{site.name}[{','.join(map(str, index))}]" if site.coordinates else site.name
            for site in self.sites
            for index in np.ndindex(site.coordinates)
        ]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What one trace of a model tells.

    Attributes:
        layout: the latent sites and their charts.
        program: the model with its data, as it will be traced from now on.
        observed: names of observed sites.
        deterministic: names of deterministic sites, those made by `handlers.reparam` included.
        rewritten: those of them that the model wrote as sample sites.
        metrics: the metrics that the model itself holds, `infer={"metric": ...}`.
    """

    layout: Layout
    program: Program
    observed: tuple[str, ...]
    deterministic: tuple[str, ...]
    rewritten: tuple[str, ...]
    metrics: dict[str, Any]


def inspect_model(program: Program) -> Inspection:
    """Trace the model once and check that it has a density on R^d.

    Raises:
        ModelError: discrete or subsampled latent sites, none at all, or a moving support.
        DataError: observed values that are NaN, infinite, empty or of the wrong length.
    """
    observer = Observer(program.model)
    trace = program.first_trace(observer, _origin)
    _refuse_subsampling(trace)
    samples = {name: site for name, site in trace.items() if site["type"] == "sample"}
    latent = {name: site for name, site in samples.items() if not site["is_observed"]}
    if not latent:
        raise ModelError(
            f"`model` has no latent site: its sample sites are {sorted(samples)}, all observed. "
            "Condition on the data only, and leave the parameters as `numpyro.sample` sites."
        )
    for name, site in samples.items():
        if site["is_observed"]:
            _check_observed(name, site)
    layout = _layout(latent)
    program = _traceable(program, layout)
    _refuse_moving_support(program, layout, samples)
    deterministic = tuple(n for n, site in trace.items() if site["type"] == "deterministic")
    observed = tuple(name for name in samples if name not in latent)
    rewritten = tuple(observer.rewritten)
    return Inspection(layout, program, observed, deterministic, rewritten, observer.metrics)


def _origin(site: dict[str, Any]) -> Any:
    """The value whose unconstrained coordinates are zero: no draw is made."""
    if site["type"] != "sample" or site["is_observed"] or site["value"] is not None:
        return None
    fn = site["fn"]
    if fn.support.is_discrete:
        raise ModelError(
            f"The latent site `{site['name']}` is discrete ({type(fn).__name__}); a Riemannian "
            "metric needs continuous sites. Sum it out, for example with "
            "`dist.MixtureSameFamily`, or observe it."
        )
    chart = biject_to(fn.support)
    return chart(jnp.zeros(chart.inverse_shape(fn.shape())))


def _layout(latent: dict[str, Any]) -> Layout:
    sites, start = [], 0
    for name, site in latent.items():
        chart = biject_to(site["fn"].support)
        shape = tuple(jnp.shape(site["value"]))
        sites.append(Site(name, chart, shape, tuple(chart.inverse_shape(shape)), start))
        start += sites[-1].size
    return Layout(tuple(sites))


def _refuse_subsampling(trace: dict[str, Any]) -> None:
    for name, site in trace.items():
        size, drawn = site["args"] if site["type"] == "plate" else (None, None)
        if drawn is not None and drawn != size:
            raise ModelError(
                f"The plate `{name}` draws {drawn} of {size} elements; a "
                "subsampled density has no fixed mode or evidence. Remove `subsample_size`."
            )


def _check_observed(name: str, site: dict[str, Any]) -> None:
    fn, value = site["fn"], site["value"]
    if isinstance(fn, Unit) or isinstance(value, jax.core.Tracer):
        return
    value = np.asarray(value)
    if value.size == 0:
        raise DataError(
            f"The observed site `{name}` is empty, of shape {value.shape}; pass at least one datum."
        )
    if np.issubdtype(value.dtype, np.floating) and not np.all(np.isfinite(value)):
        mask = ~np.isfinite(value)
        raise DataError(
            f"The observed site `{name}` holds {int(mask.sum())} values that are NaN or infinite, "
            f"the first at index {tuple(int(i) for i in np.argwhere(mask)[0])}. Drop them, or "
            "impute them with `obs_mask=` of `numpyro.sample`."
        )
    shape, wanted = value.shape, tuple(fn.shape())
    try:
        joint = np.broadcast_shapes(shape, wanted)
    except ValueError:
        joint = None
    replicated = joint == shape and (not wanted or shape[len(shape) - len(wanted) :] == wanted)
    if joint is None or not (joint == wanted or replicated):
        raise DataError(
            f"The observed site `{name}` has data of shape {shape}, but its distribution has "
            f"shape {wanted}; the lengths should agree."
        )


def _traceable(program: Program, layout: Layout) -> Program:
    """The program with its data as leaves if the model can be traced so, else as constants."""
    def density(program: Program, u: Float[Array, " d"]) -> Array:
        return program.run_with_density(layout.constrain(u))[0]

    try:
        eqx.filter_eval_shape(density, program, jnp.zeros(layout.dim))
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError, TypeError, ValueError):
        return with_constant_data(program)
    return program


def _refuse_moving_support(program: Program, layout: Layout, samples: dict[str, Any]) -> None:
    def supports(u: Float[Array, " d"]) -> dict[str, Any]:
        trace = program.run(layout.constrain(u))
        return {name: trace[name]["fn"].support for name in samples}

    flags = dependence(supports, jnp.zeros(layout.dim))
    moving = [name for name in samples if moves(flags[name])]
    if moving:
        raise ModelError(
            f"The support of `{'`, `'.join(moving)}` depends on parameters, so that its chart "
            "moves with them. Write the site on a fixed support and map it with "
            "`numpyro.deterministic`, for example low + (high - low) * Uniform(0, 1)."
        )


def named_values(
    layout: Layout, program: Program, u: Float[Array, " d"], names: tuple[str, ...]
) -> dict[str, Any]:
    """Values of `names` at u; the model is traced only when one of them is deterministic."""
    latent = layout.constrain(u)
    if all(name in latent for name in names):
        return {name: latent[name] for name in names}
    trace = program.run(latent)
    return {name: trace[name]["value"] for name in names}

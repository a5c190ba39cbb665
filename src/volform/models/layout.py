"""The latent sites of a model and the map from flat unconstrained points to named values."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import Transform

from volform.errors import DataError, MetricError, ModelError, UnknownSiteError
from volform.geometry.dependence import dependence, moves
from volform.models.attaching import Observer
from volform.models.observations import check_observed, check_support, is_point_mass
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

    def coordinates_of(self, value: Any, argument: str) -> Float[Array, " n"]:
        """The unconstrained coordinates of a value, flat.

        Raises:
            DataError: when the value has the wrong shape or is outside the support; under `jit`
                the latter is NaN or a point whose value is another.
        """
        value = jnp.asarray(value, jnp.result_type(float))
        try:
            value = jnp.broadcast_to(value, self.shape)
        except ValueError as error:
            raise DataError(
                f"The value of `{self.name}` in `{argument}` has shape {value.shape}; the site has "
                f"shape {self.shape}."
            ) from error
        u = jnp.asarray(self.chart.inv(value))
        if not isinstance(u, Tracer) and not _is_inverse(self.chart, u, value):
            raise DataError(
                f"The value of `{self.name}` in `{argument}` is not inside its support, "
                f"{self.chart.codomain}: {np.array2string(np.asarray(value), threshold=6)}."
            )
        return jnp.ravel(u)


def _is_inverse(chart: Transform, u: Array, value: Array) -> bool:
    # Not the constraint's own check: its absolute tolerances refuse float32 and large matrices.
    gap = jnp.max(jnp.abs(chart(u) - value), initial=0.0)
    return bool(jnp.all(jnp.isfinite(u)) & (gap <= 1e-3 * jnp.max(jnp.abs(value), initial=1e-30)))


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
        return {site.name: jnp.asarray(site.chart(site.part(u))) for site in self.sites}

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

    def unconstrain(
        self, values: Mapping[str, Any], argument: str = "values"
    ) -> Float[Array, " d"]:
        """The flat unconstrained point of the latent values; errors call them `argument`.

        Raises:
            UnknownSiteError: when a latent site is missing from `values`.
            DataError: when a value has the wrong shape or is outside its support.
        """
        missing = [name for name in self.names if name not in values]
        if missing:
            raise UnknownSiteError(
                f"`{argument}` lacks the latent sites {missing}; it should hold all of "
                f"{list(self.names)}."
            )
        parts = [site.coordinates_of(values[site.name], argument) for site in self.sites]
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
    """Trace the model and check that it has a density on R^d.

    Raises:
        ModelError: no model; discrete or subsampled latent sites, none at all, or a moving
            support; Python control flow on latent values.
        DataError: observed values that are NaN, infinite, empty, outside the support or of the
            wrong length.
    """
    observer, trace = _first_trace(program)
    _refuse_subsampling(trace)
    samples = {name: site for name, site in trace.items() if site["type"] == "sample"}
    latent = {name: site for name, site in samples.items() if not site["is_observed"]}
    if not latent:
        raise ModelError(
            f"`{program.name}` has no latent site: its sample sites are {sorted(samples)}, all "
            "observed. Condition on the data only, and leave the parameters as `numpyro.sample` "
            "sites."
        )
    observed = {name: (s["fn"], s["value"]) for name, s in samples.items() if s["is_observed"]}
    for name, (fn, value) in observed.items():
        check_observed(name, fn, value)
    layout = _layout(latent)
    program = _traceable(program, layout)
    _refuse_moving(program, layout, list(samples))
    for name, (fn, value) in observed.items():
        check_support(name, fn, value)
    deterministic = tuple(n for n, site in trace.items() if site["type"] == "deterministic")
    return Inspection(
        layout, program, tuple(observed), deterministic, observer.rewritten, observer.metrics
    )


def _first_trace(program: Program) -> tuple[Observer, dict[str, Any]]:
    """A concrete trace at the origin of u, or at a generic point where the model breaks there."""
    observer = Observer(program.model)
    try:
        return observer, program.first_trace(observer, _started_at(np.zeros))
    except DataError as error:
        generic = np.random.default_rng(0)
        observer = Observer(program.model)
        try:
            start = _started_at(lambda shape: generic.uniform(-1.0, 1.0, shape))
            return observer, program.first_trace(observer, start)
        except DataError:
            raise error from error.__cause__


def _started_at(coordinates: Callable[[tuple[int, ...]], Any]) -> Callable[[dict[str, Any]], Any]:
    """Sets latent sites to the values with given unconstrained coordinates: nothing is drawn."""

    def start(site: dict[str, Any]) -> Any:
        if site["type"] != "sample" or site["is_observed"] or site["value"] is not None:
            return None
        fn = site["fn"]
        chart = _chart_of(site["name"], fn)
        at = coordinates(tuple(chart.inverse_shape(fn.shape(site["kwargs"]["sample_shape"]))))
        return chart(jnp.asarray(at, jnp.result_type(float)))

    return start


def _chart_of(name: str, fn: Any) -> Transform:
    if fn.support.is_discrete:
        raise ModelError(
            f"The latent site `{name}` is discrete ({type(fn).__name__}); a Riemannian metric "
            "needs continuous sites. Sum it out, for example with `dist.MixtureSameFamily`, or "
            "observe it."
        )
    if is_point_mass(fn):
        raise ModelError(
            f"The latent site `{name}` is a point mass (Delta), which has no density on R^d. "
            "Write it as `numpyro.deterministic`."
        )
    try:
        return biject_to(fn.support)
    except NotImplementedError as error:
        raise ModelError(
            f"NumPyro has no unconstrained coordinates for the support of the latent site "
            f"`{name}` ({type(fn).__name__} on {fn.support}). Write it as a map of a site that "
            "has them, by `handlers.reparam` or `numpyro.deterministic`."
        ) from error


def _layout(latent: dict[str, Any]) -> Layout:
    sites, start = [], 0
    for name, site in latent.items():
        chart = _chart_of(name, site["fn"])
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


def _traceable(program: Program, layout: Layout) -> Program:
    """The program with its data as leaves if the model can be traced so, else as constants."""

    def density(program: Program, u: Float[Array, " d"]) -> Array:
        return program.run_with_density(layout.constrain(u))[0]

    try:
        eqx.filter_eval_shape(density, program, jnp.zeros(layout.dim))
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError, TypeError, ValueError):
        return with_constant_data(program)
    return program


def _refuse_moving(program: Program, layout: Layout, names: list[str]) -> None:
    """Refuses supports and metrics that depend on the parameters."""

    def fixed(u: Float[Array, " d"]) -> tuple[dict[str, Any], dict[str, Any]]:
        observer = Observer(program.model)
        trace = Program(observer, program.data).run(layout.constrain(u))
        metrics = {name: jax.tree.leaves(metric) for name, metric in observer.metrics.items()}
        arrays = {name: [x for x in leaves if eqx.is_array(x)] for name, leaves in metrics.items()}
        return {name: trace[name]["fn"].support for name in names}, arrays

    try:
        supports, metrics = dependence(fixed, jnp.zeros(layout.dim))
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise ModelError(
            f"`{program.name}` uses the value of a latent site in Python, by `if`, `float()` or "
            "NumPy, so that JAX cannot trace it. Use `jnp.where`, `jax.lax.cond` and `jax.numpy`; "
            f"NumPyro's own inference needs the same. JAX says: {_first_line(error)}"
        ) from error
    moving = [name for name in names if moves(supports[name])]
    if moving:
        raise ModelError(
            f"The support of `{'`, `'.join(moving)}` depends on parameters, so that its chart "
            "moves with them. Write the site on a fixed support and map it with "
            "`numpyro.deterministic`, for example low + (high - low) * Uniform(0, 1)."
        )
    moving = [name for name in metrics if moves(metrics[name])]
    if moving:
        raise MetricError(
            f"The metric in `infer` of `{'`, `'.join(moving)}` depends on parameters. Attach a "
            "metric to the group of the site and what it depends on, for example "
            '`vf.attach(model, {("a", "b"): metric})`.'
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def named_values(
    layout: Layout, program: Program, u: Float[Array, " d"], names: tuple[str, ...]
) -> dict[str, Any]:
    """Values of `names` at u; the model is traced only when one of them is deterministic."""
    latent = layout.constrain(u)
    if all(name in latent for name in names):
        return {name: latent[name] for name in names}
    trace = program.run(latent)
    missing = [name for name in names if name not in trace]
    if missing:
        raise UnknownSiteError(
            f"`names` holds {missing}, which are no sites of the model; it has {list(trace)}."
        )
    return {name: trace[name]["value"] for name in names}

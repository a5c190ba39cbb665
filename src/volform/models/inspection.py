"""Inspection of a model by one trace: its latent sites, and whether it has a density on R^d."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import Transform

from volform.errors import DataError, MetricError, ModelError, VolformError
from volform.geometry.dependence import dependence, moves
from volform.models.attaching import require_metric
from volform.models.constant import ById
from volform.models.data_checks import (
    has_valid_arguments,
    is_circular,
    is_point_mass,
    require_in_support,
    require_observed,
)
from volform.models.layout import Layout, Site
from volform.models.model_with_data import (
    UNTRACEABLE,
    ModelWithData,
    Source,
    with_constant_data,
)
from volform.models.observing import Observer
from volform.models.recording import recorded


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Findings of one trace of a model.

    Attributes:
        layout: the latent sites and their charts.
        program: the model with its data, as it will be traced from now on.
        observed: names of observed sites.
        deterministic: names of deterministic sites, those made by `handlers.reparam` included.
        rewritten: those of them that the model wrote as sample sites.
        metrics: the metrics that the model itself holds, `infer={"metric": ...}`.
        held: what else the density depends on: `numpyro.param` sites, `numpyro.prng_key`.
    """

    layout: Layout
    program: ModelWithData
    observed: tuple[str, ...]
    deterministic: tuple[str, ...]
    rewritten: tuple[str, ...]
    metrics: dict[str, Any]
    held: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """Names of the latent and the deterministic sites."""
        return (*self.layout.names, *self.deterministic)


def inspect_model(program: ModelWithData) -> Inspection:
    """Trace the model and check that it has a density on R^d.

    Raises:
        ModelError: no model; discrete or subsampled latent sites, or none at all; Python control
            flow on latent values.
        DataError: observed values that are NaN, infinite, empty, outside the support or of the
            wrong length.
    """
    constant = with_constant_data(program, ById)
    first = _compiled_trace(program) or _compiled_trace(constant) or _first_trace(program)
    trace = first.sites
    for name, metric in first.metrics.items():
        require_metric(metric, f"`infer` of the site `{name}`")
    _require_all_data(trace)
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
        require_observed(name, fn, value)
    layout = _layout(latent)
    program = _recorded(program, layout)
    moved = _moving_supports(program, layout, list(samples))
    if moved:
        program, layout = _with_moving_supports(program, layout, moved)
    for name, (fn, value) in observed.items():
        if name not in moved:
            require_in_support(name, fn, value)
    deterministic = tuple(n for n, site in trace.items() if site["type"] == "deterministic")
    return Inspection(
        layout,
        program,
        tuple(observed),
        deterministic,
        first.rewritten,
        first.metrics,
        program.held(layout.constrain(jnp.zeros(layout.dim))) if first.may_hold else (),
    )


class _Trace(NamedTuple):
    """Findings of a trace at one point: its sites, and what an `Observer` noted."""

    sites: dict[str, Any]
    metrics: dict[str, Any]
    rewritten: tuple[str, ...]
    may_hold: bool

    @classmethod
    def of(cls, sites: dict[str, Any], observer: Observer) -> "_Trace":
        params = any(site["type"] == "param" for site in sites.values())
        return cls(sites, observer.metrics, observer.rewritten, params or observer.asks_for_keys)


def _compiled_trace(program: ModelWithData) -> _Trace | None:
    """A trace at the origin of u, compiled as one program.

    None where that cannot be: where the model reads values in Python, breaks, or has arguments of
    distributions that NumPyro refuses, which it does with values only.
    """

    def run(origin: Float[Array, ""], arrays: Any) -> _Trace:
        observer = Observer(program.model)
        start = _started_at(lambda shape: jnp.broadcast_to(origin, shape))
        started = handlers.substitute(observer, substitute_fn=start)
        sites = program.with_arrays(arrays).trace(handlers.seed(started, rng_seed=0))
        return _Trace.of(sites, observer)

    origin = jax.device_put(np.zeros((), jnp.result_type(float)))
    try:
        recording = recorded(run, origin, program.arrays)
    except (AssertionError, VolformError, *UNTRACEABLE):
        return None
    if recording is None:
        return None
    found = recording.evaluated(origin, program.arrays)
    samples = [site for site in found.sites.values() if site["type"] == "sample"]
    return found if all(has_valid_arguments(site["fn"]) for site in samples) else None


def _first_trace(program: ModelWithData) -> _Trace:
    """A trace at the origin of u, or at a generic point where the model breaks there.

    It runs operation by operation, each of which is compiled.
    """
    observer = Observer(program.model)
    try:
        return _Trace.of(program.first_trace(observer, _started_at(np.zeros)), observer)
    except DataError as error:
        generic = np.random.default_rng(0)
        observer = Observer(program.model)
        try:
            start = _started_at(lambda shape: generic.uniform(-1.0, 1.0, shape))
            return _Trace.of(program.first_trace(observer, start), observer)
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
        coordinates = tuple(chart.inverse_shape(shape))
        sites.append(Site(name, chart, shape, coordinates, start, is_circular(site["fn"])))
        start += sites[-1].size
    return Layout(tuple(sites))


def _require_all_data(trace: dict[str, Any]) -> None:
    for name, site in trace.items():
        size, drawn = site["args"] if site["type"] == "plate" else (None, None)
        if drawn is not None and drawn != size:
            raise ModelError(
                f"The plate `{name}` draws {drawn} of {size} elements; a "
                "subsampled density has no fixed mode or evidence. Remove `subsample_size`."
            )


def _recorded(program: ModelWithData, layout: Layout) -> ModelWithData:
    """The program, recorded with its data as leaves if the model can be traced so."""
    values = jax.eval_shape(layout.constrain, layout.point)
    for spelled in (program, with_constant_data(program, ById)):
        try:
            return spelled.record(values)
        except ModelError:
            raise
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError, TypeError, ValueError):
            continue
    program = with_constant_data(program)
    try:
        return program.record(values)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise ModelError(
            f"`{program.name}` uses the value of a latent site in Python, by `if`, `float()` or "
            "NumPy, so that JAX cannot trace it. Use `jnp.where`, `jax.lax.cond` and `jax.numpy`; "
            f"NumPyro's own inference needs the same. JAX says: {_first_line(error)}"
        ) from error


def _moving_supports(program: ModelWithData, layout: Layout, names: list[str]) -> frozenset[str]:
    """The sites whose support depends on parameters; refuses metrics that do."""

    def fixed(u: Float[Array, " d"]) -> tuple[dict[str, Any], dict[str, Any]]:
        trace, metrics = program.outputs(
            layout.constrain(u), lambda found: (found.trace, found.metrics)
        )
        leaves = {name: jax.tree.leaves(metric) for name, metric in metrics.items()}
        arrays = {name: [x for x in found if eqx.is_array(x)] for name, found in leaves.items()}
        return {name: trace[name]["fn"].support for name in names}, arrays

    supports, metrics = dependence(fixed, layout.point)
    moving = [name for name in metrics if moves(metrics[name])]
    if moving:
        raise MetricError(
            f"The metric in `infer` of `{'`, `'.join(moving)}` depends on parameters. Attach a "
            "metric to the group of the site and what it depends on, for example "
            '`vf.attach(model, {("a", "b"): metric})`.'
        )
    return frozenset(name for name in names if moves(supports[name]))


def _with_moving_supports(
    program: ModelWithData, layout: Layout, moved: frozenset[str]
) -> tuple[ModelWithData, Layout]:
    """The program whose data are bounded by their supports, and the layout whose charts move."""
    observed = moved - {*layout.names}
    if observed:
        bounded = ModelWithData(Source(program.model, bounded=observed), program.data)
        program = bounded.record(jax.eval_shape(layout.constrain, layout.point))
    if observed == moved:
        return program, layout
    sites = [dataclasses.replace(site, moving=site.name in moved) for site in layout.sites]
    return program, Layout(tuple(sites), program)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

"""Provenance of a posterior's evidence: of which data, proper or not, normalized or not."""

import hashlib
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import ImproperUniform, Unit

from volform.geometry.dependence import dependence, moves
from volform.models.bound_model import BoundModel
from volform.models.counting import counted
from volform.models.data_checks import core_of, on_host, used_entries
from volform.models.priors import VolumeDensity
from volform.results import Provenance, require_count

Fingerprint = tuple[tuple[int, ...], str]


def provenance_of(model: BoundModel, held: tuple[str, ...]) -> Provenance:
    """The provenance of a conditioned model.

    Args:
        model: the model with its data.
        held: what its density depends on besides, and is held.

    Raises:
        ModelError: when a declared number of equivalent modes is no positive integer.
    """
    # A site that `handlers.reparam` rewrote has lost its settings by the time it is traced.
    trace, modes = model.program.outputs(
        model.values(jnp.zeros(model.dim)),
        lambda found: (found.trace, found.equivalent_modes),
    )
    sites = {name: trace[name] for name in (*model.names, *model.observed)}
    counts = [
        require_count(count, f"`infer` of the site `{name}`")
        for name, count in modes.items()
        if count is not None and not callable(count)
    ]
    uncounted = [name for name, count in modes.items() if count is None]
    counters = {name: count for name, count in modes.items() if callable(count)}
    found = counted(model.program, model.layout, counters)
    if found is not None:
        counts += [found.modes]
        uncounted += [] if found.is_all else found.names
    observed = {name: sites[name] for name in model.observed}
    data = {n: site for n, site in observed.items() if not isinstance(core_of(site["fn"]), Unit)}
    factors = tuple(name for name in model.observed if name not in data)
    moving = _moving(model, tuple(data))
    powers = {name: _powers(site) for name, site in data.items()}
    return Provenance(
        tuple(name for name in model.names if _is_improper(sites[name])),
        factors,
        math.prod(counts) if counts else None,
        tuple(sorted(_of_site(site, name in moving) for name, site in data.items())),
        by_factor=_moved_by_data(model, factors),
        powers=tuple((name, _range(power)) for name, power in powers.items() if power is not None),
        masked=tuple((name, _masked(site)) for name, site in data.items() if _is_masked(site)),
        held=held,
        unobserved=not model.observed,
        uncounted=tuple(uncounted),
    )


def fingerprint(value: object) -> Fingerprint:
    """Shape and digest of observed values: (n,) and (n, 1) numbers are the same data."""
    array = np.ascontiguousarray(on_host(value), dtype=float) + 0.0  # which makes 0.0 of -0.0
    return np.squeeze(array).shape, hashlib.sha256(array.tobytes()).hexdigest()[:16]


def _of_site(site: dict[str, Any], is_moving: bool) -> Fingerprint:
    """That of the values that enter the density, and of their powers where these are not one."""
    value, used = on_host(site["value"]), used_entries(site["fn"], on_host(site["value"]))
    if is_moving:
        return np.squeeze(value).shape, ""
    powers = _powers(site)
    if not np.all(used):
        event = value.shape[value.ndim - len(site["fn"].event_shape) :]
        value = value[used].reshape(-1, *event)
        powers = None if powers is None else powers[used].reshape(-1, *event)
    shape, digest = fingerprint(value)
    return shape, digest if powers is None else f"{digest}^{fingerprint(powers)[1]}"


def _is_improper(site: dict[str, Any]) -> bool:
    """Tell whether a prior does not integrate to one: improper, scaled, or masked anywhere."""
    core = core_of(site["fn"])
    is_unknown = isinstance(core, ImproperUniform) or (
        isinstance(core, VolumeDensity) and not core.is_normalized
    )
    return is_unknown or _is_masked(site) or _powers(site) is not None


def _is_masked(site: dict[str, Any]) -> bool:
    return not np.all(used_entries(site["fn"], on_host(site["value"])))


def _masked(site: dict[str, Any]) -> str:
    used = used_entries(site["fn"], on_host(site["value"]))
    return f"{used.size - np.sum(used)} of {used.size}"


def _powers(site: dict[str, Any]) -> np.ndarray | None:
    """The power of each entry's density, by `handlers.scale`; None where all are one."""
    scale = np.asarray(1.0 if site["scale"] is None else on_host(site["scale"]))
    if np.all(scale == 1.0):
        return None
    event = (1,) * len(site["fn"].event_shape)
    return np.broadcast_to(scale.reshape((*scale.shape, *event)), np.shape(site["value"]))


def _range(powers: np.ndarray) -> str:
    low, high = np.min(powers), np.max(powers)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _moving(model: BoundModel, names: tuple[str, ...]) -> set[str]:
    """Observed sites whose values depend on the parameters, as in `obs=times - shift`."""

    def values(u: Any) -> dict[str, Any]:
        trace = model.program.run(model.values(u))
        return {name: jnp.asarray(trace[name]["value"]) for name in names}

    flags = dependence(values, jnp.zeros(model.dim))
    return {name for name in names if moves(flags[name])}


def _moved_by_data(model: BoundModel, names: tuple[str, ...]) -> tuple[str, ...]:
    """The `numpyro.factor` sites that the arrays among the model's arguments enter."""
    if not names:
        return ()
    values = model.values(jnp.zeros(model.dim))

    def densities(arrays: Any) -> dict[str, Any]:
        found = model.program.with_arrays(arrays).site_densities(values)
        return {name: found[name] for name in names}

    flags = dependence(densities, model.program.arrays)
    return tuple(name for name in names if moves(flags[name]))

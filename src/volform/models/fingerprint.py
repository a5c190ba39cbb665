"""Provenance of a posterior's evidence: of which data, proper or not, normalized or not."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import ImproperUniform, Unit

from volform.geometry.dependence import dependence, moves
from volform.models.bound_model import BoundModel
from volform.models.counting import Counted, counted
from volform.models.data_checks import core_of, on_host, used_entries
from volform.models.model_with_batches import ModelWithBatches, first_of
from volform.models.observed_facts import Fingerprint, SiteFacts
from volform.models.priors import VolumeDensity
from volform.results import Provenance, require_count


def provenance_of(model: BoundModel, held: tuple[str, ...]) -> tuple[Provenance, Counted | None]:
    """The provenance of a conditioned model, and the copies of a network that were counted.

    Args:
        model: the model with its data.
        held: what its density depends on besides, and is held.

    Raises:
        ModelError: when a declared number of equivalent modes is no positive integer.
    """
    whole, model = model, dataclasses.replace(model, program=first_of(model.program))
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
    batches = whole.program if isinstance(whole.program, ModelWithBatches) else None
    found = counted(model.program if batches is None else batches.some, model.layout, counters)
    if found is not None:
        counts += [found.modes]
        uncounted += [] if found.is_all else found.names
    observed = {name: sites[name] for name in model.observed}
    data = {n: site for n, site in observed.items() if not isinstance(core_of(site["fn"]), Unit)}
    factors = tuple(name for name in model.observed if name not in data)
    moving = _moving(model, tuple(data))
    facts = (
        {n: _facts_of(site) for n, site in data.items()} if batches is None else batches.given.sites
    )
    provenance = Provenance(
        tuple(name for name in model.names if _is_improper(sites[name])),
        factors,
        math.prod(counts) if counts else None,
        tuple(sorted((f.shape, "") if n in moving else f.fingerprint for n, f in facts.items())),
        by_factor=_moved_by_data(model, factors),
        powers=tuple((name, f.powers_in_words) for name, f in facts.items() if f.has_powers),
        masked=tuple((n, f"{f.hidden} of {f.size}") for n, f in facts.items() if f.hidden),
        held=held,
        unobserved=not model.observed,
        uncounted=tuple(uncounted),
    )
    return provenance, found


def fingerprint(value: object) -> Fingerprint:
    """Shape and digest of observed values: (n,) and (n, 1) numbers are the same data."""
    array, facts = np.asarray(on_host(value)), SiteFacts()
    facts.add(array, np.ones(array.shape, bool), np.ones(array.shape))
    return facts.fingerprint


def _facts_of(site: dict[str, Any]) -> SiteFacts:
    value, facts = on_host(site["value"]), SiteFacts()
    powers = _powers(site)
    powers = np.ones(value.shape) if powers is None else powers
    facts.add(value, used_entries(site["fn"], value), powers, len(site["fn"].event_shape))
    return facts


def _is_improper(site: dict[str, Any]) -> bool:
    """Tell whether a prior does not integrate to one: improper, scaled, or masked anywhere."""
    core = core_of(site["fn"])
    is_unknown = isinstance(core, ImproperUniform) or (
        isinstance(core, VolumeDensity) and not core.is_normalized
    )
    return is_unknown or _is_masked(site) or _powers(site) is not None


def _is_masked(site: dict[str, Any]) -> bool:
    return not np.all(used_entries(site["fn"], on_host(site["value"])))


def _powers(site: dict[str, Any]) -> np.ndarray | None:
    """The power of each entry's density, by `handlers.scale`; None where all are one."""
    scale = np.asarray(1.0 if site["scale"] is None else on_host(site["scale"]))
    if np.all(scale == 1.0):
        return None
    event = (1,) * len(site["fn"].event_shape)
    return np.broadcast_to(scale.reshape((*scale.shape, *event)), np.shape(site["value"]))


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

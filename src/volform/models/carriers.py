"""Which named values carry the default metrics of a model."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.geometry import Metric
from volform.models.attaching import Sites
from volform.models.layout import Inspection, Site, named_values


def find_carriers(inspection: Inspection, by_site: dict[Sites, Metric]) -> tuple[str, ...]:
    """The names that carry a metric: latent sites, less those that a deterministic site covers.

    A metric lives on the value that the model speaks of, not on an auxiliary one that it is
    computed from. So a deterministic site takes the place of latent ones

    - if `handlers.reparam` made it from a sample site, and the auxiliary site is a chart of it;
    - if it has a metric of its own: then of the smallest set of latent sites without metrics that
      determine it. If they have more coordinates than it has (WeightNorm with a free scale), the
      metric is singular, and will be reported so.
    """
    named = {n for sites in by_site for n in (sites if isinstance(sites, tuple) else (sites,))}
    rewritten = {n for n, site in inspection.written.items() if not site["is_observed"]}
    replaced: dict[str, str] = {}
    for name in inspection.deterministic:
        if name in named or name in rewritten:
            free = [s for s in inspection.layout.sites if s.name not in named | set(replaced)]
            covered = _cover(inspection, name, free, may_be_singular=name in named)
            replaced.update(dict.fromkeys(covered, name))
    names = (replaced.get(name, name) for name in inspection.layout.names)
    return tuple(dict.fromkeys(names))


def _cover(
    inspection: Inspection, name: str, free: list[Site], *, may_be_singular: bool
) -> Iterable[str]:
    """Names of the latent sites that determine the value of `name`, given all others."""
    layout, program = inspection.layout, inspection.program
    # A generic point: zero is special (WeightNorm's direction is undefined there).
    u = jnp.asarray(np.random.default_rng(0).uniform(-1.0, 1.0, layout.dim), jnp.result_type(float))

    def value(u: Float[Array, " d"]) -> Float[Array, " m"]:
        return jnp.ravel(named_values(layout, program, u, (name,))[name])

    jacobian = np.asarray(jax.jit(jax.jacfwd(value))(u))
    full = _rank(jacobian)
    ranks = {site.name: _rank(jacobian[:, site.segment]) for site in free}
    charts = [s for s in free if ranks[s.name] == full > 0]
    charts.sort(key=lambda s: (s.size == full, s.start))
    if charts and charts[-1].size == full:
        return [charts[-1].name]
    if not may_be_singular:
        return []
    chosen: list[Site] = []
    for site in sorted(free, key=lambda s: s.start, reverse=True):
        columns = [jacobian[:, s.segment] for s in chosen]
        before = _rank(np.hstack(columns)) if columns else 0
        if before == full:
            break
        if _rank(np.hstack([*columns, jacobian[:, site.segment]])) > before:
            chosen.append(site)
    return [site.name for site in chosen]


def _rank(matrix: Any) -> int:
    return int(np.linalg.matrix_rank(matrix)) if matrix.size else 0

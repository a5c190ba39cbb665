"""Choice of the named values that carry the default metrics of a model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from volform.errors import MetricError, SingularMetricError
from volform.geometry.jacobians import along_coordinates
from volform.geometry.metric import Metric
from volform.limits import JACOBIANS_UP_TO
from volform.models.attaching import Sites
from volform.models.inspection import Inspection
from volform.models.layout import Site, named_values


def find_metric_sites(inspection: Inspection, by_site: dict[Sites, Metric]) -> tuple[str, ...]:
    """The names that carry a metric: latent sites, less those that a deterministic site covers.

    A metric lives on the value that the model speaks of, not on an auxiliary one that it is
    computed from. So a deterministic site takes the place of latent ones

    - if `handlers.reparam` made it from a sample site, and the auxiliary site is a chart of it,
      or of it and others together (NeuTra);
    - if it has a metric of its own: then of the smallest set of latent sites without metrics that
      determine it.

    Raises:
        MetricError: when it depends on no latent site.
        SingularMetricError: when these have more coordinates than it has (WeightNorm with a free
            scale).
    """
    attached = {n for sites in by_site for n in (sites if isinstance(sites, tuple) else (sites,))}
    pending = [n for n in inspection.deterministic if n in {*attached, *inspection.rewritten}]
    if not pending:
        return inspection.layout.names
    ranks = JacobianRanks(inspection, pending)
    ranks.require_moving([name for name in pending if name in attached])
    free = [site for site in inspection.layout.sites if site.name not in attached]
    replaced: dict[str, tuple[str, ...]] = {}

    def replace(sites: list[Site], names: list[str]) -> None:
        replaced.update({site.name: tuple(names) for site in sites})
        for site in sites:
            free.remove(site)
        for name in names:
            pending.remove(name)

    for name in list(pending):
        if (chart := ranks.chart(name, free)) is not None:
            replace([chart], [name])
    for site in list(free):
        if names := ranks.charted_by(site, pending, free):
            replace([site], names)
    for name in [name for name in pending if name in attached]:
        replace(ranks.determining(name, free), [name])
    ranks.require_full(replaced, attached)
    names = (n for own in inspection.layout.names for n in replaced.get(own, (own,)))
    return tuple(dict.fromkeys(names))


class JacobianRanks:
    """Ranks of the Jacobians of deterministic values in the coordinates of latent sites."""

    def __init__(self, inspection: Inspection, names: list[str]):
        self._layout, self._program = inspection.layout, inspection.program
        # A generic point: zero is special (WeightNorm's direction is undefined there).
        generic = np.random.default_rng(0).uniform(-1.0, 1.0, inspection.layout.dim)
        self._u = jax.device_put(generic.astype(jnp.result_type(float)))
        self._jacobians: dict[str, Any] = {}
        if self._u.size <= JACOBIANS_UP_TO:
            _, moved = jax.jit(lambda u: along_coordinates(self._values(*names), u))(self._u)
            self._jacobians = {name: m.T for name, m in moved.items()}

    def _values(self, *names: str) -> Callable[[Array], dict[str, Array]]:
        def values(u: Float[Array, " d"]) -> dict[str, Array]:
            found = named_values(self._layout, self._program, u, names)
            return {name: jnp.ravel(value) for name, value in found.items()}

        return values

    def block(self, name: str, site: Site) -> Float[np.ndarray, "m k"]:
        """The Jacobian of `name` in the coordinates of `site`, at a generic point."""
        if name not in self._jacobians:
            self._jacobians |= jax.jit(jax.jacrev(self._values(name)))(self._u)
        return np.asarray(self._jacobians[name])[:, site.segment]

    def of(self, name: str, *sites: Site) -> int:
        """Rank of the Jacobian of `name` in the coordinates of `sites` together."""
        return _rank(np.hstack([self.block(name, site) for site in sites])) if sites else 0

    def chart(self, name: str, free: list[Site]) -> Site | None:
        """The last site that moves `name` in all its directions, by as many coordinates."""
        for site in reversed(free):
            if site.size > JACOBIANS_UP_TO and self.is_elementwise(name, site):
                return site
        full = self.of(name, *free)
        charts = [site for site in free if site.size == self.of(name, site) == full > 0]
        return charts[-1] if charts else None

    def is_elementwise(self, name: str, site: Site) -> bool:
        """Tell whether each entry of `name` moves with one coordinate of `site`, in order."""
        probe = self._u[site.segment][::-1]

        def push(direction: Float[Array, " k"]) -> Array:
            tangent = jnp.zeros_like(self._u).at[site.segment].set(direction)
            return jax.jvp(self._values(name), (self._u,), (tangent,))[1][name]

        slope, image = jax.jit(jax.vmap(push))(jnp.stack([jnp.ones_like(probe), probe]))
        if slope.shape != probe.shape:
            return False
        return bool(jnp.all(slope != 0.0) & jnp.allclose(slope * probe, image))

    def charted_by(self, site: Site, names: list[str], free: list[Site]) -> list[str]:
        """The `names` that `site` moves, if it is a chart of all of them together."""
        moved = [name for name in names if self.of(name, site) > 0]
        together = _rank(np.vstack([self.block(name, site) for name in moved])) if moved else 0
        full = sum(self.of(name, *free) for name in moved)
        return moved if together == full == site.size else []

    def determining(self, name: str, free: list[Site]) -> list[Site]:
        """The fewest sites, the last ones first, that move `name` in all its directions."""
        full = self.of(name, *free)
        chosen: list[Site] = []
        for site in reversed(free):
            if self.of(name, *chosen) == full:
                break
            if self.of(name, *chosen, site) > self.of(name, *chosen):
                chosen.append(site)
        return chosen

    def require_moving(self, names: list[str]) -> None:
        """Raises MetricError when a value depends on no parameter."""
        for name in names if self._u.size <= JACOBIANS_UP_TO else []:
            if self.of(name, *self._layout.sites) == 0:
                raise MetricError(
                    f"A metric is attached to `{name}`, which does not depend on the parameters: "
                    "it measures nothing. Attach it to a latent site, or to a value made of one."
                )

    def require_full(self, replaced: dict[str, tuple[str, ...]], attached: set[str]) -> None:
        """Raises SingularMetricError unless the values together determine the replaced sites."""
        sites = [site for site in self._layout.sites if site.name in replaced]
        names = sorted({name for names in replaced.values() for name in names} | attached)
        rows = [name for name in names if name not in self._layout.names]
        if not sites or self._u.size > JACOBIANS_UP_TO:
            return
        matrix = np.vstack([np.hstack([self.block(name, s) for s in sites]) for name in rows])
        columns, rank = matrix.shape[1], _rank(matrix)
        if rank < columns:
            raise SingularMetricError(
                f"The metric on `{'`, `'.join(rows)}` is singular: the sites "
                f"`{'`, `'.join(s.name for s in sites)}` that it is pulled back to have {columns} "
                f"coordinates, of which it measures rank {rank} of {columns}. Write them as a "
                "chart, with as many coordinates as values (a direction as a site on "
                "`constraints.sphere`), or give one of these sites a metric of its own as well: "
                "sums of metrics are metrics."
            )


def _rank(matrix: Any) -> int:
    return int(np.linalg.matrix_rank(matrix)) if matrix.size else 0

"""Sites of a trace in terms of families whose Fisher information is known."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

Trace = dict[str, Any]


def spelled_out(trace: Trace) -> Trace:
    """The same sites, with those replaced that are shorthand for others.

    `EulerMaruyama` becomes its start and its steps, Normal given the value before, as in a loop
    over time; the process of tinygp becomes the multivariate Normal that it is.
    """
    return {name: part for own, site in trace.items() for name, part in _parts(own, site).items()}


def _parts(name: str, site: dict[str, Any]) -> Trace:
    fn: Any = site.get("fn") if site["type"] == "sample" else None
    if isinstance(fn, dist.EulerMaruyama):
        path = jnp.asarray(site["value"])
        axis = path.ndim - fn.event_dim
        start, later = jnp.split(path, [1], axis)
        return {
            f"{name} (start)": {**site, "fn": fn.init_dist, "value": start.squeeze(axis)},
            name: {**site, "fn": _steps(fn, path), "value": later},
        }
    if _is_tiny(fn):
        normal = dist.MultivariateNormal(fn.loc, fn.covariance_matrix)
        return {name: {**site, "fn": normal}}
    return {name: site}


def _steps(fn: Any, path: Array) -> dist.Distribution:
    shape = path.shape[: path.ndim - fn.event_dim]
    before = path.reshape(-1, *fn.event_shape)[:, :-1]
    t = jnp.broadcast_to(fn.t, (*shape, fn.event_shape[0])).reshape(-1, fn.event_shape[0])

    def of_event(v: Array) -> Array:
        return v.reshape(*v.shape[:2], *(1,) * (before.ndim - v.ndim), *v.shape[2:])

    drift, spread = map(of_event, jax.vmap(jax.vmap(fn.sde_fn))(before, t[:, :-1]))
    dt = jnp.diff(t).reshape(*before.shape[:2], *(1,) * (before.ndim - 2))
    both = jnp.broadcast_arrays(before + dt * drift, jnp.sqrt(dt) * spread)
    loc, scale = (v.reshape(*shape, *before.shape[1:]) for v in both)
    return dist.Normal(loc, scale).to_event(fn.event_dim)


def _is_tiny(fn: Any) -> bool:
    # not imported here: where its process is used, its module is there
    support = sys.modules.get("tinygp.numpyro_support")
    return support is not None and isinstance(fn, support.TinyDistribution)

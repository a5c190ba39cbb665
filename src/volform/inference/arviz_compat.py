"""Differences between ArviZ 0.x and 1.x.

ArviZ is imported inside the functions: it imports pyplot, and takes two thirds of the time of an
import of volform.
"""

import importlib.metadata
import math
from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import Float


def built(
    groups: dict[str, Any],
    attributes: dict[str, dict[str, Any]],
    dims: dict[str, Any],
    coords: dict[str, Any] | None = None,
) -> Any:
    """An `InferenceData` on ArviZ 0.x, a `DataTree` on 1.x, with attributes of its groups.

    A tree has slashes between its groups and none in names: `scope/mu` becomes `scope_mu` there.
    """
    import arviz  # noqa: PLC0415

    if not _is_one():
        named: dict[str, Any] = {f"{group}_attrs": own for group, own in attributes.items()}
        return arviz.from_dict(**groups, **named, coords=coords, dims=dims)
    coords = coords or {}
    names = [name for group in groups.values() for name in group]
    new = without_slashes({*names, *coords, *(dim for own in dims.values() for dim in own)})
    groups = {key: {new[n]: value for n, value in group.items()} for key, group in groups.items()}
    return arviz.from_dict(
        groups,
        attrs=attributes,
        coords={new[name]: labels for name, labels in coords.items()},
        dims={new.get(name, name): [new[dim] for dim in own] for name, own in dims.items()},
    )


def without_slashes(names: Collection[str]) -> dict[str, str]:
    """New names, of which no two are the same: `scope/mu` becomes `scope_mu`.

    To NetCDF and to a tree a slash is a group, as `numpyro.handlers.scope` writes it into names.
    """
    new = {name: name for name in names}
    for name in sorted(name for name in names if "/" in name):
        free = name.replace("/", "_")
        while free in new.values():
            free += "_"
        new[name] = free
    return new


def of_chains(mcmc: Any, dims: dict[str, Any], coords: dict[str, Any]) -> Any:
    """Draws of NumPyro's `MCMC`, by ArviZ."""
    import arviz  # noqa: PLC0415

    options = {"log_likelihood": True} if _is_one() else {}  # which 0.x computes by itself
    # Where dimensions are given ArviZ looks for no plates.
    return arviz.from_numpyro(mcmc, coords=coords, dims=dims or None, **options)


def stats_of_chains(mcmc: Any) -> dict[str, np.ndarray]:
    """Extra fields of NumPyro's `MCMC`, such as `diverging`, by ArviZ's names."""
    import arviz  # noqa: PLC0415

    group = arviz.from_numpyro(mcmc, log_likelihood=False)["sample_stats"]
    return {str(name): np.asarray(group[name]) for name in group.data_vars}


def psis_loo(data: Any) -> tuple[float, float, bool, Float[np.ndarray, " n"]]:
    """Expected log predictive density, its error, whether every k-hat is good, and its terms."""
    import arviz  # noqa: PLC0415

    found: Any = arviz.loo(data, pointwise=True)
    total, terms = ("elpd", "elpd_i") if _is_one() else ("elpd_loo", "loo_i")
    pointwise = np.ravel(np.asarray(found[terms]))
    return float(found[total]), float(found["se"]), not found["warning"], pointwise


def smoothed(
    log_weights: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " n"], float]:
    """Log weights with their tail Pareto-smoothed (unnormalized), and Pareto's k-hat.

    Weights that are equal to rounding have no tail: k-hat is then minus infinity.
    """
    n = len(log_weights)
    tail = np.sort(log_weights)[-math.ceil(min(0.2 * n, 3.0 * n**0.5)) :]
    if np.isfinite(tail[0]) and tail[-1] - tail[0] < 1e-12:
        return log_weights, -math.inf  # ArviZ 1.x raises an error, 0.x fits rounding
    shift = np.max(log_weights)
    # Fitting the tail, ArviZ lets weights of shapes that do not fit overflow on their way to 0.
    with np.errstate(over="ignore"):
        normalized, k_hat = _psislw(log_weights - shift)
    # ArviZ normalizes; all weights but those of the tail differ from theirs by one constant.
    # Of the lower half of those that are not zero: the largest is of the tail, which is smoothed.
    order = np.argsort(log_weights)
    order = order[np.isfinite(log_weights[order])]
    body = order[: max(len(order) // 2, 1)]
    return normalized + np.median(log_weights[body] - normalized[body]), float(k_hat)


def _psislw(log_weights: Float[np.ndarray, " n"]) -> tuple[Any, Any]:
    if _is_one():
        stats: Any = __import__("arviz_stats.base", fromlist=["array_stats"])
        return stats.array_stats.psislw(-log_weights)  # it takes log likelihoods, as of LOO
    import arviz  # noqa: PLC0415

    return arviz.psislw(log_weights)


def _is_one() -> bool:
    return int(importlib.metadata.version("arviz").split(".")[0]) >= 1

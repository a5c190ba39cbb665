"""Names of the axes of sites, and of their elements, by plates and by what the data are called."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from volform.inference.arviz_dims import dims_and_coords, require_fitting, sizes_of
from volform.models.attaching import without_handlers
from volform.models.labels import LabeledModel, named_arguments
from volform.models.model_with_batches import first_of
from volform.models.posterior import Posterior


def names_of_elements(posterior: Posterior | None) -> dict[str, list[str]]:
    """Names of the elements of latent sites that have labels, as ArviZ writes them: `theta[Lund]`.

    Empty where neither the data nor the model has any.
    """
    if posterior is None or not (posterior.labels.axes or labels_of_model(posterior.model)):
        return {}
    values = posterior.values(jnp.zeros(posterior.dim))
    observed, plates = observed_and_plates(posterior, values, posterior.names)
    groups = {
        "posterior": {name: np.empty((1, 1, *np.shape(values[name]))) for name in posterior.names},
        "observed_data": observed,
        "constant_data": constant_data(posterior, observed),
    }
    dims, coords = labelled(posterior, groups, plates, {}, {})
    found = {}
    for name in posterior.names:
        own, shape = dims.get(name, ()), np.shape(values[name])
        if len(own) == len(shape) and any(dim in coords for dim in own):
            axes = [coords.get(d, np.arange(n)) for d, n in zip(own, shape, strict=True)]
            found[name] = [f"{name}[{', '.join(map(str, i))}]" for i in itertools.product(*axes)]
    return found


def labelled(
    posterior: Posterior,
    groups: Mapping[str, Any],
    plates: dict[str, list[str]],
    dims: dict[str, Any],
    coords: dict[str, Any],
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Dimensions of all variables, and the labels of the model and its data along them."""
    observed, constant = groups.get("observed_data", {}), groups.get("constant_data", {})
    arguments, labels = _named_arguments(posterior), posterior.labels
    axes = {name: labels.of_argument(name, value) for name, value in constant.items()}
    axes |= {name: labels.of_site(name, value, arguments) for name, value in observed.items()}
    shapes = {name: value.shape[2:] for name, value in groups["posterior"].items()}
    shapes |= {name: value.shape for name, value in (constant | observed).items()}
    named, own = dims_and_coords(shapes, plates, {n: a for n, a in axes.items() if a}, dims)
    if (of_model := labels_of_model(posterior.model)) is not None:
        every = sizes_of(named, shapes)
        own |= {dim: own_labels for dim, own_labels in of_model.coords.items() if dim in every}
    require_fitting(coords, named, shapes)
    return named, own


def constant_data(posterior: Posterior, observed: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arguments of the model that are arrays of numbers, and no observed values."""
    arguments = _named_arguments(posterior)
    found = {name: np.asarray(value) for name, value in arguments.items() if _are_numbers(value)}
    return {
        name: value
        for name, value in found.items()
        if not any(np.array_equal(value, seen) for seen in observed.values())
    }


def labels_of_model(model: Any) -> LabeledModel | None:
    """The model, under whatever handlers, if it has names and labels as that of a formula has."""
    inner = without_handlers(model)
    return inner if isinstance(inner, LabeledModel) else None


def _named_arguments(posterior: Posterior) -> dict[str, Any]:
    """The arguments of the model by name; none of data in batches."""
    if posterior.in_batches:
        return {}
    return named_arguments(posterior.model, *posterior.program.arguments())


def _are_numbers(value: Any) -> bool:
    if isinstance(value, np.ndarray | Array):
        return value.dtype.kind in "biufc"  # no keys of JAX, no text
    return isinstance(value, float | int)


def observed_and_plates(
    posterior: Posterior, values: dict[str, Any], names: Iterable[str]
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Values of the observed sites, none of data in batches; and plates of these and of `names`."""
    trace = first_of(posterior.program).run(values)
    observed = {
        name: np.asarray(trace[name]["value"])
        for name in posterior.observed
        if np.size(trace[name]["value"]) and not posterior.in_batches
    }
    found = {n: _plates_of(trace[n], np.ndim(trace[n]["value"])) for n in (*names, *observed)}
    return observed, {name: own for name, own in found.items() if own}


def _plates_of(site: dict[str, Any], ndim: int) -> list[str] | None:
    """Names of the plates along the leading dimensions of a site's value.

    Between plates, as behind the outer of two, an axis of length one has ArviZ's own name.
    """
    frames = {frame.dim: frame.name for frame in site["cond_indep_stack"]}
    event = len(site["fn"].event_shape) if "fn" in site else 0
    batch = ndim - event
    names = [frames.get(axis - batch) for axis in range(batch)]
    if not any(names):
        return None
    return [str(name or f"{site['name']}_dim_{axis}") for axis, name in enumerate(names)]

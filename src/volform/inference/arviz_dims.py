"""Dimensions and labels of the variables of an ArviZ object."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from volform.errors import DataError, UnknownSiteError
from volform.models.labels import NamedAxis

OF_DRAWS = {"chain", "draw"}


def dims_and_coords(
    shapes: Mapping[str, tuple[int, ...]],
    plates: Mapping[str, list[str]],
    axes: Mapping[str, tuple[NamedAxis, ...]],
    given: Mapping[str, Any],
) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """Dimensions of variables, the user's, then those of the data, then plates; and their labels.

    A name of the data that is taken, by a variable or by a dimension of another size or with other
    labels, gives way to the plate or to ArviZ's own, such as `y_dim_0`.

    Args:
        shapes: of the variables, without chains and draws.
        plates: along the leading axes of a variable.
        axes: of the data, where they have names or labels.
        given: by the user, as `dims` of `to_arviz`.

    Raises:
        UnknownSiteError: a name that is none.
        DataError: a number of dimensions that is not that of the axes.
    """
    dims, coords = _merged(plates, given, shapes), dict[str, np.ndarray]()
    sizes = sizes_of(dims, shapes)

    def is_free(dim: str | None, size: int, labels: np.ndarray | None) -> bool:
        if dim is None or dim in OF_DRAWS or dim in shapes or sizes.get(dim, size) != size:
            return False
        return labels is None or dim not in coords or np.array_equal(coords[dim], labels)

    known = {plate for names in plates.values() for plate in names}
    for name in sorted(axes, key=lambda name: name not in plates):
        own, found = axes[name], list(dims.get(name, []))
        found += [f"{name}_dim_{i}" for i in range(len(found), len(own))]
        for i, (axis, size) in enumerate(zip(own, shapes[name], strict=True)):
            names = [None if name in given or axis.name in found else axis.name, found[i]]
            if axis.name in known - {found[i]} and not _are_labels(coords.get(axis.name), axis):
                # The plate of something else: the labels are not along that.
                names = [found[i] if name in given else f"{name}_dim_{i}"]
                found[i] = names[0]
            dim = next((dim for dim in names if is_free(dim, size, axis.labels)), None)
            if dim is not None:
                found[i], sizes[dim] = dim, size
                coords |= {} if axis.labels is None else {dim: axis.labels}
        dims[name] = found
    return _of_plates(dims, plates, axes, given), coords


def _are_labels(known: np.ndarray | None, axis: NamedAxis) -> bool:
    if known is None or axis.labels is None:
        return False
    return np.array_equal(known, axis.labels)


def _of_plates(
    dims: Mapping[str, list[str]],
    plates: Mapping[str, list[str]],
    axes: Mapping[str, tuple[NamedAxis, ...]],
    given: Mapping[str, Any],
) -> dict[str, list[str]]:
    """Dimensions with plates called as the data along them, where all of those have one name.

    The labels of a plate are those of all that is in it: `theta[Lund]` beside `y[Lund]`.
    """
    called: dict[str, set[str]] = {}
    for name in axes:
        own = zip(plates.get(name, ()), axes[name], dims[name], strict=False)
        for plate, axis, dim in own:
            called.setdefault(plate, set()).add(dim if dim == axis.name else plate)
    names = {plate: found.pop() for plate, found in called.items() if len(found) == 1}
    free = {name: own for name, own in dims.items() if name not in given}
    renamed = {name: [names.get(dim, dim) for dim in own] for name, own in free.items()}
    return dict(dims) | {n: own for n, own in renamed.items() if len(set(own)) == len(own)}


def sizes_of(
    dims: Mapping[str, list[str]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Number of entries of each dimension."""
    return {dim: size for name in dims for dim, size in zip(dims[name], shapes[name], strict=False)}


def _merged(
    plates: Mapping[str, list[str]],
    given: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, list[str]]:
    """Dimensions by plates, and those that the user gave.

    Raises:
        UnknownSiteError: a name that is none.
        DataError: a number of dimensions that is not that of the axes.
    """
    merged = dict(plates)
    for name, names in given.items():
        if name not in shapes:
            raise UnknownSiteError(f"`dims` names {name!r}, which is none of {list(shapes)}.")
        own, axes = list(names), len(shapes[name])
        if len(own) != axes:
            own = plates.get(name, []) + own
        if len(own) != axes or isinstance(names, str):
            raise DataError(
                f"`dims` of {name!r} are {names!r}; its value has the shape {shapes[name]}: give a "
                "name for each axis, or for each behind the plates."
            )
        merged[name] = own
    return merged


def require_fitting(
    coords: Mapping[str, Any],
    dims: Mapping[str, list[str]],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Check the labels along dimensions that the user gave.

    Raises:
        DataError: labels of no dimension, or another number of them than it has entries.
    """
    sizes = sizes_of(dims, shapes)
    for dim, labels in coords.items():
        if dim not in sizes:
            raise DataError(
                f"`coords` has labels of {dim!r}, which is no dimension; there are "
                f"{sorted(sizes) or 'none'}: name the axes of a site in `dims=`."
            )
        if len(labels) != sizes[dim]:
            raise DataError(
                f"`coords` has {len(labels)} labels of {dim!r}, which has {sizes[dim]} entries."
            )

"""Names and labels of the axes of data, kept for the export."""

import abc
import collections
import contextlib
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import DictKey, KeyPath, keystr

from volform.models.attaching import without_handlers

PLAIN = "biufmMU"  # kinds of arrays that a file of coordinates holds; others become text


class NamedAxis(NamedTuple):
    """One axis of an array: its name and the labels along it, None where it has none."""

    name: str | None
    labels: np.ndarray | None


class LabeledModel(abc.ABC):
    """A model that knows names and labels of its axes, for tables and `to_arviz`."""

    @property
    @abc.abstractmethod
    def coords(self) -> dict[str, Any]:
        """Labels along plates and other dimensions."""

    @property
    @abc.abstractmethod
    def dims(self) -> dict[str, list[str]]:
        """Names of the dimensions of sites."""


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """Axes of those arguments of a model that had names or labels, of pandas or xarray.

    All are equal: no number depends on them, so that posteriors which differ in them alone share
    their compiled programs.

    Attributes:
        axes: of each such argument, by its path among the arguments.
    """

    axes: Mapping[str, tuple[NamedAxis, ...]] = dataclasses.field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Labels)

    def __hash__(self) -> int:
        return hash(Labels)

    def conflicts(self) -> list[str]:
        """Arguments whose labels along one axis are the same in another order, in words."""
        found = [
            (path, axis)
            for path, axes in self.axes.items()
            for axis in axes
            if axis.labels is not None
        ]
        return [
            f"{one} and {other} have the same labels{_along(axis)} in another order: data are "
            "taken by their place, and not by their label; sort both, as by `reindex`"
            for (one, axis), (other, against) in itertools.combinations(found, 2)
            if one != other and _is_in_another_order(axis, against)
        ]

    def of_argument(self, name: str, value: np.ndarray) -> tuple[NamedAxis, ...]:
        """Axes of the argument called `name`; none where it has none, or another shape now."""
        return self._fitting(keystr((DictKey(name),)), value)

    def of_site(
        self, name: str, value: np.ndarray, arguments: Mapping[str, Any]
    ) -> tuple[NamedAxis, ...]:
        """Axes of the argument that an observed site has for its value.

        Of several that are equal to it, of the one that is called like the site; none where that
        leaves it open.

        Args:
            name: of the site.
            value: of the site.
            arguments: of the model, by name.
        """
        paths = [
            keystr(path)
            for path, leaf in jax.tree.leaves_with_path(dict(arguments))
            if keystr(path) in self.axes and np.array_equal(leaf, value)
        ]
        alike = [path for path in paths if path.endswith(keystr((DictKey(name),)))]
        chosen = alike if len(paths) > 1 else paths
        return self._fitting(chosen[0], value) if len(chosen) == 1 else ()

    def _fitting(self, path: str, value: np.ndarray) -> tuple[NamedAxis, ...]:
        axes = self.axes.get(path, ())
        if len(axes) != value.ndim:
            return ()
        sized = zip(axes, value.shape, strict=True)
        return axes if all(a.labels is None or len(a.labels) == n for a, n in sized) else ()


def _along(axis: NamedAxis) -> str:
    return "" if axis.name is None else f" along {axis.name!r}"


def _is_in_another_order(one: NamedAxis, other: NamedAxis) -> bool:
    if one.name != other.name or one.labels is None or other.labels is None:
        return False
    same = np.array_equal(np.sort(one.labels.astype(str)), np.sort(other.labels.astype(str)))
    return same and not np.array_equal(one.labels, other.labels)


def labels_of(arguments: Mapping[str, Any]) -> Labels:
    """The axes of the arguments of a model that have names or labels.

    Args:
        arguments: of the model by name, as they were given.
    """
    found = {
        keystr(path): axes
        for path, leaf in jax.tree.leaves_with_path(dict(arguments))
        for path, axes in _axes_within(path, leaf)
    }
    is_told = lambda axes: any(a.name or a.labels is not None for a in axes)  # noqa: E731
    return Labels({path: axes for path, axes in found.items() if is_told(axes)})


def named_arguments(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model by their names, under whatever handlers.

    Those without a keyword are left out where the model does not tell their names.
    """
    named = {}
    with contextlib.suppress(TypeError, ValueError):
        named = dict(inspect.signature(without_handlers(model)).bind_partial(*args).arguments)
    return named | dict(kwargs)


def _axes_within(path: KeyPath, leaf: Any) -> Iterator[tuple[KeyPath, tuple[NamedAxis, ...]]]:
    if hasattr(leaf, "data_vars"):  # an xarray Dataset
        for name in leaf:
            yield (*path, DictKey(name)), _of_data_array(leaf[name])
    elif hasattr(leaf, "dims") and hasattr(leaf, "indexes"):
        yield path, _of_data_array(leaf)
    elif hasattr(leaf, "iloc") and hasattr(leaf, "index"):  # a Series of pandas
        yield path, (axis_of(leaf.index.name, leaf.index),)


def _of_data_array(array: Any) -> tuple[NamedAxis, ...]:
    # xarray calls an axis that was given no name `dim_0`.
    names = [None if name == f"dim_{i}" else name for i, name in enumerate(array.dims)]
    indexes = [array.indexes.get(dim) for dim in array.dims]
    return tuple(axis_of(name, index) for name, index in zip(names, indexes, strict=True))


def axis_of(name: Any, index: Any) -> NamedAxis:
    """An axis with the labels of an index of pandas; none where they count from zero.

    Labels that come again are numbered, `Lund` and `Lund (2)`: ArviZ's tables stop at two alike.
    """
    labels = None if index is None else np.array(index)
    if labels is not None and labels.dtype.kind not in PLAIN:
        labels = np.array([_as_text(label) for label in labels])
    if labels is not None and labels.dtype.kind in "iu":
        labels = None if np.array_equal(labels, np.arange(len(labels))) else labels
    if labels is not None and len(np.unique(labels)) < len(labels):
        labels = _numbered(labels)
    return NamedAxis(None if name is None else str(name), labels)


def _as_text(label: Any) -> str:
    return ", ".join(map(str, label)) if isinstance(label, tuple) else str(label)


def _numbered(labels: np.ndarray) -> np.ndarray:
    texts = [str(label) for label in labels]
    taken, times = set(texts), collections.Counter[str]()
    for i, text in enumerate(texts):
        times[text] += 1
        if times[text] > 1:
            while (new := f"{text} ({times[text]})") in taken:
                times[text] += 1
            texts[i] = new
            taken.add(new)
    return np.array(texts)

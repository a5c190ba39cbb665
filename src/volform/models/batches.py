"""Data in batches: those that do not fit into memory, or come from a loader."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from volform.checks import require_whole
from volform.errors import DataError

Arguments = tuple[tuple, dict[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """Data in batches, in place of the arguments of a model: `vf.condition(model, Batches(...))`.

    The posterior is that of all data. It has no density as one function: `vf.laplace` at values
    that were found elsewhere, with a `curvature`, runs through the batches and keeps their sums, so
    that memory holds one batch at a time.

    Args:
        source: what gives all batches each time it is iterated over, such as a list or a data
            loader; or a function from the number of a batch, 0 to `count` - 1, to the batch. A
            batch is a tuple or list of the arguments of the model, a dict of its keyword arguments,
            or one array: of NumPy or JAX, or whatever `np.asarray` makes one of. Batches have the
            same arrays, and may have different numbers of rows.
        count: how many batches a function gives.

    Raises:
        DataError: when the source can be iterated over once only, as a generator, or not at all.

    >>> import jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist, volform as vf
    >>> def model(y):
    ...     a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("y", dist.Normal(a, 1.0), obs=y)
    >>> y = np.linspace(0.0, 1.0, 10)
    >>> posterior = vf.condition(model, vf.Batches.of(y, size=4))
    >>> posterior
    Posterior of model: 1 parameters (a), observed y
    metric Euclidean()
      a: Euclidean()
    data in 3 batches, 10 examples
    >>> at = {"a": y.sum() / 11}
    >>> approx = vf.laplace(posterior, at=at, curvature=vf.GGN())
    >>> whole = vf.laplace(vf.condition(model, y), at=at, curvature=vf.GGN())
    >>> bool(jnp.isclose(approx.evidence.log_z, whole.evidence.log_z, rtol=1e-12))
    True
    """

    source: Iterable[Any] | Callable[[int], Any]
    count: int | None = None

    def __post_init__(self) -> None:
        if hasattr(self.source, "shape") or isinstance(self.source, Mapping | str):
            raise DataError(
                f"`source` of Batches is a {type(self.source).__name__}, which would be iterated "
                "over row by row, or name by name; `vf.Batches.of(x, y, size=256)` cuts arrays."
            )
        if callable(self.source) and not isinstance(self.source, Iterable):
            if self.count is None:
                raise DataError(
                    "`count` of Batches is None, and its `source` a function, from a number to a "
                    "batch: give the number of batches. Of a function that yields batches, pass "
                    "what can be iterated over again and again, as a list or a data loader."
                )
            require_whole(self.count, "count", "Batches", DataError)
        elif self.count is not None or not isinstance(self.source, Iterable):
            raise DataError(
                f"`source` of Batches is {type(self.source).__name__} and `count` {self.count}; "
                "give what can be iterated over and no `count`, or a function from a number to a "
                "batch and their `count`."
            )
        elif isinstance(self.source, Iterator):
            raise DataError(
                f"`source` of Batches is a {type(self.source).__name__}, which gives its batches "
                "once only, and they are needed several times; pass the list or loader itself, or "
                "a function from a number to a batch, with `count`."
            )

    @classmethod
    def of(cls, *arrays: Any, size: int) -> "Batches":
        """Rows of arrays, `size` at a time, as the arguments of the model.

        Only these are read: of `np.memmap`, HDF5 or zarr no more than a batch is in memory.

        Args:
            *arrays: of equal lengths, with `shape` and slices.
            size: rows of a batch; the last may have fewer.

        Raises:
            DataError: when lengths differ or there are no rows.
        """
        require_whole(size, "size", "Batches.of", DataError)
        lengths = [np.shape(array)[:1] for array in arrays]
        sliced = all(hasattr(array, "__getitem__") for array in arrays)
        if len(set(lengths)) != 1 or lengths[0] in ((), (0,)) or not sliced:
            raise DataError(
                f"`arrays` of Batches.of have the shapes {[np.shape(a) for a in arrays]}; they "
                "should have one number of rows, the examples, and at least one, and take slices."
            )
        return cls(_Slices(arrays, size), -(-lengths[0][0] // size))

    def __iter__(self) -> Iterator[Arguments]:
        """The arguments of the model, batch after batch."""
        if isinstance(self.source, Iterable):
            yield from map(_arguments, self.source)
        else:
            yield from (_arguments(self.source(number)) for number in range(self.count or 0))


@dataclasses.dataclass(frozen=True)
class _Slices:
    arrays: tuple[Any, ...]
    size: int

    def __call__(self, number: int) -> tuple[Any, ...]:
        rows = slice(number * self.size, (number + 1) * self.size)
        return tuple(array[rows] for array in self.arrays)


def _arguments(batch: Any) -> Arguments:
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), {}


def first_batch(args: tuple, kwargs: dict[str, Any]) -> tuple[Batches | None, Arguments]:
    """The batches among the arguments of `condition`, None without any, and the first of them.

    Raises:
        DataError: when there are other arguments without a keyword, or no batch.
    """
    found = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Batches)]
    if not found:
        return None, (args, kwargs)
    batches = found[0]
    if args != (batches,):
        raise DataError(
            f"`condition` got Batches among {len(args) + len(kwargs)} arguments; they stand for "
            "all that differ from batch to batch, and are the only argument without a keyword: "
            "`vf.condition(model, vf.Batches(loader), width=10)`."
        )
    for given, named in batches:
        if both := sorted(set(named) & set(kwargs)):
            raise DataError(
                f"`condition` got {both} as keyword arguments, and in the batches too; give each "
                "of them in one place."
            )
        return batches, (given, {**kwargs, **named})
    raise no_batch()


def no_batch() -> DataError:
    """The error of a source that is empty."""
    return DataError("`source` of Batches gave no batch; it should give at least one, with data.")

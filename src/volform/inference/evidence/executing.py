"""Tasks that run wherever an executor runs functions."""

import pickle
from collections.abc import Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from typing import Any, Protocol

import jax

from volform.errors import ModelError, VolformError
from volform.progress import Phase


class Runs(Protocol):
    """Work that can be pickled, as its result can."""

    def run(self) -> Any:
        """The result."""
        ...


def require_executor(executor: Any, where: str, error: type[VolformError]) -> None:
    """Check that something is an executor, or None.

    Raises:
        VolformError: of the given type, when it is none.
    """
    can_submit = callable(getattr(executor, "submit", None)) and not isinstance(executor, type)
    if executor is not None and not can_submit:
        raise error(
            f"`executor` of {where} is {executor!r}; it should be an executor as those of "
            "`concurrent.futures`, such as `ProcessPoolExecutor()`."
        )


def by_executor(
    executor: Executor, tasks: Mapping[str, Runs], phase: Phase, called: str
) -> Iterator[tuple[str, Any]]:
    """The result of every task as it comes, or the exception that it ended with.

    A task travels as bytes, and is read in the worker with 64-bit numbers on or off as they are
    here, so that its numbers are those of this process.

    Args:
        executor: the executor.
        tasks: the work, by name.
        phase: told of each result.
        called: what a task is called in an error, with a place for its name: `model {!r}`.

    Raises:
        ModelError: a task that cannot be sent.
    """
    wide = bool(jax.config.read("jax_enable_x64"))
    packed = {name: _packed(task, called.format(name)) for name, task in tasks.items()}
    running = dict[Future[bytes], str]()
    broken = dict[str, Exception]()
    for name, data in packed.items():
        try:
            running[executor.submit(_run, data, wide)] = name
        except BrokenExecutor as error:
            broken[name] = _of_broken(error)
    try:
        for number, future in enumerate(as_completed(running), start=1):
            name = running[future]
            phase(name, number, len(tasks))
            try:
                found = pickle.loads(future.result())
            except BrokenExecutor as error:
                yield name, _of_broken(error)
            except Exception as error:
                yield name, error
            else:
                yield name, found
    finally:
        for future in running:  # of an interrupt: what has not begun does not
            future.cancel()
    yield from broken.items()


def _run(data: bytes, wide: bool) -> bytes:
    with jax.enable_x64(wide):
        return _pickler().dumps(pickle.loads(data).run())


def _packed(task: Runs, called: str) -> bytes:
    try:
        return _pickler().dumps(task)
    except Exception as error:  # of any kind: pickle raises what the objects do
        raise ModelError(
            f"The {called} cannot be sent to another process by `executor`: {error}. Define the "
            "functions that it is made of in a module, or install cloudpickle."
        ) from error


def _pickler() -> Any:
    """Cloudpickle where it is installed: it takes functions of notebooks and closures too."""
    try:
        import cloudpickle  # noqa: PLC0415 - optional
    except ImportError:
        return pickle
    return cloudpickle


def _of_broken(error: BrokenExecutor) -> ModelError:
    return ModelError(
        f"a worker of `executor` died, and the pool with it: {error} Give more memory or fewer "
        "workers, or an executor that restarts them, as dask's."
    )

"""A spinner for work that takes long."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def waiting(task: str, show: bool, after: float = 2.0) -> Iterator[Callable[[str], None]]:
    """Show a spinner with the current phase once the work has taken `after` seconds.

    Args:
        task: name of the work.
        show: whether to show anything at all; nothing is shown outside a terminal.
        after: seconds of grace.

    Yields:
        A function that names the phase.
    """
    console = Console(stderr=True)
    status = console.status(f"{task} ...")
    timer = threading.Timer(after, status.start)
    timer.daemon = True

    def phase(text: str) -> None:
        status.update(f"{task}: {text} ...")

    if show and console.is_terminal:
        timer.start()
    try:
        yield phase
    finally:
        timer.cancel()
        status.stop()

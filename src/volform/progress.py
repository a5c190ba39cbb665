"""A line that says what work that takes long is doing, and how far it is."""

import contextvars
import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

_OFTEN = 0.1  # seconds between two looks at what there is to say
# What is shown now, from the outermost work to the innermost: all of it in one line.
_shown: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("_shown", default=None)


class Phase(Protocol):
    """A function that names the phase of the work, and tells how far it is."""

    def __call__(self, text: str, done: int | None = None, of: int | None = None) -> None:
        """Show `text`, and `done` of `of`."""


@contextmanager
def waiting(task: str, show: bool, after: float = 1.0) -> Iterator[Phase]:
    """Show a line with the current phase while the work takes more than `after` seconds.

    It stands in the terminal or under the cell of a notebook, and is gone when the work is done.
    Nothing is shown elsewhere, as in a file. Work inside other work adds to the line of that.

    Args:
        task: name of the work.
        show: whether to show anything at all.
        after: seconds of grace.

    Yields:
        A function that names the phase.
    """
    outer = _shown.get()
    lines = [] if outer is None else outer
    screen = _screen() if show and outer is None else None
    if not show or (outer is None and screen is None):
        yield lambda text, done=None, of=None: None
        return
    place = len(lines)
    lines.append(f"{task} ...")

    def phase(text: str, done: int | None = None, of: int | None = None) -> None:
        far = "" if done is None else f" {done:,} of {of:,}"
        lines[place] = f"{task}{far}: {text} ..."

    token, over = _shown.set(lines), threading.Event()
    # One thread draws all, and is waited for: nothing is left on the screen after an interrupt.
    thread = threading.Thread(target=_draw, args=(screen, lines, over, after), daemon=True)
    if screen is not None:
        thread.start()
    try:
        yield phase
    finally:
        over.set()
        del lines[place:]
        _shown.reset(token)
        if screen is not None:
            thread.join()


def _draw(screen: Any, lines: list[str], over: threading.Event, after: float) -> None:
    begun, last = time.monotonic(), ""
    if over.wait(after):
        return
    with screen() as write:
        while not over.is_set():
            line = f"{'  '.join(lines)} ({time.monotonic() - begun:.0f} s)"
            if line != last:
                write(line)
            last = line
            over.wait(_OFTEN)


def _screen() -> Callable[[], AbstractContextManager[Callable[[str], None]]] | None:
    """The place to show a line in, None where nobody looks."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):
        return _notebook
    return _terminal if sys.stderr is not None and sys.stderr.isatty() else None


@contextmanager
def _terminal() -> Iterator[Callable[[str], None]]:
    # rich takes .2 s to import, which those wait for only to whom something is shown
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    with Console(stderr=True).status("") as status:
        yield lambda line: status.update(Text(line))


@contextmanager
def _notebook() -> Iterator[Callable[[str], None]]:
    # Not by rich, which needs ipywidgets there, and takes what others print meanwhile.
    show = importlib.import_module("IPython.display").display
    handle = show({"text/plain": ""}, raw=True, display_id=True)
    try:
        yield lambda line: handle.update({"text/plain": line}, raw=True)
    finally:
        handle.update({"text/plain": ""}, raw=True)

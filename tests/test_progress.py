"""Work that takes long says what it does, in terminals and notebooks and nowhere else."""

import os
import select
import sys
import threading
import time
import types
from contextlib import redirect_stderr

import pytest

from volform.progress import waiting

pty = pytest.importorskip("pty")  # on POSIX
SOON = 0.02
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"  # the cursor


class Terminal:
    """The other end of what `sys.stderr` is written to."""

    def __init__(self):
        self.reader, writer = pty.openpty()
        self.stream = os.fdopen(writer, "w", encoding="utf-8")
        self.text = ""

    def until(self, text, seconds=20.0):
        """All that was written, once it holds `text`."""
        end = time.monotonic() + seconds
        while text not in self.text and time.monotonic() < end:
            if select.select([self.reader], [], [], 0.05)[0]:
                self.text += os.read(self.reader, 65536).decode(errors="replace")
        assert text in self.text
        return self.text


@pytest.fixture
def terminal(monkeypatch):
    found = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    yield found
    found.stream.close()
    os.close(found.reader)


@pytest.fixture
def notebook(monkeypatch):
    """Texts that were shown in a notebook; IPython need not be there."""
    texts = []

    class Handle:
        def update(self, data, raw):
            assert raw
            texts.append(data["text/plain"])

    def display(data, raw, display_id):
        assert raw
        assert display_id
        texts.append(data["text/plain"])
        return Handle()

    package = types.ModuleType("IPython")
    package.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    package.display = types.ModuleType("IPython.display")
    package.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", package.display)
    return texts


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(5.0)  # that of rich is told to end, and not waited for
    assert set(threading.enumerate()) <= before


def test_terminal(terminal):
    """The phase, how far it is, what is done inside it, and what is printed meanwhile."""
    with redirect_stderr(terminal.stream), waiting("compare", True, SOON) as phase:
        terminal.until("compare ... (0 s)")
        phase("theta[3]", 2, 1_200)
        terminal.until("compare 2 of 1,200: theta[3] ... (")
        with waiting("find_map", True) as inner:
            inner("search")
            terminal.until("compare 2 of 1,200: theta[3] ...  find_map: search ... (")
        phase("the rest")
        print("printed", file=sys.stderr)
        terminal.until("printed\r\n")
        terminal.until("compare: the rest ... (")
    assert terminal.until(SHOWN).rindex(HIDDEN) < terminal.text.rindex(SHOWN)


def test_interrupt(terminal):
    """The cursor is back, nothing runs on, and the next work shows itself."""

    def interrupted():
        with waiting("find_map", True, SOON), waiting("inside", True):
            terminal.until("find_map ...  inside ...")
            raise KeyboardInterrupt

    with redirect_stderr(terminal.stream):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert terminal.until(SHOWN).rindex(HIDDEN) < terminal.text.rindex(SHOWN)
        with waiting("again", True, SOON):
            terminal.until("again ... (")


def test_notebook(notebook):
    """One line below the cell, gone in the end."""
    with waiting("find_map", True, SOON) as phase:
        until(lambda: "find_map ... (0 s)" in notebook)
        phase("search from 40 starts", 1, 3)
        until(lambda: "find_map 1 of 3: search from 40 starts ... (0 s)" in notebook)
    assert notebook[-1] == ""


def test_what_takes_no_time_is_not_shown(notebook):
    with waiting("find_map", True) as phase:
        phase("search")
    assert notebook == []


def test_what_is_not_to_be_shown(notebook):
    """Also inside work that is shown; and work inside that is shown is so by itself."""
    with waiting("outer", True, SOON), waiting("middle", False) as phase:
        phase("unseen")
        with waiting("inner", True):
            until(lambda: "outer ...  inner ... (0 s)" in notebook)
    assert not any("middle" in text or "unseen" in text for text in notebook)
    notebook.clear()
    with waiting("outer", False), waiting("inner", True, SOON):
        until(lambda: "inner ... (0 s)" in notebook)


def test_file(tmp_path, monkeypatch):
    """Nothing is written to what is no screen, though colors may be."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with (tmp_path / "log").open("w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        with waiting("find_map", True, 0.0) as phase:
            phase("search", 1, 3)
            time.sleep(0.05)
    assert (tmp_path / "log").read_text() == ""
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    with waiting("find_map", True, 0.0):
        pass

"""Output folders that are whole, or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def output_folder(folder: Path | None) -> Iterator[Path | None]:
    """A folder to write in, whose files are moved to `folder` when all of them are written.

    Asked for before any work, so that a place where nothing can be written is refused at once. A
    folder that is there already keeps its other files.

    Args:
        folder: where the files should be in the end; None for nowhere.

    Raises:
        OSError: when `folder` is a file, or nothing can be written there.
    """
    if folder is None:
        yield None
        return
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(17, "File exists", str(folder))
    parent = folder if folder.is_dir() else folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    partial = parent / f".{folder.name or 'volform'}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        if folder.is_dir():
            for path in sorted(partial.iterdir()):
                path.replace(folder / path.name)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

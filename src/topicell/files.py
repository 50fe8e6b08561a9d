"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to, and rename the file to `path` once it is written.

    A write that fails leaves neither file. A process that is killed meanwhile leaves the other
    one, ``.NAME-PROCESS``.

    Parameters
    ----------
    path
        The file to make. If it exists, it is replaced, and kept as it was by a write that fails.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole(Path(folder) / "table.csv") as unfinished:
    ...         _ = unfinished.write_text("a,b")
    ...     [path.name for path in Path(folder).iterdir()]
    ['table.csv']
    """
    # Cut: a name may be as long as the file system allows.
    unfinished = path.with_name(f".{path.name[:40]}-{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        # In a folder that is none, or may not be written to, there is nothing to remove.
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise

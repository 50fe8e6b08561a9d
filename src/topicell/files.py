"""Files that are written completely or not at all; the digest of source files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename the file to `path` when it is written.

    If the write fails, neither file is left. A process that is killed during the write leaves the
    temporary file, ``.NAME-PROCESS``.

    Parameters
    ----------
    path
        The file to write. An existing file is replaced, but is kept if the write fails.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole(Path(folder) / "table.csv") as unfinished:
    ...         _ = unfinished.write_text("a,b")
    ...     [path.name for path in Path(folder).iterdir()]
    ['table.csv']
    """
    # Shortened, because the name may have the largest length that the file system allows.
    unfinished = path.with_name(f".{path.name[:40]}-{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        # If the folder does not exist or is not writable, there is nothing to remove.
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def writable(folder: Path) -> str:
    """Return why no file can be written in a folder; an empty text if one can."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def digest_of_code(folder: Path) -> str:
    """Return a sha256 of the names and the bytes of all Python files in a folder."""
    digest = hashlib.sha256()
    for module in sorted(folder.rglob("*.py")):
        digest.update(f"{module.relative_to(folder).as_posix()}\0".encode() + module.read_bytes())
    return digest.hexdigest()

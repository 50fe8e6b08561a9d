"""Compressed HDF5 files, which are unpacked before they are read, and archives, which are not."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from topicell.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPENERS: tuple[tuple[bytes, str, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", "gzip", gzip.open),
    (b"BZh", "bzip2", bz2.open),
    (b"\xfd7zXZ\x00", "xz", lzma.open),
)
COMPRESSIONS = tuple(name for _, name, _ in _OPENERS)
"""Names of the compressions that are unpacked."""
_HDF5 = b"\x89HDF\r\n\x1a\n"
_OFFSETS = (0, 512, 1024, 2048)
"""Possible positions of the HDF5 signature: muon writes a line of text before it."""


@contextmanager
def opened(path: Path) -> Iterator[tuple[str, IO[bytes]] | None]:
    """Yield the compression of a file and its unpacked bytes, or None if it is not compressed."""
    with path.open("rb") as file:
        start = file.read(8)
    for magic, name, opener in _OPENERS:
        if start.startswith(magic):
            with opener(path, "rb") as stream:
                yield name, stream
            return
    yield None


def packing_of_hdf5(path: Path) -> str | None:
    """Return the name of the compression of a compressed HDF5 file; None for any other file."""
    with opened(path) as found:
        if found is None:
            return None
        compression, stream = found
        start = _start(stream)
        is_hdf5 = any(start[at : at + len(_HDF5)] == _HDF5 for at in _OFFSETS)
        return compression if is_hdf5 else None


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield the unpacked copy of a compressed file, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder, opened(path) as found:
        assert found is not None, "only compressed files are unpacked"
        copy = Path(folder, Path(path.name).stem)
        try:
            with copy.open("wb") as file:
                shutil.copyfileobj(found[1], file, 1 << 20)
        except OSError as error:
            if error.errno is None:  # of the compression: the file is damaged
                raise
            raise InputError(
                f"cannot be unpacked in {folder} ({error.strerror}); set TMPDIR to a folder with "
                "more space, or unpack the file yourself"
            ) from error
        yield copy


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip archive."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def is_tar(path: Path) -> bool:
    """Return whether a file is a tar archive, compressed or not."""
    with path.open("rb") as file, opened(path) as found:
        start = _start(file if found is None else found[1])
    return start[257:262] == b"ustar"


def _start(stream: IO[bytes]) -> bytes:
    """Return the first bytes of a stream; nothing if it cannot be unpacked."""
    try:
        return stream.read(_OFFSETS[-1] + len(_HDF5))
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return b""  # The file is damaged, and its reader will report it.

"""Checks of HDF5 files that libhdf5 and anndata do not make."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import warnings
from pathlib import Path
from typing import Any

from topicell.errors import InputError

_HDF5_SECONDS = 3
"""Seconds of the processor in which the strings of a small HDF5 file are read many times over."""
_HDF5_BYTES_PER_SECOND = 20_000_000


def require_survivable(path: Path) -> None:
    """Refuse an HDF5 file whose strings libhdf5 crashes on, or never returns from.

    It follows a damaged heap of strings wherever that leads. So they are read once in a process of
    their own (a fork: it has nothing to import), of which nothing is asked but to end.
    """
    limit = _HDF5_SECONDS + path.stat().st_size // _HDF5_BYTES_PER_SECOND
    with warnings.catch_warnings():
        # Of threads at a fork: this child takes no lock that they may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            _read_strings(path, limit)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    # Of other signals that it ends by (Ctrl-C, full memory) the file knows nothing.
    dead = (signal.SIGXCPU, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in dead:
        raise InputError(
            "is damaged: libhdf5 cannot read its names (it crashes, or does not end); copy or "
            "download it again"
        )


def _read_strings(path: Path, cpu_seconds: int) -> None:
    """Read every attribute and every string of an HDF5 file, in so many seconds or not at all."""
    import faulthandler
    import resource

    import h5py

    faulthandler.disable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Of the processor, not of the clock: a machine that is busy does not damage a file.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))

    def visit(_: str, item: Any) -> None:
        with contextlib.suppress(Exception):
            dict(item.attrs)
        with contextlib.suppress(Exception):
            if isinstance(item, h5py.Dataset) and item.dtype.hasobject:
                # Twice: where a heap leads depends on what the memory held before.
                item[()]
                item.asstr()[()]

    with h5py.File(path, "r") as file:
        visit("", file)
        file.visititems(visit)


def require_written(path: Path) -> None:
    """Refuse an HDF5 file with arrays that were declared and not, or not all, written.

    They would be read as zeros without a word, in as much memory as was declared.
    """
    import h5py

    def check(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
            return
        if not item.size or item.shape == ():
            return
        n_parts, n_written = 1, int(item.id.get_storage_size() > 0)
        if item.chunks is not None:
            n_parts = math.prod(-(-n // c) for n, c in zip(item.shape, item.chunks, strict=True))
            n_written = item.id.get_num_chunks()
        if n_written < n_parts:
            raise InputError(
                f"{name} is declared as {' × '.join(map(str, item.shape))} values, and "
                f"{n_written} of its {n_parts} parts are in the file; it was not written whole: "
                "copy or make it again"
            )

    with h5py.File(path, "r") as file:
        file.visititems(check)

"""A check of HDF5 files that libhdf5 and anndata do not make."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from topicell.errors import InputError


def require_written(path: Path) -> None:
    """Refuse an HDF5 file with arrays that were declared but not completely written.

    libhdf5 reads the missing parts as zeros, without an error, in the memory that was declared.
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

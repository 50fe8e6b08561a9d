"""The forms of files with counts: what each is recognised by, and its reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from topicell.config import InputError
from topicell.data.formats.h5ad import read_h5ad
from topicell.data.formats.hdf5 import require_survivable, require_written
from topicell.data.formats.tenx import is_10x_h5, read_10x_h5, read_mtx
from topicell.data.formats.text import SEPARATORS, read_text
from topicell.data.formats.zarr_folder import read_zarr

if TYPE_CHECKING:
    from anndata import AnnData

FORMS = (
    "h5ad, 10x h5, a 10x folder (matrix.mtx, features.tsv or genes.tsv, barcodes.tsv; each may "
    "be .gz), a zarr folder, or csv/tsv (.gz too; cells in rows, a header of gene names)"
)


def recognise(path: Path) -> tuple[str, Callable[[Path], AnnData]]:
    """Return the name of a path's form, and its reader.

    Raises
    ------
    InputError
        The form is not supported, or the file is damaged in a way that its reader would not notice.
    """
    import h5py

    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if path.is_dir():
        if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
            return "a zarr folder", read_zarr
        if any((path / name).is_file() for name in ("matrix.mtx", "matrix.mtx.gz")):
            return "a 10x mtx folder", read_mtx
        raise InputError(
            f"is a folder, and neither zarr nor 10x mtx; name a file in it? Supported: {FORMS}"
        )
    if h5py.is_hdf5(path):
        require_survivable(path)
        require_written(path)
        return ("10x h5", read_10x_h5) if is_10x_h5(path) else ("h5ad", read_h5ad)
    if suffix in (".h5ad", ".h5", ".hdf5"):
        raise InputError(
            "is not an HDF5 file in spite of its name; it may be empty, cut off or damaged: copy "
            "or download it again"
        )
    if suffix in SEPARATORS:
        return suffix[1:], read_text
    if suffix == ".mtx":
        raise InputError("is one part of a 10x mtx folder; give the folder")
    raise InputError(f"is of no form that can be read; supported: {FORMS}")

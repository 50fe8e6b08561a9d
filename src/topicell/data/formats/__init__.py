"""The table of files and folders with counts: how each form is recognised, and its reader.

To add a form, write its reader in a file of this package and add one row to `FORMS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from topicell.data.formats import mtx, packed
from topicell.data.formats.h5ad import read_h5ad, read_h5mu
from topicell.data.formats.hdf5 import require_written
from topicell.data.formats.loom import is_loom, read_loom
from topicell.data.formats.mtx import read_mtx
from topicell.data.formats.mudata import is_mudata, require_no_modality
from topicell.data.formats.tenx import is_10x_h5, read_10x_h5
from topicell.data.formats.text import SEPARATORS, read_text
from topicell.data.formats.zarr_folder import read_zarr
from topicell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

SUPPORTED = (
    "h5ad, 10x h5, h5mu or loom (each may be .gz), 10x folders (matrix.mtx, features.tsv or "
    "genes.tsv, barcodes.tsv; each may be .gz and have a prefix), a zarr folder, or csv/tsv (.gz "
    "too; a header of gene names, a first column of cell names)"
)
_FROM_R = (
    "is a file of R; write it as h5ad there: zellkonverter::writeH5AD(Seurat::"
    "as.SingleCellExperiment(object), 'cells.h5ad'), or the counts alone with "
    "DropletUtils::write10xCounts"
)
_CONVERSIONS = {
    ".rds": _FROM_R,
    ".rda": _FROM_R,
    ".rdata": _FROM_R,
    ".qs": _FROM_R,
    ".h5seurat": (
        "is a file of SeuratDisk; convert it in R with SeuratDisk::Convert(FILE, dest = 'h5ad')"
    ),
    ".cloupe": (
        "is a file of the Loupe Browser, without the counts in an open form; give Cell Ranger's "
        "filtered_feature_bc_matrix.h5 of the same run"
    ),
    ".xlsx": "is a spreadsheet, which changes gene names into dates; save the table as csv",
    ".xls": "is a spreadsheet, which changes gene names into dates; save the table as csv",
    ".parquet": "is a parquet file; write the table as csv or h5ad (pandas.read_parquet reads it)",
    ".feather": "is a feather file; write the table as csv or h5ad (pandas.read_feather reads it)",
}
_HDF5_NAMES = (".h5ad", ".h5", ".hdf5", ".h5mu", ".loom")
_PACKINGS = re.compile(r"(?i)\.(gz|bz2|xz|zip)$")
_MANY = 8
"""The most names in a message."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form of file or folder: one row of the table.

    Attributes
    ----------
    name
        Name in messages.
    matches
        Whether a path has this form.
    read
        Return the AnnData of a path.
    modalities
        Whether `read` also takes the arguments ``modality`` and ``prefix`` of `recognise`.
    """

    name: str
    matches: Callable[[Path], bool]
    read: Callable[..., AnnData]
    modalities: bool = False


def recognise(
    path: Path, modality: str | None = None, prefix: str = ""
) -> tuple[str, Callable[[Path], AnnData]]:
    """Return the name of a path's form, and its reader: the first of `FORMS` that matches.

    Parameters
    ----------
    path
        A file or folder.
    modality
        Which modality of MuData the reader returns.
    prefix
        Put before names of settings in messages.

    Raises
    ------
    InputError
        The form is not supported, or has no modalities, or the file is damaged in a way that its
        reader would not notice.
    """
    if _is_hdf5(path):
        require_written(path)
    elif path.is_file() and _suffix(path) in _CONVERSIONS:
        raise InputError(_CONVERSIONS[_suffix(path)])
    for form in FORMS:
        if form.matches(path):
            break
    else:
        raise InputError(_why_none(path))
    if form.modalities:
        return form.name, partial(form.read, modality=modality, prefix=prefix)
    require_no_modality(form.name, modality, prefix)
    return form.name, form.read


def _why_none(path: Path) -> str:
    """Say why a path has no form that can be read, and what to give instead."""
    if path.is_dir():
        return _why_no_folder(path)
    if _is_hdf5(path):
        if {"assays", "cell.names"} <= _members(path):
            return _CONVERSIONS[".h5seurat"]
        return (
            "is Cell Ranger's list of molecules, without the matrix; give the "
            "filtered_feature_bc_matrix.h5 beside it"
        )
    if _suffix(path) in _HDF5_NAMES:
        return (
            "is not an HDF5 file in spite of its name; it may be empty, cut off or damaged: copy "
            "or download it again"
        )
    if _suffix(path) == ".mtx":
        return (
            "is one part of a 10x mtx folder, which names of genes and cells belong to "
            "(features.tsv or genes.tsv, barcodes.tsv); put them beside it and give the folder"
        )
    if packed.is_tar(path):
        return f"is a tar archive; unpack it (tar -xf {path.name}) and give its content"
    return f"is of no form that can be read; supported: {SUPPORTED}"


def _why_no_folder(path: Path) -> str:
    if inner := _inner_folders(path):
        here = _listed([str(f.relative_to(path)) for f in inner])
        return (
            f"is a folder of several 10x mtx folders; give one of them as path: {here} (to model "
            "them together, join them with anndata.concat)"
        )
    files = sorted(f.name for f in path.iterdir() if f.is_file() and _is_candidate(f))
    folders = sorted(f"{f.name}/" for f in path.iterdir() if f.is_dir())
    here = f" (here: {_listed([*files, *folders])})" if files or folders else ""
    return (
        f"is a folder, and neither zarr nor 10x mtx; name a file in it{here}? "
        f"Supported: {SUPPORTED}"
    )


def _suffix(path: Path) -> str:
    """Return the ending of a name, without that of a compression."""
    return Path(_PACKINGS.sub("", path.name)).suffix.lower()


def _is_hdf5(path: Path) -> bool:
    import h5py

    return path.is_file() and bool(h5py.is_hdf5(path))


def _members(path: Path) -> set[str]:
    """Return the names at the top of an HDF5 file."""
    import h5py

    with h5py.File(path, "r") as file:
        return set(file)


def _is_h5mu(path: Path) -> bool:
    return _is_hdf5(path) and is_mudata(_members(path))


def _is_h5ad(path: Path) -> bool:
    """Return whether an HDF5 file is none of the other forms, nor one that cannot be read."""
    if not _is_hdf5(path):
        return False
    names = _members(path)
    molecules, seurat = {"barcode_idx", "feature_idx"}, {"assays", "cell.names"}
    return not (molecules & names or seurat <= names)


def _is_packed(compression: str, path: Path) -> bool:
    return path.is_file() and packed.packing_of_hdf5(path) == compression


def _is_zip(path: Path) -> bool:
    return path.is_file() and _suffix(path) not in _HDF5_NAMES and packed.is_zip(path)


def _is_sample(path: Path) -> bool:
    """Return whether a file belongs to a 10x mtx sample with its other files beside it."""
    sample = mtx.triple_of(path) if path.is_file() else None
    return sample is not None and len(sample.files) > 1


def _is_table(suffix: str, path: Path) -> bool:
    return path.is_file() and _suffix(path) == suffix and not packed.is_tar(path)


def _is_mtx_folder(path: Path) -> bool:
    return path.is_dir() and bool(mtx.triples(path) or len(_inner_folders(path)) == 1)


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and any(
        (path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")
    )


def _is_candidate(file: Path) -> bool:
    suffix = Path(_PACKINGS.sub("", file.name)).suffix.lower()
    return suffix in (*SEPARATORS, *_HDF5_NAMES)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MANY]) + (", …" if len(names) > _MANY else "")


def _inner_folders(path: Path) -> list[Path]:
    """Return the mtx folders inside a folder; raw ones only without filtered ones beside them."""
    files = [f for level in ("*", "*/*", "*/*/*") for f in path.glob(f"{level}/*.mtx*")]
    folders = sorted({file.parent for file in files})
    found = [f for f in folders if (held := mtx.triples(f)) and all(t.complete for t in held)]
    ways = [f.relative_to(path).parts for f in found]

    def is_beside_filtered(way: tuple[str, ...]) -> bool:
        return any(
            re.match(r"(?i)raw|.*unfiltered", name)
            and any(
                other[:i] == way[:i] and re.match(r"(?i)(?!.*unfiltered).*filtered", other[i])
                for other in ways
                if len(other) > i
            )
            for i, name in enumerate(way)
        )

    return [f for f, way in zip(found, ways, strict=True) if not is_beside_filtered(way)]


def _chosen_folder(path: Path) -> Path:
    """Return the mtx folder that is read of a folder: itself, or the only one inside it."""
    if not path.is_dir() or _is_zarr(path) or mtx.triples(path):
        return path
    inner = _inner_folders(path)
    return inner[0] if len(inner) == 1 else path


def files_of(path: Path) -> list[Path]:
    """Return the files that are read of a path, in a fixed order.

    A file of a 10x mtx folder stands for all files of its sample.
    """
    path = _chosen_folder(path)
    if path.is_dir():
        return [file for file in sorted(path.rglob("*")) if file.is_file()]
    sample = mtx.triple_of(path)
    return sorted(sample.files) if sample is not None else [path]


def _read_packed(path: Path, modality: str | None, prefix: str) -> AnnData:
    with packed.unpacked(path) as copy:
        _, reader = recognise(copy, modality, prefix)
        return reader(copy)


FORMS = [
    Form("MuData", _is_h5mu, read_h5mu, modalities=True),
    Form("loom", lambda path: _is_hdf5(path) and is_loom(path), read_loom),
    Form("10x h5", lambda path: _is_hdf5(path) and is_10x_h5(path), read_10x_h5),
    Form("h5ad", _is_h5ad, read_h5ad),
    *(
        Form(f"an HDF5 file in {name}", partial(_is_packed, name), _read_packed, modalities=True)
        for name in packed.COMPRESSIONS
    ),
    Form("10x mtx files", _is_sample, read_mtx),
    *(Form(suffix[1:], partial(_is_table, suffix), read_text) for suffix in SEPARATORS),
    Form("a zarr folder in zip", _is_zip, read_zarr, modalities=True),
    Form("a zarr folder", _is_zarr, read_zarr, modalities=True),
    Form("a 10x mtx folder", _is_mtx_folder, lambda path: read_mtx(_chosen_folder(path))),
]
"""All forms, in the order in which they are tried: a file has the first that matches."""

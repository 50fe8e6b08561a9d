"""The table of file formats with counts: how each is recognised, and its reader.

To add a format, write its reader in a file of this package and add one row to `FORMS`, before the
rows that match its files too: the first row that matches is used.
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
from topicell.data.formats.zarr_folder import COLLECTION, is_collection, read_zarr
from topicell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

_FROM_R = (
    "is an R file; in R, write it as h5ad with "
    "zellkonverter::writeH5AD(Seurat::as.SingleCellExperiment(object), 'cells.h5ad'), or only the "
    "counts with DropletUtils::write10xCounts"
)
_CONVERSIONS = {
    ".rds": _FROM_R,
    ".rda": _FROM_R,
    ".rdata": _FROM_R,
    ".qs": _FROM_R,
    ".h5seurat": (
        "is a SeuratDisk file; convert it in R with SeuratDisk::Convert(FILE, dest = 'h5ad')"
    ),
    ".cloupe": (
        "is a Loupe Browser file, whose format is not public; give filtered_feature_bc_matrix.h5, "
        "which Cell Ranger wrote in the same run"
    ),
    ".xlsx": "is a spreadsheet, which changes gene names into dates; save the table as csv",
    ".xls": "is a spreadsheet, which changes gene names into dates; save the table as csv",
    ".parquet": "is a parquet file; write the table as csv or h5ad (pandas.read_parquet reads it)",
    ".feather": "is a feather file; write the table as csv or h5ad (pandas.read_feather reads it)",
}
_HDF5_NAMES = (".h5ad", ".h5", ".hdf5", ".h5mu", ".loom")
_PACKINGS = re.compile(r"(?i)\.(gz|bz2|xz|zip)$")
_MANY = 8
"""Largest number of names in a message."""


@dataclass(frozen=True, slots=True)
class Form:
    """A format of a file or folder: one row of the table.

    Attributes
    ----------
    name
        Name in messages.
    matches
        Whether a path has this format.
    read
        Return the AnnData of a path: cells × genes, the counts as they are in ``X`` or a layer.
        Its `InputError` begins with a verb ("has …"): the caller puts the path before it.
    listed
        Entry in messages that list what can be read; empty if another row has it.
    modalities
        Whether `read` also takes the arguments ``modality`` and ``prefix`` of `recognise`.
    by_rows
        Whether `topicell.data.stored` can read some of the cells alone.
    """

    name: str
    matches: Callable[[Path], bool]
    read: Callable[..., AnnData]
    listed: str = ""
    modalities: bool = False
    by_rows: bool = False


def recognise(
    path: Path, modality: str | None = None, prefix: str = ""
) -> tuple[str, Callable[[Path], AnnData]]:
    """Return the name of a path's format, and its reader: the first of `FORMS` that matches.

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
        The format is not supported, or has no modalities, or the file is damaged in a way that its
        reader would not notice.
    """
    if path.is_file() and not path.stat().st_size:
        raise InputError("is an empty file (0 bytes); copy or download it again")
    if path.is_dir() and not any(path.iterdir()):
        raise InputError("is an empty folder; give the file or folder with the counts")
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
    """Return why a path cannot be read, and what to give instead."""
    if path.is_dir():
        return _why_no_folder(path)
    if _is_hdf5(path):
        if {"assays", "cell.names"} <= _members(path):
            return _CONVERSIONS[".h5seurat"]
        return (
            "is Cell Ranger's list of molecules and has no count matrix; give "
            "filtered_feature_bc_matrix.h5 from the same folder"
        )
    if _suffix(path) in _HDF5_NAMES:
        return (
            "has the name of an HDF5 file but is not one; it may be empty, incomplete or damaged: "
            "copy or download it again"
        )
    if _suffix(path) == ".mtx":
        return (
            "is a 10x matrix without the names of genes and cells (features.tsv or genes.tsv, "
            "barcodes.tsv); put these files into the same folder and give the folder"
        )
    if packed.is_tar(path):
        return f"is a tar archive; unpack it (tar -xf {path.name}) and give one of its files"
    return f"is not in a supported format; supported: {supported()}"


def _why_no_folder(path: Path) -> str:
    if inner := _inner_folders(path):
        here = _listed([str(f.relative_to(path)) for f in inner])
        return (
            f"is a folder of several 10x mtx folders; give one of them as path: {here} (topicell "
            "train models several together: data.path=[A,B])"
        )
    files = sorted(f.name for f in path.iterdir() if f.is_file() and _is_candidate(f))
    folders = sorted(f"{f.name}/" for f in path.iterdir() if f.is_dir())
    here = f" (here: {_listed([*files, *folders])})" if files or folders else ""
    return (
        f"is a folder, but neither zarr nor 10x mtx; give a file in it{here}. Supported: "
        f"{supported()}"
    )


def _suffix(path: Path) -> str:
    """Return the ending of a name, without the ending of a compression."""
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
    """Return whether an HDF5 file has none of the other formats, and can be read."""
    if not _is_hdf5(path):
        return False
    names = _members(path)
    molecules, seurat = {"barcode_idx", "feature_idx"}, {"assays", "cell.names"}
    return not (molecules & names or seurat <= names)


def _is_packed(compression: str, path: Path) -> bool:
    return path.is_file() and packed.packing_of_hdf5(path) == compression


def _is_zip(path: Path) -> bool:
    # A .npz of numpy is a zip archive too, and no zarr folder.
    return path.is_file() and _suffix(path) not in (*_HDF5_NAMES, ".npz") and packed.is_zip(path)


def _is_sample(path: Path) -> bool:
    """Return whether a file belongs to a 10x mtx sample that has its other files too."""
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
    """Return the mtx folders inside a folder; raw ones only without a filtered one next to them."""
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
    """Return the mtx folder to read for a folder: itself, or the only mtx folder inside it."""
    if not path.is_dir() or _is_zarr(path) or mtx.triples(path):
        return path
    inner = _inner_folders(path)
    return inner[0] if len(inner) == 1 else path


def files_of(path: Path) -> list[Path]:
    """Return the files that are read for a path, in a fixed order.

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
    Form("MuData", _is_h5mu, read_h5mu, "h5mu", modalities=True),
    Form("loom", lambda path: _is_hdf5(path) and is_loom(path), read_loom, "loom"),
    Form("10x h5", lambda path: _is_hdf5(path) and is_10x_h5(path), read_10x_h5, "10x h5"),
    Form("h5ad", _is_h5ad, read_h5ad, "h5ad", by_rows=True),
    *(
        Form(f"an HDF5 file in {name}", partial(_is_packed, name), _read_packed, modalities=True)
        for name in packed.COMPRESSIONS
    ),
    Form("10x mtx files", _is_sample, read_mtx),
    *(Form(suffix[1:], partial(_is_table, suffix), read_text, suffix[1:]) for suffix in SEPARATORS),
    Form("a zarr folder in zip", _is_zip, read_zarr, modalities=True),
    # It is read in parts only; in an archive, its reader rejects it.
    Form(
        COLLECTION,
        lambda path: _is_zarr(path) and is_collection(path),
        read_zarr,
        "an annbatch collection",
        by_rows=True,
    ),
    Form(
        "a zarr folder",
        _is_zarr,
        read_zarr,
        "a zarr folder (zip too)",
        modalities=True,
        by_rows=True,
    ),
    Form(
        "a 10x mtx folder",
        _is_mtx_folder,
        lambda path: read_mtx(_chosen_folder(path)),
        "a 10x folder (matrix.mtx, features.tsv or genes.tsv, barcodes.tsv)",
    ),
]
"""All formats, in the order in which they are tried: the first that matches is used."""


BY_ROWS = frozenset(form.name for form in FORMS if form.by_rows)
"""Names of the formats of which some of the cells can be read alone."""


def supported() -> str:
    """Return the supported formats, for messages."""
    listed = ", ".join(form.listed for form in FORMS if form.listed)
    return f"{listed}; files may be compressed (.gz), and tables have gene and cell names"

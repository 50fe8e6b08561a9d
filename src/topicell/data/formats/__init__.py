"""The forms of files with counts: what each is recognised by, and its reader."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from topicell.data.formats import mtx, packed
from topicell.data.formats.h5ad import read_h5ad, read_h5mu
from topicell.data.formats.hdf5 import require_survivable, require_written
from topicell.data.formats.loom import is_loom, read_loom
from topicell.data.formats.mtx import read_mtx
from topicell.data.formats.mudata import is_mudata, require_no_modality
from topicell.data.formats.tenx import is_10x_h5, read_10x_h5
from topicell.data.formats.text import SEPARATORS, read_text
from topicell.data.formats.zarr_folder import read_zarr
from topicell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

FORMS = (
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


def recognise(
    path: Path, modality: str | None = None, prefix: str = ""
) -> tuple[str, Callable[[Path], AnnData]]:
    """Return the name of a path's form, and its reader.

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
    form, reader = _recognise(path, modality, prefix)
    if not isinstance(reader, partial):  # which looks for modalities itself
        require_no_modality(form, modality, prefix)
    return form, reader


def _recognise(
    path: Path, modality: str | None, prefix: str
) -> tuple[str, Callable[[Path], AnnData]]:
    import h5py

    if path.is_dir():
        return _recognise_folder(path, modality, prefix)
    unpacked_name = Path(_PACKINGS.sub("", path.name))
    suffix = unpacked_name.suffix.lower()
    if h5py.is_hdf5(path):
        return _recognise_hdf5(path, modality, prefix)
    if (packing := packed.packing_of_hdf5(path)) is not None:
        return f"an HDF5 file in {packing}", partial(_read_packed, modality=modality, prefix=prefix)
    if suffix in _CONVERSIONS:
        raise InputError(_CONVERSIONS[suffix])
    if suffix in _HDF5_NAMES:
        raise InputError(
            "is not an HDF5 file in spite of its name; it may be empty, cut off or damaged: copy "
            "or download it again"
        )
    sample = mtx.triple_of(path)
    if sample is not None and len(sample.files) > 1:
        return "10x mtx files", read_mtx
    if suffix == ".mtx":
        raise InputError(
            "is one part of a 10x mtx folder, which names of genes and cells belong to "
            "(features.tsv or genes.tsv, barcodes.tsv); put them beside it and give the folder"
        )
    if packed.is_tar(path):
        raise InputError(
            f"is a tar archive; unpack it (tar -xf {path.name}) and give what it holds"
        )
    if suffix in (*SEPARATORS, ".tab"):
        return suffix[1:], read_text
    if packed.is_zip(path):
        return "a zarr folder in zip", partial(read_zarr, modality=modality, prefix=prefix)
    raise InputError(f"is of no form that can be read; supported: {FORMS}")


def _recognise_hdf5(
    path: Path, modality: str | None, prefix: str
) -> tuple[str, Callable[[Path], AnnData]]:
    import h5py

    require_survivable(path)
    require_written(path)
    with h5py.File(path, "r") as file:
        names, of_mudata = set(file), is_mudata(file)
    if of_mudata:
        return "MuData", partial(read_h5mu, modality=modality, prefix=prefix)
    if is_loom(path):
        return "loom", read_loom
    if is_10x_h5(path):
        return "10x h5", read_10x_h5
    if {"barcode_idx", "feature_idx"} & names:
        raise InputError(
            "is Cell Ranger's list of molecules, without the matrix; give the "
            "filtered_feature_bc_matrix.h5 beside it"
        )
    if {"assays", "cell.names"} <= names:
        raise InputError(_CONVERSIONS[".h5seurat"])
    return "h5ad", read_h5ad


def _recognise_folder(
    path: Path, modality: str | None, prefix: str
) -> tuple[str, Callable[[Path], AnnData]]:
    if _is_zarr(path):
        return "a zarr folder", partial(read_zarr, modality=modality, prefix=prefix)
    if mtx.triples(path):
        return "a 10x mtx folder", read_mtx
    inner = _inner_folders(path)
    if len(inner) == 1:
        return "a 10x mtx folder", lambda folder: read_mtx(_chosen_folder(folder))
    if inner:
        here = _listed([str(f.relative_to(path)) for f in inner])
        raise InputError(
            f"is a folder of several 10x mtx folders; give one of them as path: {here} (to model "
            "them together, join them with anndata.concat)"
        )
    files = sorted(f.name for f in path.iterdir() if f.is_file() and _is_candidate(f))
    folders = sorted(f"{f.name}/" for f in path.iterdir() if f.is_dir())
    here = f" (here: {_listed([*files, *folders])})" if files or folders else ""
    raise InputError(
        f"is a folder, and neither zarr nor 10x mtx; name a file in it{here}? Supported: {FORMS}"
    )


def _is_zarr(path: Path) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs"))


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

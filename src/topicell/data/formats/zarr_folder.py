"""Reader of AnnData in zarr folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from topicell.config import InputError

if TYPE_CHECKING:
    from anndata import AnnData


def read_zarr(path: Path) -> AnnData:
    """Return the AnnData of a zarr folder whose chunks are all there."""
    import anndata
    import zarr

    group: Any = zarr.open_group(path, mode="r")
    # zarr takes a missing chunk for zeros, without a word; in these no chunk is all zeros (but
    # that of the indices if the first gene alone was counted, which is no data to model).
    arrays = [f"{side}/{group[side].attrs['_index']}" for side in ("obs", "var")]
    for name in ("X", "raw/X", *(f"layers/{layer}" for layer in group.get("layers", {}))):
        matrix = group.get(name)
        if isinstance(matrix, zarr.Group) and "data" in matrix and group[f"{name}/data"].size:
            arrays += [f"{name}/{part}" for part in ("data", "indices", "indptr")]
    for name in arrays:
        n_missing = group[name].nchunks - group[name].nchunks_initialized
        if n_missing:
            raise InputError(
                f"{name} lacks {n_missing} of {group[name].nchunks} chunks; the folder was not "
                "copied whole: copy or make it again"
            )
    return anndata.read_zarr(path)

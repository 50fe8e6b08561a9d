"""Readers of h5ad files, and of MuData in HDF5."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from topicell.data.formats.mudata import choose_modality, read_modality
from topicell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData


def read_h5ad(path: Path) -> AnnData:
    """Return the AnnData of an h5ad file that names its cells and genes."""
    import anndata
    import h5py

    # anndata invents names if the file has none; invented gene names would match any other file.
    with h5py.File(path, "r") as file:
        for side, what in (("obs", "cells"), ("var", "genes")):
            if side not in file:
                raise InputError(
                    f"cannot be read as h5ad: it has no {side} with the names of the {what}; write "
                    "it with anndata's write_h5ad"
                )
        x = file.get("X")
        if isinstance(x, h5py.Dataset) and x.shape is not None and x.ndim != 2:
            raise InputError(f"X has {x.ndim} dimensions; counts are cells × genes")
    return anndata.read_h5ad(path)


def read_h5mu(path: Path, modality: str | None = None, prefix: str = "") -> AnnData:
    """Return one modality of a MuData file; `choose_modality` says which."""
    import h5py

    with h5py.File(path, "r") as file:
        return read_modality(file, choose_modality(sorted(file["mod"]), modality, prefix))

"""Reader of loom files: HDF5 with genes in rows, and attributes of rows and columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from topicell.data.formats.names import named
from topicell.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

GENES = ("Gene", "gene_names", "var_names", "GeneName", "gene_name", "Accession", "gene_ids")
CELLS = ("CellID", "obs_names", "cell_names", "barcodes", "Barcode", "cell_id")
_ROWS = 512
"""Genes per block that is dense in memory."""


def is_loom(path: Path) -> bool:
    """Return whether an HDF5 file has the layout of loom."""
    import h5py

    with h5py.File(path, "r") as file:
        return isinstance(file.get("matrix"), h5py.Dataset) and {"row_attrs", "col_attrs"} <= set(
            file
        )


def read_loom(path: Path) -> AnnData:
    """Return the cells × genes of a loom file, with its layers and attributes."""
    import h5py
    from anndata import AnnData

    with h5py.File(path, "r") as file:
        var = _attributes(file["row_attrs"], GENES, "genes", file["matrix"].shape[0])
        obs = _attributes(file["col_attrs"], CELLS, "cells", file["matrix"].shape[1])
        layers = {name: _cells_x_genes(part) for name, part in file.get("layers", {}).items()}
        return AnnData(_cells_x_genes(file["matrix"]), obs=obs, var=var, layers=layers)


def _cells_x_genes(matrix: Any) -> sp.csr_matrix:
    blocks = [sp.csr_matrix(matrix[i : i + _ROWS]) for i in range(0, matrix.shape[0], _ROWS)]
    return sp.vstack(blocks, format="csr").T.tocsr()


def _attributes(group: Any, known: tuple[str, ...], what: str, length: int) -> pd.DataFrame:
    """Return the attributes with one value for each row, indexed by a known attribute of names."""
    import h5py
    import pandas as pd

    columns = {
        name: part.asstr()[()] if h5py.check_string_dtype(part.dtype) else part[()]
        for name, part in group.items()
        if isinstance(part, h5py.Dataset) and part.shape == (length,)
    }
    names = next((name for name in known if name in columns), None)
    if names is None:
        raise InputError(
            f"has no attribute with the names of the {what} ({', '.join(known)}); found: "
            f"{', '.join(columns) or 'none'}"
        )
    index = columns.pop(names)
    frame = pd.DataFrame(columns, index=pd.Index(np.asarray(index, dtype=object)))
    if what == "genes" and "Accession" in columns:
        frame.index = named(index, columns["Accession"])
    return frame

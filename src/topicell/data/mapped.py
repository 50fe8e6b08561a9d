"""Prepared cells in an h5ad file whose matrices are mapped to memory.

The file is one that anndata reads. Its matrices are not compressed and not divided in chunks, so
that the operating system reads only the cells that are used, and can give their memory to others.
Counts have the smallest integer type that holds them; X has the positions of the counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from anndata import AnnData

OWN = "topicell_mapped"
"""Attribute of a file of `write`."""
PLACES = {"counts": "layers/counts", "X": "X"}
PARTS = ("data", "indices", "indptr")


def write(
    path: str | Path,
    outline: AnnData,
    chunks: Iterable[tuple[sp.csr_matrix, sp.csr_matrix]],
    n_values: int,
    greatest: int,
) -> None:
    """Write prepared cells.

    Parameters
    ----------
    path
        The file, which is replaced.
    outline
        The cells × genes, without matrices.
    chunks
        Counts and log-normalised values of the cells, in order; both are non-zero at the same
        positions.
    n_values
        Number of non-zero counts.
    greatest
        The largest count.
    """
    import h5py

    outline.write_h5ad(path)
    index = np.dtype(np.int32 if n_values < 2**31 else np.int64)
    with h5py.File(path, "r+") as file:
        file.attrs[OWN] = True
        for name, place in PLACES.items():
            group = file.require_group(place)
            group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
            group.attrs["shape"] = np.array(outline.shape)
            kind = np.min_scalar_type(greatest) if name == "counts" else np.float32
            group.create_dataset("data", (n_values,), kind)
        counts, values = (file[place] for place in PLACES.values())
        indices = counts.create_dataset("indices", (n_values,), index)
        indptr = counts.create_dataset("indptr", (outline.n_obs + 1,), index)
        row = stored = 0
        for x, y in chunks:
            rows, places = slice(row + 1, row + 1 + x.shape[0]), slice(stored, stored + x.nnz)
            counts["data"][places] = x.data
            values["data"][places] = y.data
            indices[places] = x.indices
            indptr[rows] = x.indptr[1:].astype(np.int64) + stored
            row, stored = rows.stop - 1, places.stop
        assert (row, stored) == (outline.n_obs, n_values)
        values["indices"], values["indptr"] = indices, indptr


def add_uns(path: Path, adata: AnnData) -> None:
    """Write the uns of an AnnData to a file of `write`."""
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "r+") as file:
        write_elem(file, "uns", dict(adata.uns))


def is_own(path: Path) -> bool:
    """Return whether a file is one of `write`."""
    import h5py

    with h5py.File(path, "r") as file:
        return OWN in file.attrs


def is_mapped(adata: AnnData) -> bool:
    """Return whether the counts of an AnnData are mapped."""
    array: Any = adata.layers["counts"].indptr if "counts" in adata.layers else None
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


def read(path: str | Path) -> AnnData:
    """Read the tables of a file of `write`, and map its matrices.

    The matrices can be changed, but the file is not. It can be removed while they are in use.
    """
    import h5py
    from anndata import AnnData
    from anndata.io import read_elem

    with h5py.File(path, "r") as file:
        tables = {name: read_elem(file[name]) for name in ("obs", "var", "uns", "obsm", "varm")}
        found = {name: [_array(path, file[f"{p}/{part}"]) for part in PARTS]
                 for name, p in PLACES.items()}  # fmt: skip
        shape = tuple(file[PLACES["X"]].attrs["shape"])
    matrices = {name: sp.csr_matrix(tuple(arrays), shape=shape) for name, arrays in found.items()}
    return AnnData(matrices["X"], **tables, layers={"counts": matrices["counts"]})


def _array(path: str | Path, dataset: Any) -> np.ndarray:
    """Return a mapped array; one without values has no place in the file."""
    offset = dataset.id.get_offset()
    if offset is None:
        return np.asarray(dataset[:])
    return np.memmap(path, dataset.dtype, mode="c", offset=offset, shape=dataset.shape)

"""Reader of the HDF5 files of 10x Genomics and of programs that write the same layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from topicell.counts import require_sound
from topicell.data.formats.names import named
from topicell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData


def is_10x_h5(path: Path) -> bool:
    """Return whether an HDF5 file has the layout of 10x Genomics and not that of AnnData."""
    import h5py

    with h5py.File(path, "r") as file:
        if "obs" in file:
            return False
        # From Cell Ranger 3 on there is one group "matrix"; before, there is one group for each
        # genome.
        return any(map(_is_matrix, file.values()))


def _is_matrix(part: Any) -> bool:
    import h5py

    # CellBender adds its own groups next to "matrix".
    return (
        isinstance(part, h5py.Group)
        and "barcodes" in part
        and any(name in part for name in ("data", "indptr", "shape", "features", "genes"))
    )


def read_10x_h5(path: Path) -> AnnData:
    """Return the cells × features of a 10x HDF5 file from Cell Ranger 2 or later."""
    # scanpy's reader expects ASCII names, and rounds counts too large for single precision.
    import h5py
    import pandas as pd
    from anndata import AnnData

    def values(part: Any) -> np.ndarray:
        found: np.ndarray = (part.asstr("utf-8") if h5py.check_string_dtype(part.dtype) else part)[
            ()
        ]
        return found

    with h5py.File(path, "r") as file:
        groups = {name: group for name, group in file.items() if _is_matrix(group)}
        if len(groups) > 1:
            raise InputError(
                f"holds several genomes: {', '.join(groups)}; write each genome to its own file"
            )
        (group,) = groups.values()
        if "features" in group:
            n_features = len(group["features"]["name"])
            features = {
                name: values(part)
                for name, part in group["features"].items()
                if isinstance(part, h5py.Dataset) and part.shape == (n_features,)
                if name != "_all_tag_keys"
            }
        else:  # before Cell Ranger 3
            features = {"name": values(group["gene_names"]), "id": values(group["genes"])}
        genes = named(features.pop("name"), features.get("gene_id", features.get("id")))
        columns = {"id": "gene_ids", "feature_type": "feature_types"}
        if "gene_id" in features:  # a matrix of probes
            columns |= {"id": "probe_ids", "gene_id": "gene_ids"}
        n_genes, n_cells = map(int, group["shape"][()])
        parts = tuple(group[name][()] for name in ("data", "indices", "indptr"))
        x = sp.csr_matrix(parts, shape=(n_cells, n_genes))
        require_sound(x, "matrix")
        return AnnData(
            x,
            obs=pd.DataFrame(index=values(group["barcodes"])),
            var=pd.DataFrame(features, index=genes).rename(columns=columns),
        )

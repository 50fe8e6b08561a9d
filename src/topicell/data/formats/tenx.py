"""Readers of the matrices of 10x Genomics: HDF5 files, and folders of three text files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from topicell.config import InputError
from topicell.data.formats.repeats import warn_of_repeats
from topicell.model.counts import require_sound

if TYPE_CHECKING:
    from anndata import AnnData


def is_10x_h5(path: Path) -> bool:
    """Return whether an HDF5 file has the layout of 10x Genomics and not that of AnnData."""
    import h5py

    with h5py.File(path, "r") as file:
        if "obs" in file:
            return False
        # From Cell Ranger 3 on one group "matrix", before that one group a genome.
        return any(isinstance(part, h5py.Group) and "barcodes" in part for part in file.values())


def read_10x_h5(path: Path) -> AnnData:
    """Return the cells × features of a 10x HDF5 file, of Cell Ranger 2 or later."""
    # scanpy's reader takes names for ASCII, and rounds counts beyond single precision.
    import h5py
    import pandas as pd
    from anndata import AnnData

    def values(part: Any) -> np.ndarray:
        found: np.ndarray = (part.asstr("utf-8") if h5py.check_string_dtype(part.dtype) else part)[
            ()
        ]
        return found

    with h5py.File(path, "r") as file:
        groups = {
            name: group
            for name, group in file.items()
            if isinstance(group, h5py.Group) and "barcodes" in group
        }
        if len(groups) > 1:
            raise InputError(f"holds several genomes: {', '.join(groups)}; give each a file")
        (group,) = groups.values()
        if "features" in group:
            features = {
                name: values(part)
                for name, part in group["features"].items()
                if isinstance(part, h5py.Dataset) and name != "_all_tag_keys"
            }
        else:  # before Cell Ranger 3
            features = {"name": values(group["gene_names"]), "id": values(group["genes"])}
        genes = pd.Index(features.pop("name"))
        columns = {"id": "gene_ids", "feature_type": "feature_types"}
        if "gene_id" in features:  # a matrix of probes
            columns |= {"id": "probe_ids", "gene_id": "gene_ids"}
        n_genes, n_cells = map(int, group["shape"][()])
        parts = tuple(group[name][()] for name in ("data", "indices", "indptr"))
        return _genes_alone(
            AnnData(
                sp.csr_matrix(parts, shape=(n_cells, n_genes)),
                obs=pd.DataFrame(index=values(group["barcodes"])),
                var=pd.DataFrame(features, index=genes).rename(columns=columns),
            )
        )


def read_mtx(path: Path) -> AnnData:
    """Return the cells × features of a folder of matrix.mtx, features.tsv and barcodes.tsv."""
    # scanpy's reader knows only Cell Ranger's own names: no features.tsv without .gz.
    import pandas as pd
    from anndata import AnnData

    def table(*names: str) -> pd.DataFrame:
        for name in names:
            for file in (path / f"{name}.gz", path / name):
                if file.is_file():
                    return pd.read_csv(
                        file, sep="\t", header=None, dtype=str, na_filter=False, quoting=3
                    )
        raise InputError(f"the folder has no {' or '.join(names)} (.gz or not)")

    matrix = next(f for n in ("matrix.mtx.gz", "matrix.mtx") if (f := path / n).is_file())
    genes, cells = table("features.tsv", "genes.tsv"), table("barcodes.tsv")
    x = _entries(matrix, (len(genes), len(cells)))
    columns = dict(zip(("gene_ids", "symbols", "feature_types"), genes, strict=False))
    names = genes[columns.get("symbols", 0)]
    var = pd.DataFrame(
        {key: genes[columns[key]].to_numpy() for key in columns if key != "symbols"},
        index=pd.Index(names.to_numpy()),
    )
    return _genes_alone(AnnData(x, obs=pd.DataFrame(index=cells[0].to_numpy()), var=var))


def _entries(path: Path, shape: tuple[int, int]) -> sp.csr_matrix:
    """The transposed matrix of a MatrixMarket file that must have this shape.

    Not by scipy's reader: a file with a damaged line can end its process.
    """
    import gzip

    import pandas as pd

    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        banner = file.readline().decode().lower().split()
        if banner[:3] != ["%%matrixmarket", "matrix", "coordinate"] or banner[4:] != ["general"]:
            raise InputError(
                f"{path.name} does not begin with '%%MatrixMarket matrix coordinate … general'; "
                "the file may be damaged, or of another form: write it anew"
            )
        sizes = next((line for line in file if line.strip() and not line.startswith(b"%")), b"")
        n_genes, n_cells, n_entries = map(int, sizes.split())
        if (n_genes, n_cells) != shape:
            raise InputError(
                f"{path.name} has {n_genes} genes × {n_cells} cells, but there are names for "
                f"{shape[0]} genes and {shape[1]} cells; the files do not belong together"
            )
        if not n_entries:
            return sp.csr_matrix(shape[::-1])
        table = pd.read_csv(file, sep=r"\s+", header=None, na_filter=False, comment="%")
    if table.shape != (n_entries, 3) or any(kind.kind not in "iuf" for kind in table.dtypes):
        raise InputError(
            f"{path.name} declares {n_entries} entries of gene, cell and count, and holds "
            f"{len(table)} lines of {table.shape[1]}, or what is no number; it may be cut off or "
            "damaged: copy or download it again"
        )
    at = table[[0, 1]].to_numpy()
    if not ((at >= 1) & (at <= shape) & (at == np.floor(at))).all():
        raise InputError(
            f"{path.name} has entries beyond its {n_genes} genes × {n_cells} cells; it is damaged: "
            "copy or download it again"
        )
    gene, cell = at.astype(np.int64).T - 1
    # Integers wrap around when values of one cell and gene are added.
    x = sp.csr_matrix((table[2].to_numpy(np.float64), (cell, gene)), shape=shape[::-1])
    warn_of_repeats(n_entries - x.nnz, path.name)
    return x


def _genes_alone(adata: AnnData) -> AnnData:
    """Without the antibodies and guides that 10x files may hold beside the genes."""
    require_sound(adata.X, "matrix")
    if "feature_types" not in adata.var:
        return adata
    is_gene = (adata.var["feature_types"] == "Gene Expression").to_numpy()
    return adata if is_gene.all() or not is_gene.any() else adata[:, is_gene].copy()

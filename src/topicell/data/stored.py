"""Counts that stay in a file, h5ad or zarr, and are read in chunks of cells."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from topicell.counts import TOLERANCE, as_counts, locate
from topicell.data.features import POSITION
from topicell.data.formats.damage import named_errors
from topicell.data.formats.repeats import n_repeated, warn_of_repeats
from topicell.data.formats.zarr_folder import require_chunks
from topicell.errors import InputError
from topicell.memory import Size

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

LARGE = 30_000_000
"""A matrix with more non-zero values than this stays in its file (experiments/scale)."""
ROUNDED = "topicell_rounded"
"""Key of uns: number of values that were rounded to counts."""
N_ROWS = 10_000
"""Number of cells that are read at a time."""


@dataclass(slots=True)
class StoredCounts:
    """The cells of a file without their counts, and where the counts are.

    Attributes
    ----------
    outline
        Cells × genes with obs and var, and zeros instead of counts. Genes may be selected and
        renamed: `POSITION` of var has their columns in the file.
    path
        The file, or the zarr folder.
    where
        Name of the matrix in AnnData, for messages; ``element`` is its place in the file.
    element
        Place of the matrix in the file.
    round_values
        As in `topicell.counts.as_counts`.
    form
        Name of the format, for messages.
    """

    outline: AnnData
    path: Path
    where: str
    element: str
    round_values: bool
    form: str

    @classmethod
    def of(
        cls,
        path: Path,
        layer: str | None,
        *,
        alone: bool = True,
        round_values: bool = False,
        form: str = "h5ad",
    ) -> StoredCounts:
        """Find the counts of a file.

        Parameters
        ----------
        path
            An h5ad file or a zarr folder.
        layer
            As in `topicell.counts.locate`.
        alone
            Leave out obsm, varm and uns.
        round_values, form
            As in the attributes.

        Raises
        ------
        InputError
            obs and var have an old form, or there is no such layer.
        """
        from anndata import AnnData
        from anndata.io import read_elem

        with opened(path) as file:
            if "mod" in file:
                raise InputError("holds modalities, which backed=true cannot read; leave it out")
            if path.is_dir():
                require_chunks(file)
            if not all(hasattr(file.get(name), "keys") for name in ("obs", "var")):
                raise InputError(
                    "has obs and var in an old form (anndata before 0.7), which backed=true cannot "
                    "read; leave out backed=true"
                )
            # `locate` finds the element in this object, which has the attributes of an AnnData,
            # without reading it.
            raw = SimpleNamespace(X=file["raw/X"], var_names=None) if "raw/X" in file else None
            layers = file.get("layers", {})
            where, element, _ = locate(
                SimpleNamespace(X=file.get("X"), layers=layers, raw=raw, var_names=None), layer
            )
            obs, var = _table(file["obs"]), _table(file["raw/var" if where == "raw" else "var"])
            shape = _matrix(element).shape
            if tuple(shape) != (len(obs), len(var)):
                raise InputError(
                    f"{where} has {shape[0]} rows × {shape[1]} columns, but the file names "
                    f"{len(obs)} cells and {len(var)} genes; write it again"
                )
            place = element.name
            kept = () if alone or where == "raw" else ("obsm", "varm", "uns")
            others = {name: read_elem(file[name]) for name in kept if name in file}
        var[POSITION] = np.arange(len(var))
        empty = sp.csr_matrix(shape, dtype=np.float32)
        outline = AnnData(empty, obs=obs, var=var, layers={"counts": empty}, **others)
        # It says that X holds logarithms.
        outline.uns.pop("log1p", None)
        return cls(outline, path, where, place, round_values, form)

    def chunks(self, *, warn: bool = False) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Read the counts of the selected genes: yield the first row of a chunk, and its counts.

        Parameters
        ----------
        warn
            Warn of values that are repeated or were rounded, at the end.

        Raises
        ------
        InputError
            A value is not a count, or the file is damaged.
        """
        columns = self.outline.var[POSITION].to_numpy()
        names = self.outline.var_names
        rounded = 0
        with named_errors(self.path, self.form), opened(self.path) as file:
            matrix = _by_rows(_matrix(file[self.element]))
            every = np.array_equal(columns, np.arange(matrix.shape[1]))
            repeated = 0
            for first in range(0, matrix.shape[0], N_ROWS):
                part = matrix[first : first + N_ROWS]
                if warn:
                    repeated += n_repeated(part)
                    rounded += n_not_whole(part)
                x = as_counts(
                    part, self.where, first_row=first, round_values=self.round_values,
                    genes=names if every else None,
                )  # fmt: skip
                yield first, x if every else x[:, columns]
        if warn:
            warn_of_repeats(repeated, self.where)
            warn_of_rounded(rounded, self.where, self.outline)

    def in_memory(self) -> AnnData:
        """Read all counts, and return the cells with them."""
        adata = self.outline
        x = sp.vstack([x for _, x in self.chunks(warn=True)], format="csr")
        adata.X = adata.layers["counts"] = x
        del adata.var[POSITION]
        return adata


def n_not_whole(matrix: Any) -> int:
    """Return how many values of a matrix are not whole numbers, apart from rounding noise."""
    values = np.asarray(matrix.data if sp.issparse(matrix) else matrix)
    return int((np.abs(values - np.rint(values)) > TOLERANCE).sum())


def warn_of_rounded(n: int, where: str, adata: AnnData) -> None:
    """Warn that `n` values of a matrix were rounded, and keep the number in uns."""
    if n:
        warnings.warn(
            f"{where}: {n} values are not whole and were rounded (round=true)", stacklevel=3
        )
        adata.uns[ROUNDED] = n


def size_of(path: Path, layer: str | None) -> Size | None:
    """Return the size of the counts of an h5ad file, a zarr folder or a 10x HDF5 file.

    It is None for a damaged file, whose reader will say what is wrong, and for another form.
    """
    with contextlib.suppress(Exception), opened(path) as file:
        if "matrix/shape" in file and "obs" not in file:
            n_genes, n_cells = map(int, file["matrix/shape"][()])
            return Size(n_cells, n_genes, int(file["matrix/data"].shape[0]))
        place = layer if layer in ("X", "raw") else f"layers/{layer}"
        if layer is None:
            place = "layers/counts" if "layers/counts" in file else "X"
        element = file["raw/X" if place == "raw" else place]
        n_cells, n_genes = map(int, _matrix(element).shape)
        is_sparse = hasattr(element, "keys")
        n_values = int(element["data"].shape[0]) if is_sparse else n_cells * n_genes
        return Size(n_cells, n_genes, n_values)
    return None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open an h5ad file or a zarr folder to read from it."""
    if path.is_dir():
        import zarr

        yield zarr.open_group(path, mode="r")
        return
    import h5py

    with h5py.File(path, "r") as file:
        yield file


def _matrix(element: Any) -> Any:
    """Return a matrix of a file as an object with a shape that can be sliced by rows."""
    import anndata

    return anndata.io.sparse_dataset(element) if hasattr(element, "keys") else element


def _by_rows(matrix: Any) -> Any:
    """Return a matrix whose rows can be read alone: columns stored one by one are all read."""
    return matrix.to_memory().tocsr() if getattr(matrix, "format", "csr") == "csc" else matrix


def _table(group: Any) -> pd.DataFrame:
    """Return a table; without an index it is numbered, as in anndata."""
    import pandas as pd
    from anndata.io import read_elem

    table = read_elem(group)
    if isinstance(table, pd.DataFrame):
        return table
    table = pd.DataFrame(table)
    return table.set_axis(table.index.astype(str))

"""Counts that stay in a file, h5ad or zarr, and are read in chunks of cells."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from topicell.counts import as_counts, locate
from topicell.data.features import POSITION
from topicell.data.formats.repeats import n_repeated, warn_of_repeats
from topicell.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

LARGE = 30_000_000
"""A matrix with more non-zero values than this stays in its file (experiments/scale)."""
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
    """

    outline: AnnData
    path: Path
    where: str
    element: str
    round_values: bool

    @classmethod
    def of(cls, path: Path, layer: str | None, *, round_values: bool = False) -> StoredCounts:
        """Find the counts of a file.

        Raises
        ------
        InputError
            obs and var have an old form, or there is no such layer.
        """
        from anndata import AnnData

        with opened(path) as file:
            if not all(hasattr(file.get(name), "keys") for name in ("obs", "var")):
                raise InputError(
                    "has obs and var in an old form (anndata before 0.7), which backed=true cannot "
                    "read; leave out backed=true"
                )
            # `locate` finds the element in this object, which has the attributes of an AnnData,
            # without reading it.
            raw = SimpleNamespace(X=file["raw/X"], var_names=None) if "raw" in file else None
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
        var[POSITION] = np.arange(len(var))
        empty = sp.csr_matrix(shape, dtype=np.float32)
        outline = AnnData(empty, obs=obs, var=var, layers={"counts": empty})
        return cls(outline, path, where, place, round_values)

    def chunks(self) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Read the counts of the selected genes: yield the first row of a chunk, and its counts.

        Raises
        ------
        InputError
            A value is not a count.
        """
        columns = self.outline.var[POSITION].to_numpy()
        names = self.outline.var_names
        with opened(self.path) as file:
            matrix = _matrix(file[self.element])
            every = np.array_equal(columns, np.arange(matrix.shape[1]))
            repeated = 0
            for first in range(0, matrix.shape[0], N_ROWS):
                part = matrix[first : first + N_ROWS]
                repeated += n_repeated(part)
                x = as_counts(
                    part, self.where, first_row=first, round_values=self.round_values,
                    genes=names if every else None,
                )  # fmt: skip
                yield first, x if every else x[:, columns]
        warn_of_repeats(repeated, self.where)

    def in_memory(self) -> AnnData:
        """Read all counts."""
        adata = self.outline
        x = sp.vstack([x for _, x in self.chunks()], format="csr")
        adata.X = adata.layers["counts"] = x
        del adata.var[POSITION]
        return adata


def is_large(path: Path, layer: str | None) -> bool:
    """Return whether the counts of a file have more than `LARGE` non-zero values.

    A damaged file, or one in another form, is not large: its reader will say what is wrong.
    """
    with contextlib.suppress(Exception), opened(path) as file:
        place = layer if layer in ("X", "raw") else f"layers/{layer}"
        if layer is None:
            place = "layers/counts" if "layers/counts" in file else "X"
        element = file["raw/X" if place == "raw" else place]
        size = element["data"].shape[0] if hasattr(element, "keys") else np.prod(element.shape)
        return bool(size > LARGE)
    return False


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


def _table(group: Any) -> pd.DataFrame:
    """Return a table; without an index it is numbered, as in anndata."""
    import pandas as pd
    from anndata.io import read_elem

    table = read_elem(group)
    if isinstance(table, pd.DataFrame):
        return table
    table = pd.DataFrame(table)
    return table.set_axis(table.index.astype(str))

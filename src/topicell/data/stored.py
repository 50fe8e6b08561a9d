"""Counts that stay in files, h5ad or zarr, and are read in chunks of cells.

The cells of an annbatch collection are those of its datasets, one after the other; several files
are read one after the other too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import scipy.sparse as sp

from topicell.counts import TOLERANCE, as_counts, locate, other_count_matrices, require_sound
from topicell.data.features import POSITION
from topicell.data.formats.damage import named_errors
from topicell.data.formats.repeats import n_repeated, warn_of_repeats
from topicell.data.formats.zarr_folder import datasets_of, require_chunks
from topicell.errors import InputError, NotInPartsError
from topicell.memory import Size, needed, shortage
from topicell.progress import tracked

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

LARGE = 30_000_000
"""A matrix with more non-zero values than this stays in its file (experiments/scale)."""
N_SAMPLED = 200
"""Number of rows of a dense matrix from which its non-zero values are estimated."""
ROUNDED = "topicell_rounded"
"""Key of uns: number of values that were rounded to counts."""
N_ROWS = 10_000
"""Number of cells that are read at a time."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The counts of some successive cells.

    Attributes
    ----------
    first
        Place of the first cell among the rows of the matrix that is read.
    x
        Cells × selected genes.
    n_repeated, n_rounded
        Numbers of values that were added to others, and that were rounded, if they are looked for.
    """

    first: int
    x: sp.csr_matrix
    n_repeated: int = 0
    n_rounded: int = 0


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """Where some rows of counts are: all that a process needs to read them.

    Attributes
    ----------
    path, file
        The file or the zarr folder, as the user wrote it for messages, and from the root.
    where, element
        Name of the matrix in AnnData, for messages, and its place in the file.
    round_values, form
        As in `StoredCounts.of`.
    names
        Names of all columns of the matrix, for messages.
    columns
        Positions of the selected genes in the file.
    rows
        Positions of the cells in the file.
    n_rows
        Number of cells that are read at a time.
    """

    path: Path
    file: Path
    where: str
    element: str
    round_values: bool
    form: str
    names: np.ndarray
    columns: np.ndarray
    rows: range
    n_rows: int

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, from the root."""
        return (self.file,)

    def chunks(self, *, repairs: bool = False) -> Iterator[Chunk]:
        """Read the counts of the selected genes.

        Parameters
        ----------
        repairs
            Look for values that are repeated or were rounded.

        Raises
        ------
        InputError
            A value is not a count, or the file is damaged.
        """
        with named_errors(self.path, self.form), opened(self.file) as file:
            matrix = _rows(file, self.element, self.where, self.form)
            every = np.array_equal(self.columns, np.arange(matrix.shape[1]))
            for first in self.rows[:: self.n_rows]:
                with _compiled_codecs(self.file):
                    part = matrix[first : min(first + self.n_rows, self.rows.stop)]
                x = as_counts(
                    part,
                    self.where,
                    first_row=first,
                    round_values=self.round_values,
                    genes=self.names,
                    alternatives=lambda: _other_places(file, self.where),
                )
                yield Chunk(
                    first - self.rows.start,
                    x if every else x[:, self.columns],
                    n_repeated(part) if repairs else 0,
                    n_not_whole(part) if repairs and self.round_values else 0,
                )


@dataclass(frozen=True, slots=True)
class JoinedMatrix:
    """The counts of several files, one below the other, with the same genes.

    Attributes
    ----------
    path
        Name of all files together, for messages.
    parts
        For each file, where its counts are, or the counts if they are in memory.
    places
        For each file, the column of the result for each of its genes; -1 for those left out.
    columns
        Positions of the genes of the result: 0, 1, 2, …
    rows
        Positions of the cells among those of all files.
    n_rows
        Number of cells that are read at a time.
    """

    path: str
    parts: tuple[StoredMatrix | sp.csr_matrix, ...]
    places: tuple[np.ndarray, ...]
    columns: np.ndarray
    rows: range
    n_rows: int

    @property
    def files(self) -> tuple[Path, ...]:
        """The files whose counts are not in memory, from the root."""
        return tuple(f for part in self.parts if isinstance(part, StoredMatrix) for f in part.files)

    @property
    def where(self) -> str:
        """Names of the matrices in AnnData, for messages."""
        return ", ".join(dict.fromkeys(p.where for p in self.parts if isinstance(p, StoredMatrix)))

    def chunks(self, *, repairs: bool = False) -> Iterator[Chunk]:
        """Read the counts file by file; see `StoredMatrix.chunks`."""
        start = 0
        for part, place_G in zip(self.parts, self.places, strict=True):
            n_cells = len(part.rows) if isinstance(part, StoredMatrix) else part.shape[0]
            first = max(self.rows.start - start, 0)
            rows = range(first, min(self.rows.stop - start, n_cells))
            if isinstance(part, StoredMatrix):
                found = replace(part, rows=rows, n_rows=self.n_rows).chunks(repairs=repairs)
            else:
                found = (
                    Chunk(row - first, part[row : min(row + self.n_rows, rows.stop)])
                    for row in rows[:: self.n_rows]
                )
            for chunk in found:
                place = start + first + chunk.first - self.rows.start
                yield replace(chunk, first=place, x=self._placed(chunk.x, place_G))
            start += n_cells

    def _placed(self, x: sp.csr_matrix, place_G: np.ndarray) -> sp.csr_matrix:
        """Return counts of the genes of one file as counts of the genes of the result."""
        kept = np.flatnonzero(place_G >= 0)
        if len(kept) < len(place_G):
            x = x[:, kept]
        shape = (x.shape[0], len(self.columns))
        x = sp.csr_matrix((x.data, place_G[kept][x.indices], x.indptr), shape=shape)
        # Faster than to sort each row.
        return x if x.has_sorted_indices else x.tocsc().tocsr()


class Over(Protocol):
    """How a function is computed for all cells: by this process, or by several.

    The function takes some rows of the matrix, the same rows of the arrays `of_cells`, and the
    other arguments. What it yields for all rows comes in the order of the file.
    """

    def __call__(
        self, function: Callable[..., Iterator[Any]], of_cells: Sequence[np.ndarray], *others: Any
    ) -> Iterator[Any]:
        """Yield what the function yields for all cells."""


@dataclass(slots=True)
class StoredCounts:
    """The cells of files without their counts, and where the counts are.

    Attributes
    ----------
    outline
        Cells × genes with obs and var, and zeros instead of counts. Genes may be selected and
        renamed: `POSITION` of var has their columns in the matrix.
    stored
        The counts of all cells; `matrix` has those of the selected genes.
    """

    outline: AnnData
    stored: StoredMatrix | JoinedMatrix
    size: Size | None = None
    """What is known of the size of the matrix."""

    @classmethod
    def of(
        cls,
        path: Path,
        layer: str | None,
        *,
        alone: bool = True,
        round_values: bool = False,
        form: str = "h5ad",
        setting: str = "backed=true",
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
        round_values
            As in `topicell.counts.as_counts`.
        form
            Name of the format, for messages.
        setting
            What asks for a file in parts, for messages.

        Raises
        ------
        InputError
            obs and var have an old form, or there is no such layer.
        """
        found: dict[str, tuple[str, str, AnnData]] = {}
        with opened(path) as file:
            if "mod" in file:
                raise NotInPartsError(
                    f"holds modalities, which {setting} cannot read; leave it out"
                )
            for name, group in _groups(file).items():
                with _named_dataset(name, form):
                    if path.is_dir():
                        require_chunks(group)
                    found[name] = _outline(group, layer, alone=alone, setting=setting)
        where, place, _ = next(iter(found.values()))
        for name, (other, _, _) in found.items():
            if other != where:
                raise InputError(
                    f"the counts are in {where} of {next(iter(found))}, but in {other} of {name}; "
                    "set layer to one that all datasets have"
                )
        outline = _joined({name: part for name, (_, _, part) in found.items()})
        outline.var[POSITION] = np.arange(outline.n_vars)
        matrix = StoredMatrix(
            path=path,
            file=path.absolute(),
            where=where,
            element=place,
            round_values=round_values,
            form=form,
            names=outline.var_names.astype(str).to_numpy(),
            columns=outline.var[POSITION].to_numpy(),
            rows=range(outline.n_obs),
            n_rows=N_ROWS,
        )
        return cls(outline, matrix)

    @property
    def matrix(self) -> StoredMatrix | JoinedMatrix:
        """The counts of all cells and the selected genes."""
        return replace(self.stored, columns=self.outline.var[POSITION].to_numpy())

    def over(
        self, function: Callable[..., Iterator[Any]], of_cells: Sequence[np.ndarray], *others: Any
    ) -> Iterator[Any]:
        """Compute a function for all cells in this process; see `Over`."""
        yield from function(self.matrix, *of_cells, *others)

    def warn_of_repairs(self, repeated: int, rounded: int) -> None:
        """Warn of values that were added to others, and of values that were rounded."""
        warn_of_repeats(repeated, self.stored.where)
        of_others = 0
        if isinstance(self.stored, JoinedMatrix):  # files that were read to memory before
            of_others = self.outline.uns.pop(ROUNDED, 0)
        warn_of_rounded(rounded, self.stored.where, self.outline)
        if of_others:
            self.outline.uns[ROUNDED] = rounded + of_others

    def in_memory(self) -> AnnData:
        """Read all counts, and return the cells with them."""
        adata = self.outline
        if self.size is not None:
            fix = "preprocess.flavor=seurat_v3 can prepare them in parts"
            if lack := shortage(self.size, in_parts=False, fix=fix):
                warnings.warn(f"{self.stored.path}: {lack}", stacklevel=2)
        matrix = self.matrix
        found = matrix.chunks(repairs=True)
        n_cells = len(matrix.rows)
        chunks = list(tracked(found, "reading", n_cells, "cells", size=lambda c: c.x.shape[0]))
        self.warn_of_repairs(
            sum(chunk.n_repeated for chunk in chunks), sum(chunk.n_rounded for chunk in chunks)
        )
        x = sp.vstack([chunk.x for chunk in chunks], format="csr")
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
        sizes = [_size_of(group, layer) for group in _groups(file).values()]
        return Size(
            sum(size.n_cells for size in sizes),
            sizes[0].n_genes,
            sum(size.n_values for size in sizes),
            by_rows=all(size.by_rows for size in sizes),
            dense_bytes=sum(size.dense_bytes for size in sizes),
        )
    return None


def _size_of(file: Any, layer: str | None) -> Size:
    """Return the size of the counts of one AnnData."""
    place = layer if layer in ("X", "raw") else f"layers/{layer}"
    if layer is None:
        place = "layers/counts" if "layers/counts" in file else "X"
    element = file["raw/X" if place == "raw" else place]
    matrix = _matrix(element)
    n_cells, n_genes = map(int, matrix.shape)
    if hasattr(element, "keys"):
        by_rows = matrix.format == "csr"
        return Size(n_cells, n_genes, int(element["data"].shape[0]), by_rows=by_rows)
    rows = np.unique(np.linspace(0, n_cells - 1, min(N_SAMPLED, n_cells)).astype(int))
    share = np.mean([np.count_nonzero(matrix[int(row)]) for row in rows]) / n_genes
    n_bytes = n_cells * n_genes * matrix.dtype.itemsize
    return Size(n_cells, n_genes, int(share * n_cells * n_genes), dense_bytes=n_bytes)


def how_to_fit(size: Size, *, in_parts: bool, can_stay: bool) -> str:
    """Return what to do if there is not enough memory."""
    if in_parts:
        return "use fewer cells or a machine with more memory"
    less = f"{needed(size, in_parts=True) / 2**30:.1f} GiB"
    if can_stay:
        return f"topicell train with data.backed=true prepares them in parts, with about {less}"
    return (
        "write them as h5ad with cells in rows (CSR), which topicell train can prepare in parts "
        f"(data.backed=true) with about {less}"
    )


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


def _groups(file: Any) -> dict[str, Any]:
    """Return each AnnData of a file: the datasets of a collection by name, or the file itself."""
    import h5py

    datasets = {} if isinstance(file, h5py.File) else datasets_of(file)
    return datasets or {"": file}


def _rows(file: Any, element: str, where: str, form: str) -> Any:
    """Return the matrix of a file, or those of a collection as one, to be sliced by rows."""
    matrices = {name: _by_rows(_matrix(group[element])) for name, group in _groups(file).items()}
    return matrices[""] if "" in matrices else _Stacked(matrices, where, form)


def _other_places(file: Any, where: str) -> list[str]:
    """Return the names of other matrices with counts, in the first dataset of a collection."""
    return other_count_matrices(_matrices(next(iter(_groups(file).values()))), where)


class _Stacked:
    """The matrices of the datasets of a collection, one below the other."""

    def __init__(self, matrices: dict[str, Any], where: str, form: str) -> None:
        self._matrices, self._where, self._form = matrices, where, form
        n_cells = sum(int(matrix.shape[0]) for matrix in matrices.values())
        self.shape = (n_cells, int(next(iter(matrices.values())).shape[1]))

    def __getitem__(self, rows: slice) -> Any:
        parts, start = [], 0
        for name, matrix in self._matrices.items():
            first, last = max(rows.start - start, 0), min(rows.stop - start, matrix.shape[0])
            if first < last:
                with _named_dataset(name, self._form):
                    parts.append(matrix[first:last])
                    require_sound(parts[-1], self._where)
            start += matrix.shape[0]
        if len(parts) == 1:
            return parts[0]
        return sp.vstack([sp.csr_matrix(part) for part in parts], format="csr")


@contextlib.contextmanager
def _named_dataset(name: str, form: str) -> Iterator[None]:
    """Begin the message of an error with the name of a dataset; the name of a file is empty."""
    with named_errors(Path(name), form) if name else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _compiled_codecs(path: Path) -> Iterator[None]:
    """Let zarr read the chunks of a folder with zarrs if it is installed (the extra ``scale``)."""
    if path.is_file() or importlib.util.find_spec("zarrs") is None:
        yield
        return
    import zarr

    pipeline = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
    with warnings.catch_warnings(), zarr.config.set(pipeline):
        # It leaves arrays with other codecs to zarr.
        warnings.filterwarnings("ignore", message="Array is unsupported by ZarrsCodecPipeline")
        yield


def _outline(
    file: Any, layer: str | None, *, alone: bool, setting: str
) -> tuple[str, str, AnnData]:
    """Return the name of the counts of an AnnData, their place, and the cells without counts."""
    from anndata import AnnData
    from anndata.io import read_elem

    if not all(hasattr(file.get(name), "keys") for name in ("obs", "var")):
        raise NotInPartsError(
            f"has obs and var in an old form (anndata before 0.7), which {setting} cannot "
            f"read; leave out {setting}"
        )
    # `locate` finds the element in this object, which has the attributes of an AnnData, without
    # reading it.
    where, element, _ = locate(_matrices(file), layer)
    obs, var = _table(file["obs"]), _table(file["raw/var" if where == "raw" else "var"])
    shape = element.shape
    if tuple(shape) != (len(obs), len(var)):
        raise InputError(
            f"{where} has {shape[0]} rows × {shape[1]} columns, but the file names "
            f"{len(obs)} cells and {len(var)} genes; write it again"
        )
    place = "raw/X" if where == "raw" else "X" if where == "X" else _place_of(layer)
    kept = () if alone or where == "raw" else ("obsm", "varm", "uns")
    others = {name: read_elem(file[name]) for name in kept if name in file}
    empty = sp.csr_matrix(shape, dtype=np.float32)
    outline = AnnData(empty, obs=obs, var=var, layers={"counts": empty}, **others)
    # It says that X holds logarithms.
    outline.uns.pop("log1p", None)
    return where, place, outline


def _joined(parts: dict[str, AnnData]) -> AnnData:
    """Return the cells of all datasets, which have the same genes; only obs and var are kept.

    Columns of obs that a dataset lacks are missing for its cells; columns of var are those that
    all datasets have, with the same values.
    """
    import anndata

    (first, outline), *others = parts.items()
    if not others:
        return outline
    var = outline.var
    for name, other in others:
        if not other.var_names.equals(outline.var_names):
            raise InputError(
                f"{name} has other genes than {first} ({_difference(outline, other)}); all "
                "datasets need the same genes in the same order: create the collection again"
            )
        var = var[[c for c in var if c in other.var and other.var[c].equals(var[c])]]
    tables = [anndata.AnnData(obs=part.obs) for part in parts.values()]
    obs = anndata.concat(tables, join="outer").obs
    empty = sp.csr_matrix((len(obs), len(var)), dtype=np.float32)
    return anndata.AnnData(empty, obs=obs, var=var.copy(), layers={"counts": empty})


def _difference(one: AnnData, other: AnnData) -> str:
    """Return the first gene that differs, for a message."""
    for place, (a, b) in enumerate(zip(one.var_names, other.var_names, strict=False)):
        if a != b:
            return f"gene {place + 1} is {b!r} instead of {a!r}"
    return f"{other.n_vars} instead of {one.n_vars}"


def _place_of(layer: str | None) -> str:
    """Return the place of the counts in a file."""
    return f"layers/{'counts' if layer is None else layer}"


def _matrices(file: Any) -> Any:
    """Return the matrices of a file, which are not read, with the attributes of an AnnData."""
    raw = SimpleNamespace(X=_matrix(file["raw/X"]), var_names=None) if "raw/X" in file else None
    kept = file.get("layers", {})
    layers = {name: _matrix(kept[name]) for name in kept}
    x = _matrix(file["X"]) if "X" in file else None
    return SimpleNamespace(X=x, layers=layers, raw=raw, var_names=None)


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

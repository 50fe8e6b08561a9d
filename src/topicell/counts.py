"""Counts: a sparse matrix of whole numbers with the names of its cells and genes.

The model takes cells in this form. `Counts.of` makes it from an AnnData (or any object with its
attributes); it rejects a matrix that does not hold counts, and says where the counts might be.
Needs only numpy and scipy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import scipy.sparse as sp

from topicell.errors import InputError
from topicell.genes import without_version

if TYPE_CHECKING:
    import pandas as pd

MAX_COUNT = 2**24
"""Largest count: up to here, single precision can represent every whole number."""

TOLERANCE = 1e-3
"""A value that differs from a whole number by less than this is that number; the difference is
rounding noise."""

NO_BATCH = ""
"""Batch of cells that are of none of a model's batches."""
CHUNK = 20_000
"""Number of cells of a large matrix that are read at a time."""
COMPRESSED = (sp.csr_matrix, sp.csr_array, sp.csc_matrix, sp.csc_array)
"""Formats of a sparse matrix that store rows, or columns, one after another."""


class LateRows:
    """Rows of counts that are read when they are used.

    The matrix can be a file that is mapped to memory, with any type of numbers; what is read is
    float32. A selection of rows is a list of numbers, so that parts of the cells need no copy.

    Parameters
    ----------
    matrix
        Compressed sparse rows.
    index
        The selected rows, all by default, shape (N,).
    """

    def __init__(self, matrix: sp.csr_matrix, index: np.ndarray | None = None) -> None:
        self.matrix = matrix
        self.index = index
        n_rows = matrix.shape[0] if index is None else len(index)
        self.shape = (int(n_rows), int(matrix.shape[1]))

    @property
    def nnz(self) -> int:
        """Number of stored values."""
        if self.index is None:
            return int(self.matrix.nnz)
        return int(np.diff(self.matrix.indptr)[self.index].sum(dtype=np.int64))

    def __getitem__(self, rows: Any) -> sp.csr_matrix:
        """Read rows, selected by position, slice or mask."""
        if self.index is not None:
            rows = self.index[rows]
        return self.matrix[rows].astype(np.float32, copy=False)

    def read(self) -> sp.csr_matrix:
        """Read all rows; a matrix in memory is not copied."""
        everything = self.matrix if self.index is None else self.matrix[self.index]
        return everything.astype(np.float32, copy=False)

    def of(self, rows: Any) -> LateRows:
        """Return a selection of rows without reading them."""
        index = np.arange(self.shape[0]) if self.index is None else self.index
        return LateRows(self.matrix, index[rows])

    def chunks(self) -> Iterator[sp.csr_matrix]:
        """Read all rows, `CHUNK` at a time."""
        for first in range(0, self.shape[0], CHUNK):
            yield self[first : first + CHUNK]

    def sum(self, axis: int) -> np.ndarray:
        """Return totals in float64: of columns for axis 0, of rows for axis 1."""
        parts = [np.asarray(x.sum(axis, dtype=np.float64)).ravel() for x in self.chunks()]
        if axis == 1:
            return np.concatenate([np.zeros(0), *parts])
        total_G: np.ndarray = np.sum([np.zeros(self.shape[1]), *parts], axis=0)
        return total_G


def drawn(n_cells: int, max_cells: int, seed: int) -> np.ndarray | None:
    """Return the positions of at most `max_cells` drawn cells, ascending; None takes all."""
    if n_cells <= max_cells:
        return None
    return np.sort(np.random.default_rng(seed).choice(n_cells, max_cells, replace=False))


Rows: TypeAlias = sp.csr_matrix | LateRows
"""Counts whose rows can be selected, shape (N, G)."""


def late(rows: Rows) -> LateRows:
    """Return rows that are read when they are used."""
    return rows if isinstance(rows, LateRows) else LateRows(rows)


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of cells × genes.

    Attributes
    ----------
    rows
        Whole, finite, not negative, shape (N, G): compressed sparse rows of float32, or rows that
        are read when they are used.
    cells, genes
        Names, shapes (N,) and (G,).
    ids
        Identifiers of the genes in addition to their names (``var["gene_ids"]``), shape (G,), or
        None.
    batch
        Name of the batch of each cell, shape (N,), or None.
    design, covariates
        Values of the covariates of each cell, shape (N, D), and their names; or None.

    Examples
    --------
    >>> import topicell
    >>> adata = topicell.load_dataset("pbmc68k")
    >>> counts = topicell.Counts.of(adata)
    >>> counts.n_cells, counts.n_genes
    (700, 765)
    >>> counts[:10].x.shape
    (10, 765)
    """

    rows: Rows
    cells: np.ndarray
    genes: np.ndarray
    ids: np.ndarray | None = None
    batch: np.ndarray | None = None
    design: np.ndarray | None = None
    covariates: tuple[str, ...] = ()

    @property
    def x(self) -> sp.csr_matrix:
        """The counts as compressed sparse rows of float32; late rows are all read."""
        return self.rows.read() if isinstance(self.rows, LateRows) else self.rows

    @classmethod
    def of(cls, data: Any, layer: str | None = None, *, round_values: bool = False) -> Self:
        """Return the counts of an AnnData.

        Parameters
        ----------
        data
            AnnData, in memory or backed, with a dense or sparse matrix; or Counts, which are
            returned as they are.
        layer
            Name of the layer, ``"raw"``, or None for ``layers["counts"]`` if there is one, else X.
        round_values
            Round values that are not whole numbers instead of rejecting them.

        Raises
        ------
        InputError
            The layer does not exist, or does not hold counts.

        Examples
        --------
        >>> topicell.Counts.of(adata, layer="counts").genes[:3]
        array(['HES4', 'TNFRSF4', 'SSU72'], dtype=object)
        >>> topicell.Counts.of(adata, layer="umi")
        Traceback (most recent call last):
          ...
        topicell.errors.InputError: layer 'umi' does not exist; layers here: counts
        """
        if isinstance(data, cls):
            return data
        where, matrix, genes = locate(data, layer)
        x = as_counts(
            matrix,
            where,
            genes=genes,
            alternatives=lambda: other_count_matrices(data, where),
            round_values=round_values,
        )
        var = getattr(data.raw if where == "raw" else data, "var", {})
        cells, genes = (np.asarray(names, dtype=object) for names in (data.obs_names, genes))
        return cls(x, cells, genes, ids_of(var))

    def with_batches(self, obs: pd.DataFrame, key: str | None) -> Counts:
        """Return the same cells with the batch that a column of obs names; None leaves them as is.

        Raises
        ------
        InputError
            There is no such column, or it has no value for some cells.

        Examples
        --------
        >>> counts.with_batches(adata.obs, "louvain").batch[:3]
        array(['1', '1', '3'], dtype=object)
        """
        if key is None:
            return self
        if not isinstance(key, str) or key not in obs:
            raise InputError(
                f"batch_key = {key!r}: obs has no such column; found: {', '.join(map(str, obs))}"
            )
        n_missing = int(obs[key].isna().sum())
        if n_missing:
            raise InputError(
                f"batch_key = {key!r}: {n_missing} of {len(obs)} cells have no value; fill the "
                "column, or remove these cells"
            )
        return replace(self, batch=obs[key].astype(str).to_numpy(dtype=object))

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.rows.shape[0])

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return int(self.rows.shape[1])

    @property
    def late(self) -> LateRows:
        """The counts as rows that are read when they are used."""
        return late(self.rows)

    def gene_frequency(self) -> np.ndarray:
        """Return the share of each gene in all counts, shape (G,).

        Examples
        --------
        >>> frequency = counts.gene_frequency()
        >>> counts.genes[frequency.argsort()[-3:]]
        array(['HLA-DRA', 'FTL', 'CD74'], dtype=object)
        """
        total_G = self.late.sum(0)
        frequency_G: np.ndarray = total_G / total_G.sum()
        return frequency_G

    def __getitem__(self, rows: Any) -> Counts:
        """Return a subset of the cells, by index or mask, with their names."""
        chosen = self.rows.of(rows) if isinstance(self.rows, LateRows) else self.rows[rows]
        return replace(
            self,
            rows=chosen,
            cells=self.cells[rows],
            batch=None if self.batch is None else self.batch[rows],
            design=None if self.design is None else self.design[rows],
        )

    def with_genes(
        self,
        genes: Sequence[str] | np.ndarray,
        *,
        ids: Sequence[str] | np.ndarray | None = None,
        fill_missing: bool = False,
    ) -> Counts:
        """Return the same cells with these genes in this order; genes not named are dropped.

        Genes are matched by name or by identifier, whichever finds more: two files of one
        experiment may use symbols and identifiers.

        Parameters
        ----------
        genes
            Names to select, in the order of the result.
        ids
            Their identifiers, if they are known.
        fill_missing
            Use zeros for missing genes instead of raising an error.

        Raises
        ------
        InputError
            Genes are missing (without `fill_missing`), or no gene is found.

        Examples
        --------
        >>> counts.with_genes(["CD79A", "CD3D"]).x.shape
        (700, 2)
        >>> counts.with_genes(["CD79A", "NO_GENE"], fill_missing=True).x.sum(axis=0)
        matrix([[993.,   0.]], dtype=float32)
        """
        wanted = np.asarray(genes, dtype=object)
        if np.array_equal(wanted, self.genes):
            return self
        source = self._places(wanted, ids)
        found = np.flatnonzero(source >= 0)
        missing = [str(name) for name in wanted[source < 0]]
        if missing and (not fill_missing or not len(found)):
            shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise InputError(
                f"{len(missing)} of the model's {len(wanted)} genes are not in the data ({shown}); "
                + (
                    "pass fill_missing=true to count them as zero, which makes the topics of the "
                    "cells less reliable the more genes are missing"
                    if len(found)
                    else "check that both have the same kind of gene names (symbols or Ensembl ids)"
                )
            )
        selection = sp.csr_matrix(
            (np.ones(len(found), np.float32), (source[found], found)),
            shape=(self.n_genes, len(wanted)),
        )
        chosen = None if ids is None else np.asarray(ids, dtype=object)
        x = (self.x @ selection).tocsr()
        return replace(self, rows=x, genes=wanted, ids=chosen)

    def n_missing(
        self, genes: Sequence[str] | np.ndarray, ids: Sequence[str] | np.ndarray | None = None
    ) -> int:
        """Return how many of these genes are missing, by name or by identifier.

        Examples
        --------
        >>> counts.n_missing(["CD79A", "NO_GENE"])
        1
        """
        return int((self._places(genes, ids) < 0).sum())

    def _places(
        self, genes: Sequence[str] | np.ndarray, ids: Sequence[str] | np.ndarray | None
    ) -> np.ndarray:
        return gene_places(genes, ids, self.genes, self.ids)


Names: TypeAlias = Sequence[str] | np.ndarray
"""Names or identifiers of genes; an empty one is not known."""


def gene_places(genes: Names, ids: Names | None, here: Names, ids_here: Names | None) -> np.ndarray:
    """Return the position of each gene among those of other data, -1 if it is missing, shape (G,).

    Genes are matched by name or by identifier, whichever finds more; versions of identifiers may
    differ.

    Parameters
    ----------
    genes, ids
        Names of the genes, and their identifiers if they are known.
    here, ids_here
        Those of the other data.
    """
    best = np.full(len(genes), -1)
    # If both ways find equally many genes, the first is used: names before identifiers.
    for wanted, names in product((genes, ids), (here, ids_here)):
        if wanted is None or names is None:
            continue
        position = {without_version(str(name)): i for i, name in reversed(list(enumerate(names)))}
        position |= {str(name): i for i, name in reversed(list(enumerate(names)))}
        position.pop("", None)
        places = np.array(
            [position.get(n, position.get(without_version(n), -1)) for n in map(str, wanted)]
        )
        found = places[places >= 0]
        if len(np.unique(found)) == len(found) > (best >= 0).sum():
            best = places
    return best


def corrected(x_NG: sp.csr_matrix, batch_N: np.ndarray, factor_SG: np.ndarray) -> sp.csr_matrix:
    """Return counts divided by the factor of their gene in their batch."""
    factor = factor_SG[batch_N.repeat(np.diff(x_NG.indptr)), x_NG.indices]
    values = (x_NG.data / factor).astype(x_NG.dtype)
    return sp.csr_matrix((values, x_NG.indices, x_NG.indptr), shape=x_NG.shape)


def locate(data: Any, layer: str | None) -> tuple[str, Any, Any]:
    """Return the name of a matrix of an AnnData for messages, the matrix, and its gene names."""
    if layer is None:
        layer = "counts" if "counts" in data.layers else "X"
    if layer == "X":
        if data.X is None:
            raise InputError(
                f"X is empty; name the layer that holds counts (here: {layer_names(data)})"
            )
        return "X", data.X, data.var_names
    if layer == "raw":
        if data.raw is None:
            raise InputError("layer 'raw': the AnnData has no raw; leave the layer out to use X")
        return "raw", data.raw.X, data.raw.var_names
    if layer not in data.layers:
        here = ", ".join(layer_names(data)) or "none"
        raise InputError(f"layer {layer!r} does not exist; layers here: {here}")
    return f"layers[{layer!r}]", data.layers[layer], data.var_names


def ids_of(var: Any) -> np.ndarray | None:
    """Return the identifiers of genes as text, "nan" where one is missing, if there are any."""
    return np.array([*map(str, var["gene_ids"])], dtype=object) if "gene_ids" in var else None


def layer_names(data: Any) -> list[str]:
    """Return the names of the layers of an AnnData, sorted; since anndata 0.13, None names X."""
    return sorted(name for name in data.layers if name is not None)


def as_counts(
    matrix: Any,
    where: str,
    *,
    genes: Any = None,
    first_row: int = 0,
    alternatives: Callable[[], list[str]] = list,
    round_values: bool = False,
) -> sp.csr_matrix:
    """Return a matrix as compressed sparse rows of float32, if it holds counts.

    Parameters
    ----------
    matrix
        Dense or sparse, or backed by a file (anything with ``to_memory`` or ``__array__``).
    where
        Name of the matrix, for messages.
    genes
        Gene names, for messages.
    first_row
        Number of the first row, for messages, if the matrix is a part of another.
    alternatives
        Finds the places where counts might be instead, for messages.
    round_values
        Round values that are not whole numbers (corrected or expected counts) instead of rejecting
        them. Values within `TOLERANCE` of a whole number are always rounded.

    Raises
    ------
    InputError
        The matrix is not two-dimensional, empty, damaged or does not hold numbers; a value is NaN,
        infinite, negative, not whole or too large for single precision; or values to be rounded are
        normalised.
    """
    if hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    if not sp.issparse(matrix):
        matrix = np.asarray(matrix)
    if matrix.ndim != 2:
        raise InputError(f"{where} has {matrix.ndim} dimensions; counts are cells × genes")
    require_sound(matrix, where)
    if 0 in matrix.shape:
        raise InputError(
            f"{where} is empty: {matrix.shape[0]} cells × {matrix.shape[1]} genes; check the file"
        )
    if matrix.dtype.kind not in "biuf":
        raise InputError(f"{where} holds {matrix.dtype} values, not numbers")
    # scipy.sparse supports neither half precision nor a foreign byte order.
    known = np.dtype(np.float32 if matrix.dtype == np.float16 else matrix.dtype.newbyteorder("="))
    if known != matrix.dtype:
        matrix = matrix.astype(known)
    if isinstance(matrix, COMPRESSED):
        # Convert indices, which may be unsigned in a file, to a type that scipy can use.
        parts = (matrix.data, matrix.indices, matrix.indptr)
        matrix = type(matrix)(parts, shape=matrix.shape)
    x = sp.csr_matrix(matrix)
    x.prune()
    if sp.issparse(matrix) and not x.has_canonical_format:
        # Use double precision: small integer types overflow when they are added.
        x = x.astype(np.float64)
        x.sum_duplicates()
    whole, off = x.data, np.zeros(x.nnz, dtype=bool)
    if x.data.dtype.kind == "f":
        whole = np.rint(x.data)
        with np.errstate(invalid="ignore"):
            off = np.abs(x.data - whole) > TOLERANCE
    if round_values and off.any():
        _require_not_normalised(x, where)
        off = np.zeros(x.nnz, dtype=bool)
    for bad, what, fix in (
        (np.isnan(x.data), "NaN", "missing counts must be removed or set to 0"),
        (np.isinf(x.data), "infinite", "counts are finite"),
        (whole < 0, "negative", "scaled or corrected values are not counts"),
        (off, "not whole", _whole_fix(x)),
        (x.data > MAX_COUNT, f"above {MAX_COUNT}", "no cell has so many molecules of one gene"),
    ):
        if bad.any():
            entry = int(np.argmax(bad))
            row = int(np.searchsorted(x.indptr, entry, side="right") - 1)
            column = int(x.indices[entry])
            places = alternatives()
            hint = f"; counts may be in {' or '.join(places)}" if places else ""
            if not places and where == "X":
                hint = "; no other place in the data holds counts"
            gene = f"gene {genes[column]}" if genes is not None else f"column {column}"
            raise InputError(
                f"{where}: {int(bad.sum())} values are {what} (first: {x.data[entry]:.10g} in row "
                f"{first_row + row}, {gene}); {fix}{hint}"
            )
    x = sp.csr_matrix((whole.astype(np.float32), x.indices, x.indptr), shape=x.shape)
    x.eliminate_zeros()
    return x


def require_sound(matrix: Any, where: str) -> None:
    """Reject compressed rows or columns whose indices are out of range.

    scipy does not check them: its compiled loops would read and write foreign memory. Its own
    `check_format` stops early if the last row ends at 0.

    Raises
    ------
    InputError
        The index arrays do not belong to the matrix.
    """
    if not isinstance(matrix, COMPRESSED):
        return
    n_major, n_minor = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
    data, indices, indptr = matrix.data, matrix.indices, matrix.indptr
    sound = (
        data.ndim == indices.ndim == indptr.ndim == 1
        and {indices.dtype.kind, indptr.dtype.kind} <= {"i", "u"}
        and len(indptr) == n_major + 1
        and indptr[0] == 0
        and bool((indptr[1:] >= indptr[:-1]).all())
        and len(indices) == len(data) >= indptr[-1]
        and (not len(indices) or 0 <= indices.min() <= indices.max() < n_minor)
    )
    if not sound:
        raise InputError(
            f"{where} is damaged: its {matrix.format} indices do not match its shape "
            f"{matrix.shape}; write it again"
        )


def _whole_fix(x: sp.csr_matrix) -> str:
    if kind := _normalisation(x):
        return f"they look {kind}, but the model needs raw counts"
    if x.data.size and np.nanmax(x.data) < 20:
        return (
            "they look log-normalised, but the model needs raw counts; only if they are corrected "
            "or expected counts, use round=true (topicell train: data.round=true) to round them"
        )
    return (
        "the model needs raw counts; if these are corrected or expected counts (from SoupX, "
        "CellBender, RSEM or salmon), use round=true (topicell train: data.round=true) to round "
        "them"
    )


def _normalisation(x: sp.csr_matrix) -> str:
    """Return how values are normalised if all cells have the same total; else an empty text."""
    logged = np.expm1(np.minimum(x.data, 80.0))
    for kind, values in (("normalised", x.data), ("log-normalised", logged)):
        totals = np.asarray(
            sp.csr_matrix((values, x.indices, x.indptr), shape=x.shape).sum(1, dtype=np.float64)
        ).ravel()
        totals = totals[totals > 0]
        if len(totals) > 2 and np.ptp(totals) < 1e-3 * totals.max():
            return kind
    return ""


def _require_not_normalised(x: sp.csr_matrix, where: str) -> None:
    if kind := _normalisation(x):
        raise InputError(
            f"{where}: round=true is for corrected or expected counts, but these values are "
            f"{kind}: all cells have the same total; give the raw counts"
        )


def other_count_matrices(data: Any, where: str) -> list[str]:
    """Return the names of matrices of an AnnData whose first rows hold counts."""
    candidates = {name: data.layers[name] for name in data.layers if name is not None}
    if data.X is not None:
        candidates["X"] = data.X
    if data.raw is not None:
        candidates["raw"] = data.raw.X
    found = []
    for name, matrix in candidates.items():
        if where in (name, f"layers[{name!r}]"):
            continue
        try:
            require_sound(matrix, name)
        except InputError:
            continue
        head = matrix[: min(100, matrix.shape[0])]
        values = head.data if sp.issparse(head) else np.asarray(head)
        if values.dtype.kind not in "biuf" or not values.any():
            continue
        if bool(((values >= 0) & (values == np.floor(values))).all()):
            found.append(f"layer {name!r}")
    return found

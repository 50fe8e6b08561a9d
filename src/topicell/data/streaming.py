"""Preprocess counts that stay in a file, with the result of `topicell.data.preprocessing`.

`Selection` chooses variable genes by ``seurat_v3``, also if the counts are in memory. The file is
read three times: for the totals of cells and the moments of genes, for library sizes
and the clipped sums of ``seurat_v3``, and for the counts of the chosen genes. The log-normalised
values of all genes are never in memory. In each pass, a function of some rows of the file yields
partial results, which are combined in the order of the file: `topicell.data.stored.Over` says which
process computes them.

Shape suffixes: N cells, G genes, B batches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy.sparse as sp

from topicell.config import Flavor, PreprocessConfig
from topicell.data import mapped
from topicell.data.features import POSITION
from topicell.data.stored import N_ROWS, JoinedMatrix
from topicell.progress import tracked

if TYPE_CHECKING:
    from topicell.data.stored import Chunk, Over, StoredCounts, StoredMatrix


N_EXPRESSED = "topicell_n_expressed"
"""Key of uns: number of genes that passed the filters; without it, ``raw`` has them."""
EMPTY = "Some cells have zero counts"
"""The warning of scanpy about cells without counts."""


@dataclass(slots=True)
class Moments:
    """Sums over the cells of each batch, which whole numbers make exact: (B, G)."""

    n_B: np.ndarray
    sum_BG: np.ndarray
    squares_BG: np.ndarray
    n_cells_G: np.ndarray
    """Number of cells with a count of the gene, shape (G,)."""
    greatest: int = 0
    """The largest count."""

    @classmethod
    def zero(cls, n_batches: int, n_genes: int) -> Moments:
        """Return the moments of no cells."""
        sum_BG, squares_BG = np.zeros((2, n_batches, n_genes))
        return cls(np.zeros(n_batches), sum_BG, squares_BG, np.zeros(n_genes, dtype=np.int64))

    def add(self, other: Moments) -> None:
        """Add the moments of other cells."""
        self.n_B += other.n_B
        self.sum_BG += other.sum_BG
        self.squares_BG += other.squares_BG
        self.n_cells_G += other.n_cells_G
        self.greatest = max(self.greatest, other.greatest)

    def of(self, batches: np.ndarray, genes: np.ndarray) -> Moments:
        """Return the moments of some batches and genes."""
        some = np.ix_(batches, genes)
        return Moments(
            self.n_B[batches],
            self.sum_BG[some],
            self.squares_BG[some],
            self.n_cells_G[genes],
            self.greatest,
        )

    @property
    def mean_BG(self) -> np.ndarray:
        """Mean counts."""
        mean_BG: np.ndarray = self.sum_BG / self.n_B[:, None]
        return mean_BG

    @property
    def variance_BG(self) -> np.ndarray:
        """Unbiased variances, computed as scanpy does."""
        variance_BG = self.squares_BG / self.n_B[:, None] - self.mean_BG**2
        n_B1 = self.n_B[:, None]
        unbiased: np.ndarray = variance_BG * np.where(n_B1 == 1, 1, n_B1 / np.maximum(n_B1 - 1, 1))
        return unbiased


def first_pass(
    stored: StoredCounts, over: Over, min_counts: float, batch_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Moments]:
    """Return the total and the number of genes of each cell, and the moments of the kept cells.

    Parameters
    ----------
    stored, over
        The counts, and how functions of them are computed.
    min_counts
        Fewest counts of a cell.
    batch_N
        Number of the batch of each cell, from 0; −1 for cells without one.
    """
    n_batches = int(batch_N.max(initial=0)) + 1
    depths, moments = [], Moments.zero(n_batches, stored.outline.n_vars)
    repeated = rounded = 0
    for part in over(_totals_and_moments, (batch_N,), min_counts, n_batches):
        depths.append(part[0])
        moments.add(part[1])
        repeated, rounded = repeated + part[2], rounded + part[3]
    stored.warn_of_repairs(repeated, rounded)
    total_N, n_genes_N = np.concatenate(depths, axis=1)
    return total_N, n_genes_N, moments


def _chunks(
    matrix: StoredMatrix | JoinedMatrix, name: str, *, repairs: bool = False
) -> Iterator[Chunk]:
    """Read the counts of the selected genes, and show how many cells are read."""
    chunks = matrix.chunks(repairs=repairs)
    return tracked(chunks, name, len(matrix.rows), "cells", size=lambda chunk: chunk.x.shape[0])


def _totals_and_moments(
    matrix: StoredMatrix | JoinedMatrix, batch_N: np.ndarray, min_counts: float, n_batches: int
) -> Iterator[tuple[np.ndarray, Moments, int, int]]:
    """Yield totals and numbers of genes, moments, and numbers of repeated and rounded values."""
    n_genes = len(matrix.columns)
    depth_2N, moments = np.zeros((2, len(matrix.rows))), Moments.zero(n_batches, n_genes)
    total_N = depth_2N[0]
    repeated = rounded = 0
    for chunk in _chunks(matrix, "totals of cells and genes", repairs=True):
        x, rows = chunk.x, slice(chunk.first, chunk.first + chunk.x.shape[0])
        repeated, rounded = repeated + chunk.n_repeated, rounded + chunk.n_rounded
        depth_2N[:, rows] = np.asarray(x.sum(1)).ravel(), np.diff(x.indptr)
        kept = total_N[rows] >= min_counts
        x, batch = x[kept], batch_N[rows][kept]
        moments.greatest = max(moments.greatest, int(x.data.max(initial=0)))
        moments.n_cells_G += np.bincount(x.indices, minlength=n_genes)
        for number in np.unique(batch[batch >= 0]):
            of_batch = x[batch == number]
            values = of_batch.data.astype(np.float64)
            moments.n_B[number] += of_batch.shape[0]
            for sums_BG, added in ((moments.sum_BG, values), (moments.squares_BG, values**2)):
                sums_BG[number] += np.bincount(of_batch.indices, added, minlength=n_genes)
    yield depth_2N, moments, repeated, rounded


@dataclass(slots=True)
class Selection:
    """The choice of variable genes by ``seurat_v3`` (Stuart et al. 2019), as in scanpy.

    The means that LOESS receives are exact, so genes with the same sum have the same mean. scanpy
    1.12 adds the counts of a batch one by one: such genes then differ in the last digit, by which
    LOESS, which divides the genes by their means, changes variances by up to 0.5 % (150 cells).

    Attributes
    ----------
    over
        How functions of the counts are computed.
    cells
        Which cells are kept, shape (N,).
    batch_N
        Number of the batch of each cell.
    moments
        Moments of the candidates.
    candidates
        Positions of the genes that can be chosen, among those of the file that are selected.
    """

    over: Over
    cells: np.ndarray
    batch_N: np.ndarray
    moments: Moments
    candidates: np.ndarray

    @classmethod
    def in_memory(cls, counts: sp.csr_matrix, batch_N: np.ndarray) -> Selection:
        """Return the choice among all genes of counts in memory."""
        n_cells, n_genes = counts.shape
        genes = np.arange(n_genes)
        matrix = JoinedMatrix("", (counts,), (genes,), genes, range(n_cells), N_ROWS)

        def over(
            function: Callable[..., Iterator[Any]], of_cells: Sequence[np.ndarray], *others: Any
        ) -> Iterator[Any]:
            yield from function(matrix, *of_cells, *others)

        [(_, moments, _, _)] = over(_totals_and_moments, (batch_N,), 0, int(batch_N.max()) + 1)
        return cls(over, np.ones(n_cells, dtype=bool), batch_N, moments, genes)

    def variable(self, config: PreprocessConfig, span: float) -> np.ndarray:
        """Return which candidates are chosen; reads the file once.

        Raises
        ------
        ValueError
            The matrix of the LOESS is singular.
        """
        assert config.n_variable_genes is not None
        mean_BG, n_B1 = self.moments.mean_BG, self.moments.n_B[:, None]
        deviation_BG = expected_deviation(self.moments, span)
        sum_BG, squares_BG = self._clipped_sums(deviation_BG * np.sqrt(n_B1) + mean_BG)
        normalised_BG = (1 / ((n_B1 - 1) * np.square(deviation_BG))) * (
            (n_B1 * np.square(mean_BG)) + squares_BG - 2 * sum_BG * mean_BG
        )
        return ranked(normalised_BG, config.n_variable_genes, config.flavor)

    def _clipped_sums(self, clip_BG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return sums and sums of squares of counts that are clipped from above, (B, G).

        Within the rows of a partial result, values are added one by one in the order of the file,
        as scanpy does: if this process reads all rows, the last digits are the same.
        """
        sums_2BG = np.zeros((2, *clip_BG.shape))
        of_cells = (self.cells, self.batch_N)
        for part_2BG in self.over(_clipped_sums, of_cells, self.candidates, clip_BG):
            sums_2BG += part_2BG
        return sums_2BG[0], sums_2BG[1]


def _clipped_sums(
    matrix: StoredMatrix | JoinedMatrix,
    cells: np.ndarray,
    batch_N: np.ndarray,
    candidates: np.ndarray,
    clip_BG: np.ndarray,
) -> Iterator[np.ndarray]:
    """Yield sums and sums of squares of clipped counts, (2, B, G)."""
    sums_2BG = np.zeros((2, *clip_BG.shape))
    for chunk in _chunks(matrix, "variable genes"):
        rows = slice(chunk.first, chunk.first + chunk.x.shape[0])
        x = chunk.x[cells[rows]][:, candidates]
        batch = batch_N[rows][cells[rows]]
        for number in np.unique(batch):
            of_batch = x[batch == number]
            genes = of_batch.indices
            values = np.minimum(of_batch.data.astype(np.float64), clip_BG[number][genes])
            np.add.at(sums_2BG[0, number], genes, values)
            np.add.at(sums_2BG[1, number], genes, values**2)
    yield sums_2BG


def write_selected(
    path: str | Path,
    stored: StoredCounts,
    over: Over,
    cells: np.ndarray,
    expressed: np.ndarray,
    chosen: np.ndarray,
    moments: Moments,
    target_sum: float | None,
) -> None:
    """Write kept cells × chosen genes: counts, and X log-normalised by all expressed genes.

    Reads the counts once; without a target sum, once more for the median of the library sizes.

    Parameters
    ----------
    path
        The file, in the form of `topicell.data.mapped`.
    stored, over
        The counts, and how functions of them are computed.
    cells
        Which cells are kept, shape (N,).
    expressed, chosen
        Positions of the genes that passed the filters, and of those that are modelled.
    moments
        Moments of all genes.
    target_sum
        Library size to which values are scaled; None is the median.
    """
    from anndata import AnnData

    if target_sum is None:
        size_N = np.concatenate(list(over(_library_sizes, (cells,), expressed)))
        target_sum = float(np.median(size_N[size_N > 0]))
    kept = stored.outline[cells, chosen].copy()
    outline = AnnData(
        obs=kept.obs,
        var=kept.var.drop(columns=POSITION),
        uns=dict(kept.uns) | {N_EXPRESSED: len(expressed)},
        obsm=dict(kept.obsm),
        varm=dict(kept.varm),
    )
    places = np.searchsorted(expressed, chosen)
    parts = over(_selected, (cells,), expressed, places, target_sum)
    n_values = int(moments.n_cells_G[chosen].sum())
    mapped.write(path, outline, _with_one_warning(parts), n_values, moments.greatest)


def _library_sizes(
    matrix: StoredMatrix | JoinedMatrix, cells: np.ndarray, expressed: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the totals of the kept cells of each chunk."""
    for chunk in _chunks(matrix, "library sizes"):
        x = chunk.x[cells[chunk.first : chunk.first + chunk.x.shape[0]]]
        yield np.asarray(x[:, expressed].sum(1)).ravel()


def _selected(
    matrix: StoredMatrix | JoinedMatrix,
    cells: np.ndarray,
    expressed: np.ndarray,
    places: np.ndarray,
    target_sum: float,
) -> Iterator[tuple[sp.csr_matrix, sp.csr_matrix, bool]]:
    """Yield counts and log-normalised values of the kept cells of each chunk.

    The third value is whether there is a cell without counts.
    """
    import scanpy as sc
    from anndata import AnnData

    for chunk in _chunks(matrix, "counts of the chosen genes"):
        x = chunk.x[cells[chunk.first : chunk.first + chunk.x.shape[0]]]
        if not x.shape[0]:
            continue
        part = AnnData(x[:, expressed])
        counts = part.X[:, places]
        has_empty = bool((np.asarray(part.X.sum(1)) == 0).any())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=EMPTY)
            sc.pp.normalize_total(part, target_sum=target_sum)
        sc.pp.log1p(part)
        yield counts, part.X[:, places], has_empty


def _with_one_warning(
    parts: Iterable[tuple[sp.csr_matrix, sp.csr_matrix, bool]],
) -> Iterator[tuple[sp.csr_matrix, sp.csr_matrix]]:
    """Yield counts and values; at the first cell without counts, give scanpy's warning."""
    warned = False
    for counts, values, has_empty in parts:
        if has_empty and not warned:
            warnings.warn(EMPTY, stacklevel=2)
            warned = True
        yield counts, values


def expected_deviation(moments: Moments, span: float) -> np.ndarray:
    """Return the standard deviation that the mean of a gene lets expect, by LOESS, (B, G).

    Raises
    ------
    ValueError
        The matrix of the LOESS is singular.
    """
    from skmisc.loess import loess

    deviation_BG = np.ones_like(moments.sum_BG)
    for deviation_G, mean_G, variance_G in zip(
        deviation_BG, moments.mean_BG, moments.variance_BG, strict=True
    ):
        varies = variance_G > 0
        model = loess(np.log10(mean_G[varies]), np.log10(variance_G[varies]), span=span, degree=2)
        model.fit()
        deviation_G[varies] = np.sqrt(10**model.outputs.fitted_values)
    return deviation_BG


def ranked(normalised_BG: np.ndarray, n_genes: int, flavor: Flavor) -> np.ndarray:
    """Return which genes have the largest normalised variance, as scanpy ranks them, (G,)."""
    import pandas as pd

    rank_BG = np.argsort(np.argsort(-normalised_BG, axis=1), axis=1).astype(np.float32)
    n_batches_G = (rank_BG < n_genes).sum(axis=0)
    rank_BG[rank_BG >= n_genes] = np.nan
    median = cast(Any, np.ma.median)
    median_G = median(np.ma.masked_invalid(rank_BG), axis=0).filled(np.nan)
    by = {"rank": median_G, "batches": n_batches_G}
    columns = ["rank", "batches"] if flavor is Flavor.seurat_v3 else ["batches", "rank"]
    table = pd.DataFrame(by).sort_values(
        columns, ascending=[name == "rank" for name in columns], na_position="last"
    )
    chosen = np.zeros(normalised_BG.shape[1], dtype=bool)
    chosen[table.index[:n_genes]] = True
    return chosen

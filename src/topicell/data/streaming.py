"""Preprocess counts that stay in a file, with the result of `topicell.data.preprocessing`.

The file is read three times: for the totals of cells and the moments of genes, for library sizes
and the clipped sums of ``seurat_v3``, and for the counts of the chosen genes. The log-normalised
values of all genes are never in memory.

Shape suffixes: N cells, G genes, B batches.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import scipy.sparse as sp

from topicell.config import Flavor, PreprocessConfig
from topicell.data import mapped
from topicell.data.features import POSITION

if TYPE_CHECKING:
    from topicell.data.stored import StoredCounts


N_EXPRESSED = "topicell_n_expressed"
"""Key of uns: number of genes that passed the filters; without it, ``raw`` has them."""


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
    stored: StoredCounts, min_counts: float, batch_N: np.ndarray
) -> tuple[np.ndarray, Moments]:
    """Return the total of each cell, and the moments of the cells with enough counts.

    Parameters
    ----------
    stored
        The counts.
    min_counts
        Fewest counts of a cell.
    batch_N
        Number of the batch of each cell, from 0; −1 for cells without one.
    """
    n_cells, n_genes = stored.outline.shape
    n_batches = int(batch_N.max(initial=0)) + 1
    total_N = np.zeros(n_cells)
    moments = Moments(
        np.zeros(n_batches),
        np.zeros((n_batches, n_genes)),
        np.zeros((n_batches, n_genes)),
        np.zeros(n_genes, dtype=np.int64),
    )
    for first, x in stored.chunks(warn=True):
        rows = slice(first, first + x.shape[0])
        total_N[rows] = np.asarray(x.sum(1)).ravel()
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
    return total_N, moments


@dataclass(slots=True)
class Selection:
    """The choice of variable genes by ``seurat_v3`` (Stuart et al. 2019), as in scanpy.

    Attributes
    ----------
    stored
        The counts.
    cells
        Which cells are kept, shape (N,).
    batch_N
        Number of the batch of each cell.
    moments
        Moments of the candidates.
    candidates
        Positions of the genes that can be chosen, among those of `stored`.
    """

    stored: StoredCounts
    cells: np.ndarray
    batch_N: np.ndarray
    moments: Moments
    candidates: np.ndarray

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

        Values are added one by one in the order of the file, as scanpy does, so that the last
        digits are the same.
        """
        sum_BG, squares_BG = np.zeros_like(clip_BG), np.zeros_like(clip_BG)
        for first, x in self.stored.chunks():
            rows = slice(first, first + x.shape[0])
            x = x[self.cells[rows]][:, self.candidates]
            batch = self.batch_N[rows][self.cells[rows]]
            for number in np.unique(batch):
                of_batch = x[batch == number]
                genes = of_batch.indices
                values = np.minimum(of_batch.data.astype(np.float64), clip_BG[number][genes])
                np.add.at(sum_BG[number], genes, values)
                np.add.at(squares_BG[number], genes, values**2)
        return sum_BG, squares_BG


def write_selected(
    path: str | Path,
    stored: StoredCounts,
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
    stored
        The counts.
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
        sizes = [
            np.asarray(x[cells[first : first + x.shape[0]]][:, expressed].sum(1)).ravel()
            for first, x in stored.chunks()
        ]
        size_N = np.concatenate(sizes)
        target_sum = float(np.median(size_N[size_N > 0]))
    kept = stored.outline[cells, chosen].copy()
    outline = AnnData(
        obs=kept.obs,
        var=kept.var.drop(columns=POSITION),
        uns=dict(kept.uns) | {N_EXPRESSED: len(expressed)},
        obsm=dict(kept.obsm),
        varm=dict(kept.varm),
    )
    parts = _selected(stored, cells, expressed, np.searchsorted(expressed, chosen), target_sum)
    mapped.write(path, outline, parts, int(moments.n_cells_G[chosen].sum()), moments.greatest)


def _selected(
    stored: StoredCounts,
    cells: np.ndarray,
    expressed: np.ndarray,
    places: np.ndarray,
    target_sum: float,
) -> Iterator[tuple[sp.csr_matrix, sp.csr_matrix]]:
    """Yield counts and log-normalised values of the kept cells of each chunk."""
    import scanpy as sc
    from anndata import AnnData

    warned = False
    for first, x in stored.chunks():
        x = x[cells[first : first + x.shape[0]]]
        if not x.shape[0]:
            continue
        part = AnnData(x[:, expressed])
        counts = part.X[:, places]
        has_empty = bool((np.asarray(part.X.sum(1)) == 0).any())
        with warnings.catch_warnings():
            if warned:  # it says once that cells have no counts
                warnings.filterwarnings("ignore", message="Some cells have zero counts")
            sc.pp.normalize_total(part, target_sum=target_sum)
        warned |= has_empty
        sc.pp.log1p(part)
        yield counts, part.X[:, places]


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

"""Mini-batches: shuffled cells on the device of the computation, sparse or dense.

Counts stay compressed on the device during the whole fit, so memory grows with the non-zeros. Many
mini-batches are gathered at a time; each mini-batch is then a few slices.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from topicell.counts import Rows, corrected, late

SPARSE_BELOW = 0.2
"""Share of non-zeros below which computing only with them is faster (`experiments/speed`)."""
GATHERED_CELLS = 8192
"""Cells gathered at a time, at least one mini-batch."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a model knows of cells besides their counts.

    Attributes
    ----------
    batch_N
        Number of the batch of each cell, below S; the last one, S − 1, is for cells of no known
        batch. None without batches.
    factor_SG
        The counts of a gene in a batch are divided by its factor before the encoder reads them.
    design_ND
        Values of the covariates of each cell, or None.
    """

    batch_N: np.ndarray | None = None
    factor_SG: np.ndarray | None = None
    design_ND: np.ndarray | None = None

    def one_hot(self, rows: np.ndarray, like: Tensor) -> Tensor | None:
        """Return 1 at the batch of each cell and 0 elsewhere, shape (B, S)."""
        if self.batch_N is None or self.factor_SG is None:
            return None
        one_hot_BS = np.zeros((len(rows), len(self.factor_SG)), np.float32)
        one_hot_BS[np.arange(len(rows)), self.batch_N[rows]] = 1
        return torch.from_numpy(one_hot_BS).to(like)

    def design(self, rows: np.ndarray, like: Tensor) -> Tensor | None:
        """Return the covariates of cells, shape (B, D)."""
        return None if self.design_ND is None else torch.from_numpy(self.design_ND[rows]).to(like)

    def without_factors(self, x_NG: sp.csr_matrix, rows: np.ndarray) -> sp.csr_matrix:
        """Return counts of cells, divided by the factors of their batches if there are any."""
        if self.batch_N is None or self.factor_SG is None:
            return x_NG
        return corrected(x_NG, self.batch_N[rows], self.factor_SG)


NOTHING_GIVEN = Given()


@dataclass(frozen=True, slots=True)
class DenseBatch:
    """Cells as a dense matrix: counts of shape (B, G).

    ``one_hot`` has the batches of the cells, shape (B, S), if the model has batches; ``design``
    their covariates, (B, D), if it has any.
    """

    counts: Tensor
    one_hot: Tensor | None = None
    design: Tensor | None = None

    @property
    def n_cells(self) -> int:
        """B."""
        return len(self.counts)


@dataclass(frozen=True, slots=True)
class Compressed:
    """The non-zeros of a matrix, row by row: where each row starts, and the column of each."""

    starts: Tensor
    columns: Tensor
    shape: tuple[int, int]

    def with_values(self, values: Tensor) -> Tensor:
        """Return the sparse matrix with these values at its non-zeros."""
        return torch.sparse_csr_tensor(
            self.starts, self.columns, values, size=self.shape, check_invariants=False
        )


@dataclass(frozen=True, slots=True)
class SparseBatch:
    """The non-zeros of cells, by cell and, for the gradients, by gene.

    Attributes
    ----------
    by_cell, by_gene
        The non-zeros of (B, G) and of its transpose (G, B).
    order
        Index of each non-zero by gene among those by cell, shape (nnz,).
    counts
        Count of each non-zero, by cell.
    inputs, inputs_by_gene
        The encoder's input at each non-zero, in both orders.
    one_hot
        The batches of the cells, shape (B, S), if the model has batches.
    design
        The covariates of the cells, shape (B, D), if the model has any.
    """

    by_cell: Compressed
    by_gene: Compressed
    order: Tensor
    counts: Tensor
    inputs: Tensor
    inputs_by_gene: Tensor
    one_hot: Tensor | None = None
    design: Tensor | None = None

    @property
    def n_cells(self) -> int:
        """B."""
        return self.by_cell.shape[0]


Batch = DenseBatch | SparseBatch


def sparse_is_there(device: torch.device) -> bool:
    """Return whether computing only with non-zeros is available; it needs Intel's MKL."""
    return device.type == "cpu" and torch.backends.mkl.is_available()


def sparse_wins(x_NG: Rows, device: torch.device) -> bool:
    """Return whether training these counts is faster with the non-zeros only."""
    density: float = x_NG.nnz / math.prod(x_NG.shape)
    return sparse_is_there(device) and density < SPARSE_BELOW


def compressed_rows(matrix: sp.csr_matrix) -> Tensor:
    """Return a sparse matrix as a tensor whose products MKL computes; its values are not copied."""
    _announce_sparse()
    starts, columns = _int32(matrix.indptr), _int32(matrix.indices)
    rows = Compressed(starts, columns, matrix.shape)
    return rows.with_values(torch.from_numpy(matrix.data))


def shuffled(n_cells: int, n_batches: int, seeds: np.random.Generator) -> list[np.ndarray]:
    """Return a random partition of the cells into batches whose sizes differ by at most one.

    A short last batch would have the same weight as a full one, and could be too small for batch
    norm.
    """
    return np.array_split(seeds.permutation(n_cells), n_batches)


def in_order(n_cells: int, size: int) -> list[np.ndarray]:
    """Return the cells in order, in batches of `size`."""
    return np.split(np.arange(n_cells), range(size, n_cells, size))


def sparse_batches(
    x_NG: Rows, parts: list[np.ndarray], library_size: float, given: Given = NOTHING_GIVEN
) -> Iterator[SparseBatch]:
    """Yield the non-zeros of the given cells, on the CPU.

    Parameters
    ----------
    x_NG
        Counts.
    parts
        The cells of each mini-batch.
    library_size
        Total to which the encoder's input scales each cell.
    given
        What the model knows of the cells.
    """
    _announce_sparse()
    G = x_NG.shape[1]
    for block in _blocks(parts):
        rows = np.concatenate(block)
        x = x_NG[rows]
        lengths = np.diff(x.indptr)
        read = given.without_factors(x, rows)
        total = np.maximum(np.asarray(read.sum(1)).ravel(), 1)
        scale = torch.from_numpy((library_size / total).astype(x.dtype).repeat(lengths))
        counts, genes = torch.from_numpy(x.data), _int32(x.indices)
        inputs = torch.log1p(torch.from_numpy(read.data) * scale)
        # Transpose all batches of the block at once: each has its own range of columns.
        first_row = np.cumsum([0] + [len(part) for part in block])
        first = x.indptr[first_row]
        column = x.indices + np.arange(len(block), dtype=x.indices.dtype).repeat(np.diff(first)) * G
        transposed = sp.csr_matrix(
            (np.arange(x.nnz, dtype=np.int32), column, x.indptr),
            shape=(len(lengths), len(block) * G),
        ).tocsc()
        inputs_by_gene = inputs.index_select(0, torch.from_numpy(transposed.data))
        for b, part in enumerate(block):
            nonzeros = slice(first[b], first[b + 1])
            cell_starts = x.indptr[first_row[b] : first_row[b + 1] + 1] - first[b]
            gene_starts = transposed.indptr[b * G : (b + 1) * G + 1] - first[b]
            cells = transposed.indices[nonzeros] - first_row[b]
            yield SparseBatch(
                by_cell=Compressed(_int32(cell_starts), genes[nonzeros], (len(part), G)),
                by_gene=Compressed(_int32(gene_starts), _int32(cells), (G, len(part))),
                order=_int32(transposed.data[nonzeros] - first[b]),
                counts=counts[nonzeros],
                inputs=inputs[nonzeros],
                inputs_by_gene=inputs_by_gene[nonzeros],
                one_hot=given.one_hot(part, counts),
                design=given.design(part, counts),
            )


class DeviceCounts:
    """Counts as compressed rows on a device, from which dense mini-batches are made.

    Parameters
    ----------
    x_NG
        Counts.
    device
        The device; nothing here waits for it.
    given
        What the model knows of the cells.
    """

    def __init__(self, x_NG: Rows, device: torch.device, given: Given = NOTHING_GIVEN) -> None:
        x_NG = late(x_NG).read()
        self.n_genes = x_NG.shape[1]
        self.device = device
        self.lengths = np.diff(x_NG.indptr).astype(np.int64)
        self.starts = x_NG.indptr[:-1].astype(np.int64)
        self.genes = torch.from_numpy(x_NG.indices).to(device)
        self.counts = torch.from_numpy(x_NG.data).to(device)
        self.given = given
        self.buffers: dict[int, DenseBatch] = {}

    def batches(self, parts: list[np.ndarray], *, reuse: bool = False) -> Iterator[DenseBatch]:
        """Yield the given cells as dense mini-batches.

        With `reuse`, all mini-batches of one size are written to the same memory, which a recorded
        step reads: finish with one mini-batch before you request the next.
        """
        for block in _blocks(parts):
            rows = np.concatenate(block)
            lengths = self.lengths[rows]
            ends = lengths.cumsum()
            total = int(ends[-1])
            # Offsets from the position of a non-zero here to its position among all counts, and to
            # its position in the flattened matrix of its batch.
            shift = np.stack(
                [
                    self.starts[rows] - (ends - lengths),
                    np.concatenate([np.arange(len(part)) for part in block]) * self.n_genes,
                ]
            )
            shift_2n = self._send(shift).repeat_interleave(
                self._send(lengths), dim=1, output_size=total
            )
            source = torch.arange(total, device=self.device) + shift_2n[0]
            counts, place = self.counts[source], self.genes[source] + shift_2n[1]
            stops = ends[np.cumsum([len(part) for part in block]) - 1].tolist()
            for part, start, stop in zip(block, [0, *stops], stops, strict=False):
                batch = self._zeros(len(part), reuse=reuse)
                batch.counts.view(-1).scatter_(0, place[start:stop], counts[start:stop])
                # A recorded step reads the same memory again.
                for memory, values in (
                    (batch.one_hot, self.given.one_hot(part, batch.counts)),
                    (batch.design, self.given.design(part, batch.counts)),
                ):
                    if memory is not None and values is not None:
                        memory.copy_(values)
                yield batch

    def _zeros(self, n_cells: int, *, reuse: bool) -> DenseBatch:
        if reuse and n_cells in self.buffers:
            self.buffers[n_cells].counts.zero_()
            return self.buffers[n_cells]
        counts, first = torch.zeros(n_cells, self.n_genes, device=self.device), np.arange(n_cells)
        batch = DenseBatch(
            counts, self.given.one_hot(first, counts), self.given.design(first, counts)
        )
        if reuse:
            self.buffers[n_cells] = batch
        return batch

    def _send(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)


def _blocks(parts: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield blocks of mini-batches, to share the cost of gathering them."""
    n = max(GATHERED_CELLS // max(len(parts[0]), 1), 1) if parts else 1
    for first in range(0, len(parts), n):
        yield parts[first : first + n]


def _int32(values: np.ndarray) -> Tensor:
    # MKL's sparse products take 32-bit indices.
    return torch.from_numpy(values.astype(np.int32, copy=False))


@functools.cache
def _announce_sparse() -> None:
    """Trigger torch's one-time warning about sparse CSR, with warnings suppressed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(2).to_sparse_csr()

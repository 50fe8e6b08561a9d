"""Count several values for one cell and gene in a sparse matrix, and warn about them."""

from __future__ import annotations

import warnings
from typing import Any

from topicell.counts import COMPRESSED


def n_repeated(matrix: Any) -> int:
    """Return how many values of a sparse matrix have the same cell and gene as an earlier value."""
    if not isinstance(matrix, COMPRESSED):
        return 0
    # Use a new matrix of the same arrays, because the check for order changes a matrix.
    merged = type(matrix)((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
    if merged.has_canonical_format:
        return 0
    merged = merged.copy()
    merged.sum_duplicates()
    return int(matrix.nnz - merged.nnz)


def warn_of_repeats(n: int, where: str) -> None:
    """Warn that `n` values of a matrix were added to others."""
    if n:
        warnings.warn(
            f"{where} holds {n} values that repeat a cell and gene; repeated values are added up",
            UserWarning,
            stacklevel=3,
        )

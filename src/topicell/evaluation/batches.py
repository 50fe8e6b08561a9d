"""Separation of batches in topic space.

Distances between cells are Euclidean on the square roots of their topic proportions, as in
`topicell.evaluation.labels`. Shapes: N cells, K topics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from topicell.evaluation.labels import is_missing


def separation(
    theta_NK: np.ndarray,
    batches: Sequence[Any] | np.ndarray,
    labels: Sequence[Any] | np.ndarray | None = None,
    *,
    n_neighbors: int = 15,
) -> float | None:
    """Return how many of the nearest cells are of the same batch, compared with chance.

    With s the share of the nearest cells of a cell that are of its batch, and e the expected share
    if batches were drawn at random, it is the mean of s − e over cells, divided by that of 1 − e: 0
    if batches are mixed, 1 if the nearest cells are always of the same batch. With labels, the
    nearest cells are those among cells of the same label: a batch that has more cells of a type is
    not separate because of that.

    Parameters
    ----------
    theta_NK
        Topic proportions.
    batches
        Batch of each cell.
    labels
        Label of each cell; cells without a label are left out.
    n_neighbors
        Number of nearest cells; all others of the label if there are fewer.

    Returns
    -------
    The separation, or None if no label has cells of two batches.
    """
    from sklearn.neighbors import NearestNeighbors

    points_NK = np.sqrt(np.asarray(theta_NK, dtype=np.float64))
    _, batch_N = np.unique(np.asarray(batches).astype(str), return_inverse=True)
    groups = [np.arange(len(batch_N))]
    if labels is not None:
        present = np.array([not is_missing(label) for label in labels], dtype=bool)
        names = np.asarray(labels, dtype=object).astype(str)
        groups = [np.flatnonzero((names == name) & present) for name in np.unique(names[present])]
    excess = possible = 0.0
    for rows in groups:
        batch_n, n = batch_N[rows], len(rows)
        size_n = np.bincount(batch_n)[batch_n]
        if size_n.min(initial=n) == n:
            continue  # a single batch, or no cell
        expected_n = (size_n - 1) / (n - 1)
        index = NearestNeighbors(n_neighbors=min(n_neighbors, n - 1)).fit(points_NK[rows])
        # Without an argument, kneighbors leaves out each point itself.
        same_nM = batch_n[index.kneighbors(return_distance=False)] == batch_n[:, None]
        excess += float((same_nM.mean(1) - expected_n).sum())
        possible += float((1 - expected_n).sum())
    return excess / possible if possible else None

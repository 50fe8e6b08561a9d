"""Agreement of topic proportions with known labels of the cells, such as cell types.

Shapes: N cells, K topics. Distances between cells are Euclidean on the square roots of their
topic proportions: the Hellinger distance, times the square root of 2.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class LabelledCells:
    """The cells that have a label, as points in topic space."""

    points_NK: np.ndarray
    """Square roots of the topic proportions."""
    label_N: np.ndarray
    """Label of each cell as a number from 0."""
    n_labels: int
    n_neighbors: int = 15
    """Neighbours that vote in `neighbor_accuracy`; all other cells if there are fewer."""
    seed: int = 0
    """Seed of k-means."""

    @cached_property
    def cluster_N(self) -> np.ndarray:
        """Return the k-means cluster of each cell; there are as many clusters as labels."""
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            # k-means warns if there are fewer distinct points than clusters: that happens if the
            # topics do not separate the cells, and the scores show it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            kmeans = KMeans(n_clusters=self.n_labels, n_init=10, random_state=self.seed)
            cluster_N: np.ndarray = kmeans.fit_predict(self.points_NK)
        return cluster_N

    @cached_property
    def accuracy(self) -> float:
        """Return `neighbor_accuracy`."""
        return neighbor_accuracy(self)


def labelled_cells(
    theta_NK: np.ndarray,
    labels: Sequence[Any] | np.ndarray,
    *,
    n_neighbors: int = 15,
    seed: int = 0,
) -> LabelledCells | None:
    """Select the cells that have a label; return None if fewer than 2 labels are present.

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells, shape (N, K).
    labels
        Label of each cell, shape (N,); None, NaN and the NA of pandas mean that it is missing.
    n_neighbors, seed
        Settings of the metrics, see `LabelledCells`.

    Raises
    ------
    ValueError
        The number of labels is not the number of cells.
    """
    if len(labels) != len(theta_NK):
        raise ValueError(
            f"{len(labels)} labels for {len(theta_NK)} cells: give one label for each cell"
        )
    labels = np.asarray(labels, dtype=object)
    present = np.array([not is_missing(label) for label in labels], dtype=bool)
    names, label_N = np.unique(labels[present].astype(str), return_inverse=True)
    if len(names) < 2:
        return None
    return LabelledCells(
        points_NK=np.sqrt(np.asarray(theta_NK, dtype=np.float64)[present]),
        label_N=label_N,
        n_labels=len(names),
        n_neighbors=n_neighbors,
        seed=seed,
    )


def nmi(cells: LabelledCells) -> float:
    """Return the normalised mutual information of labels and clusters (arithmetic mean).

    References
    ----------
    Vinh, Epps & Bailey (2010), Information theoretic measures for clusterings comparison.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(cells.label_N, cells.cluster_N))


def ari(cells: LabelledCells) -> float:
    """Return the adjusted Rand index of labels and clusters.

    References
    ----------
    Hubert & Arabie (1985), Comparing partitions.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(cells.label_N, cells.cluster_N))


def neighbor_accuracy(cells: LabelledCells) -> float:
    """Return the share of cells whose label is that of the majority of their nearest cells.

    The cell itself has no vote. If labels have equally many votes, the label of the nearest of
    their cells is taken.
    """
    from sklearn.neighbors import NearestNeighbors

    label_N, n_cells = cells.label_N, len(cells.label_N)
    n_neighbors = min(cells.n_neighbors, n_cells - 1)
    index = NearestNeighbors(n_neighbors=n_neighbors).fit(cells.points_NK)
    # Without an argument, kneighbors searches for its own points and leaves out each point itself.
    neighbor_label = label_N[index.kneighbors(return_distance=False)]
    rows = np.arange(n_cells)
    votes = np.zeros((n_cells, label_N.max() + 1), dtype=np.int64)
    np.add.at(votes, (rows[:, None], neighbor_label), 1)
    # Neighbours are sorted by distance, and argmax returns the first of equal values.
    elected = np.take_along_axis(votes, neighbor_label, axis=1).argmax(1)
    return float((neighbor_label[rows, elected] == label_N).mean())


def is_missing(label: Any) -> bool:
    """Return whether a label is missing, without importing pandas for its NA and NaT."""
    return label is None or (not isinstance(label, str) and str(label) in {"nan", "<NA>", "NaT"})

"""Do topics tell known cell types apart? Agreement of topic proportions with labels.

Shapes: N cells, K topics. Distances between cells are Euclidean on the square roots of their
topic proportions: the Hellinger distance, times the square root of 2.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def label_scores(
    theta_NK: np.ndarray,
    labels: Sequence[Any] | np.ndarray,
    *,
    n_neighbors: int = 15,
    seed: int = 0,
) -> Iterator[tuple[str, float]]:
    """Measures of the agreement of topic proportions with labels; higher is better.

    - ``labels/nmi``, ``labels/ari``: normalised mutual information (arithmetic mean of the
      entropies) and adjusted Rand index of k-means clusters, as many as there are labels.
    - ``labels/knn_accuracy``: share of cells whose label is that of the majority of their
      nearest neighbours, the cell itself left out; of tied labels the nearest neighbour's.

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells, shape (N, K).
    labels
        Label of each cell, shape (N,). Cells whose label is missing (None, NaN, pandas' NA)
        are left out.
    n_neighbors
        Neighbours that vote; all other cells if there are fewer.
    seed
        Of k-means.

    Yields
    ------
    Name and value. Nothing if fewer than 2 labels are present.

    Raises
    ------
    ValueError
        There is not one label a cell.

    References
    ----------
    Vinh, Epps & Bailey (2010), Information theoretic measures for clusterings comparison;
    Hubert & Arabie (1985), Comparing partitions.
    """
    if len(labels) != len(theta_NK):
        raise ValueError(f"{len(labels)} labels for {len(theta_NK)} cells: give one a cell")
    labels = np.asarray(labels, dtype=object)
    present = np.array([not _is_missing(label) for label in labels], dtype=bool)
    names, label_N = np.unique(labels[present].astype(str), return_inverse=True)
    if len(names) < 2:
        return

    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    points_NK = np.sqrt(np.asarray(theta_NK, dtype=np.float64)[present])
    cluster_N = _kmeans(points_NK, len(names), seed)
    yield "labels/nmi", float(normalized_mutual_info_score(label_N, cluster_N))
    yield "labels/ari", float(adjusted_rand_score(label_N, cluster_N))
    predicted_N = _majority_of_neighbors(points_NK, label_N, n_neighbors)
    yield "labels/knn_accuracy", float((predicted_N == label_N).mean())


def _kmeans(points_NK: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Fewer distinct cells than labels: topics that tell nothing apart, as the scores will say.
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans = KMeans(n_clusters=n_clusters, n_init=10, random_state=seed)
        cluster_N: np.ndarray = kmeans.fit_predict(points_NK)
    return cluster_N


def _majority_of_neighbors(
    points_NK: np.ndarray, label_N: np.ndarray, n_neighbors: int
) -> np.ndarray:
    """Label that each cell is given by its nearest other cells."""
    from sklearn.neighbors import NearestNeighbors

    n_cells = len(points_NK)
    index = NearestNeighbors(n_neighbors=min(n_neighbors, n_cells - 1)).fit(points_NK)
    # Asked about no points, the index answers for its own and leaves each out of its neighbours.
    neighbor_label = label_N[index.kneighbors(return_distance=False)]
    rows = np.arange(n_cells)
    votes = np.zeros((n_cells, label_N.max() + 1), dtype=np.int64)
    np.add.at(votes, (rows[:, None], neighbor_label), 1)
    # Neighbours come nearest first, and argmax takes the first of equals.
    elected = np.take_along_axis(votes, neighbor_label, axis=1).argmax(1)
    label_of: np.ndarray = neighbor_label[rows, elected]
    return label_of


def _is_missing(label: Any) -> bool:
    # By how they print: importing pandas for its NA is not worth it, and NA equals nothing.
    return label is None or (not isinstance(label, str) and str(label) in {"nan", "<NA>", "NaT"})

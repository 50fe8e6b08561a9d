"""A search for initial topics: clusters of cells, improved until no tested move is better.

The optimum that a fit reaches is determined by its initial topics. Clusters from random starts
differ between seeds; the clusters that this search finds hardly differ, so that fits with other
seeds find the same topics (``experiments/reproducibility``).

Cells are a mixture of K clusters: each cell belongs to one cluster, and its counts are multinomial.
The gene proportions of a cluster are smoothed: background counts are added to its own, a share of
the counts of a cluster of mean size (the smoothing). Two techniques avoid local optima:

- Strong smoothing first. It makes small clusters unlikely; then the likelihood has few optima. The
  smoothing falls in levels (`LEVELS`); each level continues from the clusters of the one before.
- Tempering (Ueda & Nakano 1998, Deterministic annealing EM algorithm): cells belong to all clusters
  in part, as if each cell had only few counts, before they are assigned to the most likely one.

A move removes one cluster, whose cells go to their second-best cluster, and splits another one. The
gain of each split and the loss of each removal are estimated for all pairs; the best pairs are
tested in full.

Shapes: N cells, G genes, K clusters, T tries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from topicell.model.minibatches import compressed_rows, sparse_is_there

CELLS_PER_SEED = 5
"""Number of random cells whose mean is the first profile of a cluster."""
STEPS = 4
"""EM steps at each temperature."""
TRIES = 3
"""Splits of each cluster that are tried in a round of moves; the best is used."""
CELL_SHARE = 0.3
"""Share of a single cell in the first profile of its half; the rest is that of the cluster."""
SPLIT_STEPS = 5
"""EM steps of a try."""
TESTED_MOVES = 4
"""Largest number of moves that are tested in a round."""
LEAST_CELLS = 4
"""Clusters with fewer cells are not split."""
HOPELESS = 1e-3
"""A move is not tested if its estimated loss is more than this share of the log-likelihood."""


@dataclass(frozen=True, slots=True)
class Level:
    """A level of the search.

    Attributes
    ----------
    smoothing
        Background counts added to a cluster, as a share of the counts of a cluster of mean size.
    counts
        Numbers of counts that a cell of median size has when it is tempered, in order.
    patience
        Rounds of moves without a gain after which the level ends.
    """

    smoothing: float
    counts: tuple[float, ...]
    patience: int = 1


LEVELS = (Level(0.2, (10, 20), patience=2), Level(0.03, (25, 50)))


@dataclass(frozen=True, slots=True)
class Clustering:
    """Cells in clusters.

    Attributes
    ----------
    profiles_KG
        Gene proportions of the clusters.
    fit_NK
        Log-likelihood of each cell in each cluster, nats.
    label_N
        The most likely cluster of each cell.
    score
        Log-likelihood of all cells in these clusters, and of the background counts, nats.
    """

    profiles_KG: np.ndarray
    fit_NK: np.ndarray
    label_N: np.ndarray
    score: float


def search_topics(
    x_NG: sp.csr_matrix,
    n_topics: int,
    frequency_G: np.ndarray,
    seeds: np.random.Generator,
    levels: Sequence[Level] = LEVELS,
) -> np.ndarray:
    """Return the gene proportions of the clusters that a search finds at each level, (L, K, G).

    Parameters
    ----------
    x_NG
        Counts of at least K cells.
    n_topics
        K.
    frequency_G
        Background frequencies, all above 0.
    seeds
        Generator of the first clusters and of the splits.
    levels
        The L levels.
    """
    N, K = x_NG.shape[0], n_topics
    cells = _Cells(x_NG, K, frequency_G)
    per_cluster = min(CELLS_PER_SEED, N // K)
    chosen = seeds.choice(N, K * per_cluster, replace=False)
    first_KG = np.zeros((K, x_NG.shape[1]), np.float32)
    np.add.at(first_KG, np.repeat(np.arange(K), per_cluster), x_NG[chosen].toarray())
    total_K1 = np.maximum(first_KG.sum(1, keepdims=True), 1)
    profiles_KG = _proportions(first_KG + cells.frequency_G * total_K1)
    found = []
    for level in levels:
        cells.smooth(level.smoothing)
        now = cells.settled(profiles_KG, level)
        n_waited = 0
        while n_waited < level.patience:
            better = _better(cells, now, level, seeds)
            n_waited = n_waited + 1 if better is None else 0
            now = better or now
        profiles_KG = now.profiles_KG
        found.append(profiles_KG)
    return np.stack(found)


class _Product:
    """The product of a sparse matrix with dense ones: by MKL, which is faster, or by scipy."""

    def __init__(self, matrix: sp.csr_matrix) -> None:
        self.matrix = matrix
        self.by_mkl = compressed_rows(matrix) if sparse_is_there(torch.device("cpu")) else None

    def __call__(self, values: np.ndarray) -> np.ndarray:
        found: np.ndarray
        if self.by_mkl is None:
            found = self.matrix @ values
        else:
            found = (self.by_mkl @ torch.from_numpy(values)).numpy()
        return found


class _Cells:
    """The counts of cells, and the background counts that are added to each cluster."""

    def __init__(self, x_NG: sp.csr_matrix, n_clusters: int, frequency_G: np.ndarray) -> None:
        self.x_NG = x_NG
        self.by_cell = _Product(x_NG)
        self.by_gene = _Product(x_NG.T.tocsr())
        self.n_clusters = n_clusters
        self.frequency_G = frequency_G.astype(np.float32)
        total_N = np.asarray(x_NG.sum(1)).ravel()
        # Cells without any counts must not give clusters without counts.
        self.mean_size = max(float(total_N.sum(dtype=np.float64)), 1.0) / n_clusters
        self.median = max(float(np.median(total_N)), 1.0)
        self.added_G = self.frequency_G

    def smooth(self, smoothing: float) -> None:
        """Set the background counts of each cluster."""
        self.added_G = smoothing * self.mean_size * self.frequency_G

    def background(self, profiles_KG: np.ndarray) -> np.ndarray:
        """Return the log-likelihood of the background counts in each cluster, shape (K,)."""
        found: np.ndarray = np.log(profiles_KG) @ self.added_G
        return found

    def profiles(self, weight_NK: np.ndarray) -> np.ndarray:
        """Return the smoothed gene proportions of clusters, shape (K, G)."""
        return _proportions(self.by_gene(weight_NK).T + self.added_G)

    def settled(self, profiles_KG: np.ndarray, level: Level) -> Clustering:
        """Return the clusters to which EM leads: tempered steps, then steps with whole cells."""
        for counts in level.counts:
            temperature = max(self.median / counts, 1.0)
            for _ in range(STEPS):
                fit_NK = self.by_cell(_logs(profiles_KG)) / np.float32(temperature)
                weight_NK = np.exp(fit_NK - fit_NK.max(1, keepdims=True))
                weight_NK /= weight_NK.sum(1, keepdims=True)
                profiles_KG = self.profiles(weight_NK)
        label_N = self.by_cell(_logs(profiles_KG)).argmax(1)
        for _ in range(STEPS):
            profiles_KG = self.profiles(_one_hot(label_N, self.n_clusters))
            fit_NK = self.by_cell(_logs(profiles_KG))
            before_N, label_N = label_N, fit_NK.argmax(1)
            if (label_N == before_N).all():
                break
        score = float(fit_NK.max(1).sum(dtype=np.float64)) + float(
            self.background(profiles_KG).sum(dtype=np.float64)
        )
        return Clustering(profiles_KG, fit_NK, label_N, score)

    def split(
        self, rows: np.ndarray, profile_G: np.ndarray, seeds: np.random.Generator
    ) -> tuple[float, np.ndarray]:
        """Return the gain of the best of several splits of a cluster, and the cells to separate.

        Each try begins with two random cells of the cluster.
        """
        x_nG = self.x_NG[rows]
        by_cell, by_gene = _Product(x_nG), _Product(x_nG.T.tocsr())
        pairs_2T = np.concatenate([seeds.choice(len(rows), 2, replace=False) for _ in range(TRIES)])
        cells_2TG = x_nG[pairs_2T].toarray()
        cells_2TG /= np.maximum(cells_2TG.sum(1, keepdims=True), 1)
        profiles_2TG = CELL_SHARE * cells_2TG + (1 - CELL_SHARE) * profile_G
        for _ in range(SPLIT_STEPS):
            fit_nT2 = by_cell(_logs(profiles_2TG)).reshape(-1, TRIES, 2)
            second_nT = fit_nT2[:, :, 1] > fit_nT2[:, :, 0]
            weight_nT2 = np.stack([~second_nT, second_nT], axis=-1).astype(np.float32)
            counts_2TG = by_gene(weight_nT2.reshape(len(rows), -1)).T
            profiles_2TG = _proportions(counts_2TG + self.added_G)
        fit_nT2 = by_cell(_logs(profiles_2TG)).reshape(-1, TRIES, 2)
        together_n = by_cell(_logs(profile_G[None]))[:, 0]
        gain_T = (fit_nT2.max(2) - together_n[:, None]).sum(0, dtype=np.float64)
        gain_T += self.background(profiles_2TG).reshape(TRIES, 2).sum(1)
        best = int(gain_T.argmax())
        gain = float(gain_T[best]) - float(self.background(profile_G[None])[0])
        return gain, rows[fit_nT2[:, best, 1] > fit_nT2[:, best, 0]]


def _better(
    cells: _Cells, now: Clustering, level: Level, seeds: np.random.Generator
) -> Clustering | None:
    """Return better clusters that a move leads to, or None if no tested move is better."""
    n_cells, K = now.fit_NK.shape
    gain_K = np.full(K, -np.inf)
    parts = []
    for k in range(K):
        rows = np.flatnonzero(now.label_N == k)
        part = rows[:0]
        if len(rows) >= LEAST_CELLS:
            gain_K[k], part = cells.split(rows, now.profiles_KG[k], seeds)
        parts.append(part)
    others_NK = now.fit_NK.copy()
    others_NK[np.arange(n_cells), now.label_N] = -np.inf
    second_N = others_NK.argmax(1)
    lost_N = now.fit_NK.max(1) - others_NK.max(1)
    loss_K = np.bincount(now.label_N, weights=lost_N, minlength=K)
    loss_K += cells.background(now.profiles_KG)
    net_KK = gain_K[:, None] - loss_K
    np.fill_diagonal(net_KK, -np.inf)
    for move in np.argsort(-net_KK, axis=None, kind="stable")[:TESTED_MOVES]:
        split, removed = np.unravel_index(move, net_KK.shape)
        if net_KK[split, removed] < -HOPELESS * abs(now.score):
            return None
        label_N = np.where(now.label_N == removed, second_N, now.label_N)
        label_N[parts[split]] = removed
        found = cells.settled(cells.profiles(_one_hot(label_N, K)), level)
        if found.score > now.score + 1e-7 * abs(now.score):
            return found
    return None


def _one_hot(label_N: np.ndarray, n_clusters: int) -> np.ndarray:
    one_hot_NK: np.ndarray = (label_N[:, None] == np.arange(n_clusters)).astype(np.float32)
    return one_hot_NK


def _proportions(counts_KG: np.ndarray) -> np.ndarray:
    proportions_KG: np.ndarray = counts_KG / counts_KG.sum(1, keepdims=True)
    return proportions_KG


def _logs(profiles_KG: np.ndarray) -> np.ndarray:
    """Return the logarithms, genes × clusters."""
    logs_GK: np.ndarray = np.ascontiguousarray(np.log(profiles_KG).T)
    return logs_GK

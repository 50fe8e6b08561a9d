r"""First estimate of the shifts of batches, before any topic is known.

Cells are a mixture of clusters, as in `topicell.model.search`, and the counts of gene g in batch s
are those of the cluster times a factor :math:`e^{d_{sg}}`, the same in all clusters. Clusters and
shifts are estimated in turns: first the shifts with all cells as one cluster, which takes a
difference in cell types for one between batches; then with the clusters of the corrected counts,
which removes that.

Shapes: N cells, G genes, S batches, K clusters.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from topicell.counts import corrected
from topicell.model.search import LEVELS, search_topics

ROUNDS = 2
"""Number of times that cells are clustered."""
STEPS = 20
"""Steps in which the shifts and the profiles of given clusters are fitted to each other."""


def batch_shifts(
    x_NG: sp.csr_matrix,
    batch_N: np.ndarray,
    n_batches: int,
    n_clusters: int,
    scale: float,
    seeds: np.random.Generator,
) -> np.ndarray:
    """Return the shift of the logit of each gene in each batch, shape (S, G).

    Parameters
    ----------
    x_NG
        Counts.
    batch_N
        Number of the batch of each cell.
    n_batches
        S.
    n_clusters
        K.
    scale
        Standard deviation of the prior of a shift.
    seeds
        Generator of the clusterings.
    """
    total_N1 = np.asarray(x_NG.sum(1, dtype=np.float64))
    label_N = np.zeros(x_NG.shape[0], dtype=int)
    shift_SG = shifts_of_clusters(x_NG, batch_N, n_batches, label_N, scale)
    for _ in range(ROUNDS):
        y_NG = corrected(x_NG, batch_N, np.exp(shift_SG))
        # Cells keep their numbers of counts.
        ratio_N1 = total_N1 / np.maximum(np.asarray(y_NG.sum(1, dtype=np.float64)), 1e-12)
        y_NG.data *= ratio_N1.ravel().astype(np.float32).repeat(np.diff(y_NG.indptr))
        total_G = np.asarray(y_NG.sum(0, dtype=np.float64)).ravel() + 0.5
        profiles_KG = search_topics(y_NG, n_clusters, total_G / total_G.sum(), seeds, LEVELS[:1])
        label_N = (y_NG @ np.log(profiles_KG[0]).T).argmax(1)
        shift_SG = shifts_of_clusters(x_NG, batch_N, n_batches, label_N, scale)
    return shift_SG


def shifts_of_clusters(
    x_NG: sp.csr_matrix, batch_N: np.ndarray, n_batches: int, label_N: np.ndarray, scale: float
) -> np.ndarray:
    """Return the shifts of batches for cells in given clusters, with sum 0 over batches, (S, G).

    They maximise the likelihood of the counts in turns with the profiles of the clusters. The prior
    Normal(0, `scale`) of a shift is worth 1 / `scale`² counts without a shift.
    """
    S, K = n_batches, int(label_N.max()) + 1
    place_N = label_N * S + batch_N
    members = sp.csr_matrix(
        (np.ones(len(place_N)), (place_N, np.arange(len(place_N)))), shape=(K * S, len(place_N))
    )
    x_KSG = np.asarray((members @ x_NG).todense()).reshape(K, S, -1)
    n_KS, x_KG, x_SG = x_KSG.sum(2), x_KSG.sum(1), x_KSG.sum(0)
    # A gene without counts in a cluster gets a share of the counts of all clusters.
    frequency_G = (x_KG.sum(0) + 0.5) / (x_KG.sum() + 0.5 * x_KG.shape[1])
    x_KG = x_KG + frequency_G
    shift_SG: np.ndarray = np.zeros_like(x_SG)
    profiles_KG = x_KG / x_KG.sum(1, keepdims=True)
    prior = scale**-2
    for _ in range(STEPS):
        total_KS = profiles_KG @ np.exp(shift_SG).T
        expected_SG = (n_KS / total_KS).T @ profiles_KG
        shift_SG = np.log((x_SG + prior) / (expected_SG + prior))
        shift_SG = shift_SG - shift_SG.mean(0)
        total_KS = profiles_KG @ np.exp(shift_SG).T
        profiles_KG = x_KG / ((n_KS / total_KS) @ np.exp(shift_SG) + 1.0)
        profiles_KG /= profiles_KG.sum(1, keepdims=True)
    return shift_SG

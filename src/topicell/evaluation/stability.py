"""Measure whether replicates find the same topics: matching, its mean cosine, and consensus topics.

Shapes: R replicates, N cells, K topics, G genes, C consensus topics; T = R · K topics of all
replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment

ROUNDING = 1e-9
"""Correlations that differ by less than this count as equal."""
FOUND = 0.9
"""A topic is found again if the correlation of its proportions over cells is at least this."""
CHUNK = 50_000
"""Number of cells whose proportions are correlated at a time."""


@dataclass(frozen=True, slots=True)
class Matching:
    """One-to-one matching of the topics of two fits.

    Attributes
    ----------
    permutation
        ``beta_b[permutation[k]]`` matches ``beta_a[k]``, shape (K,).
    cosine
        Cosine similarity of each matched pair, in the order of a, shape (K,).
    """

    permutation: np.ndarray
    cosine: np.ndarray


@dataclass(frozen=True, slots=True)
class Stability:
    """Agreement of replicates; 1 if they have the same topics, in any order.

    Attributes
    ----------
    mean
        Mean cosine similarity over matched topics and over all pairs of replicates.
    per_topic_RK
        Mean cosine of each topic of each replicate with its matches in the others, shape (R, K).
    """

    mean: float
    per_topic_RK: np.ndarray


@dataclass(frozen=True, slots=True)
class Consensus:
    """The topics that several replicates found, and those that only one found.

    Ordered by support, highest first, then by cosine, then by their first member.

    Attributes
    ----------
    beta_CG
        Gene proportions of each consensus topic: the mean of its members, shape (C, G).
    support_C
        Number of replicates that found the topic, between 1 and R, shape (C,).
    cosine_C
        Mean cosine of the gene proportions of the members with those of the topic, shape (C,);
        1 if the support is 1.
    member_RK
        Index of the consensus topic of each topic of each replicate, shape (R, K).
    """

    beta_CG: np.ndarray
    support_C: np.ndarray
    cosine_C: np.ndarray
    member_RK: np.ndarray

    @property
    def unstable(self) -> np.ndarray:
        """Whether a topic was found in one replicate only, shape (C,)."""
        unstable_C: np.ndarray = self.support_C == 1
        return unstable_C

    @property
    def found_again(self) -> float:
        """Share of topics that another replicate has too: mean over topics and over pairs."""
        n_replicates = len(self.member_RK)
        support_RK = self.support_C[self.member_RK]
        return float((support_RK - 1).mean() / (n_replicates - 1))


def little_support(support_K: np.ndarray, n_replicates: int) -> np.ndarray:
    """Return whether at most half of the replicates found a topic, shape (K,)."""
    little_K: np.ndarray = 2 * np.asarray(support_K) <= n_replicates
    return little_K


def match_topics(beta_a_KG: np.ndarray, beta_b_KG: np.ndarray) -> Matching:
    """Match the topics of two fits so that the sum of cosine similarities is greatest.

    Parameters
    ----------
    beta_a_KG, beta_b_KG
        Gene proportions of each topic, both of shape (K, G).

    Returns
    -------
    The order in which the topics of b match those of a, and their similarities.

    Raises
    ------
    ValueError
        The shapes differ.

    References
    ----------
    Kuhn (1955), The Hungarian method for the assignment problem; Belford, Mac Namee & Greene
    (2018), Stability of topic modeling via matrix factorization.
    """
    if np.shape(beta_a_KG) != np.shape(beta_b_KG):
        raise ValueError(
            f"topics of shapes {np.shape(beta_a_KG)} and {np.shape(beta_b_KG)} cannot be matched "
            "one to one: both must be (K, G)"
        )
    cosine_KK = _unit(beta_a_KG) @ _unit(beta_b_KG).T
    order, permutation = linear_sum_assignment(cosine_KK, maximize=True)
    return Matching(permutation, cosine_KK[order, permutation])


def stability(beta_RKG: np.ndarray) -> Stability:
    """Measure how well replicates agree: cosine similarity of matched topics over all pairs.

    Parameters
    ----------
    beta_RKG
        Gene proportions of each topic of each replicate, shape (R, K, G).

    Returns
    -------
    The mean, and the value of each topic.

    Raises
    ------
    ValueError
        There are fewer than 2 replicates.

    References
    ----------
    Greene, O'Callaghan & Cunningham (2014), How many topics? Stability analysis for topic
    models (with cosine similarity in place of their Jaccard score of ranks).
    """
    n_replicates, n_topics, _ = beta_RKG.shape
    _check_replicates("stability", n_replicates)
    per_topic_RK = np.zeros((n_replicates, n_topics))
    for a, b in combinations(range(n_replicates), 2):
        matching = match_topics(beta_RKG[a], beta_RKG[b])
        per_topic_RK[a] += matching.cosine
        per_topic_RK[b, matching.permutation] += matching.cosine
    per_topic_RK /= n_replicates - 1
    return Stability(float(per_topic_RK.mean()), per_topic_RK)


def correlations(thetas: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return the correlations over cells of the topics of several fits, shape (T, T).

    The topics of the first fit come first. A topic with the same proportion in all cells has
    correlation 0 with every other topic.

    Parameters
    ----------
    thetas
        Topic proportions of the same cells by each fit or replicate, each of shape (N, K); fits may
        differ in K.
    """
    n_cells = len(thetas[0])
    mean_T = np.concatenate([theta_NK.mean(axis=0, dtype=np.float64) for theta_NK in thetas])
    product_TT = np.zeros((len(mean_T), len(mean_T)))
    for start in range(0, n_cells, CHUNK):
        block = [theta_NK[start : start + CHUNK].astype(np.float64) for theta_NK in thetas]
        block_nT = np.concatenate(block, axis=1) - mean_T
        product_TT += block_nT.T @ block_nT
    scale_T = np.sqrt(product_TT.diagonal())
    # A deviation that is only rounding counts as constant.
    constant_T = scale_T <= 1e-6 * np.sqrt(n_cells)
    scale_T[constant_T] = np.inf
    found_TT: np.ndarray = product_TT / scale_T[:, None] / scale_T
    return found_TT


def consensus(
    beta_RKG: np.ndarray, theta_RNK: np.ndarray, *, min_correlation: float = FOUND
) -> Consensus:
    """Group the topics of all replicates, so that each group is one topic found several times.

    This is agglomerative clustering by average correlation of the topic proportions over cells,
    highest first, of groups with at most one topic of each replicate. Gene proportions are not
    compared: shared ribosomal genes make different topics of sorted blood cells similar up to a
    cosine of 0.99.

    Parameters
    ----------
    beta_RKG
        Gene proportions of each topic of each replicate, shape (R, K, G).
    theta_RNK
        Topic proportions of the same cells in each replicate, shape (R, N, K).
    min_correlation
        Groups with a lower correlation are not merged.

    Returns
    -------
    The consensus topics; each topic of each replicate is a member of one.

    Raises
    ------
    ValueError
        There are fewer than 2 replicates, or `min_correlation` is not between 0 and 1.

    References
    ----------
    Kotliar et al. (2019), Identifying gene expression programs of cell-type identity and
    cellular activity with single-cell RNA-Seq, eLife 8:e43803 (consensus over replicates, there
    by k-means); Davidson & Ravi (2005), Agglomerative hierarchical clustering with constraints
    (topics that cannot be linked).
    """
    n_replicates, n_topics, n_genes = beta_RKG.shape
    _check_replicates("consensus", n_replicates)
    if not 0 <= min_correlation <= 1:
        raise ValueError(f"min_correlation = {min_correlation}: must be between 0 and 1")
    beta_TG = np.asarray(beta_RKG, dtype=np.float64).reshape(-1, n_genes)
    unit_TG = _unit(beta_TG)
    replicate_T = np.repeat(np.arange(n_replicates), n_topics)
    group_T = grouped(correlations(theta_RNK), replicate_T, min_correlation)
    _, group_T, support_C = np.unique(group_T, return_inverse=True, return_counts=True)
    is_member_CT = group_T == np.arange(len(support_C))[:, None]
    beta_CG = is_member_CT @ beta_TG / support_C[:, None]
    cosine_T = (unit_TG * _unit(beta_CG)[group_T]).sum(1)
    cosine_C = is_member_CT @ cosine_T / support_C
    # Rounding must not decide the order of groups that are equally similar.
    order = np.lexsort((-cosine_C.round(9), -support_C))
    member_RK = np.argsort(order)[group_T].reshape(n_replicates, n_topics)
    return Consensus(beta_CG[order], support_C[order], cosine_C[order], member_RK)


def grouped(
    correlation_TT: np.ndarray, source_T: np.ndarray, min_correlation: float = FOUND
) -> np.ndarray:
    """Return for each topic the first topic of its group, shape (T,).

    Parameters
    ----------
    correlation_TT
        Correlations of all topics.
    source_T
        The replicate or the run of each topic: a group has at most one topic of each.
    min_correlation
        Groups with a lower mean correlation are not merged.
    """
    # For each group, at the index of its first topic: the mean correlation with the other groups,
    # -inf if they cannot be merged (a mean with -inf stays -inf).
    mean_TT = np.where(source_T[:, None] == source_T, -np.inf, correlation_TT)
    size_T = np.ones(len(source_T))
    group_T = np.arange(len(source_T))
    while True:
        a, b = sorted(np.unravel_index(mean_TT.argmax(), mean_TT.shape))
        if mean_TT[a, b] < min_correlation - ROUNDING:
            return group_T
        size = size_T[a] + size_T[b]
        mean_TT[a] = (size_T[a] * mean_TT[a] + size_T[b] * mean_TT[b]) / size
        mean_TT[:, a] = mean_TT[a]
        mean_TT[a, a] = -np.inf
        size_T[a] = size
        group_T[group_T == b] = a
        mean_TT[b] = mean_TT[:, b] = -np.inf


def _check_replicates(measure: str, n_replicates: int) -> None:
    if n_replicates < 2:
        raise ValueError(
            f"{measure} compares replicates: it needs at least 2, found {n_replicates}"
        )


def _unit(beta_KG: np.ndarray) -> np.ndarray:
    beta_KG = np.asarray(beta_KG, dtype=np.float64)
    unit_KG: np.ndarray = beta_KG / np.linalg.norm(beta_KG, axis=1, keepdims=True)
    return unit_KG

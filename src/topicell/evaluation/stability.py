"""Measure whether replicates find the same topics: matching, its mean cosine, and consensus topics.

Shapes: R replicates, K topics, G genes, C consensus topics; T = R · K topics of all replicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment

ROUNDING = 1e-9
"""Cosines that differ by less than this count as equal."""


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
        Mean cosine similarity of the members to the topic, shape (C,); 1 if the support is 1.
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


def consensus(beta_RKG: np.ndarray, *, min_cosine: float = 0.8) -> Consensus:
    """Group the topics of all replicates, so that each group is one topic found several times.

    This is agglomerative clustering by average cosine similarity, most similar first, of groups
    with at most one topic of each replicate. Two groups are merged if they are at least as similar
    to each other as the members of either are, on average, to the nearest topic of their own
    replicate. A threshold alone is not enough: shared ribosomal genes make different topics of
    sorted blood cells similar up to 0.99, depending on the data and on K. But two topics of the
    same replicate are different, for any cosine.

    Parameters
    ----------
    beta_RKG
        Gene proportions of each topic of each replicate, shape (R, K, G).
    min_cosine
        Groups with a lower similarity are never merged. This matters if the topics of a replicate
        are very different: with 5 to 20 topics of blood cells, no value up to 0.8 changed a group;
        with 30 topics of 630 cells it did.

    Returns
    -------
    The consensus topics; each topic of each replicate is a member of one.

    Raises
    ------
    ValueError
        There are fewer than 2 replicates, or `min_cosine` is not between 0 and 1.

    References
    ----------
    Kotliar et al. (2019), Identifying gene expression programs of cell-type identity and
    cellular activity with single-cell RNA-Seq, eLife 8:e43803 (consensus over replicates, there
    by k-means); Davidson & Ravi (2005), Agglomerative hierarchical clustering with constraints
    (topics that cannot be linked).
    """
    n_replicates, n_topics, n_genes = beta_RKG.shape
    _check_replicates("consensus", n_replicates)
    if not 0 <= min_cosine <= 1:
        raise ValueError(f"min_cosine = {min_cosine}: must be between 0 and 1")
    beta_TG = np.asarray(beta_RKG, dtype=np.float64).reshape(-1, n_genes)
    unit_TG = _unit(beta_TG)
    replicate_T = np.repeat(np.arange(n_replicates), n_topics)
    group_T = _group(unit_TG @ unit_TG.T, replicate_T, min_cosine)
    _, group_T, support_C = np.unique(group_T, return_inverse=True, return_counts=True)
    is_member_CT = group_T == np.arange(len(support_C))[:, None]
    beta_CG = is_member_CT @ beta_TG / support_C[:, None]
    cosine_T = (unit_TG * _unit(beta_CG)[group_T]).sum(1)
    cosine_C = is_member_CT @ cosine_T / support_C
    # Rounding must not decide the order of groups that are equally similar.
    order = np.lexsort((-cosine_C.round(9), -support_C))
    member_RK = np.argsort(order)[group_T].reshape(n_replicates, n_topics)
    return Consensus(beta_CG[order], support_C[order], cosine_C[order], member_RK)


def _group(cosine_TT: np.ndarray, replicate_T: np.ndarray, min_cosine: float) -> np.ndarray:
    """Return for each topic the first topic of its group."""
    same_TT = replicate_T[:, None] == replicate_T
    siblings_TT = same_TT & ~np.eye(len(replicate_T), dtype=bool)
    # For each group, at the index of its first topic: the mean similarity to the other groups, -inf
    # if they cannot be linked (a mean with -inf stays -inf), and the smallest similarity for a
    # merge.
    mean_TT = np.where(same_TT, -np.inf, cosine_TT)
    least_T = np.where(siblings_TT, cosine_TT, min_cosine).max(1)
    size_T = np.ones(len(replicate_T))
    group_T = np.arange(len(replicate_T))

    def if_near(mean: np.ndarray, least: np.ndarray) -> np.ndarray:
        return np.where(mean >= np.maximum(least, least_T) - ROUNDING, mean, -np.inf)

    near_TT = if_near(mean_TT, least_T[:, None])
    while True:
        a, b = np.unravel_index(near_TT.argmax(), near_TT.shape)
        if near_TT[a, b] == -np.inf:
            return group_T
        size = size_T[a] + size_T[b]
        mean_TT[a] = (size_T[a] * mean_TT[a] + size_T[b] * mean_TT[b]) / size
        mean_TT[:, a] = mean_TT[a]
        least_T[a] = (size_T[a] * least_T[a] + size_T[b] * least_T[b]) / size
        size_T[a] = size
        group_T[group_T == b] = a
        mean_TT[b] = mean_TT[:, b] = near_TT[b] = near_TT[:, b] = -np.inf
        near_TT[a] = near_TT[:, a] = if_near(mean_TT[a], least_T[a])


def _check_replicates(measure: str, n_replicates: int) -> None:
    if n_replicates < 2:
        raise ValueError(
            f"{measure} compares replicates: it needs at least 2, found {n_replicates}"
        )


def _unit(beta_KG: np.ndarray) -> np.ndarray:
    beta_KG = np.asarray(beta_KG, dtype=np.float64)
    unit_KG: np.ndarray = beta_KG / np.linalg.norm(beta_KG, axis=1, keepdims=True)
    return unit_KG

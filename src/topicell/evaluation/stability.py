"""Do replicates find the same topics? Matching of topics and its mean cosine.

Shapes: R replicates, K topics, G genes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment


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
    """Agreement of replicates; 1 if they have the same topics, in whatever order.

    Attributes
    ----------
    mean
        Mean cosine similarity over matched topics and over all pairs of replicates.
    per_topic_RK
        Mean cosine of each topic of each replicate with its matches in the others, shape (R, K).
    """

    mean: float
    per_topic_RK: np.ndarray


def match_topics(beta_a_KG: np.ndarray, beta_b_KG: np.ndarray) -> Matching:
    """Match the topics of two fits so that the sum of cosine similarities is greatest.

    Parameters
    ----------
    beta_a_KG, beta_b_KG
        Gene proportions of each topic, both of shape (K, G).

    Returns
    -------
    The order in which the topics of b match those of a, and how well.

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
    """Agreement of replicates: cosine similarity of matched topics over all pairs.

    Parameters
    ----------
    beta_RKG
        Gene proportions of each topic of each replicate, shape (R, K, G).

    Returns
    -------
    The mean, and the figure of each topic.

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
    if n_replicates < 2:
        raise ValueError(f"stability compares replicates: {n_replicates} are too few, 2 the least")
    per_topic_RK = np.zeros((n_replicates, n_topics))
    for a, b in combinations(range(n_replicates), 2):
        matching = match_topics(beta_RKG[a], beta_RKG[b])
        per_topic_RK[a] += matching.cosine
        per_topic_RK[b, matching.permutation] += matching.cosine
    per_topic_RK /= n_replicates - 1
    return Stability(float(per_topic_RK.mean()), per_topic_RK)


def _unit(beta_KG: np.ndarray) -> np.ndarray:
    beta_KG = np.asarray(beta_KG, dtype=np.float64)
    unit_KG: np.ndarray = beta_KG / np.linalg.norm(beta_KG, axis=1, keepdims=True)
    return unit_KG

"""Which genes stand for a topic, and how many topics there are in use.

Rankings of genes (probability, FREX), how much topics share their top genes
(diversity, exclusivity), and how many topics cells use. Shapes: N cells, K topics, G genes,
T top genes of each topic.
"""

from __future__ import annotations

import numpy as np


def top_genes(score_KG: np.ndarray, n: int) -> np.ndarray:
    """Genes of each topic by score, best first; equal scores by index.

    Parameters
    ----------
    score_KG
        Probability, `frex` or any other score, shape (K, G).
    n
        How many; all genes if there are fewer.

    Returns
    -------
    Indices of genes, shape (K, T), T = min(n, G).
    """
    order_KG = np.argsort(-np.asarray(score_KG, dtype=np.float64), axis=1, kind="stable")
    return order_KG[:, :n]


def frex(beta_KG: np.ndarray, weight: float = 0.5) -> np.ndarray:
    """FREX of genes in topics: frequent there and exclusive to it.

    The harmonic mean of two ranks within the topic: that of the gene's probability and that of
    its exclusivity, its probability as a share of the sum over topics. Ranks are values of the
    empirical distribution function, the share of genes that are not above.

    Parameters
    ----------
    beta_KG
        Gene proportions of each topic, shape (K, G).
    weight
        Of exclusivity; the rest is that of frequency.

    Returns
    -------
    FREX, above 0 and at most 1, shape (K, G).

    Raises
    ------
    ValueError
        The weight is not between 0 and 1.

    References
    ----------
    Bischof & Airoldi (2012), Summarizing topical content with word frequency and exclusivity.
    """
    _check_weight(weight)
    beta_KG = np.asarray(beta_KG, dtype=np.float64)
    total_G = beta_KG.sum(0)
    exclusivity_KG = np.divide(beta_KG, total_G, out=np.zeros_like(beta_KG), where=total_G > 0)
    frex_KG: np.ndarray = 1 / (
        weight / _share_not_above(exclusivity_KG) + (1 - weight) / _share_not_above(beta_KG)
    )
    return frex_KG


def exclusivity(beta_KG: np.ndarray, n: int) -> np.ndarray:
    """Mean FREX, of equal weights, over the most probable genes of each topic.

    Parameters
    ----------
    beta_KG
        Gene proportions of each topic, shape (K, G).
    n
        How many genes of each topic; all genes if there are fewer.

    Returns
    -------
    Exclusivity of each topic, above 0 and at most 1, shape (K,).

    References
    ----------
    Bischof & Airoldi (2012); Roberts et al. (2014), Structural topic models for open-ended
    survey responses, where FREX serves as the exclusivity of a topic.
    """
    exclusivity_K: np.ndarray = np.take_along_axis(
        frex(beta_KG), top_genes(beta_KG, n), axis=1
    ).mean(1)
    return exclusivity_K


def diversity(beta_KG: np.ndarray, n: int = 25) -> float:
    """Distinct genes among the most probable ones of all topics, as a share of their number.

    Parameters
    ----------
    beta_KG
        Gene proportions of each topic, shape (K, G).
    n
        How many genes of each topic; all genes if there are fewer.

    Returns
    -------
    Between 1/K, all topics have the same top genes, and 1, no two share one.

    References
    ----------
    Dieng, Ruiz & Blei (2020), Topic modeling in embedding spaces (topic diversity).
    """
    genes_KT = top_genes(beta_KG, n)
    return len(np.unique(genes_KT)) / genes_KT.size


def dominant_topics(theta_NK: np.ndarray) -> np.ndarray:
    """The topic with the greatest proportion in each cell, shape (N,); of equal ones the first.

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells, shape (N, K).
    """
    dominant_N: np.ndarray = np.argmax(theta_NK, axis=1)
    return dominant_N


def used_topics(theta_NK: np.ndarray, share: float = 0.01) -> int:
    """Number of topics that are dominant in more than a share of the cells.

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells, shape (N, K).
    share
        Of the cells; a topic dominant in exactly this share is not counted.
    """
    n_cells = len(theta_NK)
    return int((np.bincount(dominant_topics(theta_NK)) / n_cells > share).sum())


def effective_topics(theta_NK: np.ndarray) -> float:
    """Number of equally common topics that would be as diverse: exp(entropy of the mean cell).

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells, shape (N, K).

    Returns
    -------
    Between 1 and K.

    References
    ----------
    Hill (1973), Diversity and evenness: a unifying notation and its consequences, order 1.
    """
    mean_K = np.asarray(theta_NK).mean(0, dtype=np.float64)
    present = mean_K[mean_K > 0]
    return float(np.exp(-(present * np.log(present)).sum()))


def _check_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"weight = {weight}: must be between 0 and 1")


def _share_not_above(value_KG: np.ndarray) -> np.ndarray:
    """Empirical distribution function of each row, at its own values."""
    return np.stack(
        [np.searchsorted(np.sort(row), row, side="right") / len(row) for row in value_KG]
    )

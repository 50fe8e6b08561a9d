"""Rank the genes that characterise a topic, and count the topics in use.

Scores of genes (probability, lift, relevance, FREX), how much topics share their top genes
(diversity, exclusivity), and how many topics cells use. Shapes: N cells, K topics, G genes,
T top genes of each topic.
"""

from __future__ import annotations

import numpy as np

RANKINGS = ("probability", "lift", "relevance", "frex")
"""Names of the scores of `gene_scores`."""


def gene_scores(
    beta_KG: np.ndarray,
    by: str,
    frequency_G: np.ndarray | None = None,
    weight: float | None = None,
) -> np.ndarray:
    """Return the scores of the genes of each topic, by the name of the score.

    `top_genes` ranks genes by their scores. On real cells, the same few genes are the most
    probable ones of many topics; the other scores favour genes that distinguish a topic.

    Parameters
    ----------
    beta_KG
        Gene proportions of each topic, shape (K, G).
    by
        One of `RANKINGS`.
    frequency_G
        Share of each gene in all training counts, shape (G,); `lift` and `relevance` need it.
    weight
        Weight of log probability in `relevance`, of exclusivity in `frex`; None takes the default.

    Returns
    -------
    Scores, higher is better, shape (K, G).

    Raises
    ------
    ValueError
        The name is not known, frequencies are needed and not given, a weight is given to a
        score that has none or is not between 0 and 1, or the shapes do not match.

    Examples
    --------
    Gene 0 is in all topics, genes 1 and 2 are markers.

    >>> beta_KG = np.array([[0.55, 0.45, 0.0], [0.55, 0.0, 0.45]])
    >>> top_genes(gene_scores(beta_KG, "probability"), 1).tolist()
    [[0], [0]]
    >>> top_genes(gene_scores(beta_KG, "relevance", beta_KG.mean(0)), 1).tolist()
    [[1], [2]]
    """
    if by not in RANKINGS:
        raise ValueError(f"by = {by!r}: must be one of {', '.join(RANKINGS)}")
    if np.ndim(beta_KG) != 2:
        raise ValueError(f"beta has shape {np.shape(beta_KG)}: it must be (K, G)")
    if by in ("probability", "lift") and weight is not None:
        raise ValueError(f"weight = {weight}: {by} has no weight; only relevance and frex have one")
    weights = {} if weight is None else {"weight": weight}
    if by == "frex":
        return frex(beta_KG, **weights)
    if by == "probability":
        return np.array(beta_KG, dtype=np.float64)
    if frequency_G is None:
        raise ValueError(f"{by} needs frequency_G, the share of each gene in all training counts")
    if by == "lift":
        return lift(beta_KG, frequency_G)
    return relevance(beta_KG, frequency_G, **weights)


def top_genes(score_KG: np.ndarray, n: int) -> np.ndarray:
    """Return the leading genes of each topic by score, best first; ties are ordered by index.

    Parameters
    ----------
    score_KG
        Any of `gene_scores`, or another, shape (K, G).
    n
        Number of genes; all genes if there are fewer.

    Returns
    -------
    Indices of genes, shape (K, T), T = min(n, G).
    """
    order_KG = np.argsort(-np.asarray(score_KG, dtype=np.float64), axis=1, kind="stable")
    return order_KG[:, :n]


def lift(beta_KG: np.ndarray, frequency_G: np.ndarray) -> np.ndarray:
    r"""Return the lift of genes in topics, :math:`\beta_{kg} / p_g`.

    Lift says how much more frequent a gene is in the topic than overall.

    It favours rare genes, whose proportions are the least certain; `relevance` is a compromise.

    Parameters
    ----------
    beta_KG
        Gene proportions of each topic, shape (K, G).
    frequency_G
        Share of each gene in all training counts, p, shape (G,).

    Returns
    -------
    Lift, 1 for a gene as frequent as overall, shape (K, G); 0 for a gene without counts.

    Raises
    ------
    ValueError
        The shapes do not match.

    References
    ----------
    Taddy (2012), On estimation and selection for topic models; Sievert & Shirley (2014), section
    3.1.
    """
    beta_KG, frequency_G = _fitting(beta_KG, frequency_G)
    lift_KG: np.ndarray = np.divide(
        beta_KG, frequency_G, out=np.zeros_like(beta_KG), where=frequency_G > 0
    )
    return lift_KG


def relevance(beta_KG: np.ndarray, frequency_G: np.ndarray, weight: float = 0.6) -> np.ndarray:
    r"""Return the relevance of genes to topics: weighted log probability and log lift.

    It is :math:`\lambda \log \beta_{kg} + (1 - \lambda) \log(\beta_{kg} / p_g)`; a weight of 1
    ranks as probability, a weight of 0 as `lift`.

    Parameters
    ----------
    beta_KG
        Gene proportions of each topic, shape (K, G).
    frequency_G
        Share of each gene in all training counts, p, shape (G,).
    weight
        Weight of log probability, λ; that of log lift is 1 − λ. In the authors' study, readers
        recognised topics best with λ near 0.6.

    Returns
    -------
    Relevance, shape (K, G); -inf for a gene that the topic does not have, or without counts.

    Raises
    ------
    ValueError
        The weight is not between 0 and 1, or the shapes do not match.

    References
    ----------
    Sievert & Shirley (2014), LDAvis: a method for visualizing and interpreting topics, section
    3.1.
    """
    _check_weight(weight)
    beta_KG, frequency_G = _fitting(beta_KG, frequency_G)
    present = (beta_KG > 0) & (frequency_G > 0)
    log_beta_KG = np.log(beta_KG, out=np.full_like(beta_KG, -np.inf), where=present)
    log_frequency_G = np.log(frequency_G, out=np.zeros_like(frequency_G), where=frequency_G > 0)
    # Weighting both terms would multiply a weight of 0 by the log of 0.
    relevance_KG: np.ndarray = log_beta_KG - (1 - weight) * log_frequency_G
    return relevance_KG


def frex(beta_KG: np.ndarray, weight: float = 0.5) -> np.ndarray:
    """Return the FREX of genes in topics: high for genes that are frequent and exclusive.

    FREX is the harmonic mean of two ranks within the topic: that of the probability of the gene,
    and that of its exclusivity, which is its probability as a share of the sum over topics. Ranks
    are values of the empirical distribution function, the share of genes that are not above.

    Parameters
    ----------
    beta_KG
        Gene proportions of each topic, shape (K, G).
    weight
        Weight of exclusivity; that of frequency is 1 minus it.

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
    """Return the mean FREX, with equal weights, of the most probable genes of each topic.

    Parameters
    ----------
    beta_KG
        Gene proportions of each topic, shape (K, G).
    n
        Number of genes of each topic; all genes if there are fewer.

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
    """Return the share of distinct genes among the most probable genes of all topics.

    Parameters
    ----------
    beta_KG
        Gene proportions of each topic, shape (K, G).
    n
        Number of genes of each topic; all genes if there are fewer.

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
    """Return the topic with the greatest proportion in each cell, shape (N,); the first of equals.

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells, shape (N, K).
    """
    dominant_N: np.ndarray = np.argmax(theta_NK, axis=1)
    return dominant_N


def used_topics(theta_NK: np.ndarray, share: float = 0.01) -> int:
    """Return the number of topics that are dominant in more than a given share of the cells.

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells, shape (N, K).
    share
        Share of the cells; a topic that is dominant in exactly this share does not count.
    """
    n_cells = len(theta_NK)
    return int((np.bincount(dominant_topics(theta_NK)) / n_cells > share).sum())


def effective_topics(theta_NK: np.ndarray) -> float:
    """Return the exponential of the entropy of the mean topic proportions.

    It is the number of equally common topics that would be as diverse.

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


def _fitting(beta_KG: np.ndarray, frequency_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both arrays in float64, after a check of their shapes."""
    beta_KG = np.asarray(beta_KG, dtype=np.float64)
    frequency_G = np.asarray(frequency_G, dtype=np.float64)
    if beta_KG.ndim != 2 or frequency_G.shape != beta_KG.shape[1:]:
        raise ValueError(
            f"beta is {beta_KG.shape} and frequency {frequency_G.shape}: "
            "they must be (K, G) and (G,)"
        )
    return beta_KG, frequency_G


def _share_not_above(value_KG: np.ndarray) -> np.ndarray:
    """Return the empirical distribution function of each row at its own values."""
    return np.stack(
        [np.searchsorted(np.sort(row), row, side="right") / len(row) for row in value_KG]
    )

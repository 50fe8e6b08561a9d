"""Measure whether topics can be interpreted: by gene sets, by labels, and by what topics share.

These are measures of scE2TM (Chen et al. 2025), as its code computes them; each function names what
differs. Shapes: N cells, K topics, G genes, T leading genes of each topic, S gene sets.

References
----------
Chen, Lu, Dai, Wang, Li & Rao (2025), scE2TM: toward interpretable single-cell embedding via topic
modeling, arXiv:2507.08355; code: ``tutorial/Clustering-and-Interpretable-Evaluation.ipynb`` and
``runners/Runner.py`` of the public repository nbnbhwyy/scE2TM.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from topicell.evaluation.labels import is_missing


def set_coherence(
    gene_sets: Mapping[str, Collection[str]], leading_K: Iterable[Sequence[str]]
) -> np.ndarray:
    r"""Return how often the leading genes of each topic are in the same gene sets.

    The mean over the T(T − 1)/2 pairs of leading genes of
    :math:`\log\frac{p(g,h)}{p(g)\,p(h)} / -\log p(g,h)`, where p is the share of the sets that have
    the gene, or both genes. A pair without a common set counts as 0, unlike in
    `topicell.evaluation.coherence.npmi`, because most genes are in few sets. A pair that all sets
    have counts as 1, the limit (the code of scE2TM divides by 0 there).

    Parameters
    ----------
    gene_sets
        Genes by name of the set; all sets count, also those without a leading gene.
    leading_K
        Names of the leading genes of each topic.

    Returns
    -------
    Coherence of each topic, between -1 and 1, shape (K,). The paper's TC is the mean over topics,
    with T = 10 and the sets of MSigDB.

    Raises
    ------
    ValueError
        There is no set, or a topic has fewer than 2 leading genes.

    Examples
    --------
    >>> sets = {"B": ["CD19", "MS4A1"], "T": ["CD3D", "CD3E"]}
    >>> set_coherence(sets, [["CD3D", "CD3E"], ["CD3D", "CD19"]]).tolist()
    [1.0, 0.0]
    """
    if not gene_sets:
        raise ValueError("coherence needs at least one gene set")
    members = [set(genes) for genes in gene_sets.values()]
    coherence = []
    for leading in leading_K:
        if len(leading) < 2:
            raise ValueError(f"coherence needs pairs: {len(leading)} leading genes are too few")
        has_ST = np.array([[gene in genes for gene in leading] for genes in members], dtype=float)
        share_TT = has_ST.T @ has_ST / len(members)
        first, second = np.triu_indices(len(leading), k=1)
        both = share_TT[first, second]
        apart = share_TT.diagonal()[first] * share_TT.diagonal()[second]
        value = np.where(both == 1, 1.0, 0.0)
        finite = (both > 0) & (both < 1)
        log_both = np.log(both[finite])
        value[finite] = (log_both - np.log(apart[finite])) / -log_both
        coherence.append(value.mean())
    return np.array(coherence)


def unshared_genes(genes_KT: np.ndarray) -> float:
    """Return the share of the leading genes of all topics that lead one topic only.

    This is the paper's TD (with T = 10). `topicell.evaluation.ranking.diversity` counts distinct
    genes instead, so it is higher. The code of scE2TM divides names such as ``HLA-DRA`` at the
    hyphen; this function does not.

    Parameters
    ----------
    genes_KT
        Indices of the leading genes of each topic, shape (K, T).

    Returns
    -------
    Between 0, each gene leads several topics, and 1, no two topics share one.

    Examples
    --------
    >>> unshared_genes(np.array([[0, 1], [0, 2]]))
    0.5
    """
    _, n_topics = np.unique(genes_KT, return_counts=True)
    return float((n_topics == 1).sum() / np.size(genes_KT))


def purity(topic_N: np.ndarray, labels: Sequence[Any] | np.ndarray) -> float:
    """Return the share of cells with the most common label of the cells of their topic.

    This is the paper's IP, for the dominant topic of each cell. It cannot decrease if a topic is
    divided, so compare only fits with the same number of topics. It is at least the share of the
    most common label.

    Parameters
    ----------
    topic_N
        The topic of each cell, shape (N,).
    labels
        Label of each cell, shape (N,); cells without one are left out.

    Raises
    ------
    ValueError
        No cell has a label.

    References
    ----------
    Zhao & Karypis (2004), Empirical and theoretical comparisons of selected criterion functions for
    document clustering.

    Examples
    --------
    >>> purity(np.array([0, 0, 0, 1]), ["B", "B", "T", "T"])
    0.75
    """
    labels = np.asarray(labels, dtype=object)
    present = np.array([not is_missing(label) for label in labels], dtype=bool)
    if not present.any():
        raise ValueError("purity needs cells with labels")
    topics, topic_N = np.unique(np.asarray(topic_N)[present], return_inverse=True)
    names, label_N = np.unique(labels[present].astype(str), return_inverse=True)
    cells = np.zeros((len(topics), len(names)), dtype=np.int64)
    np.add.at(cells, (topic_N, label_N), 1)
    return float(cells.max(1).sum() / len(label_N))


class OverRepresentation(NamedTuple):
    """Gene sets that are over-represented among the leading genes of the topics.

    Attributes
    ----------
    number
        Pairs of a topic and a set that is over-represented in it: the paper's ORA_N.
    uniqueness
        Distinct sets as a share of these pairs, ORA_U: 1 if each set is over-represented in one
        topic only; NaN if there are none.
    quality
        Distinct sets, which is number × uniqueness. The code of scE2TM prints it between the other
        two, under a heading that names ORA_Q; whether the paper defines ORA_Q as this product, as
        it does TQ, could not be checked.
    """

    number: int
    uniqueness: float
    quality: int


def over_representation(enriched_K: Iterable[Collection[str]]) -> OverRepresentation:
    """Count the over-represented gene sets of all topics.

    Parameters
    ----------
    enriched_K
        Names of the sets that are over-represented in each topic.

    Examples
    --------
    >>> over_representation([["B cell", "MHC class II"], ["MHC class II"], []])
    OverRepresentation(number=3, uniqueness=0.6666666666666666, quality=2)
    """
    names = [name for enriched in enriched_K for name in set(enriched)]
    distinct = len(set(names))
    return OverRepresentation(len(names), distinct / len(names) if names else np.nan, distinct)

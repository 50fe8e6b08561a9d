"""Measures: arrays in, (name, value) out. Definitions and sources are in each module."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from topicell.evaluation.coherence import npmi, umass
from topicell.evaluation.ranking import (
    diversity,
    effective_topics,
    exclusivity,
    top_genes,
    used_topics,
)


def topic_scores(
    x_NG: sp.csr_matrix,
    theta_NK: np.ndarray,
    beta_KG: np.ndarray,
    *,
    n_coherence_genes: int = 20,
    n_diversity_genes: int = 25,
) -> Iterator[tuple[str, float]]:
    """The measures of one set of topics, as (name, value).

    Parameters
    ----------
    x_NG
        Counts of the training cells, over which genes are seen together.
    theta_NK
        Topic proportions of all cells.
    beta_KG
        Gene proportions of the topics.
    n_coherence_genes, n_diversity_genes
        How many top genes of a topic count.
    """
    genes_KT = top_genes(beta_KG, n_coherence_genes)
    yield "topics/coherence_npmi", float(npmi(x_NG, genes_KT).mean())
    yield "topics/coherence_umass", float(umass(x_NG, genes_KT).mean())
    yield "topics/diversity", diversity(beta_KG, n_diversity_genes)
    yield "topics/exclusivity", float(exclusivity(beta_KG, n_coherence_genes).mean())
    yield "topics/used", float(used_topics(theta_NK))
    yield "topics/effective", effective_topics(theta_NK)

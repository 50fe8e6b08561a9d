"""All measures of one set of topics: each is its own function's, and none depends on order."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from topicell.evaluation import topic_scores
from topicell.evaluation.coherence import npmi, umass
from topicell.evaluation.ranking import (
    diversity,
    effective_topics,
    exclusivity,
    top_genes,
    used_topics,
)


@pytest.fixture
def corpus():
    rng = np.random.default_rng(0)
    theta_NK, beta_KG = rng.dirichlet(np.full(4, 0.3), 50), rng.dirichlet(np.full(30, 0.3), 4)
    return sp.csr_matrix(rng.poisson(40 * theta_NK @ beta_KG)), theta_NK, beta_KG


def test_yields_each_measure_under_its_name(corpus):
    x_NG, theta_NK, beta_KG = corpus
    scores = dict(topic_scores(*corpus, n_coherence_genes=6, n_diversity_genes=5))
    genes_KT = top_genes(beta_KG, 6)
    assert scores == {
        "topics/coherence_npmi": npmi(x_NG, genes_KT).mean(),
        "topics/coherence_umass": umass(x_NG, genes_KT).mean(),
        "topics/diversity": diversity(beta_KG, 5),
        "topics/exclusivity": exclusivity(beta_KG, 6).mean(),
        "topics/used": used_topics(theta_NK),
        "topics/effective": effective_topics(theta_NK),
    }
    assert all(type(value) is float for value in scores.values())


def test_order_of_topics_cells_and_genes_changes_nothing(corpus):
    x_NG, theta_NK, beta_KG = corpus
    rng = np.random.default_rng(1)
    topics, cells, genes = rng.permutation(4), rng.permutation(50), rng.permutation(30)
    shuffled = topic_scores(
        x_NG[cells][:, genes], theta_NK[cells][:, topics], beta_KG[topics][:, genes]
    )
    assert dict(shuffled) == pytest.approx(dict(topic_scores(*corpus)), rel=1e-12)

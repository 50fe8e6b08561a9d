"""Topics of several searches: groups, support, and their genes."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from topicell.agreement import agreement_of, topics_given
from topicell.config import ModelConfig
from topicell.errors import InputError
from topicell.model.points import PointFit


def point_fit(counts, beta_RKG, theta_RNK):
    """Return topics with known proportions in the cells, in any subset and order of its genes."""
    return PointFit(
        beta_RKG,
        [lambda x, theta_NK=theta_NK: theta_NK for theta_NK in theta_RNK],
        model=ModelConfig(n_topics=beta_RKG.shape[1]),
        genes=counts.genes,
        gene_frequency_G=counts.gene_frequency(),
        selection_R=np.zeros(len(beta_RKG)),
        n_train=counts.n_cells,
        history=[],
    )


@pytest.fixture
def searches(planted):
    """Return two runs: the first has topics 0 to 3 twice, the second 0, 1 and noise, once."""
    counts, theta_NK, beta_KG = planted
    rng = np.random.default_rng(0)
    first = point_fit(counts, np.stack([beta_KG, beta_KG[::-1]]), [theta_NK, theta_NK[:, ::-1]])
    noise_N = rng.permutation(theta_NK[:, 2])
    second = point_fit(
        counts,
        np.stack([[beta_KG[1], beta_KG[0], rng.dirichlet(np.ones(counts.n_genes))]]),
        [np.stack([theta_NK[:, 1], theta_NK[:, 0], noise_N], axis=1)],
    )
    return {"a": first, "b": second}


def test_topics_of_most_searches_are_agreed_on(searches, planted):
    counts, theta_NK, _ = planted
    found = agreement_of(searches, counts)
    assert found.n_searches == 3
    table = found.table
    assert sorted(table["found_in"]) == [1, 2, 2, 3, 3]
    assert (table["agreed"] == (table["found_in"] > 1.5)).all()
    assert table["topic"].tolist() == ["topic_0", "topic_1", "topic_2", "topic_3", ""]
    # The agreed topics first, the largest first.
    order = np.argsort(-theta_NK.mean(0))
    np.testing.assert_allclose(found.theta_NC, theta_NK[:, order], rtol=1e-6)
    assert found.support_C.tolist() == table["found_in"].tolist()[:4]
    members = table["members"].str.split("; ")
    assert members.str.len().tolist() == table["found_in"].tolist()
    assert members[0][0] == f"a replicate 0 topic {order[0]}"
    assert members.iloc[-1] == ["b replicate 0 topic 2"]
    assert members.explode().is_unique
    strict = agreement_of(searches, counts, min_support=0.9)
    assert strict.support_C.tolist() == [3, 3]


def test_the_genes_of_agreed_topics_are_those_of_the_planted(searches, planted):
    counts, theta_NK, beta_KG = planted
    found = agreement_of(searches, counts)
    order = np.argsort(-theta_NK.mean(0))
    beta_CG = found.initial_topics()
    np.testing.assert_allclose(beta_CG.sum(1), 1, rtol=1e-5)
    for found_G, planted_G in zip(beta_CG, beta_KG[order], strict=True):
        cosine = found_G @ planted_G / np.linalg.norm(found_G) / np.linalg.norm(planted_G)
        assert cosine > 0.99


def test_the_table_of_initial_topics_has_all_digits(searches, planted, tmp_path):
    found = agreement_of(searches, planted[0])
    found.write_initial_topics(tmp_path / "topics.csv")
    table = pd.read_csv(tmp_path / "topics.csv", index_col="gene")
    assert table.index.tolist() == planted[0].genes.tolist()
    np.testing.assert_allclose(table.to_numpy().T, found.initial_topics(), rtol=1e-6)


def test_topics_with_known_proportions_have_the_highest_likelihood():
    """No profile near the optimum is better, and more steps change nothing."""
    rng = np.random.default_rng(1)
    theta_NK = rng.dirichlet(np.full(3, 0.5), 200)
    beta_KG = rng.dirichlet(np.full(15, 0.5), 3)
    x = np.stack([rng.multinomial(100, p) for p in theta_NK @ beta_KG]).astype(np.float32)

    def likelihood(beta_KG):
        return (x * np.log(theta_NK @ beta_KG)).sum()

    found = topics_given(sp.csr_matrix(x), theta_NK).astype(float)
    best = likelihood(found)
    assert best > likelihood(beta_KG) - 1
    for _ in range(50):
        near = found * np.exp(rng.normal(0, 0.05, found.shape))
        assert likelihood(near / near.sum(1, keepdims=True)) < best + 0.05


def test_runs_without_common_topics_or_genes_are_refused(searches, planted):
    counts, theta_NK, beta_KG = planted
    with pytest.raises(InputError, match="there is one replicate"):
        agreement_of({"b": searches["b"]}, counts)
    rng = np.random.default_rng(9)
    unlike = point_fit(counts, beta_KG[None], [rng.permutation(theta_NK)])
    with pytest.raises(InputError, match=r"50 % of the 2 searches agree on 0 topics"):
        agreement_of({"b": searches["b"], "c": unlike}, counts)
    searches["b"].genes = np.array([f"other_{i}" for i in range(counts.n_genes)], dtype=object)
    with pytest.raises(InputError, match="120 of the 120 genes of b"):
        agreement_of(searches, counts)

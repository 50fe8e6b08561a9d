"""Gene sets and ranked genes of topics, as other tools read them."""

import numpy as np
import pandas as pd
import pytest

from topicell.errors import InputError
from topicell.evaluation.gene_sets import read_gene_sets
from topicell.evaluation.ranking import gene_scores, top_genes
from topicell.export.genes import Order, ranked, write_gmt, write_rnk
from topicell.model.fit import ranked_table

# Names that pandas or a spreadsheet would read as something else.
GENES = np.array(["NA", "CD3E", "MARCH1", "1", "nan", "LYZ", "GNLY", "MS4A1"], dtype=object)
BETA = np.random.default_rng(0).dirichlet(np.ones(8), 3)
BETA[1, 2] = 0
BETA /= BETA.sum(axis=1, keepdims=True)
FREQUENCY = BETA.mean(axis=0)
LFC = np.random.default_rng(1).normal(size=(3, 8))
SE = np.random.default_rng(2).uniform(0.1, 1, (3, 8))


@pytest.fixture
def topics(tmp_path):
    """Write the tables of a run without background."""
    for by in ("probability", "relevance", "lift", "frex"):
        name = "top_genes" if by == "probability" else f"top_genes_{by}"
        table = ranked_table(GENES, BETA, gene_scores(BETA, by, FREQUENCY), 8)
        table.to_csv(tmp_path / f"{name}.csv")
    pd.DataFrame(
        {
            "topic": np.repeat([f"topic_{k}" for k in range(3)], 8),
            "gene": np.tile(GENES, 3),
            "log2_fold_change": LFC.ravel(),
            "standard_error": SE.ravel(),
        }
    ).sample(frac=1, random_state=0).to_csv(tmp_path / "differential_expression.csv", index=False)
    return tmp_path


@pytest.mark.parametrize("by", ["probability", "relevance", "lift", "frex"])
def test_genes_are_those_of_the_scores(topics, by):
    found = ranked(topics, Order(by))
    score_KG = gene_scores(BETA, by, FREQUENCY)
    assert list(found) == ["topic_0", "topic_1", "topic_2"]
    for k, of_topic in enumerate(found.values()):
        order = [g for g in top_genes(score_KG, 8)[k] if BETA[k, g] > 0]
        assert of_topic.index.tolist() == GENES[order].tolist()
        np.testing.assert_allclose(of_topic, score_KG[k, order], rtol=1e-6)
    assert len(found["topic_1"]) == 7  # without MARCH1, which the topic does not have


def test_differential_genes_are_ranked_by_fold_change_and_error(topics):
    found = ranked(topics, Order.differential)
    for k, of_topic in enumerate(found.values()):
        z_G = LFC[k] / SE[k]
        assert of_topic.index.tolist() == GENES[np.argsort(-z_G)].tolist()
        np.testing.assert_allclose(of_topic, np.sort(z_G)[::-1])


def test_a_gmt_file_is_read_back(topics, tmp_path):
    import gseapy

    ranks = ranked(topics, Order.relevance)
    path = tmp_path / "topics.gmt"
    write_gmt(ranks, 3, "topicell run abc, by relevance", path)
    expected = {topic: of_topic.index[:3].tolist() for topic, of_topic in ranks.items()}
    assert read_gene_sets(path) == expected
    assert gseapy.read_gmt(str(path)) == expected
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    assert {line[1] for line in lines} == {"topicell run abc, by relevance"}


def test_gseapy_finds_the_set_at_the_top_of_an_rnk_file(tmp_path):
    import gseapy

    genes = [f"g{i}" for i in range(60)]
    score = pd.Series(np.linspace(3, -3, 60), index=genes)
    write_rnk({"topic_0": score}, tmp_path)
    sets = {"first": genes[:10], "last": genes[-10:]}
    table = gseapy.prerank(
        str(tmp_path / "topic_0.rnk"), sets, min_size=5, permutation_num=50, seed=0, outdir=None
    ).res2d.set_index("Term")
    assert table.loc["first", "ES"] == pytest.approx(1)
    assert table.loc["last", "ES"] == pytest.approx(-1)


def test_a_missing_table_is_named(topics):
    with pytest.raises(InputError, match=r"by = 'deviation'.*model\.background.*frex") as error:
        ranked(topics, Order.deviation)
    assert "differential" in str(error.value)
    (topics / "differential_expression.csv").unlink()
    with pytest.raises(InputError, match="fewer than two topics in use") as error:
        ranked(topics, Order.differential)
    assert str(error.value).endswith("take one of relevance, probability, lift, frex")

"""Warnings of a report: each appears exactly when its condition holds."""

import numpy as np
import pytest

from topicell.report.warnings import alignment_warnings, score_warnings, topic_warnings

GENES = [f"GENE{i}" for i in range(40)]


def distinct(n_topics: int = 4, n_genes: int = 40) -> np.ndarray:
    beta_KG = np.kron(np.eye(n_topics), np.ones(n_genes // n_topics)) + 1e-3
    return beta_KG / beta_KG.sum(1, keepdims=True)


def balanced(n_topics: int = 4, n_cells: int = 400) -> np.ndarray:
    return 0.8 * np.eye(n_topics)[np.arange(n_cells) % n_topics] + 0.2 / n_topics


def test_a_good_fit_has_no_warnings():
    assert list(topic_warnings(balanced(), distinct(), np.full(4, 3), 4)) == []
    assert list(topic_warnings(balanced(), distinct(), None)) == []


@pytest.mark.parametrize(("n_dominant", "warned"), [(0, True), (4, True), (5, False)])
def test_a_topic_dominant_in_few_cells_is_hardly_used(n_dominant, warned):
    theta_NK = balanced(3)[np.arange(400)]
    theta_NK = np.column_stack([theta_NK, np.zeros(400)])
    theta_NK[:n_dominant] = [0, 0, 0, 1]
    found = list(topic_warnings(theta_NK, distinct(), None))
    if warned:
        ((heading, text),) = found
        assert heading == "1 of 4 topics hardly used"
        assert text.startswith("Topic 3 is")
    else:
        assert found == []


@pytest.mark.parametrize(("cosine", "warned"), [(0.94, False), (0.96, True)])
def test_topics_with_a_cosine_above_095_are_near_copies(cosine, warned):
    beta_KG = distinct()
    unit_KG = beta_KG / np.linalg.norm(beta_KG, axis=1, keepdims=True)
    between = unit_KG[0] @ unit_KG[2]
    # Mix topics 0 and 2 so that the cosine with topic 0 is the parameter.
    weight = next(
        w
        for w in np.linspace(0, 1, 100_001)
        if (1 - w + w * between) / np.sqrt((1 - w) ** 2 + w**2 + 2 * w * (1 - w) * between)
        <= cosine
    )
    beta_KG[2] = (1 - weight) * unit_KG[0] + weight * unit_KG[2]
    beta_KG[2] /= beta_KG[2].sum()
    found = list(topic_warnings(balanced(), beta_KG, None))
    assert bool(found) == warned
    if warned:
        assert "topics 0 and 2. Genes" in found[0][1]


def test_topics_of_at_most_half_of_the_replicates_have_little_support():
    support = np.array([4, 2, 3, 1])
    ((heading, text),) = topic_warnings(balanced(), distinct(), support, 4)
    assert heading == "2 of 4 topics with little support (marked with *)"
    assert "At most half of the 4 replicates" in text
    assert "1 (2), 3 (1)" in text
    assert list(topic_warnings(balanced(), distinct(), np.array([2, 2, 3, 3]), 3)) == []


def test_topics_that_an_earlier_run_does_not_have_are_named():
    assert list(alignment_warnings(None, "")) == []
    assert list(alignment_warnings(np.array([0.95, 0.9]), "abc")) == []
    ((heading, text),) = alignment_warnings(np.array([0.95, 0.893, np.nan]), "abc")
    assert heading == "2 of 3 topics are not those of the earlier run"
    assert "numbered as in run abc" in text
    assert "1 (0.89), 2 (new)" in text


def test_few_test_cells_and_one_replicate_are_limits():
    assert list(score_warnings(30, replicated=True)) == []
    assert list(score_warnings(0, replicated=True)) == []
    assert [heading for heading, _ in score_warnings(29, replicated=False)] == [
        "Only 29 test cells",
        "One replicate, so no stability",
    ]


def test_an_average_topic_in_all_cells_is_a_background():
    mean_G = distinct()[:3].mean(axis=0)
    beta_KG = np.vstack([distinct()[:3], mean_G])
    theta_NK = np.column_stack([0.9 * balanced(3)[:, :3], np.full(400, 0.1)])
    theta_NK[:4] = [0, 0, 0, 1]  # in use
    theta_NK[4] = theta_NK[5] = [0, 0, 0, 1]
    theta_NK /= theta_NK.sum(axis=1, keepdims=True)
    ((heading, text),) = topic_warnings(theta_NK, beta_KG)
    assert heading == "1 of 4 topics similar to a background"
    assert "topic 3 (100 % of the cells)" in text
    # In few cells it is a cell type.
    theta_NK[6:, 3] = 0
    assert list(topic_warnings(theta_NK / theta_NK.sum(axis=1, keepdims=True), beta_KG)) == []


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["RPL7", "RPS4X", "RPLP0", "RPSA", "MT-CO1"], True),
        (["Rpl7", "Rps4x", "Rplp0", "mt-Co1", "Rps2"], True),
        (["RPP30", "RPTOR", "RPN1", "MTOR", "MT1X"], False),
    ],
)
def test_a_topic_of_mostly_ribosomal_or_mitochondrial_genes_has_a_warning(names, warned):
    genes = [*names, *GENES[5:]]
    found = list(topic_warnings(balanced(), distinct(), None, 1, genes))
    assert found == []  # exactly half of topic 0
    beta_KG = distinct()
    beta_KG[0, :5] *= 1.5
    beta_KG /= beta_KG.sum(axis=1, keepdims=True)
    found = list(topic_warnings(balanced(), beta_KG, None, 1, genes))
    assert bool(found) == warned
    if warned:
        assert found[0][0] == "1 of 4 topics mostly ribosomal or mitochondrial"
        assert "topic 0 (60 %)" in found[0][1]

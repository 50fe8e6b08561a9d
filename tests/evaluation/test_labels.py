"""Agreement of topics with labels, against loops."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topicell.evaluation.labels import ari, labelled_cells, neighbor_accuracy, nmi


def label_scores(theta_NK, labels, **settings):
    cells = labelled_cells(theta_NK, labels, **settings)
    if cells is None:
        return {}
    return {
        "labels/nmi": nmi(cells),
        "labels/ari": ari(cells),
        "labels/knn_accuracy": neighbor_accuracy(cells),
    }


def knn_accuracy_by_loops(theta_NK, labels, n_neighbors):
    root = np.sqrt(theta_NK)
    right = 0
    for c in range(len(labels)):
        others = [i for i in range(len(labels)) if i != c]
        others.sort(key=lambda i, c=c: ((root[i] - root[c]) ** 2).sum())
        near = [labels[i] for i in others[:n_neighbors]]
        votes = Counter(near)
        elected = next(label for label in near if votes[label] == max(votes.values()))
        right += elected == labels[c]
    return right / len(labels)


def nmi_by_loops(a, b):
    def entropy(labels):
        return -sum(n / len(a) * math.log(n / len(a)) for n in Counter(labels).values())

    mutual = entropy(a) + entropy(b) - entropy(list(zip(a, b, strict=True)))
    return mutual / ((entropy(a) + entropy(b)) / 2)


def ari_by_loops(a, b):
    pairs = list(combinations(range(len(a)), 2))
    in_a = sum(a[i] == a[j] for i, j in pairs)
    in_b = sum(b[i] == b[j] for i, j in pairs)
    in_both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    expected = in_a * in_b / len(pairs)
    return (in_both - expected) / ((in_a + in_b) / 2 - expected)


@pytest.fixture
def blobs():
    """Return proportions of three distant groups of cells, and the group of each cell."""
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], [20, 15, 10])
    theta_NK = rng.dirichlet(np.ones(3), 45) * 0.1 + 0.9 * np.eye(3)[group]
    return theta_NK, group


def test_scores_of_clusters_are_their_definitions(blobs):
    theta_NK, group = blobs
    labels = np.array(["T", "B", "NK"])[group]
    assert label_scores(theta_NK, labels) == {
        "labels/nmi": pytest.approx(1),
        "labels/ari": pytest.approx(1),
        "labels/knn_accuracy": 1,
    }
    # k-means finds the groups; some labels now contradict them.
    labels[[0, 1, 2, 25, 40]] = ["B", "NK", "B", "T", "T"]
    scores = label_scores(theta_NK, labels)
    assert scores["labels/nmi"] == pytest.approx(nmi_by_loops(labels, group))
    assert scores["labels/ari"] == pytest.approx(ari_by_loops(labels, group))
    assert 0 < scores["labels/ari"] < 0.9
    assert label_scores(theta_NK, labels) == scores


def test_kmeans_has_a_cluster_for_each_label(blobs):
    theta_NK, group = blobs
    merged = np.array(["lymphoid", "lymphoid", "other"])[group]
    scores = label_scores(theta_NK, merged)
    clusters = [
        ari_by_loops(merged, np.array(pair)[group]) for pair in ([0, 0, 1], [0, 1, 0], [0, 1, 1])
    ]
    assert any(scores["labels/ari"] == pytest.approx(value) for value in clusters)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
@settings(max_examples=25)
def test_knn_accuracy_is_its_definition(seed, n_neighbors):
    rng = np.random.default_rng(seed)
    theta_NK = rng.dirichlet(np.ones(4), 24)
    labels = np.r_[["a", "b"], rng.choice(["a", "b", "c"], 22)]
    scores = label_scores(theta_NK, labels, n_neighbors=n_neighbors)
    expected = knn_accuracy_by_loops(theta_NK, labels, n_neighbors)
    assert scores["labels/knn_accuracy"] == pytest.approx(expected)


def test_topics_that_follow_the_labels_score_higher():
    """The same proportions in another order of cells score low."""
    rng = np.random.default_rng(0)
    label_N = rng.integers(4, size=200)
    theta_NK = rng.dirichlet(np.full(4, 0.5), 200) * 0.5 + np.eye(4)[label_N] * 0.5
    true, shuffled = (label_scores(theta, label_N) for theta in (theta_NK, theta_NK[::-1]))
    for name, value in true.items():
        assert value > 0.8
        assert shuffled[name] < 0.4


def test_distance_is_hellinger_and_not_euclidean():
    theta_NK = np.array([[0.0, 0.5, 0.5], [0.02, 0.49, 0.49], [0.0, 0.59, 0.41]])
    euclidean = np.linalg.norm(theta_NK[0] - theta_NK[1:], axis=1)
    hellinger = np.linalg.norm(np.sqrt(theta_NK[0]) - np.sqrt(theta_NK[1:]), axis=1)
    assert euclidean.argmin() == 0
    assert hellinger.argmin() == 1
    # Cell 0 and cell 2 are nearest to each other, and cell 1 is nearest to cell 0.
    scores = label_scores(theta_NK, ["x", "y", "x"], n_neighbors=1)
    assert scores["labels/knn_accuracy"] == pytest.approx(2 / 3)


def test_a_cell_does_not_vote_for_itself(blobs):
    """Every cell has a label that no neighbour has."""
    theta_NK, group = blobs
    labels = [f"cell {i}" for i in range(len(group))]
    assert label_scores(theta_NK, labels)["labels/knn_accuracy"] == 0


class NA:
    """A value like pandas' NA: comparisons have no truth value."""

    def __eq__(self, other):
        return self

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    def __repr__(self):
        return "<NA>"

    __hash__ = None


@pytest.mark.parametrize("missing", [None, np.nan, float("nan"), NA()])
def test_cells_without_label_are_left_out(blobs, missing):
    theta_NK, group = blobs
    labels = np.array(["T", "B", "NK"])[group].astype(object)
    labels[[3, 30, 44]] = missing
    kept = np.delete(np.arange(45), [3, 30, 44])
    expected = label_scores(theta_NK[kept], labels[kept])
    assert label_scores(theta_NK, labels) == expected
    assert label_scores(theta_NK, list(labels)) == expected


def test_the_text_nan_is_a_label(blobs):
    theta_NK, group = blobs
    labels = np.array(["nan", "B", "B"])[group]
    expected = label_scores(theta_NK, np.array(["T", "B", "B"])[group])
    assert len(expected) == 3
    assert label_scores(theta_NK, labels) == expected


def test_without_two_labels_there_are_no_scores(blobs):
    theta_NK, _ = blobs
    assert label_scores(theta_NK, ["T"] * 45) == {}
    assert label_scores(theta_NK, [None] * 45) == {}
    assert label_scores(theta_NK, ["T"] * 44 + [None]) == {}
    assert label_scores(theta_NK[:0], []) == {}


def test_another_number_of_labels_is_refused(blobs):
    theta_NK, _ = blobs
    with pytest.raises(ValueError, match="44 labels for 45 cells"):
        label_scores(theta_NK, ["T"] * 44)


def test_topics_that_collapsed_score_zero_without_a_warning():
    theta_NK = np.full((30, 4), 0.25)
    scores = label_scores(theta_NK, ["a", "b", "c"] * 10)
    assert scores["labels/nmi"] == pytest.approx(0)
    assert scores["labels/ari"] == pytest.approx(0)


def test_relabelling_topics_and_order_of_cells_change_nothing(blobs):
    theta_NK, group = blobs
    labels = np.array(["T", "B", "NK"])[group]
    labels[[0, 1, 25]] = ["B", "NK", "T"]
    expected = label_scores(theta_NK, labels)
    order = np.random.default_rng(1).permutation(45)
    found = label_scores(theta_NK[order][:, [2, 0, 1]], labels[order])
    assert found == pytest.approx(expected)

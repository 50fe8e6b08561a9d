"""Matrices of topics: squares are the values, and similar topics are neighbours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from legibility import (
    LONG,
    NUMBERS_OF_TOPICS,
    assert_legible,
    drawn_texts,
    proportions,
    square_texts,
    squares,
    swatches,
    tick_names,
)

from topicell.evaluation.stability import consensus, match_topics
from topicell.report import figures


@pytest.mark.parametrize("n_topics", NUMBERS_OF_TOPICS)
def test_squares_are_the_correlations_of_topics(n_topics):
    theta_NK = proportions(200, n_topics)
    figure = figures.topic_correlation(theta_NK)
    axes = figure.axes[0]
    rows, columns = tick_names(axes)
    order = [int(name) for name in columns]
    assert sorted(order) == list(range(n_topics))
    assert rows == [f"Topic {topic}" for topic in order]
    colors = figures.topic_colors(n_topics)
    assert swatches(axes) == [[colors[topic] for topic in order]] * 2
    value = squares(axes)
    assert np.isnan(np.diag(value)).all()
    off = ~np.eye(n_topics, dtype=bool)
    if n_topics > 1:
        expected = np.corrcoef(theta_NK.T)[np.ix_(order, order)]
        np.testing.assert_allclose(value[off], expected[off])
        low, high = axes.collections[0].get_clim()
        assert high == -low == pytest.approx(np.abs(expected[off]).max())
    if n_topics <= 12:
        assert square_texts(axes) == {
            (i, j): f"{value[i, j]:.2f}".replace("-", "−") for i, j in np.argwhere(off)
        }
    else:
        assert square_texts(axes) == {}
    assert_legible(figure)


@pytest.mark.parametrize("n_topics", NUMBERS_OF_TOPICS)
def test_squares_are_the_cosines_of_topics(n_topics):
    beta_KG = np.random.default_rng(0).dirichlet(np.full(50, 0.2), n_topics)
    figure = figures.topic_similarity(beta_KG)
    axes = figure.axes[0]
    order = [int(name) for name in tick_names(axes)[1]]
    value = squares(axes)
    for i, j in itertools.permutations(range(n_topics), 2):
        a, b = beta_KG[order[i]], beta_KG[order[j]]
        assert value[i, j] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
    low, high = axes.collections[0].get_clim()
    assert high == 1
    assert 0 <= low <= 0.9
    assert np.nanmin(value, initial=1) >= low
    assert_legible(figure)


def test_similar_topics_are_neighbours():
    pairs = proportions(300, 3)[:, [0, 1, 2, 2, 0, 1]]
    noise = np.random.default_rng(1).normal(0, 0.02, (300, 6))
    order = [int(name) for name in tick_names(figures.topic_correlation(pairs + noise).axes[0])[1]]
    for couple in ((0, 4), (1, 5), (2, 3)):
        assert abs(order.index(couple[0]) - order.index(couple[1])) == 1
    beta_KG = np.exp(pairs[:, [0, 1, 2, 3, 4, 5]].T * 3)
    order = [int(name) for name in tick_names(figures.topic_similarity(beta_KG).axes[0])[1]]
    for couple in ((0, 4), (1, 5), (2, 3)):
        assert abs(order.index(couple[0]) - order.index(couple[1])) == 1


def test_a_constant_topic_has_no_correlation():
    theta_NK = np.column_stack([proportions(50, 3) * 0.8, np.full(50, 0.2)])
    axes = figures.topic_correlation(theta_NK).axes[0]
    value = squares(axes)
    constant = tick_names(axes)[1].index("3")
    assert np.isnan(value[constant]).all()
    assert np.isfinite(np.delete(np.delete(value, constant, 0), constant, 1)).sum() == 6
    assert np.isnan(squares(figures.topic_correlation(np.full((9, 2), 0.5)).axes[0])).all()


@pytest.mark.parametrize(
    ("n_topics", "n_labels"), [(1, 4), (2, 25), (6, 1), (10, 25), (12, 4), (30, 4), (30, 25)]
)
def test_squares_are_the_mean_proportions_by_label(n_topics, n_labels):
    theta_NK = proportions(300, n_topics)
    labels = np.array([f"{LONG} {i:02d}" if i % 2 else f"$_{i:02d}" for i in range(n_labels)])
    labels = labels[np.arange(300) % n_labels].astype(object)
    labels[:7] = None
    figure = figures.topic_by_label(theta_NK, labels)
    axes = figure.axes[0]
    rows, columns = tick_names(axes)
    value = squares(axes)
    for row, name in enumerate(rows):
        start, end = name.rsplit(" (", 1)[0].split("…") if "…" in name else (name.split()[0], "")
        of = np.array(
            [lab is not None and lab.startswith(start) and lab.endswith(end) for lab in labels]
        )
        if row == n_labels:
            of = np.arange(300) < 7
            assert name == f"{figures.MISSING} (7)"
        assert name.endswith(f"({of.sum()})")
        np.testing.assert_allclose(
            value[row], theta_NK[of].mean(axis=0)[[int(column) for column in columns]]
        )
    assert len(rows) == n_labels + 1
    assert (len(square_texts(axes)) > 0) == (n_topics <= 12)
    by_topic, by_label = swatches(axes)
    assert by_topic == [figures.topic_colors(n_topics)[int(column)] for column in columns]
    assert sorted(by_label[:-1]) == sorted(figures.category_colors(n_labels))
    assert_legible(figure)


def test_high_values_are_along_the_diagonal():
    rng = np.random.default_rng(0)
    code = np.repeat(np.arange(8), 30)
    theta_NK = 0.9 * np.eye(8)[rng.permutation(8)][code] + 0.1 * rng.dirichlet(np.ones(8), 240)
    labels = np.array(list("dgahcebf"))[code]
    value = squares(figures.topic_by_label(theta_NK, labels).axes[0])
    assert (np.diag(value) > 0.9).all()


def test_cells_without_labels_are_one_row():
    figure = figures.topic_by_label(proportions(5, 3), [None] * 5, "Topics by cluster")
    assert tick_names(figure.axes[0])[0] == [f"{figures.MISSING} (5)"]
    assert "Topics by cluster" in [text.get_text() for text in drawn_texts(figure)]
    assert_legible(figure)


@pytest.mark.parametrize(
    ("n_topics", "n_replicates"), [(1, 3), (2, 2), (6, 10), (10, 3), (30, 2), (30, 10)]
)
def test_squares_are_the_cosines_with_the_other_replicates(n_topics, n_replicates):
    rng = np.random.default_rng(0)
    beta_RKG = rng.dirichlet(np.full(30, 0.3), (n_replicates, n_topics))
    beta_RKG[:, 0] = beta_RKG[0, 0]
    cosine_RK = np.array([match_topics(beta_RKG[1], beta_KG).cosine for beta_KG in beta_RKG])
    theta_RNK = rng.dirichlet(np.full(n_topics, 0.3), (n_replicates, 40))
    theta_RNK[:, :, 0] = theta_RNK[0, :, 0]
    agreed = consensus(beta_RKG, theta_RNK)
    support_K = agreed.support_C[agreed.member_RK[1]]
    figure = figures.stability_matrix(cosine_RK, 1, support_K)
    axes = figure.axes[0]
    rows, columns = tick_names(axes)
    assert columns == [str(topic) for topic in range(n_topics)]
    others = [replicate for replicate in range(n_replicates) if replicate != 1]
    several = n_replicates > 2
    assert rows == [
        *(f"Replicate {replicate}" for replicate in others),
        *(["Mean"] if several else []),
        f"Found in, of {n_replicates}",
    ]
    value = squares(axes)
    np.testing.assert_array_equal(value[: len(others)], cosine_RK[others])
    if several:
        np.testing.assert_allclose(value[len(others)], cosine_RK[others].mean(axis=0))
    assert np.isnan(value[-1]).all()
    last = [text for text in axes.texts if round(text.get_position()[1]) == len(rows) - 1]
    assert [text.get_text() for text in last] == [str(support) for support in support_K]
    assert [text.get_fontweight() == "bold" for text in last] == list(support_K == 1)
    assert value[0, 0] == pytest.approx(1)
    assert_legible(figure)


def test_a_stability_matrix_needs_two_replicates_and_no_support():
    figure = figures.stability_matrix(np.array([[1.0, 1.0], [0.9, 0.5]]), 0)
    assert tick_names(figure.axes[0])[0] == ["Replicate 1"]
    assert_legible(figure)
    with pytest.raises(ValueError, match="needs at least 2"):
        figures.stability_matrix(np.ones((1, 3)), 0)

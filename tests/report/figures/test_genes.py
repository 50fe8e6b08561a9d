"""Figures of genes and gene sets: bars, dots and squares are the values they are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from legibility import (
    LONG,
    NUMBERS_OF_TOPICS,
    assert_legible,
    dots,
    drawn_texts,
    squares,
    tick_names,
)
from matplotlib.colors import to_rgb

from topicell.report import figures


@pytest.mark.parametrize("n_topics", [3, 25])
def test_bars_are_the_values_of_the_leading_genes(n_topics):
    values = np.sort(np.random.default_rng(0).random((n_topics, 7)) / 10)[:, ::-1]
    names = [[f"HLA-D{topic}R{rank}" for rank in range(7)] for topic in range(n_topics)]
    figure = figures.top_genes(names, values, "Genes")
    assert len(figure.axes) == n_topics
    for topic, axes in enumerate(figure.axes):
        np.testing.assert_array_equal([bar.get_width() for bar in axes.patches], values[topic])
        assert [label.get_text() for label in axes.get_yticklabels()] == names[topic]
        assert {to_rgb(bar.get_facecolor()) for bar in axes.patches} == {
            to_rgb(figures.topic_colors(n_topics)[topic])
        }
        assert axes.get_xlim() == figure.axes[0].get_xlim()
        top, last = axes.transData.transform([(0, 0), (0, 6)])[:, 1]
        assert top > last  # the leading gene is on top
    assert figure.axes[0].get_xlim()[1] >= values.max()
    assert_legible(figure)


def test_only_the_lowest_panel_of_a_column_has_axis_labels():
    figure = figures.top_genes([["a"]] * 7, np.full((7, 1), 0.1), "Genes")
    drawn = drawn_texts(figure)
    labelled = [any(label in drawn for label in axes.get_xticklabels()) for axes in figure.axes]
    assert labelled == [False] * 3 + [True] * 4


def test_long_gene_names_are_shortened():
    figure = figures.top_genes([["ENSG00000012345.6_alternative"]] * 10, np.full((10, 1), 0.1), "")
    assert {axes.get_yticklabels()[0].get_text() for axes in figure.axes} == {
        "ENSG000000123…native"
    }
    assert_legible(figure)


def leading(n_topics: int, n_each: int) -> tuple[list[str], np.ndarray, np.ndarray, list[int]]:
    rng = np.random.default_rng(0)
    topic_of_T = np.repeat(np.arange(n_topics), n_each)
    genes = [f"HLA-D{'QXYZ'[i % 4]}{i}" for i in range(len(topic_of_T))]
    genes[0] = "ENSG00000012345.6_alternative"
    proportion_KT = rng.dirichlet(np.ones(len(genes)), n_topics)
    proportion_KT[topic_of_T, np.arange(len(genes))] *= 9
    return genes, proportion_KT, rng.random((n_topics, len(genes))), topic_of_T.tolist()


@pytest.mark.parametrize("n_topics", NUMBERS_OF_TOPICS)
def test_dots_have_the_share_of_cells_as_area_and_the_proportion_as_colour(n_topics):
    genes, proportion_KT, expressed_KT, topic_of_T = leading(n_topics, 4)
    expressed_KT[0, 1] = 0
    expressed_KT[-1] = np.nan
    figure = figures.top_genes_dots(genes, proportion_KT, expressed_KT, LONG, topic_of_T)
    panels = figure.axes[: -(-len(genes) // 50)]
    drawn = {}
    for axes in panels:
        rows, columns = tick_names(axes)
        assert rows[:-1] == [f"Topic {topic}" for topic in range(n_topics - 1)]
        assert rows[-1] == f"Topic {n_topics - 1} (no cells)"
        for artist in dots(axes):
            for (gene, topic), value in zip(artist.get_offsets(), artist.get_array(), strict=True):
                drawn[int(topic), columns[int(gene)]] = (artist.get_sizes()[0], value)
    assert len(drawn) == np.count_nonzero(np.nan_to_num(expressed_KT))
    scaled_KT = proportion_KT / proportion_KT.max(axis=0)
    for (topic, name), (size, value) in drawn.items():
        gene = 0 if "…" in name else genes.index(name)
        assert value == pytest.approx(scaled_KT[topic, gene])
        # The area is up to 5 % larger than the share.
        assert 0 <= size / 90 - expressed_KT[topic, gene] < 0.05
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["25 %", "50 %", "75 %", "100 %"]
    sizes = [handle.get_markersize() ** 2 for handle in figure.legends[0].legend_handles]
    np.testing.assert_allclose(sizes, [22.5, 45, 67.5, 90])
    assert_legible(figure)


@pytest.mark.parametrize("n_topics", NUMBERS_OF_TOPICS)
def test_squares_are_the_log_ratio_to_the_mean_of_the_topics(n_topics):
    genes, proportion_KT, _, topic_of_T = leading(n_topics, 4)
    proportion_KT[:, 1] = 0
    if n_topics > 1:
        proportion_KT[0, 2] = 0
    figure = figures.top_genes_heatmap(genes, proportion_KT, "Genes", topic_of_T)
    panels = figure.axes[: -(-len(genes) // 50)]
    value = np.hstack([squares(axes) for axes in panels])
    assert np.isnan(value[:, 1]).all()
    rest = np.arange(len(genes)) != 1
    with np.errstate(divide="ignore"):
        expected = np.log2(proportion_KT / proportion_KT.mean(axis=0).clip(1e-300))
    np.testing.assert_allclose(value[:, rest], expected[:, rest].clip(-4, 4))
    for axes in panels:
        assert axes.collections[0].get_clim() == (-4, 4)
    drawn = [name for axes in panels for name in tick_names(axes)[1]]
    assert drawn == ["ENSG000000…ative", *genes[1:]]
    assert_legible(figure)


def test_genes_are_marked_with_the_topic_that_they_lead():
    genes, proportion_KT, _, topic_of_T = leading(3, 2)
    axes = figures.top_genes_heatmap(genes, proportion_KT, "", topic_of_T).axes[0]
    marks = [(line.get_xdata(), line.get_color()) for line in axes.lines]
    assert [color for _, color in marks] == figures.topic_colors(3)
    assert [tuple(np.round(x).astype(int)) for x, _ in marks] == [(0, 1), (2, 3), (4, 5)]
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2"]
    assert not figures.top_genes_heatmap(genes, proportion_KT, "").axes[0].lines


@pytest.mark.parametrize("n_topics", NUMBERS_OF_TOPICS)
def test_bars_are_the_three_best_gene_sets_of_each_topic(n_topics):
    rng = np.random.default_rng(0)
    topics = np.repeat(np.arange(n_topics), 5)
    sets = [f"{LONG} {i}" if i % 3 else f"B cell {i}" for i in range(len(topics))]
    q = 10.0 ** -rng.uniform(0.1, 9, len(topics))
    q[:5] = 1  # no significant set for the first topic
    order = rng.permutation(len(topics))
    figure = figures.enrichment_bars(topics[order], [sets[i] for i in order], q[order], n_topics)
    found = {}
    for axes in figure.axes:
        places = dict(zip(axes.get_yticks(), tick_names(axes)[0], strict=True))
        bars = {
            round(bar.get_y() + bar.get_height() / 2): (bar.get_width(), bar.get_facecolor())
            for bar in axes.patches
        }
        topic = None
        for place in sorted(places):
            if places[place].startswith("Topic "):
                topic = int(places[place].split()[1])
                found[topic] = []
            elif place in bars:
                found[topic].append((places[place], *bars[place]))
            else:
                assert places[place] == "no gene set"
    assert found.pop(0) == []
    assert list(found) == list(range(1, n_topics))
    for topic, bars in found.items():
        best = 5 * topic + np.argsort(q[5 * topic : 5 * topic + 5])[:3]
        np.testing.assert_allclose([width for _, width, _ in bars], -np.log10(q[best]))
        for (name, _, color), row in zip(bars, best, strict=True):
            assert name == sets[row] if "…" not in name else sets[row].startswith(name[:20])
            assert to_rgb(color[:3]) == to_rgb(figures.topic_colors(n_topics)[topic])
            assert (color[3] == 1) == (q[row] < 0.05)
    assert_legible(figure)


def test_a_q_of_zero_has_the_longest_bar():
    figure = figures.enrichment_bars([0, 0, 1], ["a", "b", "c"], [0.0, 1e-8, 1e-4], 2)
    axes = figure.axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths[0] == axes.get_xlim()[1] > widths[1] == 8
    assert [text.get_text() for text in axes.texts] == ["q = 0 ▸"]
    assert_legible(figure)

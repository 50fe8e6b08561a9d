"""Figures of topics against each other, against labels, replicates and genes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from topicell.evaluation.stability import consensus, match_topics
from topicell.report import figures

DULL = "#8a9199"

LONG = "CD4+/CD45RA+/CD25- naive T cells (peripheral blood, donor A)"
MANY = [1, 2, 6, 10, 30]


def theta(n_cells: int, n_topics: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(n_topics, 0.3), n_cells)


def boxes(figure: Figure) -> list[tuple[Text, np.ndarray]]:
    """All text that is drawn, with its lower left and upper right corners."""
    figure.set_canvas(FigureCanvasAgg(figure))
    figure.canvas.draw()
    hidden = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not label.get_visible()
        or not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    return [
        (text, Text.get_window_extent(text).extents)  # of annotations, without their lines
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]


def assert_legible(figure: Figure) -> None:
    """Text is large enough, inside the figure, and none lies over another."""
    found = boxes(figure)
    for text, box in found:
        assert text.get_fontsize() >= 8, text
        assert (box[:2] >= -1).all(), text
        assert (box[2:] <= figure.bbox.extents[2:] + 1).all(), text
    for (a, box_a), (b, box_b) in itertools.combinations(found, 2):
        apart = (box_a[2:] < box_b[:2] + 1.5).any() or (box_b[2:] < box_a[:2] + 1.5).any()
        assert apart, (a, b)


def squares(axes: Axes) -> np.ndarray:
    """The values of a matrix as it is drawn."""
    (mesh,) = (artist for artist in axes.collections if isinstance(artist, QuadMesh))
    return np.ma.filled(mesh.get_array(), np.nan)


def dots(axes: Axes) -> list[PathCollection]:
    return [
        artist
        for artist in axes.collections
        if isinstance(artist, PathCollection) and artist.get_gid() != "squares"
    ]


def names(axes: Axes) -> tuple[list[str], list[str]]:
    """Of rows and of columns."""
    return tuple(
        [label.get_text() for label in labels]
        for labels in (axes.get_yticklabels(), axes.get_xticklabels())
    )


def swatches(axes: Axes) -> list[list[str]]:
    return [
        [to_hex(color) for color in artist.get_facecolors()]
        for artist in axes.collections
        if artist.get_gid() == "squares"
    ]


def written(axes: Axes) -> dict[tuple[int, int], str]:
    """What stands in the squares, by row and column."""
    return {
        (round(text.get_position()[1]), round(text.get_position()[0])): text.get_text()
        for text in axes.texts
    }


# Topics against topics


@pytest.mark.parametrize("n_topics", MANY)
def test_topic_correlation(n_topics):
    theta_NK = theta(200, n_topics)
    figure = figures.topic_correlation(theta_NK)
    axes = figure.axes[0]
    rows, columns = names(axes)
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
        assert written(axes) == {
            (i, j): f"{value[i, j]:.2f}".replace("-", "−") for i, j in np.argwhere(off)
        }
    else:
        assert written(axes) == {}
    assert_legible(figure)


@pytest.mark.parametrize("n_topics", MANY)
def test_topic_similarity(n_topics):
    beta_KG = np.random.default_rng(0).dirichlet(np.full(50, 0.2), n_topics)
    figure = figures.topic_similarity(beta_KG)
    axes = figure.axes[0]
    order = [int(name) for name in names(axes)[1]]
    value = squares(axes)
    for i, j in itertools.permutations(range(n_topics), 2):
        a, b = beta_KG[order[i]], beta_KG[order[j]]
        assert value[i, j] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
    low, high = axes.collections[0].get_clim()
    assert high == 1
    assert 0 <= low <= 0.9
    assert np.nanmin(value, initial=1) >= low
    assert_legible(figure)


def test_like_topics_are_neighbours():
    pairs = theta(300, 3)[:, [0, 1, 2, 2, 0, 1]]
    noise = np.random.default_rng(1).normal(0, 0.02, (300, 6))
    order = [int(name) for name in names(figures.topic_correlation(pairs + noise).axes[0])[1]]
    for couple in ((0, 4), (1, 5), (2, 3)):
        assert abs(order.index(couple[0]) - order.index(couple[1])) == 1
    beta_KG = np.exp(pairs[:, [0, 1, 2, 3, 4, 5]].T * 3)
    order = [int(name) for name in names(figures.topic_similarity(beta_KG).axes[0])[1]]
    for couple in ((0, 4), (1, 5), (2, 3)):
        assert abs(order.index(couple[0]) - order.index(couple[1])) == 1


def test_constant_topics_correlate_with_none():
    theta_NK = np.column_stack([theta(50, 3) * 0.8, np.full(50, 0.2)])
    axes = figures.topic_correlation(theta_NK).axes[0]
    value = squares(axes)
    constant = names(axes)[1].index("3")
    assert np.isnan(value[constant]).all()
    assert np.isfinite(np.delete(np.delete(value, constant, 0), constant, 1)).sum() == 6
    assert np.isnan(squares(figures.topic_correlation(np.full((9, 2), 0.5)).axes[0])).all()


# Labels


@pytest.mark.parametrize("n_topics", MANY)
@pytest.mark.parametrize("n_labels", [1, 4, 25])
def test_topic_by_label(n_topics, n_labels):
    theta_NK = theta(300, n_topics)
    labels = np.array([f"{LONG} {i:02d}" if i % 2 else f"$_{i:02d}" for i in range(n_labels)])
    labels = labels[np.arange(300) % n_labels].astype(object)
    labels[:7] = None
    figure = figures.topic_by_label(theta_NK, labels)
    axes = figure.axes[0]
    rows, columns = names(axes)
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
    assert (len(written(axes)) > 0) == (n_topics <= 12)
    by_topic, by_label = swatches(axes)
    assert by_topic == [figures.topic_colors(n_topics)[int(column)] for column in columns]
    assert sorted(by_label[:-1]) == sorted(figures.category_colors(n_labels))
    assert_legible(figure)


def test_what_is_high_lies_along_the_diagonal():
    rng = np.random.default_rng(0)
    code = np.repeat(np.arange(8), 30)
    theta_NK = 0.9 * np.eye(8)[rng.permutation(8)][code] + 0.1 * rng.dirichlet(np.ones(8), 240)
    labels = np.array(list("dgahcebf"))[code]
    value = squares(figures.topic_by_label(theta_NK, labels).axes[0])
    assert (np.diag(value) > 0.9).all()


def test_cells_without_any_label():
    figure = figures.topic_by_label(theta(5, 3), [None] * 5, "Topics by cluster")
    assert names(figure.axes[0])[0] == [f"{figures.MISSING} (5)"]
    assert "Topics by cluster" in [text.get_text() for text, _ in boxes(figure)]
    assert_legible(figure)


# Replicates


@pytest.mark.parametrize("n_topics", MANY)
@pytest.mark.parametrize("n_replicates", [2, 3, 10])
def test_stability_matrix(n_topics, n_replicates):
    rng = np.random.default_rng(0)
    beta_RKG = rng.dirichlet(np.full(30, 0.3), (n_replicates, n_topics))
    beta_RKG[:, 0] = beta_RKG[0, 0]
    cosine_RK = np.array([match_topics(beta_RKG[1], beta_KG).cosine for beta_KG in beta_RKG])
    agreed = consensus(beta_RKG)
    support_K = agreed.support_C[agreed.member_RK[1]]
    figure = figures.stability_matrix(cosine_RK, 1, support_K)
    axes = figure.axes[0]
    rows, columns = names(axes)
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


def test_stability_without_support_and_without_others():
    figure = figures.stability_matrix(np.array([[1.0, 1.0], [0.9, 0.5]]), 0)
    assert names(figure.axes[0])[0] == ["Replicate 1"]
    assert_legible(figure)
    with pytest.raises(ValueError, match="needs at least 2"):
        figures.stability_matrix(np.ones((1, 3)), 0)


# Genes of all topics


def leading(n_topics: int, n_each: int) -> tuple[list[str], np.ndarray, np.ndarray, list[int]]:
    rng = np.random.default_rng(0)
    topic_of_T = np.repeat(np.arange(n_topics), n_each)
    genes = [f"HLA-D{'QXYZ'[i % 4]}{i}" for i in range(len(topic_of_T))]
    genes[0] = "ENSG00000012345.6_alternative"
    proportion_KT = rng.dirichlet(np.ones(len(genes)), n_topics)
    proportion_KT[topic_of_T, np.arange(len(genes))] *= 9
    return genes, proportion_KT, rng.random((n_topics, len(genes))), topic_of_T.tolist()


@pytest.mark.parametrize("n_topics", MANY)
def test_top_genes_dots(n_topics):
    genes, proportion_KT, expressed_KT, topic_of_T = leading(n_topics, 4)
    expressed_KT[0, 1] = 0
    expressed_KT[-1] = np.nan
    figure = figures.top_genes_dots(genes, proportion_KT, expressed_KT, LONG, topic_of_T)
    panels = figure.axes[: -(-len(genes) // 50)]
    shown = {}
    for axes in panels:
        rows, columns = names(axes)
        assert rows[:-1] == [f"Topic {topic}" for topic in range(n_topics - 1)]
        assert rows[-1] == f"Topic {n_topics - 1} (no cells)"
        for artist in dots(axes):
            for (gene, topic), value in zip(artist.get_offsets(), artist.get_array(), strict=True):
                shown[int(topic), columns[int(gene)]] = (artist.get_sizes()[0], value)
    assert len(shown) == np.count_nonzero(np.nan_to_num(expressed_KT))
    scaled_KT = proportion_KT / proportion_KT.max(axis=0)
    for (topic, name), (size, value) in shown.items():
        gene = 0 if "…" in name else genes.index(name)
        assert value == pytest.approx(scaled_KT[topic, gene])
        # up to 5 % more than the share, as areas
        assert 0 <= size / 90 - expressed_KT[topic, gene] < 0.05
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["25 %", "50 %", "75 %", "100 %"]
    sizes = [handle.get_markersize() ** 2 for handle in figure.legends[0].legend_handles]
    np.testing.assert_allclose(sizes, [22.5, 45, 67.5, 90])
    assert_legible(figure)


@pytest.mark.parametrize("n_topics", MANY)
def test_top_genes_heatmap(n_topics):
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
    shown = [name for axes in panels for name in names(axes)[1]]
    assert shown == ["ENSG000000…ative", *genes[1:]]
    assert_legible(figure)


def test_genes_are_marked_with_the_topic_that_they_lead():
    genes, proportion_KT, _, topic_of_T = leading(3, 2)
    axes = figures.top_genes_heatmap(genes, proportion_KT, "", topic_of_T).axes[0]
    marks = [(line.get_xdata(), line.get_color()) for line in axes.lines]
    assert [color for _, color in marks] == figures.topic_colors(3)
    assert [tuple(np.round(x).astype(int)) for x, _ in marks] == [(0, 1), (2, 3), (4, 5)]
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2"]
    assert not figures.top_genes_heatmap(genes, proportion_KT, "").axes[0].lines


# Gene sets


@pytest.mark.parametrize("n_topics", MANY)
def test_enrichment_bars(n_topics):
    rng = np.random.default_rng(0)
    topics = np.repeat(np.arange(n_topics), 5)
    sets = [f"{LONG} {i}" if i % 3 else f"B cell {i}" for i in range(len(topics))]
    q = 10.0 ** -rng.uniform(0.1, 9, len(topics))
    q[:5] = 1  # nothing for the first topic
    order = rng.permutation(len(topics))
    figure = figures.enrichment_bars(topics[order], [sets[i] for i in order], q[order], n_topics)
    found = {}
    for axes in figure.axes:
        places = dict(zip(axes.get_yticks(), names(axes)[0], strict=True))
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


def test_a_q_of_0_is_the_longest_bar():
    figure = figures.enrichment_bars([0, 0, 1], ["a", "b", "c"], [0.0, 1e-8, 1e-4], 2)
    axes = figure.axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths[0] == axes.get_xlim()[1] > widths[1] == 8
    assert [text.get_text() for text in axes.texts] == ["q = 0 ▸"]
    assert_legible(figure)


# Differential expression


def comparisons(n_topics: int, n_genes: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Fold changes, p and q as they come: most genes nowhere, some far out, some unknown."""
    rng = np.random.default_rng(seed)
    lfc_KG = rng.normal(0, 0.7, (n_topics, n_genes))
    apart = rng.random(lfc_KG.shape) < 0.04
    lfc_KG[apart] += rng.normal(1.5, 2.5, apart.sum())
    p_KG = 10 ** -(lfc_KG**2 * rng.gamma(1.0, 1.0, lfc_KG.shape))
    q_KG = np.minimum(1, 20 * p_KG)
    lfc_KG[:, 3] = p_KG[:, 3] = q_KG[:, 3] = np.nan
    return lfc_KG, p_KG, q_KG, np.array([f"GENE{i}" for i in range(n_genes)])


def points(axes: Axes) -> dict[str, np.ndarray]:
    """Places of the points of a panel, by colour."""
    found: dict[str, list[np.ndarray]] = {}
    for artist in dots(axes):
        if len(artist.get_offsets()):
            found.setdefault(to_hex(artist.get_facecolors()[0]), []).append(artist.get_offsets())
    return {color: np.concatenate(places) for color, places in found.items()}


def as_set(places: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(place) for place in np.round(places, 9)}


@pytest.mark.parametrize("topic", [0, 4])
@pytest.mark.parametrize("seed", range(4))
def test_volcano(topic, seed):
    (lfc_G,), (p_G,), (q_G,), genes = comparisons(1, 900, seed)
    figure = figures.volcano(lfc_G, p_G, q_G, genes, topic)
    axes = figure.axes[0]
    x_G, y_G = lfc_G, -np.log10(p_G)
    left, right = axes.get_xlim()
    differs_G = (q_G < 0.05) & (np.abs(lfc_G) > 1)
    color = figures.topic_colors(topic + 1)[topic]
    by_color = points(axes)
    assert set(by_color) == {color, DULL}
    for of_G, places in ((differs_G, by_color[color]), (~differs_G, by_color[DULL])):
        known_G = of_G & np.isfinite(x_G)
        assert len(places) == known_G.sum()
        inside_G = known_G & (left < x_G) & (x_G < right) & (y_G < axes.get_ylim()[1])
        inside_G &= (x_G <= places[:, 0].max()) & (y_G <= places[:, 1].max())
        shown = as_set(np.column_stack([x_G, y_G])[inside_G])
        assert len(shown - as_set(places)) == 0
    higher, lower = (differs_G & (x_G > 0)).sum(), (differs_G & (x_G < 0)).sum()
    assert axes.get_title(loc="left").startswith(f"{higher} higher, {lower} lower")
    named = [text.get_text() for text in axes.texts]
    assert 8 <= len(named) <= 12
    assert set(named) <= set(genes[differs_G])
    strongest = genes[np.argsort(-np.where(differs_G, np.abs(x_G * y_G), -1))]
    assert strongest[0] in named
    assert_legible(figure)


def test_names_stay_by_their_points_and_off_each_other():
    rng = np.random.default_rng(0)
    lfc_G = np.r_[rng.normal(0, 0.3, 300), 2 + rng.normal(0, 0.1, 20), 4.0]  # a crowd
    p_G = np.r_[rng.random(300), 10.0 ** -(20 + rng.normal(0, 1, 20)), 1e-30]
    genes = [f"LONGNAME{i}" for i in range(321)]
    figure = figures.volcano(lfc_G, p_G, p_G, genes, 0)
    axes = figure.axes[0]
    assert len(axes.texts) >= 8
    assert_legible(figure)
    frame = axes.bbox.extents
    for text in axes.texts:
        box = Text.get_window_extent(text).extents
        assert (box[:2] >= frame[:2] - 1).all()
        assert (box[2:] <= frame[2:] + 1).all()
        point = axes.transData.transform(text.xy)
        gap = np.maximum(np.maximum(box[:2] - point, point - box[2:]), 0)
        gap = np.linalg.norm(gap) * 72 / figure.dpi
        assert gap < 90
        assert text.arrow_patch.get_visible() or gap < 9


def test_what_is_far_out_stands_at_the_edge():
    rng = np.random.default_rng(0)
    lfc_G = np.r_[rng.uniform(-3, 3, 400), 60.0, 2.0, -50.0]
    p_G = np.r_[10.0 ** -rng.uniform(0, 20, 400), 1e-9, 0.0, 1e-9]
    figure = figures.volcano(lfc_G, p_G, p_G, [f"G{i}" for i in range(403)], 0)
    axes = figure.axes[0]
    triangles = {
        len(artist.get_paths()[0].vertices): artist.get_offsets()
        for artist in dots(axes)
        if len(artist.get_offsets()) and len(artist.get_paths()[0].vertices) < 6
    }
    assert sum(map(len, triangles.values())) <= 3
    (low, high), (_, top) = axes.get_xlim(), axes.get_ylim()
    assert -10 < low < high < 10
    assert top < 50
    assert "triangles" in axes.get_xlabel()
    color = figures.topic_colors(1)[0]
    assert len(points(axes)[color]) == ((p_G < 0.05) & (np.abs(lfc_G) > 1)).sum()
    assert_legible(figure)
    near = figures.volcano(lfc_G[:400], p_G[:400], p_G[:400], [f"G{i}" for i in range(400)], 0)
    assert "triangles" not in near.axes[0].get_xlabel()


@pytest.mark.parametrize("n_topics", MANY)
def test_volcanoes(n_topics):
    lfc_KG, p_KG, q_KG, genes = comparisons(n_topics, 400)
    lfc_KG[-1] = p_KG[-1] = q_KG[-1] = np.nan  # a topic that no cell uses
    figure = figures.volcanoes(lfc_KG, p_KG, q_KG, genes)
    assert len(figure.axes) == n_topics
    for topic, axes in enumerate(figure.axes):
        differs_G = (q_KG[topic] < 0.05) & (np.abs(lfc_KG[topic]) > 1)
        color = figures.topic_colors(n_topics)[topic]
        assert len(points(axes).get(color, [])) == differs_G.sum()
        assert axes.get_title(loc="left") == f"Topic {topic}"
        assert axes.get_title(loc="right") == str(differs_G.sum())
        assert axes.get_xlim() == figure.axes[0].get_xlim()
        assert axes.get_ylim() == figure.axes[0].get_ylim()
        if topic < n_topics - 1:
            named = {text.get_text() for text in axes.texts}
            assert 0 < len(named) <= 3
            assert named <= set(genes[differs_G])
    assert [text.get_text() for text in figure.axes[-1].texts] == ["nothing to compare"]
    assert_legible(figure)


def test_genes_that_do_not_differ_have_no_names():
    figure = figures.volcano(np.array([0.5, -0.2]), np.ones(2), np.ones(2), ["a", "b"], 0)
    assert not figure.axes[0].texts
    assert figure.axes[0].get_title(loc="left").startswith("0 higher, 0 lower")
    assert_legible(figure)

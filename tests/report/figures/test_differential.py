"""Volcano plots: points are the tests of the genes, and names do not overlap."""

from __future__ import annotations

import numpy as np
import pytest
from legibility import assert_legible, corners, dots, rounded_rows
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from topicell.report import figures

GREY = "#8a9199"


def comparisons(n_topics: int, n_genes: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return fold changes, p, q and names: most genes near 0, some far from it, some NaN."""
    rng = np.random.default_rng(seed)
    lfc_KG = rng.normal(0, 0.7, (n_topics, n_genes))
    far = rng.random(lfc_KG.shape) < 0.04
    lfc_KG[far] += rng.normal(1.5, 2.5, far.sum())
    p_KG = 10 ** -(lfc_KG**2 * rng.gamma(1.0, 1.0, lfc_KG.shape))
    q_KG = np.minimum(1, 20 * p_KG)
    lfc_KG[:, 3] = p_KG[:, 3] = q_KG[:, 3] = np.nan
    return lfc_KG, p_KG, q_KG, np.array([f"GENE{i}" for i in range(n_genes)])


def points(axes: Axes) -> dict[str, np.ndarray]:
    """Return the places of the points of a panel, by colour."""
    found: dict[str, list[np.ndarray]] = {}
    for artist in dots(axes):
        if len(artist.get_offsets()):
            found.setdefault(to_hex(artist.get_facecolors()[0]), []).append(artist.get_offsets())
    return {color: np.concatenate(places) for color, places in found.items()}


@pytest.mark.parametrize(("topic", "seed"), [(0, 0), (0, 1), (4, 2), (4, 3)])
def test_a_volcano_shows_every_gene_and_names_the_strongest(topic, seed):
    (lfc_G,), (p_G,), (q_G,), genes = comparisons(1, 900, seed)
    figure = figures.volcano(lfc_G, p_G, q_G, genes, topic)
    axes = figure.axes[0]
    x_G, y_G = lfc_G, -np.log10(p_G)
    left, right = axes.get_xlim()
    differs_G = (q_G < 0.05) & (np.abs(lfc_G) > 1)
    color = figures.topic_colors(topic + 1)[topic]
    by_color = points(axes)
    assert set(by_color) == {color, GREY}
    for of_G, places in ((differs_G, by_color[color]), (~differs_G, by_color[GREY])):
        known_G = of_G & np.isfinite(x_G)
        assert len(places) == known_G.sum()
        inside_G = known_G & (left < x_G) & (x_G < right) & (y_G < axes.get_ylim()[1])
        inside_G &= (x_G <= places[:, 0].max()) & (y_G <= places[:, 1].max())
        inside = rounded_rows(np.column_stack([x_G, y_G])[inside_G])
        assert len(inside - rounded_rows(places)) == 0
    higher, lower = (differs_G & (x_G > 0)).sum(), (differs_G & (x_G < 0)).sum()
    assert axes.get_title(loc="left").startswith(f"{higher} higher, {lower} lower")
    named = [text.get_text() for text in axes.texts]
    assert 8 <= len(named) <= 12
    assert set(named) <= set(genes[differs_G])
    strongest = genes[np.argsort(-np.where(differs_G, np.abs(x_G * y_G), -1))]
    assert strongest[0] in named
    assert_legible(figure)


def test_gene_names_are_near_their_points_and_do_not_overlap():
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
        box = corners(text)
        assert (box[:2] >= frame[:2] - 1).all()
        assert (box[2:] <= frame[2:] + 1).all()
        point = axes.transData.transform(text.xy)
        gap = np.maximum(np.maximum(box[:2] - point, point - box[2:]), 0)
        gap = np.linalg.norm(gap) * 72 / figure.dpi
        assert gap < 90
        assert text.arrow_patch.get_visible() or gap < 9


def test_genes_outside_the_axes_are_triangles_at_the_edge():
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


@pytest.mark.parametrize("n_topics", [1, 2, 30])
def test_volcanoes_of_all_topics_share_their_axes(n_topics):
    lfc_KG, p_KG, q_KG, genes = comparisons(n_topics, 400)
    lfc_KG[-1] = p_KG[-1] = q_KG[-1] = np.nan  # no cell uses this topic
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

"""Maps of cells: each cell has its place, and the colour of its value."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from legibility import LONG, assert_legible, proportions
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from topicell.report import figures


def random_places(n_cells: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_cells, 2))


def points(figure: Figure) -> list[PathCollection]:
    return [c for axes in figure.axes for c in axes.collections if isinstance(c, PathCollection)]


@pytest.mark.parametrize("n_topics", [2, 3, 25])
def test_a_map_by_topic_has_one_panel_per_topic_with_high_values_on_top(n_topics):
    theta_NK, umap_N2 = proportions(300, n_topics), random_places(300)
    figure = figures.umap_by_topic(umap_N2, theta_NK, "Map")
    panels = points(figure)
    assert len(panels) == n_topics
    for topic, panel in enumerate(panels):
        values = np.asarray(panel.get_array())
        assert (np.diff(values) >= 0).all()  # high values are drawn last, on top
        order = np.argsort(theta_NK[:, topic], kind="stable")
        np.testing.assert_array_equal(values, theta_NK[order, topic])
        np.testing.assert_array_equal(panel.get_offsets(), umap_N2[order])
        assert panel.get_clim() == (0, 1)
        assert panel.get_rasterized()
        assert panel.axes.get_aspect() == 1
        assert panel.axes.get_title() == f"Topic {topic}"
    assert len(figure.axes) == n_topics + 1  # and one colour bar
    assert_legible(figure)


def test_points_are_smaller_with_more_cells():
    sizes = [
        points(figures.umap_by_topic(random_places(n), proportions(n, 2), ""))[0].get_sizes()[0]
        for n in (20, 300, 5000, 50_000)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 2


@pytest.mark.parametrize(
    ("n", "long"), [(1, True), (3, False), (12, True), (25, False), (25, True), (30, True)]
)
def test_cells_have_the_colour_of_their_category_and_the_legend_names_it(n, long):
    names = [f"{LONG} {i}" if long else str(i) for i in range(n)]
    codes = np.arange(240) % n
    umap_N2 = random_places(240)
    figure = figures.umap_by_category(
        umap_N2, pd.Categorical.from_codes(codes, names), "UMAP of the counts, by label"
    )
    (panel,) = points(figure)
    color_at = {
        tuple(xy): tuple(c)
        for xy, c in zip(panel.get_offsets(), panel.get_facecolors(), strict=True)
    }
    for code, xy in zip(codes, umap_N2, strict=True):
        assert color_at[tuple(xy)][:3] == to_rgb(figures.category_colors(n)[code])
    (legend,) = figure.legends
    assert_legible(figure)
    assert legend.get_window_extent().x0 >= panel.axes.get_window_extent().x1
    drawn = [" ".join(text.get_text().split()) for text in legend.get_texts()]
    assert all(name in text for name, text in zip(names, drawn, strict=True))
    marks = [text.get_text() for text in panel.axes.texts]
    if not 2 <= n <= 25:
        assert marks == []
    elif long:
        assert marks == [str(i + 1) for i in range(n)]
        assert [text.split()[0] for text in drawn] == marks
    else:
        assert marks == names


def test_one_extreme_value_does_not_compress_the_scale():
    umap_N2 = random_places(600)
    value_N = np.random.default_rng(0).gamma(1, 1, 600)
    value_N[[3, 7]] = np.nan
    value_N[11] = 1000.0
    figure = figures.umap_by_value(umap_N2, value_N, "CD74", "log counts")
    missing, known = points(figure)
    np.testing.assert_array_equal(missing.get_offsets(), umap_N2[[3, 7]])
    assert missing.get_zorder() == known.get_zorder()  # missing is below, because it is drawn first
    order = np.argsort(value_N, kind="stable")[:-2]  # NaN are last
    np.testing.assert_array_equal(known.get_array(), value_N[order])
    np.testing.assert_array_equal(known.get_offsets(), umap_N2[order])
    assert known.get_rasterized()
    low, high = known.get_clim()
    assert low == 0
    assert high < 20  # despite the cell with 1000
    bar = figure.axes[1]
    assert bar.get_ylabel() == "log counts"
    assert_legible(figure)


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        (np.zeros(5), (0, 1)),
        (np.full(5, 3.0), (0, 3)),
        (np.array([-2.0, 0, 0, 0, 1]), (-2, 1)),
        (np.r_[np.zeros(5000), 2.0], (0, 2)),  # a rare gene keeps its scale
        (np.full(5, np.nan), None),
    ],
)
def test_the_scale_of_a_map_by_value(value, limits):
    figure = figures.umap_by_value(random_places(len(value)), value, "gene")
    found = points(figure)[-1].get_clim()
    if limits is None:
        assert len(points(figure)) == 1  # all cells are grey
    else:
        np.testing.assert_allclose(found, limits, atol=0.01)
    assert_legible(figure)


def test_category_names_on_a_map_do_not_overlap():
    umap_N2 = np.repeat(random_places(40), 6, axis=0)  # every category has cells in every place
    figure = figures.umap_by_category(umap_N2, [str(i) for i in range(6)] * 40, "")
    figure.set_canvas(FigureCanvasAgg(figure))
    figure.canvas.draw()
    marks = next(iter(points(figure))).axes.texts
    boxes = [mark.get_window_extent() for mark in marks]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_missing_categories_are_grey_and_named():
    figure = figures.umap_by_category(random_places(9), ["b", None, "a"] * 3, "")
    (panel,) = points(figure)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b", figures.MISSING]
    assert len(set(map(tuple, panel.get_facecolors()[:3]))) == 1  # drawn first, below
    assert len(set(map(tuple, panel.get_facecolors()))) == 3

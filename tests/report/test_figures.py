"""Figures: what they show equals what went in, and all of it can be read."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.text import Text

from topicell.report import figures

LONG = "CD4+/CD45RA+/CD25- naive T cells (peripheral blood, donor A)"


def theta(n_cells: int, n_topics: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(n_topics, 0.3), n_cells)


def plane(n_cells: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_cells, 2))


def history(n_epochs: int = 30, valid: bool = True, sd: bool = True) -> list[dict[str, float]]:
    rows = []
    for epoch in range(n_epochs):
        row = {
            "epoch": epoch,
            "train/elbo": -1860 - 500 / (1 + epoch),
            "train/kl_cells": 18.0,
            "train/kl_topics": 50.0 - epoch,
            "train/kl_weight": min(1.0, epoch / 10),
            "train/learning_rate": 0.02,
        }
        if valid:
            row |= {
                "valid/elbo": -1870 - 500 / (1 + epoch),
                "valid/perplexity": 200 + 9 / (1 + epoch),
            }
        if sd:
            row |= {f"{name}_sd": 2.0 for name in tuple(row) if name.endswith("elbo")}
        rows.append(row)
    return rows


def texts(figure: Figure) -> list[Text]:
    """All text that is drawn, after layout."""
    figure.set_canvas(FigureCanvasAgg(figure))
    figure.canvas.draw()
    hidden = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not (label.get_visible() and tick.get_visible())
        or not min(axis.get_view_interval()) - 1e-9
        <= tick.get_loc()
        <= max(axis.get_view_interval()) + 1e-9
    }
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]


def assert_legible(figure: Figure) -> None:
    canvas = figure.bbox
    for text in texts(figure):
        box = text.get_window_extent()
        assert text.get_fontsize() >= 8, text
        assert canvas.x0 - 1 <= box.x0 <= box.x1 <= canvas.x1 + 1, text
        assert canvas.y0 - 1 <= box.y0 <= box.y1 <= canvas.y1 + 1, text


def points(figure: Figure) -> list[PathCollection]:
    return [c for axes in figure.axes for c in axes.collections if isinstance(c, PathCollection)]


# Maps


@pytest.mark.parametrize("n_topics", [2, 3, 10, 25])
def test_umap_by_topic(n_topics):
    theta_NK, umap_N2 = theta(300, n_topics), plane(300)
    figure = figures.umap_by_topic(umap_N2, theta_NK, "Map")
    panels = points(figure)
    assert len(panels) == n_topics
    for topic, panel in enumerate(panels):
        values = np.asarray(panel.get_array())
        assert (np.diff(values) >= 0).all()  # high values drawn last, on top
        order = np.argsort(theta_NK[:, topic], kind="stable")
        np.testing.assert_array_equal(values, theta_NK[order, topic])
        np.testing.assert_array_equal(panel.get_offsets(), umap_N2[order])
        assert panel.get_clim() == (0, 1)
        assert panel.get_rasterized()
        assert panel.axes.get_aspect() == 1
        assert panel.axes.get_title() == f"Topic {topic}"
    assert len(figure.axes) == n_topics + 1  # and one colour bar
    assert_legible(figure)


def test_points_shrink_as_cells_grow():
    sizes = [
        points(figures.umap_by_topic(plane(n), theta(n, 2), ""))[0].get_sizes()[0]
        for n in (20, 300, 5000, 50_000)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 2


@pytest.mark.parametrize("n", [1, 3, 12, 25, 30])
@pytest.mark.parametrize("long", [False, True])
def test_umap_by_category(n, long):
    names = [f"{LONG} {i}" if long else str(i) for i in range(n)]
    codes = np.arange(240) % n
    umap_N2 = plane(240)
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
    shown = [" ".join(text.get_text().split()) for text in legend.get_texts()]
    assert all(name in text for name, text in zip(names, shown, strict=True))
    marks = [text.get_text() for text in panel.axes.texts]
    if not 2 <= n <= 25:
        assert marks == []
    elif long:
        assert marks == [str(i + 1) for i in range(n)]
        assert [text.split()[0] for text in shown] == marks
    else:
        assert marks == names


def test_umap_by_value():
    umap_N2 = plane(600)
    value_N = np.random.default_rng(0).gamma(1, 1, 600)
    value_N[[3, 7]] = np.nan
    value_N[11] = 1000.0
    figure = figures.umap_by_value(umap_N2, value_N, "CD74", "log counts")
    missing, known = points(figure)
    np.testing.assert_array_equal(missing.get_offsets(), umap_N2[[3, 7]])
    assert missing.get_zorder() == known.get_zorder()  # the order of drawing: below the others
    order = np.argsort(value_N, kind="stable")[:-2]  # NaN are last
    np.testing.assert_array_equal(known.get_array(), value_N[order])
    np.testing.assert_array_equal(known.get_offsets(), umap_N2[order])
    assert known.get_rasterized()
    low, high = known.get_clim()
    assert low == 0
    assert high < 20  # one cell does not dull all others
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
def test_the_scale_of_a_value(value, limits):
    figure = figures.umap_by_value(plane(len(value)), value, "gene")
    found = points(figure)[-1].get_clim()
    if limits is None:
        assert len(points(figure)) == 1  # all of them grey
    else:
        np.testing.assert_allclose(found, limits, atol=0.01)
    assert_legible(figure)


def test_marks_do_not_cover_each_other():
    umap_N2 = np.repeat(plane(40), 6, axis=0)  # every category is everywhere
    figure = figures.umap_by_category(umap_N2, [str(i) for i in range(6)] * 40, "")
    figure.set_canvas(FigureCanvasAgg(figure))
    figure.canvas.draw()
    marks = next(iter(points(figure))).axes.texts
    boxes = [mark.get_window_extent() for mark in marks]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_missing_categories_are_grey_and_named():
    figure = figures.umap_by_category(plane(9), ["b", None, "a"] * 3, "")
    (panel,) = points(figure)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b", figures.MISSING]
    assert len(set(map(tuple, panel.get_facecolors()[:3]))) == 1  # drawn first, below
    assert len(set(map(tuple, panel.get_facecolors()))) == 3


def test_names_are_not_read_as_formulas():
    names = ["_private", "$\\frac{1$", "a$b$c", "x^{2"]
    figure = figures.umap_by_category(plane(8), names * 2, "50 $ a cell, $")
    assert sorted(t.get_text().split("  ")[1] for t in figure.legends[0].get_texts()) == sorted(
        names
    )
    assert_legible(figure)
    assert_legible(figures.structure_plot(theta(8, 2), names * 2, seed=0))
    assert_legible(figures.top_genes([names] * 2, np.full((2, 4), 0.1), "genes"))


# Training


def line(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def test_training_curves_show_the_history():
    rows = history()
    figure = figures.training_curves(rows)
    elbo, perplexity, kl, schedule, rate = figure.axes
    for axes, label, name in (
        (elbo, "training cells", "train/elbo"),
        (elbo, "validation cells", "valid/elbo"),
        (perplexity, "validation cells", "valid/perplexity"),
        (kl, "topic proportions θ", "train/kl_cells"),
        (kl, "topics β", "train/kl_topics"),
        (schedule, "KL weight", "train/kl_weight"),
        (rate, "learning rate", "train/learning_rate"),
    ):
        np.testing.assert_array_equal(line(axes, label).get_xdata(), range(30))
        np.testing.assert_array_equal(line(axes, label).get_ydata(), [row[name] for row in rows])
    band = elbo.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == rows[-1]["train/elbo"] + 2
    assert band[:, 1].min() == rows[0]["train/elbo"] - 2
    assert [len(axes.collections) for axes in (elbo, perplexity, kl)] == [2, 0, 0]
    assert [axes.get_ylabel() for axes in (elbo, perplexity, kl)] == [
        "nats per cell",
        "per count",
        "nats per cell",
    ]
    assert_legible(figure)


def test_first_epochs_leave_the_panel_only_if_they_flatten_it():
    def notes(rows):
        axes = figures.training_curves(rows).axes[0]
        low, _ = axes.get_ylim()
        return [text.get_text() for text in axes.texts], low

    steep, flat = history(40), history(40)
    for epoch, row in enumerate(steep):
        row["train/elbo"] = row["valid/elbo"] = -5000.0 if epoch == 0 else -1800 + epoch
    for epoch, row in enumerate(flat):
        row["train/elbo"] = row["valid/elbo"] = -1800.0 + epoch
    text, low = notes(steep)
    assert text == ["↓ first epochs off the scale"]
    assert low > -2000
    text, low = notes(flat)
    assert text == []
    assert low < -1800


@pytest.mark.parametrize("n_epochs", [1, 2, 200])
def test_history_without_validation_or_replicates(n_epochs):
    figure = figures.training_curves(history(n_epochs, valid=False, sd=False))
    perplexity = figure.axes[1]
    assert not perplexity.lines
    assert [text.get_text() for text in perplexity.texts] == ["no validation cells"]
    assert not figure.axes[0].collections
    assert_legible(figure)


def test_values_that_are_missing_or_not_finite_are_skipped():
    rows = history(4)
    del rows[1]["valid/elbo"]
    rows[2]["valid/elbo"] = float("nan")
    drawn = line(figures.training_curves(rows).axes[0], "validation cells")
    np.testing.assert_array_equal(drawn.get_xdata(), [0, 3])


# Genes


@pytest.mark.parametrize("n_topics", [3, 10, 25])
def test_top_genes(n_topics):
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
        assert top > last  # the leading gene stands on top
    assert figure.axes[0].get_xlim()[1] >= values.max()
    assert_legible(figure)


def test_every_column_has_its_axis_below():
    figure = figures.top_genes([["a"]] * 7, np.full((7, 1), 0.1), "Genes")
    drawn = texts(figure)
    labelled = [any(label in drawn for label in axes.get_xticklabels()) for axes in figure.axes]
    assert labelled == [False] * 3 + [True] * 4


def test_long_gene_names_are_cut_and_fit():
    figure = figures.top_genes([["ENSG00000012345.6_alternative"]] * 10, np.full((10, 1), 0.1), "")
    assert {axes.get_yticklabels()[0].get_text() for axes in figure.axes} == {
        "ENSG000000123…native"
    }
    assert_legible(figure)


# Structure


def stacked(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """Heights of the bars (columns with gaps as NaN × topics), and the edges of the columns."""
    steps = [patch.get_data() for patch in figure.axes[0].patches if isinstance(patch, StepPatch)]
    return np.column_stack([step.values - step.baseline for step in steps]), steps[0].edges


def as_set(rows: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(np.round(row, 9)) for row in rows}


@pytest.mark.parametrize("n_topics", [2, 10, 25])
def test_structure_bars_are_the_proportions(n_topics):
    theta_NK = theta(200, n_topics)
    groups = np.array(["a", "b", LONG, "d"])[np.arange(200) % 4]
    figure = figures.structure_plot(theta_NK, groups, seed=0)
    heights, edges = stacked(figure)
    gap = np.isnan(heights[:, 0])
    assert gap.sum() == 3
    np.testing.assert_allclose(heights[~gap].sum(1), 1)
    assert as_set(heights[~gap]) == as_set(theta_NK)
    assert (np.diff(edges) > 0).all()
    order = sorted(set(groups))
    for name, part in zip(order, np.split(heights, np.flatnonzero(gap)), strict=True):
        assert as_set(part[~np.isnan(part[:, 0])]) == as_set(theta_NK[groups == name])
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == [
        f"{name if len(name) < 33 else name[:21] + '…' + name[-10:]} (50)" for name in order
    ]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [f"Topic {topic}" for topic in reversed(range(n_topics))]
    patches = [p for p in figure.axes[0].patches if isinstance(p, StepPatch)]
    assert [to_rgb(p.get_facecolor()) for p in patches] == [
        to_rgb(color) for color in figures.topic_colors(n_topics)
    ]
    assert_legible(figure)


def test_structure_without_groups():
    figure = figures.structure_plot(theta(50, 3), None, seed=0)
    heights, _ = stacked(figure)
    assert len(heights) == 50
    assert not np.isnan(heights).any()
    assert figure.axes[0].get_xlabel() == "50 cells"
    assert_legible(figure)


def test_like_cells_stand_together():
    theta_NK = np.repeat(np.array([[0.9, 0.1, 0], [0.1, 0.8, 0.1], [0, 0.1, 0.9]]), 20, axis=0)
    theta_NK = np.random.default_rng(0).permutation(theta_NK)
    heights, _ = stacked(figures.structure_plot(theta_NK, None, seed=0))
    dominant = heights.argmax(1)
    assert (np.diff(dominant) != 0).sum() == 2  # three blocks
    assert dominant[30] == 1  # what lies between stands between


def test_many_cells_are_drawn_in_proportion_but_no_group_is_lost():
    sizes = {"common": 20_000, "middling": 5_000, "rare": 30, "single": 1}
    groups = np.repeat(list(sizes), list(sizes.values()))
    theta_NK = theta(len(groups), 3)
    heights, edges = stacked(figures.structure_plot(theta_NK, groups, seed=0))
    parts = np.split(heights, np.flatnonzero(np.isnan(heights[:, 0])))
    shown = [int((~np.isnan(part[:, 0])).sum()) for part in parts]
    assert shown == [1598, 400, 20, 1]
    again, _ = stacked(figures.structure_plot(theta_NK, groups, seed=0))
    other, _ = stacked(figures.structure_plot(theta_NK, groups, seed=1))
    np.testing.assert_array_equal(heights, again)
    assert not np.array_equal(heights, other)
    last = edges[-1] - edges[-2]
    assert last > 0.015 * edges[-1]  # the group of one cell can be seen


@pytest.mark.parametrize("n_groups", [10, 30])
def test_names_of_small_groups_do_not_collide(n_groups):
    groups = [LONG] * 900 + [f"{LONG[:25]} {i}" for i in range(n_groups - 1)]
    figure = figures.structure_plot(theta(len(groups), 4), groups, seed=0)
    assert_legible(figure)
    labels = figure.axes[0].get_xticklabels()
    centres = np.array(
        [label.get_transform().transform(label.get_position())[0] for label in labels]
    )
    # lines of text at 50° are apart by the sine of it
    apart = np.diff(np.sort(centres)).min() * np.sin(np.radians(50))
    assert apart >= 8 / 72 * figure.dpi


def test_missing_groups_are_a_group():
    figure = figures.structure_plot(theta(6, 2), ["a", None, "a", "b", np.nan, "b"], seed=0)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["a (2)", "b (2)", f"{figures.MISSING} (2)"]


def test_no_global_state():
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )

"""The structure plot: bars are the proportions of the cells, group by group."""

from __future__ import annotations

import numpy as np
import pytest
from legibility import LONG, assert_legible, proportions, rounded_rows
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from topicell.report import figures


def stacked(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """Return heights (columns × topics, NaN in gaps between groups) and edges of the columns."""
    steps = [patch.get_data() for patch in figure.axes[0].patches if isinstance(patch, StepPatch)]
    return np.column_stack([step.values - step.baseline for step in steps]), steps[0].edges


@pytest.mark.parametrize("n_topics", [2, 25])
def test_bars_are_the_proportions_in_the_order_of_the_groups(n_topics):
    theta_NK = proportions(200, n_topics)
    groups = np.array(["a", "b", LONG, "d"])[np.arange(200) % 4]
    figure = figures.structure_plot(theta_NK, groups, seed=0)
    heights, edges = stacked(figure)
    gap = np.isnan(heights[:, 0])
    assert gap.sum() == 3
    np.testing.assert_allclose(heights[~gap].sum(1), 1)
    assert rounded_rows(heights[~gap]) == rounded_rows(theta_NK)
    assert (np.diff(edges) > 0).all()
    order = sorted(set(groups))
    for name, part in zip(order, np.split(heights, np.flatnonzero(gap)), strict=True):
        assert rounded_rows(part[~np.isnan(part[:, 0])]) == rounded_rows(theta_NK[groups == name])
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


def test_without_groups_all_cells_are_together():
    figure = figures.structure_plot(proportions(50, 3), None, seed=0)
    heights, _ = stacked(figure)
    assert len(heights) == 50
    assert not np.isnan(heights).any()
    assert figure.axes[0].get_xlabel() == "50 cells"
    assert_legible(figure)


def test_similar_cells_are_neighbours():
    theta_NK = np.repeat(np.array([[0.9, 0.1, 0], [0.1, 0.8, 0.1], [0, 0.1, 0.9]]), 20, axis=0)
    theta_NK = np.random.default_rng(0).permutation(theta_NK)
    heights, _ = stacked(figures.structure_plot(theta_NK, None, seed=0))
    dominant = heights.argmax(1)
    assert (np.diff(dominant) != 0).sum() == 2  # three blocks
    assert dominant[30] == 1  # the mixed cells are in the middle


def test_a_sample_of_many_cells_keeps_every_group():
    sizes = {"common": 20_000, "middling": 5_000, "rare": 30, "single": 1}
    groups = np.repeat(list(sizes), list(sizes.values()))
    theta_NK = proportions(len(groups), 3)
    heights, edges = stacked(figures.structure_plot(theta_NK, groups, seed=0))
    parts = np.split(heights, np.flatnonzero(np.isnan(heights[:, 0])))
    drawn = [int((~np.isnan(part[:, 0])).sum()) for part in parts]
    assert drawn == [1598, 400, 20, 1]
    again, _ = stacked(figures.structure_plot(theta_NK, groups, seed=0))
    other, _ = stacked(figures.structure_plot(theta_NK, groups, seed=1))
    np.testing.assert_array_equal(heights, again)
    assert not np.array_equal(heights, other)
    last = edges[-1] - edges[-2]
    assert last > 0.015 * edges[-1]  # the group of one cell is wide enough to see


@pytest.mark.parametrize("n_groups", [10, 30])
def test_names_of_small_groups_do_not_overlap(n_groups):
    groups = [LONG] * 900 + [f"{LONG[:25]} {i}" for i in range(n_groups - 1)]
    figure = figures.structure_plot(proportions(len(groups), 4), groups, seed=0)
    assert_legible(figure, overlap=True)  # bounding boxes of rotated text overlap
    labels = figure.axes[0].get_xticklabels()
    centres = np.array(
        [label.get_transform().transform(label.get_position())[0] for label in labels]
    )
    # The distance between lines of text at 50°.
    distance = np.diff(np.sort(centres)).min() * np.sin(np.radians(50))
    assert distance >= 8 / 72 * figure.dpi


def test_missing_groups_are_a_group():
    figure = figures.structure_plot(proportions(6, 2), ["a", None, "a", "b", np.nan, "b"], seed=0)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["a (2)", "b (2)", f"{figures.MISSING} (2)"]

"""The figure of samples: bars are the mean proportions, with cells and depth beside them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from legibility import LONG, assert_legible, proportions
from matplotlib.colors import to_rgb

from topicell.report import figures


@pytest.mark.parametrize(("n_samples", "n_topics"), [(2, 3), (40, 25)])
def test_bars_are_the_means_in_the_order_of_the_samples(n_samples, n_topics):
    n_cells = 7 * n_samples
    theta_NK = proportions(n_cells, n_topics)
    codes_N = np.arange(n_cells) % n_samples
    names = [LONG, *(f"sample {i}" for i in range(n_samples, 1, -1))]
    samples = pd.Categorical.from_codes(codes_N, categories=names)
    depth = {name: 1000.0 + i for i, name in enumerate(names)}
    figure = figures.samples(theta_NK, samples, depth)
    bars, cells, counts = figure.axes
    width_KS = np.array([bar.get_width() for bar in bars.patches]).reshape(n_topics, n_samples)
    expected_SK = [theta_NK[codes_N == code].mean(axis=0) for code in range(n_samples)]
    np.testing.assert_allclose(width_KS.T, expected_SK)
    colors = [to_rgb(bar.get_facecolor()) for bar in bars.patches[::n_samples]]
    assert colors == [to_rgb(color) for color in figures.topic_colors(n_topics)]
    assert [text.get_text() for text in cells.texts] == ["7"] * n_samples
    assert [bar.get_width() for bar in counts.patches] == list(depth.values())
    shown = [label.get_text() for label in bars.get_yticklabels()]
    assert shown[1:] == names[1:]
    assert len(shown[0]) == 32
    assert_legible(figure)


def test_samples_without_depth_and_topics_that_are_left_out():
    theta_NK = proportions(60, 6)
    figure = figures.samples(theta_NK, np.array(["a", "b", None])[np.arange(60) % 3], None, [0, 4])
    assert len(figure.axes) == 2
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["Topic 0", "Topic 4", "4 others"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "a",
        "b",
        "no label",
    ]
    assert_legible(figure)
    depth = {"a": 10.0}
    figure = figures.samples(theta_NK, np.array(["a", "b"])[np.arange(60) % 2], depth)
    assert [text.get_text() for text in figure.axes[2].texts] == ["10"]

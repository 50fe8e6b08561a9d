"""The figures of a comparison: their points and curves are the values of the runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from legibility import assert_legible
from matplotlib.container import ErrorbarContainer

from topicell.report.figures import comparison, topic_colors

EVIL = "<script>alert('x')</script>"
NAN = math.nan
HISTORY = [
    {"epoch": epoch, "valid/elbo": -9.0 - 500 / (1 + epoch**3), "valid/elbo_sd": 0.1}
    for epoch in range(30)
]


def test_points_and_bars_are_means_and_errors():
    panels = [
        ("First", "lower is better", [(2.0, 0.5, (1.5, 2.5)), None, (3.0, NAN, (3.0,))]),
        (EVIL, "higher is better", [(1.0, 0.1, (0.9, 1.1))] * 3),
    ]
    figure = comparison.score_panels(panels, ["A", "B", "C"])
    first, second = figure.axes
    found = {}
    for container in first.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (bar,) = container.lines
        ((x, y),) = line.get_xydata()
        found[x] = (y, np.ptp(bar.get_segments()[0][:, 1]) / 2, line.get_color())
    colors = topic_colors(3)
    assert found == {0: (2.0, 0.5, colors[0]), 2: (3.0, 0.0, colors[2])}
    single = [line for line in first.lines if len(line.get_ydata()) == 2]
    assert single[0].get_ydata().tolist() == [1.5, 2.5]
    assert [label.get_text() for label in first.get_xticklabels()] == ["A", "B", "C"]
    assert second.get_title(loc="left") == EVIL
    assert_legible(figure)


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (12, 40)])
def test_matched_topics_lie_on_the_diagonal(rows, columns):
    cosine = np.random.default_rng(0).uniform(size=(rows, columns))
    pairs = [(topic, columns - 1 - topic) for topic in range(rows)]
    figure = comparison.topic_matrix(cosine, pairs, 1, ("A", "B"))
    axes = figure.axes[0]
    drawn = axes.images[0].get_array()
    assert np.allclose(np.diag(drawn), [cosine[pair] for pair in pairs])
    assert [int(label.get_text()) for label in axes.get_yticklabels()] == list(range(rows))
    order = [int(label.get_text()) for label in axes.get_xticklabels()]
    assert order[:rows] == [partner for _, partner in pairs]
    assert sorted(order) == list(range(columns))
    dashed = [patch.get_linestyle() == "--" for patch in axes.patches]
    assert dashed == [False] + [True] * (rows - 1)
    assert_legible(figure)


def test_each_curve_of_a_panel_is_the_history_of_one_run():
    other = [{"epoch": 0, "valid/perplexity": 5.0}]
    curves = dict.fromkeys(("valid/elbo", "valid/perplexity"), ("Title", "unit"))
    figure = comparison.training_overlay([HISTORY, [], other], ["A", "B", "C"], curves)
    elbo, perplexity = figure.axes
    (line,) = elbo.lines
    assert line.get_ydata().tolist() == [row["valid/elbo"] for row in HISTORY]
    assert line.get_color() == topic_colors(3)[0]
    assert elbo.get_ylim()[0] > HISTORY[0]["valid/elbo"]
    assert "first epochs off the scale" in [text.get_text() for text in elbo.texts]
    assert perplexity.lines[0].get_color() == topic_colors(3)[2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A", "C"]
    assert_legible(figure)

"""Figures of a sweep: points, curves and bars are the values of its trials."""

from __future__ import annotations

import math

import numpy as np
import pytest
from legibility import assert_legible
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from topicell.evaluation.metrics import metric
from topicell.report.figures import sweep as sweep_figures
from topicell.sweep.selection import MEASURES

NAN = math.nan
TOPICS = [2, 5, 8, 10, 12, 15, 20]
LOSS = [15.0, 2.5, 0.6, 0.03, 0.0, 0.05, 0.4]
ERRORS = [0.3, 0.2, 0.1, 0.05, 0.0, 0.06, 0.1]
STATES = ["complete", "pruned", "failed", "running", "complete"]


def legible(figure: Figure) -> Figure:
    assert_legible(figure)
    return figure


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def with_errors(axes) -> dict[float, tuple[float, float, str]]:
    """Return value, half the length of the error bar, and colour, by position on the x axis."""
    found = {}
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        line, _, (bars,) = container.lines
        for (x, y), segment in zip(line.get_xydata(), bars.get_segments(), strict=True):
            found[x] = (y, np.ptp(segment[:, 1]) / 2, to_hex(line.get_color()))
    return found


def marks(axes, marker: str) -> list[float]:
    return [x for line in axes.lines if line.get_marker() == marker for x in line.get_xdata()]


def curves(**kwargs) -> Figure:
    measures = {name: (np.linspace(1, 2, 7), np.full(7, 0.1)) for name in MEASURES}
    kwargs = {"best": 12, "chosen": 10, "within": [10, 12, 15], "pruned": [3, 4]} | kwargs
    return legible(
        sweep_figures.topic_curves(
            TOPICS, kwargs.pop("measures", measures), (LOSS, ERRORS), **kwargs
        )
    )


@pytest.fixture(scope="module")
def panels():
    return curves(support_floor=0.7).axes


def test_every_metric_has_a_panel(panels):
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == [
        "Perplexity above that of the best, K = 12, on the same cells",
        *(metric(name).title for name in MEASURES),
    ]


def test_points_and_bars_are_means_and_errors(panels):
    first, perplexity, *_ = panels
    found = with_errors(first)
    assert sorted(found) == TOPICS
    for k, loss, error in zip(TOPICS, LOSS, ERRORS, strict=True):
        assert found[k][:2] == pytest.approx((loss, error))
    for k, mean in zip(TOPICS, np.linspace(1, 2, 7), strict=True):
        assert with_errors(perplexity)[k][:2] == pytest.approx((mean, 0.1))


def test_colours_and_legend_distinguish_chosen_plateau_and_other_k():
    figure = curves(refused=[20])
    colors = {k: color for k, (_, _, color) in with_errors(figure.axes[0]).items()}
    assert colors[10] == sweep_figures.RED
    assert {k for k, color in colors.items() if color == sweep_figures.BLUE} == {12, 15}
    assert {k for k, color in colors.items() if color == sweep_figures.GREY} == {2, 5, 8, 20}
    for axes in figure.axes:
        assert [10, 10] in [list(line.get_xdata()) for line in axes.lines]
    assert legend(figure) == [
        "chosen, K = 10",
        "within one standard error of the best",
        "plateau",
        "worse by more than that",
        "too few topics found again",
        "pruned, no final measure",
    ]
    (span,) = figure.axes[1].patches
    assert span.get_x() < 10 < 15 < span.get_x() + span.get_width()
    assert span.get_width() < 6


def test_pruned_k_are_marked_at_the_bottom(panels):
    first, perplexity, *others = panels
    assert marks(first, "X") == marks(perplexity, "X") == [3, 4]
    assert not any(marks(axes, "X") for axes in others)


def test_much_worse_k_do_not_compress_the_scale(panels):
    first = panels[0]
    low, high = first.get_ylim()
    assert low < min(LOSS)
    assert 0.7 < high < 1
    assert marks(first, "^") == [2, 5]
    assert first.get_title(loc="right") == "↑ off the scale"


def test_the_axes_contain_every_k_within_one_standard_error():
    figure = sweep_figures.topic_curves(
        [2, 3, 4, 5], {}, ([9, 0, 1, 2], [9, 0, 1, 1]), within=[2, 3], chosen=2
    )
    assert legible(figure).axes[0].get_ylim()[1] > 18
    assert not marks(figure.axes[0], "^")


def test_the_panels_show_the_floor_and_the_line_of_used_topics(panels):
    *_, support, _, _, used = panels
    assert [text.get_text() for text in support.get_legend().get_texts()] == ["floor 0.7"]
    (diagonal,) = [line for line in used.lines if line.get_label() == "all K"]
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())


@pytest.mark.parametrize("n_metrics", [0, 1, 4])
def test_a_metric_without_values_has_no_panel(n_metrics):
    names = MEASURES[:n_metrics]
    assert len(curves(measures={n: ([1.0] * 7, [NAN] * 7) for n in names}).axes) == 1 + n_metrics


def test_missing_means_and_errors_are_omitted():
    figure = curves(measures={"topics/diversity": ([NAN, *[0.5] * 6], [NAN] * 7)})
    found = with_errors(figure.axes[1])
    assert sorted(found) == TOPICS[1:]
    assert {bar for _, bar, _ in found.values()} == {0}


def test_one_number_of_topics_is_drawn():
    figure = sweep_figures.topic_curves(
        [7], {"valid/perplexity_folded": ([80.0], [NAN])}, ([0.0], [0.0]), chosen=7, within=[7]
    )
    assert legend(legible(figure)) == ["chosen, K = 7"]


def parallel(columns, color_by="loss", chosen=None) -> tuple[Figure, list[np.ndarray]]:
    figure = legible(sweep_figures.parallel_coordinates(columns, color_by, chosen))
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    return figure, [np.asarray(line.get_ydata()) for line in lines]


def test_lines_of_trials_pass_through_their_values():
    columns = {
        "model.n_topics": [2, 4, 6],
        "train.rate": [0.001, 0.1, 0.01],
        "model.init": ["b", "a", "c"],
        "loss": [3.0, 2.0, 1.0],
        "other": [NAN, 1.0, 2.0],
    }
    figure, lines = parallel(columns, chosen=1)
    # The best trial is drawn last, with the darkest colour.
    np.testing.assert_allclose(lines[0], [0, 0, 0.5, 1, NAN])
    np.testing.assert_allclose(lines[1], [0.5, 1, 0, 0.5, 0])
    np.testing.assert_allclose(lines[2], [1, 0.5, 1, 0, 1])
    axes, bar = figure.axes
    texts = {text.get_text() for text in axes.texts}
    assert {"0.001", "0.01", "0.1", "a", "b", "c"} <= texts
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "model.\nn_topics",
        "train.\nrate",
        "model.\ninit",
        "loss",
        "other",
    ]
    assert bar.get_ylabel() == "loss"
    assert legend(figure) == ["chosen trial"]
    widths = [line.get_linewidth() for line in axes.lines if line.get_marker() == "o"]
    assert widths[1] > max(widths[0], widths[2])


def test_the_worst_trials_do_not_compress_the_colours():
    losses = [100.0, 1.0, 2.0, 3.0, 4.0]
    figure, lines = parallel({"k": [1, 2, 3, 4, 5], "loss": losses})
    assert sorted(line[1] for line in lines) == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert "> 4" in {text.get_text() for text in figure.axes[0].texts}


def test_dollar_signs_and_constant_settings_are_drawn():
    columns = {"$x_{1": ["$a^{", "$a^{"], "flag": [True, False], "k": [3, 3], "loss": [1.0, 1.0]}
    figure, lines = parallel(columns)
    np.testing.assert_array_equal(lines[0], [0.5, 1, 0.5, 0.5])
    assert len(figure.axes) == 1  # one colour needs no colour bar
    assert "$a^{" in {text.get_text() for text in figure.axes[0].texts}


def test_many_settings_and_one_trial_are_drawn():
    columns = {f"a.quite_long_setting_{i}": [i] for i in range(8)} | {"loss": [1.0], "no": [NAN]}
    parallel(columns, chosen=0)


def test_the_history_has_all_trials_and_the_lowest_so_far():
    values = [9.0, NAN, NAN, NAN, 8.0]
    figure = legible(sweep_figures.trial_history([0, 1, 3, 4, 6], values, STATES, chosen=4))
    (axes,) = figure.axes
    steps = axes.lines[0]
    np.testing.assert_array_equal(steps.get_xydata(), [(0, 9), (6, 8)])
    assert marks(axes, "X") == [1]
    assert marks(axes, "v") == [3]
    assert marks(axes, "s") == [4]
    assert marks(axes, "o") == [0, 6, 6]  # the last one again, as its ring
    assert legend(figure) == [
        "lowest so far",
        "complete (2)",
        "pruned (1)",
        "failed (1)",
        "running (1)",
        "chosen",
    ]


def test_a_history_without_a_complete_trial_is_drawn():
    figure = legible(sweep_figures.trial_history([0, 1], [NAN, NAN], ["pruned", "failed"]))
    assert legend(figure) == ["pruned (1)", "failed (1)"]


def test_curves_end_at_the_last_epoch_of_their_trial():
    histories = [{1: 90.0, 2: 82.0, 3: 80.0}, {1: 99.0, 2: 95.0}, {}, {1: 91.0}, {2: 81.0, 1: NAN}]
    figure = legible(sweep_figures.pruning_curves(histories, STATES, chosen=0))
    (axes,) = figure.axes
    lines = {tuple(line.get_xdata()): line for line in axes.lines}
    np.testing.assert_array_equal(lines[1, 2, 3].get_ydata(), [90, 82, 80])
    assert lines[1, 2, 3].get_color() == sweep_figures.RED
    assert marks(axes, "X") == [2]
    assert marks(axes, "s") == [1]
    assert legend(figure) == ["complete (2)", "pruned (1)", "running (1)", "chosen trial"]


def test_the_axes_contain_every_last_epoch():
    histories = [{1: 900.0, 2: 80.0 + i} for i in range(4)] + [{1: 100.0, 2: math.inf}]
    figure = legible(sweep_figures.pruning_curves(histories, ["complete"] * 5))
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert low < 80 < 83 < high < 100
    assert axes.get_title(loc="right") == "↑ first epochs off the scale"


def test_bars_of_importance_are_sorted():
    figure = legible(sweep_figures.importance_bars({"a.small": 0.2, "$b": 0.7, "c": 0.1}))
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.7, 0.2, 0.1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$b", "a.small", "c"]
    assert [text.get_text() for text in axes.texts] == ["70 %", "20 %", "10 %"]
    assert figure.findobj(Text)

"""Conditions: points are the samples, diamonds and lines the estimated effects."""

from __future__ import annotations

import numpy as np
import pytest
from legibility import LONG, assert_legible

from topicell.evaluation.conditions import TermEffects
from topicell.report import figures


def of_term(n_topics, levels, n_samples=12, seed=0):
    rng = np.random.default_rng(seed)
    n_effects = max(len(levels) - 1, 1)
    effect_LK = rng.normal(size=(n_effects, n_topics))
    position_S = np.arange(n_samples) % len(levels) if levels else rng.uniform(20, 80, n_samples)
    return TermEffects(
        value_SK=rng.normal(size=(n_samples, n_topics)),
        position_S=position_S,
        levels=levels,
        base_K=rng.normal(size=n_topics),
        effect_LK=effect_LK,
        low_LK=effect_LK - 0.5,
        high_LK=effect_LK + 0.5,
        q_K=np.linspace(0.0001, 1, n_topics),
    )


@pytest.mark.parametrize("n_topics", [2, 10, 30])
@pytest.mark.parametrize("levels", [["a", "b"], ["control", LONG, "other"]])
@pytest.mark.parametrize("n_samples", [6, 60])
def test_points_are_samples_and_diamonds_are_effects(n_topics, levels, n_samples):
    effects = of_term(n_topics, levels, n_samples)
    figure = figures.condition_effects(effects, "condition")
    assert len(figure.axes) == n_topics
    for topic, axes in enumerate(figure.axes):
        points = np.concatenate(
            [of.get_offsets() for of in axes.collections if hasattr(of, "get_sizes")]
        )
        relative_S = effects.value_SK[:, topic] - effects.base_K[topic]
        order = np.argsort(effects.position_S, kind="stable")
        np.testing.assert_allclose(points[:, 1], relative_S[order])
        np.testing.assert_array_equal(np.rint(points[:, 0]), effects.position_S[order])
        diamonds = [line for line in axes.lines if line.get_marker() == "D"]
        assert [float(line.get_ydata()[0]) for line in diamonds] == pytest.approx(
            effects.effect_LK[:, topic]
        )
        bold = axes.get_title(loc="left") if axes._left_title.get_fontweight() == "bold" else ""
        assert bool(bold) == (effects.q_K[topic] < 0.05)
    assert_legible(figure)


def test_a_number_has_a_line():
    effects = of_term(4, [])
    figure = figures.condition_effects(effects, "age", {0: "0", 3: "3*"})
    assert len(figure.axes) == 2
    axes = figure.axes[1]
    assert axes.get_title(loc="left") == "Topic 3*: q = 1.00"
    x, y = axes.lines[-1].get_data()
    assert np.polyfit(x, y, 1)[0] == pytest.approx(effects.effect_LK[0, 3])
    assert_legible(figure)

"""Changes of topics with conditions: samples as points, estimated effects with intervals.

Shape suffixes: S samples, K topics, L levels without the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from topicell.report.figures.drawing import (
    FAINT,
    GRID,
    INK,
    NORMAL,
    SMALL,
    Topics,
    drawn_topics,
    grid_shape,
    new_figure,
    plain,
    short,
    titled,
    topic_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from topicell.evaluation.conditions import TermEffects

FDR = 0.05
"""A topic with a lower q is marked."""
SPREAD = 0.28
"""Largest distance of a point from the middle of its level; levels have a distance of 1."""


def condition_effects(of_term: TermEffects, name: str, topics: Topics = None) -> Figure:
    """Draw one panel for each topic: log-ratios of the samples, and how the term changes them.

    Values are differences to the estimate for the reference level, or for the mean of the number.

    Parameters
    ----------
    of_term
        Values, estimates and q of the topics.
    name
        The term.
    topics
        Numbers of the topics that are drawn; None draws all.
    """
    numbers, colors = drawn_topics(topics, of_term.value_SK.shape[1])
    levels = [short(level, 16) for level in of_term.levels]
    n_columns, n_rows = grid_shape(len(numbers))
    rotated = len(levels) > 2 or any(len(level) > 9 for level in levels)
    width = max(1.75, 0.42 * len(levels) + 0.75)
    below = 0.075 * max(map(len, levels)) if levels and rotated else 0.0
    figure = new_figure(
        width * n_columns + 0.5,
        1.75 * n_rows + 0.75 + below,
        titled(f"Topics by {short(name, 40)}", topics),
    )
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    for place, (axes, topic, color) in enumerate(zip(panels, numbers, colors, strict=False)):
        plain(axes, "y")
        axes.axhline(0, color=FAINT, linewidth=0.9, linestyle=":", zorder=1)
        q = of_term.q_K[topic]
        significant = q < FDR
        axes.set_title(
            f"Topic {topic_name(topics, topic)}: {_q(q)}",
            fontsize=NORMAL,
            fontweight="bold" if significant else "normal",
            color=INK if significant else FAINT,
            loc="left",
        )
        if levels:
            _draw_levels(axes, of_term, topic, color, significant=significant)
            axes.set_xticks(range(len(levels)), levels, parse_math=False)
            axes.set_xlim(-0.55, len(levels) - 0.45)
            if rotated:
                axes.tick_params(axis="x", rotation=90)
        else:
            _draw_line(axes, of_term, topic, color, significant=significant)
            axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.tick_params(axis="x", labelbottom=place + n_columns >= len(numbers), length=2)
    for axes in panels[len(numbers) :]:
        axes.remove()
    figure.supylabel("log2 change", fontsize=SMALL, color=INK)
    if not levels:
        figure.supxlabel(short(name, 60), fontsize=SMALL, color=INK, parse_math=False)
    return figure


def _q(q: float) -> str:
    return "q < 0.001" if q < 0.001 else f"q = {q:.2g}" if q < 0.1 else f"q = {q:.2f}"


def _draw_levels(
    axes: Axes, of_term: TermEffects, topic: int, color: str, *, significant: bool
) -> None:
    """Draw the samples of each level, and effects relative to the reference."""
    level_S = np.rint(of_term.position_S).astype(int)
    for level in range(len(of_term.levels)):
        value_S = of_term.value_SK[level_S == level, topic] - of_term.base_K[topic]
        axes.scatter(level + _offsets(value_S), value_S, s=13, color=color, alpha=0.9, lw=0)
    for level, (effect, low, high) in enumerate(
        zip(
            of_term.effect_LK[:, topic],
            of_term.low_LK[:, topic],
            of_term.high_LK[:, topic],
            strict=True,
        ),
        start=1,
    ):
        axes.errorbar(
            level,
            effect,
            [[effect - low], [high - effect]],
            fmt="D",
            markersize=4,
            markerfacecolor=INK if significant else GRID,
            color=INK if significant else FAINT,
            linewidth=1.4,
            capsize=2.5,
            zorder=3,
        )


def _draw_line(
    axes: Axes, of_term: TermEffects, topic: int, color: str, *, significant: bool
) -> None:
    """Draw the samples over the number, the line, and the interval of its slope."""
    x_S, middle = of_term.position_S, of_term.position_S.mean()
    slope, low, high = (of[0, topic] for of in (of_term.effect_LK, of_term.low_LK, of_term.high_LK))
    value_S = of_term.value_SK[:, topic] - (of_term.base_K[topic] + slope * middle)
    axes.scatter(x_S, value_S, s=13, color=color, alpha=0.9, lw=0)
    x = np.linspace(x_S.min(), x_S.max(), 50)
    line, *bounds = (of * (x - middle) for of in (slope, low, high))
    ink = INK if significant else FAINT
    axes.fill_between(x, np.minimum(*bounds), np.maximum(*bounds), color=FAINT, alpha=0.2, lw=0)
    axes.plot(x, line, color=ink, linewidth=1.4)


def _offsets(value_S: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return horizontal offsets of points, so that neighbours in height do not overlap."""
    n_samples = len(value_S)
    rank_S = np.argsort(np.argsort(value_S, kind="stable"), kind="stable")
    pattern = np.array([0, 1, -1, 0.5, -0.5])[rank_S % 5]
    return pattern * SPREAD * min(1.0, n_samples / 10)

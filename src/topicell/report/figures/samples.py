"""Samples of a study: mean topic proportions, numbers of cells, depth.

Shape suffixes: N cells, S samples, K topics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from topicell.report.figures.drawing import (
    FAINT,
    INK,
    MISSING,
    NORMAL,
    NOTHING,
    SMALL,
    Topics,
    category_codes,
    drawn_topics,
    legend_outside,
    new_figure,
    plain,
    short,
    titled,
    topic_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def samples(
    theta_NK: np.ndarray,
    samples: Any,
    depth: Mapping[str, float] | None = None,
    topics: Topics = None,
) -> Figure:
    """Draw the mean topic proportions of each sample as stacked bars, with cells and depth beside.

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells.
    samples
        Sample of each cell; rows have the order of the categories.
    depth
        Median counts of a cell of each sample, by its name; a sample may be missing.
    topics
        Numbers of the topics that are drawn, the others together in grey; None draws all.
    """
    codes_N, names = category_codes(samples)
    if (codes_N < 0).any():
        codes_N, names = np.where(codes_N < 0, len(names), codes_N), [*names, MISSING]
    numbers, colors = drawn_topics(topics, theta_NK.shape[1])
    labels = [f"Topic {topic_name(topics, topic)}" for topic in numbers]
    mean_SK = np.array([theta_NK[codes_N == code].mean(axis=0) for code in range(len(names))])
    shown_SK = mean_SK[:, numbers]
    if len(numbers) < theta_NK.shape[1]:
        shown_SK = np.column_stack([shown_SK, 1 - shown_SK.sum(axis=1)])
        labels.append(f"{theta_NK.shape[1] - len(numbers)} others")
        colors.append(NOTHING)
    sides = {"cells": np.bincount(codes_N, minlength=len(names)).astype(float)}
    if depth is not None:
        sides["median counts"] = np.array([depth.get(name, np.nan) for name in names])

    height = max(1.25 + 0.26 * len(names), 1.1 + 0.19 * min(len(labels), 18))
    title = titled("Topic proportions of the samples", topics)
    figure = new_figure(9.5, height, title)
    ratios = [4.5, *(1.3 for _ in sides)]
    axes, *others = figure.subplots(1, 1 + len(sides), sharey=True, width_ratios=ratios)
    rows = np.arange(len(names))
    left_S = np.zeros(len(names))
    for value_S, color in zip(shown_SK.T, colors, strict=True):
        axes.barh(rows, value_S, left=left_S, color=color, height=0.8, linewidth=0)
        left_S = left_S + value_S
    plain(axes, axis="x")
    axes.set_yticks(rows, [short(name, 32) for name in names])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title("mean proportion", fontsize=NORMAL, color=INK, loc="left")
    for side, (heading, value_S) in zip(others, sides.items(), strict=True):
        _bars(side, heading, value_S)
    handles = [Patch(color=color) for color in colors]
    legend_outside(figure, handles, labels, -(-len(labels) // 18), "outside right upper")
    return figure


def _bars(axes: Axes, heading: str, value_S: np.ndarray) -> None:
    """Draw a bar for each sample, with its value written at its end."""
    largest = np.nanmax(value_S, initial=1)
    for row, value in enumerate(value_S):
        if np.isfinite(value):
            axes.barh(row, value, color=FAINT, height=0.62, linewidth=0)
            axes.annotate(
                f"{value:,.0f}",
                (value, row),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
                color=INK,
            )
    axes.set_xlim(0, 1.45 * largest)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.set_title(heading, fontsize=NORMAL, color=INK, loc="left")

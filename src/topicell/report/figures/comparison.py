"""The figures of a comparison of runs: functions from plain data to a matplotlib figure.

Each run has the same letter and the same colour of `topic_colors` in every figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from topicell.report.figures.drawing import (
    FAINT,
    INK,
    NORMAL,
    PROPORTION,
    SMALL,
    legend_outside,
    name_axes,
    new_figure,
    plain,
    readable_on,
    topic_colors,
    value_bar,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WRITTEN = 16
"""Matrices of at most so many columns show their values as text."""


def score_panels(
    panels: Sequence[tuple[str, str, Sequence[tuple[float, float, Sequence[float]] | None]]],
    letters: Sequence[str],
) -> Figure:
    """Draw one small panel for each score: mean and error bar of each run, and faint single values.

    Parameters
    ----------
    panels
        Title and axis label of each score, and for each run the mean, its error (NaN if not
        known) and the single values; None for a run without the score.
    letters
        Names of the runs.
    """
    n_columns = min(len(panels), 3 if len(letters) <= 5 else 2 if len(letters) <= 10 else 1)
    n_rows = -(-len(panels) // n_columns)
    figure = new_figure(
        max(2.8, 0.32 * len(letters) + 1.3) * n_columns + 0.3,
        2.3 * n_rows + 0.45,
        "Scores of the runs",
    )
    axes_P = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, (title, hint, values) in zip(axes_P, panels, strict=False):
        plain(axes, "y")
        axes.set_title(title, fontsize=NORMAL, color=INK, loc="left", parse_math=False)
        axes.set_ylabel(hint, fontsize=SMALL, color=INK)
        for place, (value, color) in enumerate(
            zip(values, topic_colors(len(letters)), strict=True)
        ):
            if value is None or not np.isfinite(value[0]):
                axes.text(
                    place, 0.03, "–", color=FAINT, ha="center", transform=axes.get_xaxis_transform()
                )
                continue
            mean, error, single = value
            if len(single) > 1:
                # To the right of the mean, so that they do not overlap.
                axes.plot(
                    np.full(len(single), place + 0.22),
                    single,
                    "o",
                    color=color,
                    alpha=0.45,
                    markersize=3.2,
                    markeredgewidth=0,
                )
            axes.errorbar(
                [place], [mean], [np.nan_to_num(error)], fmt="o", color=color, markersize=6.5
            )
        axes.set_xticks(range(len(letters)), letters, fontweight="bold", fontsize=NORMAL)
        axes.set_xlim(-0.6, len(letters) - 0.4)
        axes.grid(False, axis="x")
        axes.ticklabel_format(axis="y", useOffset=False, style="plain")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(y=0.15)
    for axes in axes_P[len(panels) :]:
        axes.remove()
    return figure


def topic_matrix(
    cosine_KK: np.ndarray,
    pairs: Sequence[tuple[int, int]],
    n_found: int,
    letters: tuple[str, str],
) -> Figure:
    """Draw the cosine similarity of all topics of two runs, with matched topics on the diagonal.

    Parameters
    ----------
    cosine_KK
        Topics of one run × topics of the other.
    pairs
        Matched topics; those similar enough to count as the same come first.
    n_found
        Number of pairs that count as the same.
    letters
        Names of the two runs.
    """
    rows, columns = (_order(n, [pair[i] for pair in pairs]) for i, n in enumerate(cosine_KK.shape))
    side = 0.42 if max(cosine_KK.shape) <= WRITTEN else 0.24
    figure = new_figure(
        max(5.2, side * len(columns) + 1.9),
        max(2.4, side * len(rows) + 1.25),
        f"Topics of {letters[0]} and {letters[1]}",
    )
    axes = figure.subplots()
    shown = cosine_KK[np.ix_(rows, columns)]
    image = axes.imshow(shown, cmap=PROPORTION, vmin=0, vmax=1, aspect="equal")
    if len(columns) <= WRITTEN:
        for (row, column), value in np.ndenumerate(shown):
            axes.text(
                column,
                row,
                f"{value:.2f}".removeprefix("0"),
                ha="center",
                va="center",
                fontsize=SMALL,
                color=readable_on(PROPORTION(value)),
            )
    for place in range(len(pairs)):
        style: dict[str, Any] = (
            {"edgecolor": "#d55e00", "linewidth": 2.2}
            if place < n_found
            else {"edgecolor": FAINT, "linewidth": 1.2, "linestyle": "--"}
        )
        axes.add_patch(Rectangle((place - 0.5, place - 0.5), 1, 1, fill=False, **style))
    axes.set_xticks(range(len(columns)), [str(topic) for topic in columns])
    axes.set_yticks(range(len(rows)), [str(topic) for topic in rows])
    axes.tick_params(labelsize=SMALL, colors=INK, length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"topic of {letters[1]}", fontsize=NORMAL, color=INK)
    axes.set_ylabel(f"topic of {letters[0]}", fontsize=NORMAL, color=INK)
    value_bar(figure, image, axes, "cosine of the gene proportions", shrink=0.8)
    return figure


def training_overlay(
    histories: Sequence[Sequence[Mapping[str, float]]],
    letters: Sequence[str],
    curves: Mapping[str, tuple[str, str]],
) -> Figure:
    """Draw metrics by epoch, all runs in one panel for each metric.

    Bands are ± 1 standard deviation over replicates, where a history holds ``<name>_sd``.

    Parameters
    ----------
    histories
        For each run, one mapping for each epoch, with the metrics by name and ``epoch``.
    letters
        Names of the runs.
    curves
        Title and axis label of each metric, by its name; one run has it at least.
    """
    figure = new_figure(3.1 * len(curves) + 0.9, 3.0, "Training")
    panels = figure.subplots(1, len(curves), squeeze=False).ravel()
    handles = {}
    for axes, (name, words) in zip(panels, curves.items(), strict=True):
        late = []
        for letter, history, color in zip(
            letters, histories, topic_colors(len(letters)), strict=True
        ):
            epoch, value, sd = (
                np.array([row.get(key, np.nan) for row in history if name in row], dtype=float)
                for key in ("epoch", name, f"{name}_sd")
            )
            if not len(epoch):
                continue
            marker = "o" if len(epoch) == 1 else None
            (handles[letter],) = axes.plot(epoch, value, color=color, linewidth=1.6, marker=marker)
            axes.fill_between(epoch, value - sd, value + sd, color=color, alpha=0.2, linewidth=0)
            late.append(value[epoch >= epoch.min() + 0.1 * np.ptp(epoch)])
        name_axes(axes, *words)
        axes.set_xlabel("epoch", fontsize=SMALL, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _leave_out_first_epochs(axes, np.concatenate(late))
    shown = [letter for letter in letters if letter in handles]
    legend_outside(figure, [handles[letter] for letter in shown], shown, 1, "outside right center")
    return figure


def _leave_out_first_epochs(axes: Axes, late: np.ndarray) -> None:
    """Scale the axis without the first tenth of the epochs, if these would flatten the rest."""
    late = late[np.isfinite(late)]
    bottom, top = axes.get_ylim()
    if len(late) < 10 or top - bottom <= 3 * np.ptp(late) or not np.ptp(late):
        return
    room = 0.08 * np.ptp(late)
    axes.set_ylim(late.min() - room, late.max() + room)
    axes.text(
        0.97,
        0.5,
        "first epochs off the scale",
        transform=axes.transAxes,
        ha="right",
        fontsize=SMALL,
        color=FAINT,
    )


def _order(n_topics: int, first: Sequence[int]) -> list[int]:
    """Return the topics in `first`, then the others."""
    return [*first, *(topic for topic in range(n_topics) if topic not in first)]

"""Maps of the cells: functions from arrays to a matplotlib figure.

Shape suffixes: N cells, K topics, 2 coordinates.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from topicell.report.figures.drawing import (
    FAINT,
    HALO,
    INK,
    MISSING,
    NORMAL,
    NOTHING,
    PAPER,
    PROPORTION,
    SMALL,
    Topics,
    category_codes,
    category_colors,
    drawn_topics,
    grid_shape,
    legend_outside,
    new_figure,
    point_size,
    titled,
    topic_name,
    value_bar,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def umap_by_topic(
    embedding_N2: np.ndarray,
    theta_NK: np.ndarray,
    title: str,
    topics: Topics = None,
) -> Figure:
    """Draw a small map for each topic, with cells coloured by its proportion, from 0 to 1.

    Parameters
    ----------
    embedding_N2
        Coordinates of the cells.
    theta_NK
        Topic proportions of the cells.
    title
        Heading of the figure.
    topics
        Numbers of the topics that are drawn; None draws all.
    """
    numbers, _ = drawn_topics(topics, theta_NK.shape[1])
    n_topics = len(numbers)
    n_columns, n_rows = grid_shape(n_topics)
    figure = new_figure(2.05 * n_columns + 0.9, 2.2 * n_rows + 0.45, titled(title, topics))
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    size = point_size(len(theta_NK), panel_inches=1.9)
    for topic, axes in zip(numbers, panels, strict=False):
        order = np.argsort(theta_NK[:, topic], kind="stable")  # high values on top
        axes.scatter(
            embedding_N2[order, 0],
            embedding_N2[order, 1],
            c=theta_NK[order, topic],
            s=size,
            cmap=PROPORTION,
            vmin=0,
            vmax=1,
            linewidths=0,
            rasterized=True,
        )
        name = f"Topic {topic_name(topics, topic)}"
        axes.set_title(name, fontsize=NORMAL, color=INK, pad=3)
        _bare_map(axes, PAPER)
    for axes in panels[n_topics:]:
        axes.remove()
    value_bar(
        figure,
        ScalarMappable(Normalize(0, 1), PROPORTION),
        list(panels[:n_topics]),
        "proportion in the cell",
        # a bar of the same length for any number of rows
        shrink=min(1.0, 1.25 / n_rows + 0.2),
    )
    return figure


def umap_by_value(
    embedding_N2: np.ndarray, value_N: np.ndarray, title: str, unit: str = ""
) -> Figure:
    """Draw a map of cells coloured by a number, such as the expression of a gene.

    The scale begins at 0, unless there are negative values. The highest 2 in 1000 values have the
    last colour, so that a single cell does not make all others pale.

    Parameters
    ----------
    embedding_N2
        Coordinates of the cells.
    value_N
        The number of each cell; cells with NaN are drawn in grey, below the others.
    title
        Heading of the figure.
    unit
        Unit of the numbers, for the colour bar.
    """
    value_N = np.asarray(value_N, dtype=float)
    known_N = np.isfinite(value_N)
    known = np.sort(value_N[known_N]) if known_N.any() else np.zeros(1)
    low = min(0.0, float(known[0]))
    high = float(known[-1 - len(known) // 500])
    high = high if high > low else float(known[-1])
    norm = Normalize(low, high if high > low else low + 1)

    figure = new_figure(6.0, 5.2, title)
    axes = figure.add_subplot()
    size = point_size(len(value_N), panel_inches=4.6)
    rows = [np.flatnonzero(~known_N), np.flatnonzero(known_N)]
    rows[1] = rows[1][np.argsort(value_N[rows[1]], kind="stable")]  # high values on top
    styles: list[dict[str, Any]] = [{"color": NOTHING}, {"c": value_N[rows[1]]}]
    styles[1] |= {"cmap": PROPORTION, "norm": norm}
    for of, style in zip(rows, styles, strict=True):
        if len(of):
            x, y = embedding_N2[of].T
            axes.scatter(x, y, s=size, linewidths=0, rasterized=True, **style)
    _bare_map(axes, PAPER)
    _name_axes(axes)
    extend = "max" if known[-1] > high else "neither"
    value_bar(
        figure, ScalarMappable(norm, PROPORTION), axes, unit, shrink=0.5, aspect=18, extend=extend
    )
    return figure


def umap_by_category(embedding_N2: np.ndarray, categories: Sequence[Any], title: str) -> Figure:
    """Draw a map of cells coloured by category, with a legend.

    Up to 25 categories are also marked on the map: by name if all names are short, else by their
    number in the legend.

    Parameters
    ----------
    embedding_N2
        Coordinates of the cells.
    categories
        Category of each cell; missing ones are drawn in grey, below the others.
    title
        Heading of the figure.
    """
    codes_N, names = category_codes(categories)
    marks = names if all(len(n) <= 3 for n in names) else [str(i + 1) for i in range(len(names))]
    marked = 2 <= len(names) <= 25
    entries = [
        f"{mark}  {name}" if marked and marks is not names else name
        for mark, name in zip(marks, names, strict=True)
    ]
    colors = dict(enumerate(category_colors(len(names))))
    if (codes_N < 0).any():
        colors[-1] = NOTHING
        entries.append(MISSING)
    entries = [textwrap.fill(entry, 34, subsequent_indent="    " * marked) for entry in entries]
    lines = [line for entry in entries for line in entry.split("\n")]
    n_columns = 1 if len(lines) <= 28 else 2
    figure = new_figure(
        5.2 + n_columns * (0.55 + 0.072 * max(len(line) for line in lines)),
        max(5.2, 0.9 + (0.14 * len(lines) + 0.05 * len(entries)) / n_columns),
        title,
    )
    axes = figure.add_subplot()
    size = point_size(len(codes_N), panel_inches=4.6)
    # All cells are drawn in one call and in random order, so that no category hides another;
    # missing ones come first.
    order = np.random.default_rng(0).permutation(len(codes_N))
    order = order[np.argsort(codes_N[order] >= 0, kind="stable")]
    axes.scatter(
        embedding_N2[order, 0],
        embedding_N2[order, 1],
        c=[colors[code] for code in codes_N[order]],
        s=size,
        linewidths=0,
        rasterized=True,
    )
    _bare_map(axes)
    _name_axes(axes)
    if marked:
        spots = _mark_positions(embedding_N2, codes_N, len(names))
        for mark, spot in zip(marks, spots, strict=True):
            axes.annotate(
                mark,
                spot,
                ha="center",
                va="center",
                fontsize=NORMAL,
                fontweight="bold",
                color=INK,
                parse_math=False,
                path_effects=HALO,
            )
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=6.5, color=colors[code])
        for code in [*range(len(names)), -1][: len(entries)]
    ]
    legend_outside(figure, handles, entries, n_columns, "outside right center")
    return figure


def _bare_map(axes: Axes, ground: str = "white") -> None:
    axes.set_facecolor(ground)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#d8dce0")
        side.set_linewidth(0.6)


def _name_axes(axes: Axes) -> None:
    axes.set_xlabel("UMAP 1", fontsize=SMALL, color=FAINT, loc="left")
    axes.set_ylabel("UMAP 2", fontsize=SMALL, color=FAINT, loc="bottom")


def _mark_positions(embedding_N2: np.ndarray, codes_N: np.ndarray, n: int) -> np.ndarray:
    """Return the position of each category's mark: at its middle cell, away from other marks."""
    spots = np.empty((n, 2))
    for code in range(n):
        points = embedding_N2[codes_N == code]
        from_middle = np.linalg.norm(points - np.median(points, axis=0), axis=1)
        spots[code] = points[from_middle.argmin()]
    clearance = 0.05 * np.ptp(embedding_N2, axis=0).max()
    # marks at exactly the same position are moved along a line, by their numbers
    spots += 1e-3 * clearance * np.arange(n)[:, None]
    for _ in range(200):
        apart = spots[:, None] - spots[None]
        distance = np.linalg.norm(apart, axis=2) + np.diag(np.full(n, np.inf))
        if (distance >= 0.99 * clearance).all():
            break
        push = np.clip(clearance - distance, 0, None) / distance
        spots += 0.4 * (push[..., None] * apart).sum(axis=1)
    return spots

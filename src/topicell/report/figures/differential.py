"""Volcano plots of topics: functions from arrays to a matplotlib figure.

Shape suffixes: K topics, G genes, M named genes, P points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from topicell.report.figures.drawing import (
    FAINT,
    HALO,
    INK,
    NORMAL,
    SMALL,
    Topics,
    drawn_topics,
    grid_shape,
    lay_out,
    new_figure,
    plain,
    short,
    titled,
    topic_colors,
    topic_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DULL = "#8a919999"
"""Colour of genes that do not differ: a transparent grey for light and dark pages."""


def volcano(
    lfc_G: np.ndarray,
    p_G: np.ndarray,
    q_G: np.ndarray,
    genes: Sequence[str],
    topic: int,
    *,
    max_q: float = 0.05,
    min_lfc: float = 1.0,
    n_named: int = 12,
) -> Figure:
    """Draw fold change and p-value of each gene in one topic, relative to the nearest topic.

    Genes that differ (q below `max_q` and a fold change beyond `min_lfc`) have the colour of the
    topic. The strongest of them, by the product of both axes, have their names if there is space.
    Points far outside the range of the others are triangles at the edge.

    Parameters
    ----------
    lfc_G
        Log2 fold change; NaN if it is not defined.
    p_G, q_G
        p-values, and those adjusted for the number of genes.
    genes
        Names of the genes.
    topic
        Number of the topic.
    max_q, min_lfc
        Limits beyond which a gene differs.
    n_named
        Number of genes with names.
    """
    figure = new_figure(6.4, 5.0, f"Genes that distinguish topic {topic}")
    axes = figure.add_subplot()
    x_G, y_G, differs_G = _coordinates(lfc_G, p_G, q_G, max_q, min_lfc)
    limits = _limits(x_G, y_G)
    color = topic_colors(topic + 1)[topic]
    beyond = _draw(axes, x_G, y_G, differs_G, color, limits, min_lfc, size=16)
    higher, lower = (int((differs_G & (sign * x_G > 0)).sum()) for sign in (1, -1))
    axes.set_title(
        f"{higher} higher, {lower} lower: q < {max_q:g} and {2**min_lfc:.3g} times or more",
        fontsize=SMALL,
        color=FAINT,
        loc="left",
    )
    _name_axes(figure, axes, beyond)
    _name_genes([axes], [(x_G, y_G, differs_G)], genes, limits, n_named)
    return figure


def volcanoes(
    lfc_KG: np.ndarray,
    p_KG: np.ndarray,
    q_KG: np.ndarray,
    genes: Sequence[str],
    topics: Topics = None,
    *,
    max_q: float = 0.05,
    min_lfc: float = 1.0,
    n_named: int = 3,
) -> Figure:
    """Draw one small `volcano` for each topic, on common scales.

    Parameters
    ----------
    lfc_KG
        Log2 fold change relative to the nearest topic; NaN if it is not defined.
    p_KG, q_KG
        p-values, and those adjusted for the number of genes.
    genes
        Names of the genes.
    topics
        Numbers of the topics that are drawn; None draws all.
    max_q, min_lfc
        Limits beyond which a gene differs.
    n_named
        Number of genes with names in each panel.
    """
    numbers, colors = drawn_topics(topics, len(lfc_KG))
    n_topics = len(numbers)
    n_columns, n_rows = grid_shape(n_topics)
    title = titled("Genes that distinguish each topic", topics)
    figure = new_figure(2.15 * n_columns + 0.6, 2.05 * n_rows + 0.85, title)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    panels = list(grid.ravel())
    drawn = [_coordinates(lfc_KG[k], p_KG[k], q_KG[k], max_q, min_lfc) for k in numbers]
    ends = np.array([_limits(x_G, y_G) for x_G, y_G, _ in drawn])
    limits = (float(ends[:, 0].min()), float(ends[:, 1].max()), float(ends[:, 2].max()))
    beyond = False
    for place, (topic, axes, color) in enumerate(zip(numbers, panels, colors, strict=False)):
        beyond |= _draw(axes, *drawn[place], color, limits, min_lfc, size=9)
        n_differ = int(drawn[place][2].sum())
        name = f"Topic {topic_name(topics, topic)}"
        axes.set_title(name, fontsize=NORMAL, color=INK, loc="left", pad=4)
        axes.set_title(f"{n_differ:,}", fontsize=SMALL, color=FAINT, loc="right", pad=4)
        # the lowest panel of a column has its axis, even if the last row is not full
        axes.tick_params(axis="x", labelbottom=place + n_columns >= n_topics)
        if not np.isfinite(drawn[place][0]).any():
            axes.text(
                0.5,
                0.5,
                "nothing to compare",
                ha="center",
                fontsize=SMALL,
                color=FAINT,
                transform=axes.transAxes,
            )
    for axes in panels[n_topics:]:
        axes.remove()
    _name_axes(figure, None, beyond)
    _name_genes(panels[:n_topics], drawn, genes, limits, n_named)
    return figure


def _coordinates(
    lfc_G: np.ndarray, p_G: np.ndarray, q_G: np.ndarray, max_q: float, min_lfc: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return coordinates of the genes (NaN if not defined), and whether they differ."""
    with np.errstate(divide="ignore"):
        y_G = -np.log10(np.asarray(p_G, dtype=float)) + 0.0  # avoid −0
    x_G = np.where(np.isnan(y_G), np.nan, lfc_G)
    return x_G, np.where(np.isnan(x_G), np.nan, y_G), (q_G < max_q) & (np.abs(x_G) > min_lfc)


def _limits(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Return left, right and upper limit: the farthest point, unless it is far from the others."""

    def end(values: np.ndarray, least: float) -> float:
        known = values[np.isfinite(values) & (values > 0)]
        if not len(known):
            return least
        farthest, bulk = float(known.max()), float(np.quantile(known, 0.995, method="lower"))
        return max(least, farthest if farthest <= 3 * bulk else 2 * bulk)

    # numbers below 1e-300 are practically 0, so larger values have no meaning
    return -end(-x, 2.0), end(x, 2.0), end(np.minimum(y, 300), 4.0)


def _draw(
    axes: Axes,
    x_G: np.ndarray,
    y_G: np.ndarray,
    differs_G: np.ndarray,
    color: str,
    limits: tuple[float, float, float],
    min_lfc: float,
    size: float,
) -> bool:
    """Draw the genes; return whether any of them is outside the scale."""
    left, right, top = limits
    plain(axes)
    for at in (-min_lfc, min_lfc):
        axes.axvline(at, color=FAINT, linewidth=0.8, linestyle=":", zorder=0.9)
    above_G = y_G > top
    markers = {
        "^": above_G,
        ">": ~above_G & (x_G > right),
        "<": ~above_G & (x_G < left),
        "o": ~above_G & (left <= x_G) & (x_G <= right),
    }
    for of_G, face in ((~differs_G, DULL), (differs_G, color)):
        for marker, there_G in markers.items():
            genes = of_G & there_G
            axes.scatter(
                np.clip(x_G[genes], left, right),
                np.clip(y_G[genes], 0, top),
                s=size if marker == "o" else 1.6 * size,
                marker=marker,
                color=face,
                linewidths=0,
                rasterized=True,
            )
    room = 0.07 * (right - left)
    axes.set_xlim(left - room, right + room)
    axes.set_ylim(-0.02 * top, 1.06 * top)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return any(bool(there_G.any()) for marker, there_G in markers.items() if marker != "o")


def _name_genes(
    panels: Sequence[Axes],
    drawn: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    genes: Sequence[str],
    limits: tuple[float, float, float],
    n_named: int,
) -> None:
    """Write the names of the strongest genes next to their points, in free space."""
    left, right, top = limits
    figure = cast(Figure, panels[0].get_figure())
    renderer = cast(Any, FigureCanvasAgg(figure)).get_renderer()
    lay_out(figure)  # the positions of the panels are only known now
    inch = 72 / figure.dpi
    for axes, (x_G, y_G, differs_G) in zip(panels, drawn, strict=True):
        xy_G2 = np.column_stack([np.clip(x_G, left, right), np.clip(y_G, 0, top)])
        strength_G = np.where(differs_G, np.abs(xy_G2).prod(axis=1), -1)
        named = np.argsort(-strength_G, kind="stable")[: min(n_named, int(differs_G.sum()))]
        texts = [
            axes.annotate(
                short(str(genes[gene]), 18),
                xy_G2[gene],
                (0, 0),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=SMALL,
                color=INK,
                path_effects=HALO,
                parse_math=False,
                arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkB": 2},
            )
            for gene in named
        ]
        boxes = [Text.get_window_extent(text, renderer) for text in texts]  # without their lines
        size_M2 = np.array([(box.width, box.height) for box in boxes]).reshape(-1, 2) * inch
        point_M2 = axes.transData.transform(xy_G2[named]) * inch
        avoid_P2 = axes.transData.transform(xy_G2[differs_G]) * inch
        centres = _places(point_M2, size_M2, avoid_P2, np.array(axes.bbox.extents) * inch)
        for text, point, size, centre in zip(texts, point_M2, size_M2, centres, strict=True):
            if centre is None:
                text.remove()
                continue
            text.set_position(tuple(centre - point))
            text.set_in_layout(False)
            # draw a line to the point, unless the name is close to it
            gap = np.linalg.norm(np.maximum(np.abs(centre - point) - size / 2, 0))
            cast(Any, text.arrow_patch).set_visible(gap > 7)


def _places(
    point_M2: np.ndarray, size_M2: np.ndarray, avoid_P2: np.ndarray, frame: np.ndarray
) -> list[np.ndarray | None]:
    """Return centres of labels next to their points, one after the other; None without space.

    A label covers no other label, no line from a label to its point, and as few points as possible;
    it stays inside the frame and near its point. All lengths are in points.
    """
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    placed: list[tuple[np.ndarray, np.ndarray]] = []  # lower left and upper right corners
    lines = np.empty((0, 2))
    centres: list[np.ndarray | None] = []
    for point, size in zip(point_M2, size_M2, strict=True):
        best, least = None, math.inf
        for distance in (4, 8, 13, 19, 26, 34, 44, 56, 70, 86, 104, 124):
            for direction in directions:
                centre = point + direction * (distance + size / 2)
                low, high = centre - size / 2 - 1, centre + size / 2 + 1
                line = point + np.linspace(0.1, 1, 12)[:, None] * (centre - point)
                cost = distance + 6 * _inside(avoid_P2, low, high).sum() - 2 * direction[1]
                if (
                    cost < least
                    and (low >= frame[:2]).all()
                    and (high <= frame[2:]).all()
                    and not any((low < b).all() and (high > a).all() for a, b in placed)
                    and not _inside(lines, low, high).any()
                    and not any(_inside(line, a, b).any() for a, b in placed)
                ):
                    best, least = (centre, low, high, line), cost
        if best is None:
            centres.append(None)
            continue
        centre, low, high, line = best
        centres.append(centre)
        placed.append((low, high))
        lines = np.concatenate([lines, line])
    return centres


def _inside(xy_P2: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    inside: np.ndarray = np.all((xy_P2 > low) & (xy_P2 < high), axis=1)
    return inside


def _name_axes(figure: Figure, axes: Axes | None, beyond: bool) -> None:
    across = "log2 fold change against the nearest topic"
    across += "  (triangles: beyond the scale)" if beyond else ""
    style: dict[str, Any] = {"fontsize": SMALL, "color": INK}
    if axes is None:
        figure.supxlabel(across, **style)
        figure.supylabel("−log10 p", **style)
    else:
        axes.set_xlabel(across, **style)
        axes.set_ylabel("−log10 p", **style)

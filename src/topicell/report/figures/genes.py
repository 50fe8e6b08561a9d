"""Figures of the genes of topics: functions from arrays to a matplotlib figure.

Shape suffixes: K topics, T leading genes; B gene sets of topics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from topicell.report.figures.drawing import (
    DIVERGING,
    FAINT,
    INK,
    NORMAL,
    PAPER,
    PROPORTION,
    SMALL,
    Topics,
    drawn_topics,
    grid_shape,
    named_ticks,
    new_figure,
    plain,
    readable_on,
    short,
    titled,
    topic_name,
    value_bar,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDEST = 50
"""Genes per panel; further genes are in panels below."""
MANY = 900
"""A panel with more squares is drawn as a picture, because a page with so many shapes would be
slow."""
DOT = 90
"""Area of the dot of a gene that all cells express, square points."""


def top_genes(
    names_KT: Sequence[Sequence[str]],
    values_KT: np.ndarray | Sequence[Sequence[float]],
    title: str,
    topics: Topics = None,
) -> Figure:
    """Draw horizontal bars of the leading genes of each topic, all on one scale.

    Parameters
    ----------
    names_KT
        Genes of each topic, the leading one first.
    values_KT
        Their proportions in the topic, each between 0 and 1.
    title
        Heading of the figure.
    topics
        Numbers of the topics that are drawn; None draws all.
    """
    numbers, colors = drawn_topics(topics, len(names_KT))
    values = np.asarray(values_KT, dtype=float)[numbers]
    n_topics, n_genes = values.shape
    n_columns, n_rows = grid_shape(n_topics)
    names = [[short(name, 20) for name in names_KT[topic]] for topic in numbers]
    widest = max(len(name) for row in names for name in row)
    figure = new_figure(
        (1.45 + 0.07 * widest) * n_columns + 0.3,
        (0.165 * n_genes + 0.5) * n_rows + 0.75,
        titled(title, topics),
    )
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True)
    panels = grid.ravel()
    for place, (topic, axes, color) in enumerate(zip(numbers, panels, colors, strict=False)):
        places = np.arange(n_genes)
        axes.barh(places, values[place], height=0.74, color=color)
        axes.set_ylim(n_genes - 0.4, -0.6)
        axes.set_yticks(places, names[place], fontsize=SMALL, color=INK, parse_math=False)
        name = f"Topic {topic_name(topics, topic)}"
        axes.set_title(name, fontsize=NORMAL, color=INK, pad=4)
        plain(axes, axis="x")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
        # the lowest panel of a column has its axis, even if the last row is not full
        axes.tick_params(axis="x", labelbottom=place + n_columns >= n_topics)
    panels[0].set_xlim(0, max(values.max() * 1.05, 1e-9))
    for axes in panels[n_topics:]:
        axes.remove()
    figure.supxlabel("Proportion of the gene in the topic", fontsize=SMALL, color=INK)
    return figure


def top_genes_dots(
    names_T: Sequence[str],
    proportion_KT: np.ndarray,
    expressed_KT: np.ndarray,
    title: str,
    topic_of_T: Sequence[int] | None = None,
    topics: Topics = None,
) -> Figure:
    """Draw leading genes × topics as dots, larger if more of the topic's cells express the gene.

    The share of the cells is rounded up to 5 %. The colour is the proportion of the gene in the
    topic, relative to its highest proportion.

    Parameters
    ----------
    names_T
        Leading genes of all topics; with more than 50, in several panels.
    proportion_KT
        Their proportions in the topics.
    expressed_KT
        Share of the cells with this dominant topic that express the gene; NaN if there are no such
        cells.
    title
        Heading of the figure.
    topic_of_T
        The topic of each gene, for a mark above it; genes of a topic are adjacent.
    topics
        Numbers of the topics that are drawn; None draws all.
    """
    numbers, _ = drawn_topics(topics, len(proportion_KT))
    greatest_T = proportion_KT.max(axis=0)
    scaled_KT = (proportion_KT / np.where(greatest_T > 0, greatest_T, 1))[numbers]
    expressed_KT = expressed_KT[numbers]

    def draw(axes: Axes, genes: slice) -> None:
        axes.set_facecolor(PAPER)  # with its own text colours, because it stays light
        axes.grid(True, color="#e5e8eb", linewidth=0.7)
        axes.set_axisbelow(True)
        # Dots of one size are drawn together, so that an SVG holds their outline once.
        size = np.ceil(20 * np.nan_to_num(expressed_KT[:, genes])) / 20
        for share in np.unique(size[size > 0]):
            topic, gene = np.nonzero(size == share)
            axes.scatter(
                gene,
                topic,
                s=DOT * share,
                c=scaled_KT[:, genes][topic, gene],
                cmap=PROPORTION,
                vmin=0,
                vmax=1,
                edgecolors="#868e98",
                linewidths=0.4,
            )

    empty = [" (no cells)" if np.isnan(row).all() else "" for row in expressed_KT]
    figure, panels = _genes_by_topics(
        names_T, empty, title, topic_of_T, draw, (topics, len(proportion_KT)), foot=1.1
    )
    _gene_bar(figure, panels, PROPORTION, Normalize(0, 1), "proportion, of the highest topic")
    shares = (0.25, 0.5, 0.75, 1.0)
    style: dict[str, Any] = {"marker": "o", "linestyle": "", "color": FAINT, "markeredgewidth": 0}
    figure.legend(
        [Line2D([], [], markersize=math.sqrt(DOT * share), **style) for share in shares],
        [f"{100 * share:.0f} %" for share in shares],
        loc="outside lower left",
        ncols=len(shares) + 1,
        title="share of the topic's cells that express the gene",
        title_fontsize=SMALL,
        fontsize=SMALL,
        labelcolor=INK,
        frameon=False,
        handletextpad=0.3,
        columnspacing=1.2,
        alignment="left",
    ).get_title().set_color(INK)
    return figure


def top_genes_heatmap(
    names_T: Sequence[str],
    proportion_KT: np.ndarray,
    title: str,
    topic_of_T: Sequence[int] | None = None,
    topics: Topics = None,
) -> Figure:
    """Draw leading genes × topics: log2 of the proportion divided by its mean over topics.

    The colours end at 4: 16 times more, or less, than the mean.

    Parameters
    ----------
    names_T
        Leading genes of all topics; with more than 50, in several panels.
    proportion_KT
        Their proportions in the topics.
    title
        Heading of the figure.
    topic_of_T
        The topic of each gene, for a mark above it; genes of a topic are adjacent.
    topics
        Numbers of the topics that are drawn; None draws all.
    """
    numbers, _ = drawn_topics(topics, len(proportion_KT))
    mean_T = proportion_KT.mean(axis=0)
    with np.errstate(divide="ignore"):
        value_KT = np.log2(proportion_KT / np.where(mean_T > 0, mean_T, np.nan))[numbers]
    norm = Normalize(-4, 4)

    def draw(axes: Axes, genes: slice) -> None:
        # a gene of no topic has no value; a gene missing in one topic has the lowest value
        value = np.ma.masked_where(np.isnan(value_KT[:, genes]), value_KT[:, genes])
        n_rows, n_columns = value.shape
        axes.pcolormesh(
            np.arange(n_columns + 1) - 0.5,
            np.arange(n_rows + 1) - 0.5,
            value.clip(-4, 4),
            cmap=DIVERGING,
            norm=norm,
            edgecolors="white" if value.size <= MANY else PAPER,
            linewidth=0.6,
            rasterized=value.size > MANY,
        )

    figure, panels = _genes_by_topics(
        names_T,
        [""] * len(numbers),
        title,
        topic_of_T,
        draw,
        (topics, len(proportion_KT)),
        foot=0.6,
    )
    bar_ends = "both" if np.nan_to_num(np.abs(value_KT)).max(initial=0) > 4 else "neither"
    _gene_bar(figure, panels, DIVERGING, norm, "log2 of proportion / mean", extend=bar_ends)
    return figure


def enrichment_bars(
    topics_B: Sequence[int],
    sets_B: Sequence[str],
    q_B: Sequence[float] | np.ndarray,
    n_topics: int,
    topics: Topics = None,
    *,
    n_sets: int = 3,
    max_q: float = 0.05,
) -> Figure:
    """Draw the most enriched gene sets of each topic, as bars of −log10 q.

    Parameters
    ----------
    topics_B, sets_B, q_B
        Topic, gene set and q-value of each test, in any order.
    n_topics
        Number of topics, including those without tests.
    topics
        Numbers of the topics that are drawn; None draws all.
    n_sets
        Number of sets for each topic, the lowest q first; sets with q = 1 are not drawn.
    max_q
        Position of the line; bars that do not reach it are pale.
    """
    numbers, colors = drawn_topics(topics, n_topics)
    topic_B, q = np.asarray(topics_B), np.asarray(q_B, dtype=float)
    best = []
    for topic in numbers:
        rows = np.flatnonzero((topic_B == topic) & (q < 1))
        best.append(rows[np.argsort(q[rows], kind="stable")][:n_sets])
    shown = q[np.concatenate(best)] if n_topics else q[:0]
    least = float(shown[shown > 0].min(initial=0.1 * max_q))
    longest = -1.08 * math.log10(least)
    lines = [1 + max(len(rows), 1) for rows in best]
    n_columns = -(-sum(lines) // 44)
    columns = _share_out(lines, n_columns)
    names = {row: short(str(sets_B[row]), 42) for rows in best for row in rows}
    widest = max((len(name) for name in names.values()), default=12)
    tallest = max(sum(lines[topic] for topic in column) for column in columns)
    figure = new_figure(
        max((0.066 * widest + 1.9) * len(columns) + 0.3, 4.2),
        0.172 * tallest + 1.0,
        titled("Gene sets enriched in the topics", topics),
    )
    panels = figure.subplots(1, len(columns), squeeze=False).ravel()
    for axes, column in zip(panels, columns, strict=True):
        plain(axes, axis="x")
        axes.axvline(-math.log10(max_q), color=FAINT, linewidth=1, linestyle=":", zorder=0.9)
        places, labels = [], []
        place = 0
        for topic in column:
            places.append(place)
            labels.append(f"Topic {topic_name(topics, numbers[topic])}")
            for row in best[topic]:
                place += 1
                length = min(-math.log10(q[row]) if q[row] > 0 else math.inf, longest)
                pale = 1.0 if q[row] < max_q else 0.4
                axes.barh(place, length, height=0.74, color=colors[topic], alpha=pale)
                places.append(place)
                labels.append(names[row])
                if q[row] == 0:
                    axes.annotate(
                        "q = 0 ▸",
                        (length, place),
                        (-3, 0),
                        textcoords="offset points",
                        ha="right",
                        va="center",
                        fontsize=SMALL,
                        color=readable_on(colors[topic]),
                    )
            if not len(best[topic]):
                place += 1
                places.append(place)
                labels.append("no gene set")
            place += 1
        axes.set_yticks(places, labels, fontsize=SMALL, color=INK, parse_math=False)
        for label in axes.get_yticklabels():
            if label.get_text().startswith("Topic "):
                label.set_fontweight("bold")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(tallest - 0.4, -0.6)
        axes.set_xlim(0, longest)
        axes.set_xlabel("−log10 q", fontsize=SMALL, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def _genes_by_topics(
    names_T: Sequence[str],
    remarks_K: Sequence[str],
    title: str,
    topic_of_T: Sequence[int] | None,
    draw: Callable[[Axes, slice], None],
    drawn: tuple[Topics, int],
    foot: float,
) -> tuple[Figure, list[Axes]]:
    """Draw panels with genes in columns and topics in rows, one below the other, filled by `draw`.

    `drawn` has the topics to draw, as in the figures, and the number of topics. `foot` is the space
    for a legend below the panels, in inches.
    """
    n_topics, n_genes = len(remarks_K), len(names_T)
    n_panels = max(-(-n_genes // WIDEST), 1)
    per_panel = -(-n_genes // n_panels)
    names = [short(name, 16) for name in names_T]
    longest = max((len(name) for name in names), default=1)
    panel_height = 0.2 * n_topics + 0.075 * longest + 0.25
    height = panel_height * n_panels + foot + 0.45
    figure = new_figure(max(0.2 * per_panel + 1.2, 4.2), height, titled(title, drawn[0]))
    # columns have the same width in all figures and panels
    n_columns = int((figure.get_figwidth() - 1.2) / 0.2 + 0.01)
    panels = list(figure.subplots(n_panels, 1, squeeze=False).ravel())
    numbers, colors = drawn_topics(*drawn)
    topics = [
        f"Topic {topic_name(drawn[0], k)}{remark}"
        for k, remark in zip(numbers, remarks_K, strict=True)
    ]
    color_of = dict(zip(numbers, colors, strict=True))
    for panel, axes in enumerate(panels):
        genes = slice(panel * per_panel, min((panel + 1) * per_panel, n_genes))
        draw(axes, genes)
        named_ticks(axes, "y", topics, colors)
        n_here = genes.stop - genes.start
        axes.set_xticks(
            range(n_here), names[genes], rotation=90, fontsize=SMALL, color=INK, parse_math=False
        )
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.5, n_columns - 0.5)
        axes.set_ylim(n_topics - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_anchor("NW")
        axes.spines[:].set_visible(False)
        if topic_of_T is not None:
            _mark_topics(axes, topic_of_T[genes], color_of, drawn[0])
    return figure, panels


def _mark_topics(
    axes: Axes, topic_of_T: Sequence[int], color_of: Mapping[int, str], topics: Topics
) -> None:
    """Mark the topic of the genes above them: its number on a line of its colour."""
    transform = axes.get_xaxis_transform()
    inch = cast(Figure, axes.get_figure()).dpi_scale_trans
    start = 0
    for topic, genes in groupby(topic_of_T):
        end = start + len(list(genes)) - 1
        axes.plot(
            [start - 0.35, end + 0.35],
            [1, 1],
            color=color_of[topic],
            linewidth=4,
            solid_capstyle="butt",
            transform=transform + ScaledTranslation(0, 5 / 72, inch),
            clip_on=False,
        )
        axes.annotate(
            topic_name(topics, topic),
            ((start + end) / 2, 1),
            (0, 9),
            xycoords=transform,
            textcoords="offset points",
            ha="center",
            fontsize=SMALL,
            color=INK,
        )
        start = end + 1


def _gene_bar(
    figure: Figure, panels: list[Axes], colors: Colormap, norm: Normalize, label: str, **ends: Any
) -> None:
    """Draw one colour bar below all panels, with the same length for every width."""
    length = 1.9 / figure.get_figwidth()
    place: dict[str, Any] = {"location": "bottom", "anchor": (0.02, 1.0), "shrink": length}
    value_bar(figure, ScalarMappable(norm, colors), panels, label, aspect=18, **place, **ends)


def _share_out(lines: Sequence[int], n_columns: int) -> list[list[int]]:
    """Distribute items in order over columns, with numbers of lines as equal as possible."""
    columns: list[list[int]] = [[] for _ in range(n_columns)]
    done = 0
    for item, length in enumerate(lines):
        column = min(int((done + length / 2) * n_columns / sum(lines)), n_columns - 1)
        columns[column].append(item)
        done += length
    return [column for column in columns if column]

"""The figures of the report: arrays in, a matplotlib figure out.

Every topic has one colour, `topic_colors`, in every figure. Nothing here touches pyplot or any
other global state, so figures can be drawn in any process and thread.

Shape suffixes: N cells, K topics, T top genes, 2 the plane of a map.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy.cluster.hierarchy import linkage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#24292f"
FAINT = "#6e7781"
SMALL, NORMAL, LARGE = 8, 9, 11  # points

# Six Okabe-Ito colours, and then, one by one, the colour whose nearest neighbour among those before
# it is farthest, as seen by normal, deuteranopic, protanopic and tritanopic eyes (OKLab distance;
# Machado 2009), none so light that it is lost on white.
# fmt: off
_PALETTE = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#770033", "#3c2290",
    "#80554c", "#b2c4a2", "#9977e6", "#554c80", "#5e1a66", "#991100", "#80b277", "#aa4c08",
    "#00d4e6", "#886e88", "#c4a2b2", "#4c4cbb", "#6e3c55", "#e6803c", "#88d46e", "#aa774c",
    "#7766d4", "#a244a2", "#1a5500", "#7790cc", "#6e5e80", "#8099ff",
]
# fmt: on

_PROPORTION = LinearSegmentedColormap.from_list(
    "proportion", ["#e7e7ea", "#c5cbe3", "#8fb3d9", "#4a8fc0", "#2a5f9e", "#23336b", "#120d32"]
)

MISSING = "no label"
"""What cells without a category are called."""


def topic_colors(n: int) -> list[str]:
    """Colours of `n` topics or categories, as hexadecimal strings.

    The first 30 can be told apart, colour-blind or not; a topic keeps its colour whatever `n`.
    """
    # Past 30 no palette is easy to read: hues by the golden ratio at least never repeat.
    further = [
        to_hex(tuple(hsv_to_rgb((0.618034 * i % 1, 0.45 + 0.3 * (i % 2), 0.6 + 0.13 * (i % 3)))))
        for i in range(n - len(_PALETTE))
    ]
    return _PALETTE[:n] + further


def umap_by_topic(embedding_N2: np.ndarray, theta_NK: np.ndarray, title: str) -> Figure:
    """One small map a topic, cells coloured by the topic's proportion, on one scale from 0 to 1.

    Parameters
    ----------
    embedding_N2
        Coordinates of the cells.
    theta_NK
        Topic proportions of the cells.
    title
        Heading of the figure.
    """
    n_topics = theta_NK.shape[1]
    n_columns, n_rows = _grid(n_topics)
    figure = _figure(2.05 * n_columns + 0.9, 2.2 * n_rows + 0.45, title)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    size = _point_size(len(theta_NK), panel_inches=1.9)
    for topic, axes in enumerate(panels[:n_topics]):
        order = np.argsort(theta_NK[:, topic], kind="stable")  # high values on top
        axes.scatter(
            embedding_N2[order, 0],
            embedding_N2[order, 1],
            c=theta_NK[order, topic],
            s=size,
            cmap=_PROPORTION,
            vmin=0,
            vmax=1,
            linewidths=0,
            rasterized=True,
        )
        axes.set_title(f"Topic {topic}", fontsize=NORMAL, color=INK, pad=3)
        _bare_map(axes)
    for axes in panels[n_topics:]:
        axes.remove()
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), _PROPORTION),
        ax=list(panels[:n_topics]),
        # a bar of the same length however many rows
        shrink=min(1.0, 1.25 / n_rows + 0.2),
        aspect=18,
        pad=0.02,
    )
    bar.set_label("proportion in the cell", fontsize=SMALL, color=INK)
    bar.ax.tick_params(labelsize=SMALL, colors=INK)
    bar.outline.set_visible(False)
    return figure


def umap_by_category(embedding_N2: np.ndarray, categories: Sequence[Any], title: str) -> Figure:
    """A map of cells coloured by category, with a legend beside it.

    Up to 25 categories are also marked on the map: by name where all names are short, else by
    the number that the legend gives them.

    Parameters
    ----------
    embedding_N2
        Coordinates of the cells.
    categories
        Category of each cell; missing ones are drawn in grey, below the others.
    title
        Heading of the figure.
    """
    codes_N, names = _codes(categories)
    marks = names if all(len(n) <= 3 for n in names) else [str(i + 1) for i in range(len(names))]
    marked = 2 <= len(names) <= 25
    entries = [
        f"{mark}  {name}" if marked and marks is not names else name
        for mark, name in zip(marks, names, strict=True)
    ]
    colors = dict(enumerate(topic_colors(len(names))))
    if (codes_N < 0).any():
        colors[-1] = "#d0d0d4"
        entries.append(MISSING)
    entries = [textwrap.fill(entry, 34, subsequent_indent="    " * marked) for entry in entries]
    lines = [line for entry in entries for line in entry.split("\n")]
    n_columns = 1 if len(lines) <= 28 else 2
    figure = _figure(
        5.2 + n_columns * (0.55 + 0.072 * max(len(line) for line in lines)),
        max(5.2, 0.9 + (0.14 * len(lines) + 0.05 * len(entries)) / n_columns),
        title,
    )
    axes = figure.add_subplot()
    size = _point_size(len(codes_N), panel_inches=4.6)
    # In one call and in random order no category hides another; the missing ones come first.
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
    axes.set_xlabel("UMAP 1", fontsize=SMALL, color=FAINT, loc="left")
    axes.set_ylabel("UMAP 2", fontsize=SMALL, color=FAINT, loc="bottom")
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
                path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
            )
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=6.5, color=colors[code])
        for code in [*range(len(names)), -1][: len(entries)]
    ]
    _legend(figure, handles, entries, n_columns, "outside right center")
    return figure


def gap_histogram(gap_N: np.ndarray) -> Figure:
    """How much ELBO the encoder's posterior loses, cell by cell; the longest tail in the last bar.

    Parameters
    ----------
    gap_N
        Amortization gap of each cell, nats; NaN where it was not measured.
    """
    gap = gap_N[np.isfinite(gap_N)]
    end = max(float(np.quantile(gap, 0.99)), 1e-6)
    figure = _figure(6.4, 2.9, "Amortization gap by cell")
    axes = figure.subplots()
    axes.hist(np.minimum(gap, end), bins=40, range=(0, end), color=_PALETTE[0], linewidth=0)
    for value, name, style in ((np.median(gap), "median", "--"), (gap.mean(), "mean", "-")):
        axes.axvline(value, color=INK, lw=1.2, ls=style, label=f"{name} {value:.2f}")
    axes.legend(fontsize=SMALL, frameon=False, labelcolor=INK)
    _name(axes, "", f"cells, of {len(gap):,}")
    n_beyond = int((gap > end).sum())
    beyond = f"; the last bar holds the {n_beyond} cells beyond" if n_beyond else ""
    axes.set_xlabel(f"nats that refinement gains{beyond}", fontsize=SMALL, color=INK)
    axes.set_xlim(0, end)
    return figure


def training_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Four aligned panels over epochs: ELBO, validation perplexity, KL terms, and schedules.

    Bands are ± 1 standard deviation over replicates, where the history holds ``<name>_sd``.

    Parameters
    ----------
    history
        One mapping an epoch, with the metric names of the run and ``epoch``.
    """
    figure = _figure(8.6, 5.6, "Training")
    (elbo, perplexity), (kl, schedule) = figure.subplots(2, 2, sharex=True)
    blue, orange, green = _PALETTE[0], _PALETTE[5], _PALETTE[2]

    curves = [
        _curve(elbo, history, "train/elbo", "training cells", blue),
        _curve(elbo, history, "valid/elbo", "validation cells", orange),
    ]
    _name(elbo, "ELBO (higher is better)", "nats per cell")
    _keep_late_epochs_legible(elbo, curves)

    curves = [_curve(perplexity, history, "valid/perplexity", "validation cells", orange)]
    _name(perplexity, "Validation perplexity (lower is better)", "per count")
    if not curves[0]:
        perplexity.text(
            0.5,
            0.5,
            "no validation cells",
            ha="center",
            color=FAINT,
            fontsize=NORMAL,
            transform=perplexity.transAxes,
        )
        perplexity.set_yticks([])
    _keep_late_epochs_legible(perplexity, curves)

    curves = [
        _curve(kl, history, "train/kl_cells", "topic proportions θ", blue),
        _curve(kl, history, "train/kl_topics", "topics β", green),
    ]
    _name(kl, "Divergence from the prior (KL)", "nats per cell")
    _keep_late_epochs_legible(kl, curves)

    _curve(schedule, history, "train/kl_weight", "KL weight", blue)
    _name(schedule, "Schedules", "KL weight (solid)", blue)
    rate = schedule.twinx()
    _curve(rate, history, "train/learning_rate", "learning rate", orange, dashed=True)
    _name(rate, "", "learning rate (dashed)", orange)
    rate.spines["right"].set_visible(True)
    rate.grid(False)
    for axes in (schedule, rate):
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))

    for axes in (kl, schedule):
        axes.set_xlabel("epoch", fontsize=SMALL, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    for axes in (elbo, kl):
        if axes.lines:
            axes.legend(fontsize=SMALL, frameon=False, labelcolor=INK, loc="best")
    figure.align_ylabels([elbo, perplexity, kl, schedule])
    return figure


def top_genes(
    names_KT: Sequence[Sequence[str]], values_KT: np.ndarray | Sequence[Sequence[float]], title: str
) -> Figure:
    """Horizontal bars of the leading genes of each topic, all on one scale.

    Parameters
    ----------
    names_KT
        Genes of each topic, the leading one first.
    values_KT
        Their proportions in the topic, each between 0 and 1.
    title
        Heading of the figure.
    """
    values = np.asarray(values_KT, dtype=float)
    n_topics, n_genes = values.shape
    n_columns, n_rows = _grid(n_topics)
    names = [[_short(name, 20) for name in row] for row in names_KT]
    widest = max(len(name) for row in names for name in row)
    figure = _figure(
        (1.45 + 0.07 * widest) * n_columns + 0.3, (0.165 * n_genes + 0.5) * n_rows + 0.75, title
    )
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True)
    panels = grid.ravel()
    for topic, (axes, color) in enumerate(zip(panels, topic_colors(n_topics), strict=False)):
        places = np.arange(n_genes)
        axes.barh(places, values[topic], height=0.74, color=color)
        axes.set_ylim(n_genes - 0.4, -0.6)
        axes.set_yticks(places, names[topic], fontsize=SMALL, color=INK, parse_math=False)
        axes.set_title(f"Topic {topic}", fontsize=NORMAL, color=INK, pad=4)
        _plain(axes, axis="x")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
        # the lowest panel of a column carries its axis, also where the last row is not full
        axes.tick_params(axis="x", labelbottom=topic + n_columns >= n_topics)
    panels[0].set_xlim(0, max(values.max() * 1.05, 1e-9))
    for axes in panels[n_topics:]:
        axes.remove()
    figure.supxlabel("Proportion of the gene in the topic", fontsize=SMALL, color=INK)
    return figure


def structure_plot(
    theta_NK: np.ndarray, groups: Sequence[Any] | None, seed: int, max_cells: int = 2000
) -> Figure:
    """Topic proportions of single cells as stacked bars, side by side, by group.

    Inside a group, like cells stand together (leaves of a Ward tree of √θ).
    Groups are the wider the more cells they have, but never too narrow to be seen.

    Parameters
    ----------
    theta_NK
        Topic proportions.
    groups
        Group of each cell; None draws all cells as one.
    seed
        Of the draw of the cells that are shown, where there are more than `max_cells`.
    max_cells
        About how many cells are shown: shares of the groups are kept, but of each group at least
        20 cells are there, or all it has.
    """
    n_cells, n_topics = theta_NK.shape
    codes_N, names = _codes(["all"] * n_cells if groups is None else groups)
    if (codes_N < 0).any():
        codes_N, names = np.where(codes_N < 0, len(names), codes_N), [*names, MISSING]
    sizes = np.bincount(codes_N, minlength=len(names))

    rng = np.random.default_rng(seed)
    # a strip of the same width for each group, so that its name has room; the rest by size
    least = min(0.021, 0.6 / len(names))
    widths = least + (1 - least * len(names)) * sizes / n_cells
    gap = 0.006
    edges, columns, centres = [0.0], [], []
    for group, width in enumerate(widths):
        cells = np.flatnonzero(codes_N == group)
        if n_cells > max_cells:
            share = max(round(max_cells * len(cells) / n_cells), 20)
            cells = rng.choice(cells, min(share, len(cells)), replace=False)
        theta = theta_NK[cells]
        columns.append(theta[_order_of_likeness(theta)])
        left = edges[-1]
        centres.append(left + width / 2)
        edges.extend(left + width * np.arange(1, len(cells) + 1) / len(cells))
        if group < len(names) - 1:
            columns.append(np.full((1, n_topics), np.nan))  # a gap
            edges.append(edges[-1] + gap)

    upper = np.cumsum(np.concatenate(columns), axis=1)
    lower = np.column_stack([np.where(np.isnan(upper[:, 0]), np.nan, 0.0), upper[:, :-1]])
    names = [_short(name, 32) for name in names]
    width = 10.5 * max(1, len(names) / 28)
    height = 3.5 if groups is None else 3.7 + 0.058 * max(len(name) for name in names)
    figure = _figure(width, height, "Topic proportions of the cells")
    axes = figure.add_subplot()
    colors = topic_colors(n_topics)
    for topic in range(n_topics):
        axes.stairs(
            upper[:, topic],
            edges,
            baseline=lower[:, topic],
            fill=True,
            color=colors[topic],
            linewidth=0,
            label=f"Topic {topic}",
            rasterized=True,
        )
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, 1)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(labelsize=SMALL, colors=INK)
    axes.set_ylabel("proportion", fontsize=SMALL, color=INK)
    if groups is None:
        axes.set_xticks([])
        axes.set_xlabel(f"{n_cells:,} cells", fontsize=SMALL, color=INK)
    else:
        axes.set_xticks(
            centres,
            [f"{name} ({size:,})" for name, size in zip(names, sizes, strict=True)],
            rotation=50,
            ha="right",
            rotation_mode="anchor",
            fontsize=SMALL,
            parse_math=False,
        )
        axes.tick_params(axis="x", length=2, pad=2)
    handles = [Patch(color=color) for color in colors]
    labels = [f"Topic {topic}" for topic in range(n_topics)]
    # the legend reads from top to bottom as the bars do
    _legend(figure, handles[::-1], labels[::-1], -(-n_topics // 18), "outside right upper")
    return figure


def _figure(width: float, height: float, title: str) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    figure.suptitle(
        title, fontsize=LARGE, fontweight="bold", color=INK, x=0.012, ha="left", parse_math=False
    )
    return figure


def _grid(n_panels: int) -> tuple[int, int]:
    n_columns = n_panels if n_panels <= 5 else 4 if n_panels in (7, 8) else 5
    n_columns = 3 if n_panels == 6 else n_columns
    return n_columns, -(-n_panels // n_columns)


def _point_size(n_cells: int, panel_inches: float) -> float:
    """Area of a marker in square points: the fewer the cells and the larger the panel, the more."""
    return float(np.clip(0.16 * (72 * panel_inches) ** 2 / n_cells, 0.6, 26))


def _short(name: str, length: int) -> str:
    """Cut in the middle: names are told apart by their beginnings and by their ends."""
    tail = length // 3
    return name if len(name) <= length else f"{name[: length - tail - 1]}…{name[-tail:]}"


def _bare_map(axes: Axes) -> None:
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#d8dce0")
        side.set_linewidth(0.6)


def _plain(axes: Axes, axis: Any = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    for side in axes.spines.values():
        side.set_color("#b5bbc2")
    axes.tick_params(labelsize=SMALL, colors=INK, color="#b5bbc2")
    axes.grid(True, axis=axis, color="#e9ecef", linewidth=0.7)
    axes.set_axisbelow(True)


def _name(axes: Axes, title: str, unit: str, color: str = INK) -> None:
    _plain(axes)
    axes.set_title(title, fontsize=NORMAL, color=INK, loc="left")
    axes.set_ylabel(unit, fontsize=SMALL, color=color)
    axes.ticklabel_format(axis="y", useOffset=False)


def _legend(
    figure: Figure,
    handles: list[Any],
    labels: list[str],
    n_columns: int,
    place: Literal["outside right upper", "outside right center"],
) -> None:
    legend = figure.legend(
        handles,
        labels,
        loc=place,
        ncols=n_columns,
        fontsize=SMALL,
        frameon=False,
        labelcolor=INK,
        handletextpad=0.4,
        handlelength=1.1,
        columnspacing=1.2,
        labelspacing=0.45,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _codes(categories: Any) -> tuple[np.ndarray, list[str]]:
    """Number of each cell's category (−1: none) and the names; categories without cells go."""
    column = pd.Series(categories)
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype("category")
    column = column.cat.remove_unused_categories()
    return column.cat.codes.to_numpy(), [str(name) for name in column.cat.categories]


def _mark_positions(embedding_N2: np.ndarray, codes_N: np.ndarray, n: int) -> np.ndarray:
    """Where to write each category's mark: at its middle cell, pushed off the other marks."""
    spots = np.empty((n, 2))
    for code in range(n):
        points = embedding_N2[codes_N == code]
        from_middle = np.linalg.norm(points - np.median(points, axis=0), axis=1)
        spots[code] = points[from_middle.argmin()]
    clearance = 0.05 * np.ptp(embedding_N2, axis=0).max()
    # marks in the very same place part along a line, by their numbers
    spots += 1e-3 * clearance * np.arange(n)[:, None]
    for _ in range(200):
        apart = spots[:, None] - spots[None]
        distance = np.linalg.norm(apart, axis=2) + np.diag(np.full(n, np.inf))
        if (distance >= 0.99 * clearance).all():
            break
        push = np.clip(clearance - distance, 0, None) / distance
        spots += 0.4 * (push[..., None] * apart).sum(axis=1)
    return spots


def _curve(
    axes: Axes,
    history: Sequence[Mapping[str, float]],
    name: str,
    label: str,
    color: str,
    dashed: bool = False,
) -> list[tuple[float, float]]:
    """Draw one metric, and its band; the (epoch, value) pairs drawn."""
    rows = [row for row in history if row.get(name) is not None and np.isfinite(row[name])]
    if not rows:
        return []
    epochs = [row["epoch"] for row in rows]
    values = np.array([row[name] for row in rows])
    axes.plot(
        epochs,
        values,
        color=color,
        linewidth=1.6,
        linestyle="--" if dashed else "-",
        marker="o" if len(rows) == 1 else None,
        label=label,
    )
    sd = np.array([row.get(f"{name}_sd", np.nan) for row in rows], dtype=float)
    if np.isfinite(sd).any():
        axes.fill_between(epochs, values - sd, values + sd, color=color, alpha=0.2, linewidth=0)
    return list(zip(epochs, values.tolist(), strict=True))


def _keep_late_epochs_legible(axes: Axes, curves: list[list[tuple[float, float]]]) -> None:
    """Let the first tenth of the epochs leave the panel where it would flatten all the rest."""
    points = np.array([point for curve in curves for point in curve])
    if len(points) < 10:
        return
    epochs, values = points.T
    late = values[epochs >= epochs.min() + 0.1 * np.ptp(epochs)]
    low, high = late.min(), late.max()
    room = 0.08 * (high - low)
    if np.ptp(values) <= 3 * (high - low) or room == 0:
        return
    axes.set_ylim(low - room, high + room)
    below = values.min() < low - room
    axes.text(
        0.03,
        0.95 if below else 0.05,
        f"{'↓' if below else '↑'} first epochs off the scale",
        va="top" if below else "bottom",
        fontsize=SMALL,
        color=FAINT,
        transform=axes.transAxes,
    )


def _order_of_likeness(theta_NK: np.ndarray) -> np.ndarray:
    """Cells so that like ones stand together: leaves of a Ward tree of √θ.

    A tree leaves open which branch comes first: here the one that is lower on the first principal
    component, so the cells run from one end of their variation to the other.
    """
    n_cells = len(theta_NK)
    if n_cells < 3:
        return np.arange(n_cells)
    root = np.sqrt(theta_NK) - np.sqrt(theta_NK).mean(axis=0)
    _, vectors = np.linalg.eigh(root.T @ root)
    direction = vectors[:, -1]
    # the sign of an eigenvector is arbitrary: its largest entry decides it, the same each time
    score = list(-root @ direction * np.sign(direction[np.abs(direction).argmax()]))
    size = [1] * n_cells
    branches = linkage(root, "ward")[:, :2].astype(int)
    for a, b in branches:
        size.append(size[a] + size[b])
        score.append((score[a] * size[a] + score[b] * size[b]) / size[-1])
    order: list[int] = []
    pending = [len(size) - 1]
    while pending:
        node = pending.pop()
        if node < n_cells:
            order.append(node)
        else:
            pending.extend(sorted(branches[node - n_cells], key=lambda n: -score[n]))
    return np.array(order)

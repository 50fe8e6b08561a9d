"""The figures of a sweep over the number of topics K: functions from plain data to a figure.

A sweep also tries poor K, and a single one can make all other differences invisible. Therefore
panels only show the better three quarters, and mark values outside the scale.

Shape suffixes: P numbers of topics that were measured, T trials, C columns.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from topicell.evaluation.metrics import metric
from topicell.report.figures.drawing import (
    FAINT,
    INK,
    SMALL,
    name_axes,
    new_figure,
    plain,
    short,
    topic_colors,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, AMBER, _, _, _, RED = topic_colors(6)
WINE = "#8f1d4f"
GREY = "#8c959f"
STATES = {
    "complete": (BLUE, "o"),
    "pruned": (AMBER, "X"),
    "failed": (WINE, "v"),
    "running": (GREY, "s"),
}
"""Colour and marker of the trials, by how they ended."""
LOGARITHMIC = 30
"""Positive settings whose values differ by more than this factor have a logarithmic axis."""
TEXT: dict[str, Any] = {"fontsize": SMALL, "color": INK}
LEGEND: dict[str, Any] = {"fontsize": SMALL, "labelcolor": INK, "frameon": False}

# the lowest perplexity is the darkest; no colour is so light that its line is invisible on white
_PERPLEXITY = LinearSegmentedColormap.from_list(
    "perplexity", ["#2b3a93", "#2a5f9e", "#6fa3d0", "#c3ccd6"]
)


def topic_curves(
    topics_P: Sequence[int],
    measures: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    loss: tuple[Sequence[float], Sequence[float]],
    *,
    best: int | None = None,
    chosen: int | None = None,
    within: Collection[int] = (),
    refused: Collection[int] = (),
    pruned: Collection[int] = (),
    support_floor: float | None = None,
) -> Figure:
    """Draw metrics by K; the first panel is the perplexity above that of the best K.

    Parameters
    ----------
    topics_P
        The numbers of topics, ascending.
    measures
        Mean and standard error of each metric, by its name, one for each number of topics; NaN
        where there is none. There are five metrics at most.
    loss
        Perplexity above that of the best K on the same cells, and its standard error.
    best
        The K with which the others are compared.
    chosen
        The K to take.
    within
        The K within one standard error of the best.
    refused
        The K that cannot be chosen, because too few of their topics are found again.
    pruned
        The K for which no trial was trained to the end.
    support_floor
        Smallest share of topics found again of a K that can be chosen.
    """
    rows = [[], [1], [2], [3], [2, 2], [2, 3]][len(measures)]
    figure = new_figure(9.2, 3.5 + 2.35 * len(rows), "Measures by the number of topics K")
    grid = figure.add_gridspec(1 + len(rows), 6, height_ratios=[1.35] + [1] * len(rows))
    topics, stopped = np.asarray(topics_P), sorted(pruned)
    groups = [
        ([k not in (*within, *refused) for k in topics_P], GREY, GREY, "o"),
        ([k in refused for k in topics_P], GREY, "white", "o"),
        ([k in within and k != chosen for k in topics_P], BLUE, BLUE, "o"),
        ([k == chosen for k in topics_P], RED, RED, "D"),
    ]

    def draw(axes: Axes, mean: Sequence[float], se: Sequence[float]) -> None:
        values, errors = np.array(mean), np.nan_to_num(np.array(se, dtype=float))
        known = np.isfinite(values)
        axes.plot(topics[known], values[known], color="#c8ced4", linewidth=1.1, zorder=1)
        for group, color, face, fmt in groups:
            of = known & np.array(group)
            style: dict[str, Any] = {"color": color, "markerfacecolor": face, "fmt": fmt}
            axes.errorbar(topics[of], values[of], errors[of], markersize=5.5, **style)
        if chosen is not None:
            axes.axvline(chosen, color=RED, linewidth=1, linestyle="--", zorder=0.9)
        axes.set_xlim(min([*topics_P, *stopped]) - 0.8, max([*topics_P, *stopped]) + 0.8)
        _whole_numbers(axes, "number of topics K")

    first = figure.add_subplot(grid[0, :])
    of_best = "the best" if best is None else f"the best, K = {best}"
    name_axes(first, f"Perplexity above that of {of_best}, on the same cells", "lower is better")
    first.axhline(0, color=INK, linewidth=1, zorder=0.9)
    draw(first, *loss)
    _keep_best_legible(first, topics, *loss, keep=np.isin(topics, list(within)))
    _mark(first, stopped, 0, "X", AMBER)
    places = [
        (row + 1, i * 6 // n, (i + 1) * 6 // n) for row, n in enumerate(rows) for i in range(n)
    ]
    dotted: dict[str, Any] = {"color": FAINT, "linewidth": 1, "linestyle": ":"}
    for name, (row, start, end) in zip(measures, places, strict=True):
        axes = figure.add_subplot(grid[row, start:end])
        name_axes(axes, metric(name).title, metric(name).axis)
        draw(axes, *measures[name])
        if name == "valid/perplexity_folded":
            _mark(axes, stopped, 0, "X", AMBER)
            if len(within) > 1:
                axes.axvspan(min(within) - 0.4, max(within) + 0.4, color=BLUE, alpha=0.1, lw=0)
        elif name == "topics/found_again" and support_floor is not None:
            axes.axhline(support_floor, label=f"floor {support_floor:g}", **dotted)
            axes.legend(**LEGEND)
        elif name == "topics/used":
            axes.plot(topics, topics, label="all K", **dotted)
            axes.legend(loc="upper left", **LEGEND)
    entries = [
        (chosen is not None, _dot(RED, "D"), f"chosen, K = {chosen}"),
        (set(within) - {chosen}, _dot(BLUE), "within one standard error of the best"),
        (len(within) > 1 and measures, Patch(color=BLUE, alpha=0.15), "plateau"),
        (set(topics_P) - {*within, *refused}, _dot(GREY), "worse by more than that"),
        (refused, _dot(GREY, "o", "white"), "too few topics found again"),
        (pruned, _dot(AMBER, "X"), "pruned, no final measure"),
    ]
    _legend_below(figure, [(handle, label) for there, handle, label in entries if there])
    return figure


def parallel_coordinates(
    columns: Mapping[str, Sequence[Any]], color_by: str, chosen: int | None = None
) -> Figure:
    """Draw one line for each trial over settings and measures, coloured by one of them.

    Parameters
    ----------
    columns
        Values of the trials for each axis: numbers (NaN if missing), or other values, which are
        categories.
    color_by
        The column that gives the colour; the lowest is the darkest.
    chosen
        Position of the trial to emphasise.
    """
    colored = np.array(columns[color_by], dtype=float)
    top = _better_part(colored)
    figure = new_figure(
        1.4 + 1.2 * max(len(columns), 4), 4.4, "Settings and measures of each trial"
    )
    axes = figure.subplots()
    box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6}
    label: dict[str, Any] = {"ha": "right", "va": "center", "bbox": box, "parse_math": False}
    places = []
    for x, (name, values) in enumerate(columns.items()):
        spots, ticks = _scale(values, top if name == color_by else math.inf)
        places.append(spots)
        axes.axvline(x, color="#b5bbc2", linewidth=1, zorder=0)
        for spot, text in ticks:
            axes.text(x - 0.04, spot, short(text, 16), zorder=5, **label, **TEXT)
    low = float(np.nanmin(colored))
    norm = Normalize(low, top)
    spots_TC = np.array(places).T
    for trial in np.argsort(-colored, kind="stable"):  # draw good trials on top
        style: dict[str, Any] = {"color": _PERPLEXITY(norm(colored[trial])), "alpha": 0.8}
        if trial == chosen:
            style = {"color": RED, "linewidth": 2.6, "zorder": 4}
        axes.plot(spots_TC[trial], marker="o", markersize=3, **{"linewidth": 1.2} | style)
    axes.set_frame_on(False)
    names = [
        textwrap.fill(name, 17) if " " in name else short(name, 34).replace(".", ".\n")
        for name in columns
    ]
    axes.set_xticks(range(len(names)), names, parse_math=False, **TEXT)
    axes.tick_params(axis="x", length=0, labeltop=True, labelbottom=False)
    axes.set_yticks([])
    axes.set_xlim(-0.6, len(names) - 0.85)
    axes.set_ylim(-0.04, 1.04)
    if top > low:
        extend = "max" if np.nanmax(colored) > top else "neither"
        bar = figure.colorbar(
            ScalarMappable(norm, _PERPLEXITY),
            ax=axes,
            extend=extend,
            shrink=0.8,
            aspect=26,
            pad=0.02,
        )
        bar.set_label(color_by, **TEXT)
        bar.ax.tick_params(labelsize=SMALL, colors=INK)
        bar.ax.ticklabel_format(useOffset=False)
        bar.outline.set_visible(False)
    if chosen is not None:
        _legend_below(figure, [(_line(RED, 2.6), "chosen trial")])
    return figure


def trial_history(
    numbers_T: Sequence[int],
    perplexity_T: Sequence[float],
    states_T: Sequence[str],
    chosen: int | None = None,
) -> Figure:
    """Draw perplexity by trial, with the lowest so far; trials without one are at the bottom.

    Parameters
    ----------
    numbers_T
        Numbers of the trials, ascending.
    perplexity_T
        Their perplexity; NaN if it is missing.
    states_T
        A key of `STATES` for each.
    chosen
        Position of the trial to emphasise.
    """
    numbers, values = np.asarray(numbers_T), np.asarray(perplexity_T, dtype=float)
    figure = new_figure(8.6, 3.4, "Trials in order")
    axes = figure.subplots()
    name_axes(axes, "", "perplexity, lower is better")
    known = np.isfinite(values)
    shown = []
    if known.any():
        best = np.minimum.accumulate(values[known])
        axes.step(numbers[known], best, where="post", color=INK, linewidth=1.2, zorder=1)
        shown.append((_line(INK, 1.2), "lowest so far"))
        _keep_best_legible(axes, numbers, values, np.zeros(len(values)))
    for state, (color, marker) in STATES.items():
        of = np.array([s == state for s in states_T], dtype=bool)
        if not of.any():
            continue
        axes.plot(numbers[of & known], values[of & known], marker, color=color, markersize=6)
        _mark(axes, numbers[of & ~known], 0, marker, color)
        shown.append((_dot(color, marker), f"{state} ({of.sum()})"))
    if chosen is not None:
        ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.8}
        axes.plot(numbers[chosen], values[chosen], "o", color=RED, **ring)
        shown.append((_dot(RED, "o", "none"), "chosen"))
    axes.margins(x=0.03)
    _whole_numbers(axes, "trial")
    _legend_below(figure, shown)
    return figure


def pruning_curves(
    curves_T: Sequence[Mapping[int, float]], states_T: Sequence[str], chosen: int | None = None
) -> Figure:
    """Draw validation perplexity by epoch of every trial, and mark where trials were stopped.

    Parameters
    ----------
    curves_T
        Perplexity by epoch; empty if nothing was reported.
    states_T
        A key of `STATES` for each.
    chosen
        Position of the trial to emphasise.
    """
    figure = new_figure(8.6, 4.0, "Training of the trials")
    axes = figure.subplots()
    name_axes(axes, "", "validation perplexity, lower is better")
    values, ends, shown = [], [], []
    for state, (color, marker) in STATES.items():
        of = [t for t, curve in enumerate(curves_T) if states_T[t] == state and curve]
        for trial in of:
            epochs = sorted(curves_T[trial])
            curve = [curves_T[trial][epoch] for epoch in epochs]
            style: dict[str, Any] = {"color": color, "linewidth": 1.2, "alpha": 0.6}
            if trial == chosen:
                style = {"color": RED, "linewidth": 2.4, "zorder": 3}
            axes.plot(epochs, curve, **style)
            if state != "complete" or len(curve) == 1:
                axes.plot(epochs[-1], curve[-1], marker, color=color, markersize=6, zorder=4)
            values += [value for value in curve if math.isfinite(value)]
            ends += curve[-1:] if math.isfinite(curve[-1]) else []
        if of:
            cross = "" if state == "complete" else marker
            shown.append((_line(color, 1.4, cross), f"{state} ({len(of)})"))
    if chosen is not None and curves_T[chosen]:
        shown.append((_line(RED, 2.4), "chosen trial"))
    low, high = min(values, default=0), max(ends, default=0)
    room = 0.06 * (high - low)
    # all ends of curves are visible, but the first epochs may be outside the scale
    if room > 0 and max(values) - low > 1.5 * (high - low):
        axes.set_ylim(low - room, high + room)
        _note(axes, "↑ first epochs off the scale")
    _whole_numbers(axes, "epoch")
    _legend_below(figure, shown)
    return figure


def importance_bars(shares: Mapping[str, float]) -> Figure:
    """Draw bars of the importance of each setting, the largest on top.

    Parameters
    ----------
    shares
        Share of each setting, between 0 and 1.
    """
    names = sorted(shares, key=lambda name: (-shares[name], name))
    figure = new_figure(6.4, 0.95 + 0.3 * len(names), "Importance of the settings")
    axes = figure.subplots()
    plain(axes, axis="x")
    places = np.arange(len(names))
    bars = axes.barh(places, [shares[name] for name in names], height=0.62, color=BLUE)
    labels = [f"{100 * shares[name]:.0f} %" for name in names]
    axes.bar_label(bars, labels, padding=4, fontsize=SMALL, color=INK)
    axes.set_yticks(places, [short(name, 40) for name in names], parse_math=False, **TEXT)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.12 * max(*shares.values(), 1e-9))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    return figure


def _whole_numbers(axes: Axes, name: str) -> None:
    axes.set_xlabel(name, **TEXT)
    locator = MaxNLocator(12, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_locator(locator)


def _better_part(values: np.ndarray, keep: np.ndarray | None = None) -> float:
    """Return an upper limit for values (lower is better); the maximum if all fit on one scale.

    The limit is above the better three quarters, and above the values of `keep`.
    """
    known = values[np.isfinite(values)]
    low, high = float(known.min()), float(known.max())
    top = float(np.quantile(known, 0.75, method="lower"))
    if keep is not None and keep.any():
        top = max(top, float(values[keep].max()))
    return high if high - low <= 2 * (top - low) or top == low else top


def _keep_best_legible(
    axes: Axes, positions: Any, values: Any, errors: Any, keep: np.ndarray | None = None
) -> None:
    """Leave the worst values outside the panel, and mark them, if they would hide the others."""
    values, errors = np.array(values), np.nan_to_num(np.array(errors, dtype=float))
    top = _better_part(values + errors, keep)
    if top == np.nanmax(values + errors):
        return
    low = float(np.nanmin(values - errors))
    room = 0.1 * (top - low)
    axes.set_ylim(low - room, top + 1.5 * room)
    _mark(axes, positions[values > top + 1.5 * room], 0.97, "^", FAINT)
    _note(axes, "↑ off the scale")


def _note(axes: Axes, text: str) -> None:
    """Write a text above the right end of a panel, where nothing is drawn."""
    axes.set_title(text, fontsize=SMALL, color=FAINT, loc="right")


def _mark(axes: Axes, positions: Any, height: float, marker: str, color: str) -> None:
    """Draw markers at a height of the panel, from 0 to 1, for values outside its scale."""
    style: dict[str, Any] = {"clip_on": False, "in_layout": False, "zorder": 5}
    heights = np.full(len(positions), height)
    transform = axes.get_xaxis_transform()
    axes.plot(positions, heights, marker, color=color, markersize=6, transform=transform, **style)


def _scale(values: Sequence[Any], top: float) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Return positions of values on their axis, from 0 to 1, and its ticks; at most `top`."""
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        names = sorted({str(value) for value in values})
        spots = np.linspace(0, 1, len(names)) if len(names) > 1 else np.full(1, 0.5)
        spot_of = dict(zip(names, spots.tolist(), strict=True))
        return np.array([spot_of[str(v)] for v in values]), [(s, n) for n, s in spot_of.items()]
    numbers = np.asarray(values, dtype=float)
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return np.full(len(numbers), np.nan), []
    low, high = float(known.min()), min(float(known.max()), top)
    if low == high:
        return np.where(np.isfinite(numbers), 0.5, np.nan), [(0.5, f"{low:.4g}")]
    logarithmic = low > 0 and high / low > LOGARITHMIC
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 3) if len(decades) < 4 else (1,)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
    else:
        ticks = list(MaxNLocator(6).tick_values(low, high))

    def place(x: Any) -> Any:
        x = np.minimum(x, high)
        return np.log(x / low) / np.log(high / low) if logarithmic else (x - low) / (high - low)

    labels = [(float(place(tick)), f"{tick:.4g}") for tick in ticks if low <= tick <= high]
    if known.max() > high:
        labels = [(s, n) for s, n in labels if s < 0.93] + [(1.0, f"> {high:.4g}")]
    return place(numbers), labels


def _dot(color: str, marker: str = "o", face: str | None = None) -> Line2D:
    return Line2D([], [], color=color, marker=marker, ls="", markersize=6, markerfacecolor=face)


def _line(color: str, width: float, marker: str = "") -> Line2D:
    return Line2D([], [], color=color, linewidth=width, marker=marker, markersize=6)


def _legend_below(figure: Figure, entries: Sequence[tuple[Artist, str]]) -> None:
    if entries:
        handles, labels = zip(*entries, strict=True)
        place: dict[str, Any] = {"loc": "outside lower left", "ncols": min(len(entries), 5)}
        figure.legend(handles, labels, handletextpad=0.4, columnspacing=1.4, **place, **LEGEND)

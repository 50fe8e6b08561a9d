"""What all figures share: sizes, inks, the colours of topics, bare axes and legends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

if TYPE_CHECKING:
    from matplotlib.axes import Axes


INK = "#24292f"
FAINT = "#6e7781"
SMALL, NORMAL, LARGE = 8, 9, 11  # points

# Six Okabe-Ito colours, and then, one by one, the colour whose nearest neighbour among those before
# it is farthest, as seen by normal, deuteranopic, protanopic and tritanopic eyes (OKLab distance;
# Machado 2009), none so light that it is lost on white.
# fmt: off
PALETTE = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#770033", "#3c2290",
    "#80554c", "#b2c4a2", "#9977e6", "#554c80", "#5e1a66", "#991100", "#80b277", "#aa4c08",
    "#00d4e6", "#886e88", "#c4a2b2", "#4c4cbb", "#6e3c55", "#e6803c", "#88d46e", "#aa774c",
    "#7766d4", "#a244a2", "#1a5500", "#7790cc", "#6e5e80", "#8099ff",
]
# fmt: on

PROPORTION = LinearSegmentedColormap.from_list(
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
        for i in range(n - len(PALETTE))
    ]
    return PALETTE[:n] + further


def new_figure(width: float, height: float, title: str) -> Figure:
    """A white figure of so many inches, its heading at the upper left."""
    layout = ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    figure.suptitle(
        title, fontsize=LARGE, fontweight="bold", color=INK, x=0.012, ha="left", parse_math=False
    )
    return figure


def grid_shape(n_panels: int) -> tuple[int, int]:
    """Columns and rows of a grid of small panels."""
    n_columns = n_panels if n_panels <= 5 else 4 if n_panels in (7, 8) else 5
    n_columns = 3 if n_panels == 6 else n_columns
    return n_columns, -(-n_panels // n_columns)


def point_size(n_cells: int, panel_inches: float) -> float:
    """Area of a marker in square points: the fewer the cells and the larger the panel, the more."""
    return float(np.clip(0.16 * (72 * panel_inches) ** 2 / n_cells, 0.6, 26))


def short(name: str, length: int) -> str:
    """Cut in the middle: names are told apart by their beginnings and by their ends."""
    tail = length // 3
    return name if len(name) <= length else f"{name[: length - tail - 1]}…{name[-tail:]}"


def plain(axes: Axes, axis: Any = "both") -> None:
    """Leave faint axes at the left and below, and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    for side in axes.spines.values():
        side.set_color("#b5bbc2")
    axes.tick_params(labelsize=SMALL, colors=INK, color="#b5bbc2")
    axes.grid(True, axis=axis, color="#e9ecef", linewidth=0.7)
    axes.set_axisbelow(True)


def name_axes(axes: Axes, title: str, unit: str, color: str = INK) -> None:
    """Plain axes with a heading, and the unit of what goes up."""
    plain(axes)
    axes.set_title(title, fontsize=NORMAL, color=INK, loc="left")
    axes.set_ylabel(unit, fontsize=SMALL, color=color)
    axes.ticklabel_format(axis="y", useOffset=False)


def legend_outside(
    figure: Figure,
    handles: list[Any],
    labels: list[str],
    n_columns: int,
    place: Literal["outside right upper", "outside right center"],
) -> None:
    """A legend at the right of all panels."""
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


def category_codes(categories: Any) -> tuple[np.ndarray, list[str]]:
    """Number of each cell's category (−1: none) and the names; categories without cells go."""
    column = pd.Series(categories)
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype("category")
    column = column.cat.remove_unused_categories()
    return column.cat.codes.to_numpy(), [str(name) for name in column.cat.categories]

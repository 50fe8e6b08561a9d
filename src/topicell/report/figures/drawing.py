"""Common parts of all figures: sizes, colours, axes, legends, and writing to files or a page."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from matplotlib import patheffects, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, hsv_to_rgb, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.textpath import TextToPath
from matplotlib.ticker import ScalarFormatter
from matplotlib.transforms import ScaledTranslation

from topicell.files import whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar


NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")

INK = "#24292f"
FAINT = "#6e7781"
LINE, GRID = "#b5bbc2", "#e9ecef"
PAPER = "#fefefe"
"""Background of panels that stay light on a dark page, for colours that become darker with a
value."""
ON_LIGHT, ON_DARK = "#120d32", "#fbfbfd"
"""Text colours on coloured areas, which do not depend on the theme."""
NOTHING = "#d0d0d4"
"""Colour of cells without a category or a value."""
SMALL, NORMAL, LARGE = 8, 9, 11  # points
HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]
"""White outline that separates text from the points below it."""

THEME = {
    INK: f"var(--ink,{INK})",
    FAINT: f"var(--soft,{FAINT})",
    "#8c959f": "var(--soft,#8c959f)",
    LINE: f"var(--line,{LINE})",
    GRID: f"var(--line,{GRID})",
    "#c8ced4": "var(--line,#c8ced4)",
    "#d8dce0": "var(--line,#d8dce0)",
    "#ffffff": "var(--page,#fff)",
    PAPER: f"var(--paper,{PAPER})",
}
"""Colours that do not show data, and the variables of a page with a light and a dark theme. Text
and lines of a figure have only these: any other colour stays as it is on a dark page."""
SVG_DPI = 150
"""Resolution of pictures inside an SVG, such as the points of a map."""

# Six Okabe-Ito colours; the other 24 were optimised together (OKLab distances for normal,
# deuteranopic, protanopic and tritanopic vision, Machado 2009): among the first 10, among the first
# 20 and among all, the smallest distance is as large as possible; for normal vision, it is 1.4
# times as large. The contrast is at least 1.6 with a white page and with a dark page.
# fmt: off
PALETTE = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#a51c79", "#3632be",
    "#622d01", "#fdbabe", "#bc1b06", "#aa7dfe", "#0ade80", "#d0c2fd", "#8a0042", "#8f4e4d",
    "#85b373", "#532574", "#886d89", "#0b4a51", "#056800", "#d39fb5", "#a0de41", "#7c92d2",
    "#7d69f0", "#5e48d8", "#7e0d9b", "#b738b1", "#59548d", "#718a40",
]
# Optimised in the same way, but dull, and different from the colours of the topics.
CATEGORIES = [
    "#95a4df", "#723438", "#e4c586", "#aa7167", "#61679e", "#81dbd8", "#c59c64", "#533e72",
    "#766320", "#6592ac", "#eaa1a4", "#515c67", "#c68274", "#89c2c4", "#857836", "#936058",
    "#b2b4f2", "#614b01", "#395b8a", "#717ab2", "#41898c", "#829c95", "#c7b573", "#b39bba",
    "#c0d1b0", "#364f55", "#39757d", "#aecdff", "#7b4d3b", "#9d8848",
]
# fmt: on

PROPORTION = LinearSegmentedColormap.from_list(
    "proportion", ["#e7e7ea", "#cad1e6", "#9dbbdd", "#619bcb", "#3a78b5", "#2b5ba4", "#23408f"]
)
DIVERGING = LinearSegmentedColormap.from_list(
    "diverging", ["#2562a6", "#5f97cb", "#a9c8e4", "#ececef", "#f2bb9f", "#dc7f58", "#b3401f"]
)

MISSING = "no label"
"""Name of the category of cells without one."""

# Fonts in files depend on matplotlib's global settings, so only one thread writes at a time.
_SETTINGS = threading.Lock()


def topic_colors(n: int) -> list[str]:
    """Return colours of `n` topics, as hexadecimal strings.

    The first 30 can be distinguished, also by colour-blind readers; a topic has the same colour for
    every `n`.
    """
    return PALETTE[:n] + _further_colors(n - len(PALETTE), saturation=0.45)


Topics = Sequence[int] | Mapping[int, str] | None
"""Numbers of the topics that are drawn; None draws all. A mapping has the name of each topic, such
as ``{0: "0", 3: "3*"}``: `marked` makes one that marks topics with little support."""
LITTLE_SUPPORT = "* in at most half of the replicates"
"""The meaning of the mark, added to the title of a figure."""


def marked(topics: Topics, little_K: Sequence[bool] | np.ndarray) -> Topics:
    """Return the topics with a mark after the numbers of those with little support, if any."""
    numbers = range(len(little_K)) if topics is None else topics
    if not any(little_K[topic] for topic in numbers):
        return topics
    return {topic: f"{topic}*" if little_K[topic] else str(topic) for topic in numbers}


def drawn_topics(topics: Topics, n_topics: int) -> tuple[list[int], list[str]]:
    """Return numbers and colours of the topics that are drawn."""
    numbers = list(range(n_topics)) if topics is None else [int(topic) for topic in topics]
    colors = topic_colors(n_topics)
    return numbers, [colors[topic] for topic in numbers]


def topic_name(topics: Topics, number: int) -> str:
    """Return the number of a topic as text, with its mark."""
    return topics[number] if isinstance(topics, Mapping) else str(number)


def titled(title: str, topics: Topics) -> str:
    """Return the title of a figure of topics, with the meaning of the mark if a topic has it."""
    has_mark = isinstance(topics, Mapping) and any("*" in name for name in topics.values())
    return f"{title} ({LITTLE_SUPPORT})" if has_mark else title


def category_colors(n: int) -> list[str]:
    """Return colours of `n` labels or clusters, which are duller than `topic_colors` and different.

    The first 30 can be distinguished, also by colour-blind readers; a category has the same colour
    for every `n`.
    """
    return CATEGORIES[:n] + _further_colors(n - len(CATEGORIES), saturation=0.15)


def save(figure: Figure, stem: str | Path, dpi: int, *, pdf: bool = True) -> list[Path]:
    """Write a figure as PNG, and as PDF with its fonts embedded.

    Parameters
    ----------
    figure
        Any figure of this package.
    stem
        Path of the files, without the ending.
    dpi
        Resolution; in the PDF, only of the points of maps.
    pdf
        Whether to write the PDF.

    Returns
    -------
    The files. The same input gives the same bytes.
    """
    lay_out(figure)
    stem = Path(stem)
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "pdf")[: 1 + pdf]]
    before = figure.dpi
    # savefig would draw each figure twice, to lay it out again.
    figure.set_dpi(dpi)
    with _settings({"pdf.fonttype": 42}):
        for path in paths:
            with whole(path) as unfinished:
                if path.suffix == ".png":
                    cast(Any, FigureCanvasAgg(figure)).print_png(unfinished)
                else:
                    metadata = {"CreationDate": None}
                    cast(Any, FigureCanvasPdf(figure)).print_pdf(unfinished, metadata=metadata)
    figure.set_dpi(before)
    return paths


def lay_out(figure: Figure) -> None:
    """Compute the positions of the parts of a figure, once; they do not change after that."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.execute(figure)
        figure.set_layout_engine("none")


def as_svg(figure: Figure, name: str) -> str:
    """Return a figure as an ``<svg>`` element of a page, in the colours and the font of the page.

    It has no background, uses ``--ink``, ``--soft``, ``--line`` and ``--page`` of the page if these
    are set, and shrinks with the page; ``--paper`` is the background of panels whose colours need a
    light one. The same input gives the same text.

    Parameters
    ----------
    figure
        Any figure of this package.
    name
        Prefix of every id, so that ids of different figures differ: a letter, then letters, digits,
        ``_`` and ``-``.

    Raises
    ------
    ValueError
        `name` has other characters.
    """
    if not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII):
        raise ValueError(f"name = {name!r}: must be a letter, then letters, digits, _ and -")
    lay_out(figure)
    # matplotlib draws text with an outline as paths; here the outline is added to the page's font
    halos = [t for t in cast(list[Text], figure.findobj(Text)) if t.get_path_effects()]
    effects = [(text, text.get_path_effects(), text.get_gid()) for text in halos]
    file = io.BytesIO()
    dpi, ground = figure.dpi, figure.get_facecolor()
    try:
        for text in halos:
            text.set_path_effects([])
            text.set_gid("halo")
        figure.set_dpi(SVG_DPI)
        figure.set_facecolor("none")
        with _settings({"svg.fonttype": "none", "svg.hashsalt": "topicell"}):
            metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            cast(Any, FigureCanvasSVG(figure)).print_svg(file, metadata=metadata)
    finally:
        figure.set_dpi(dpi)
        figure.set_facecolor(ground)
        for text, effect, gid in effects:
            text.set_path_effects(effect)
            text.set_gid(gid)
    # Names may contain characters that XML does not allow.
    root = ElementTree.fromstring(NOT_XML.sub("", file.getvalue().decode()))
    _for_page(root, name)
    return ElementTree.tostring(root, encoding="unicode")


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return a white figure with a heading; sizes in inches, wider for a long heading."""
    font = FontProperties(size=LARGE, weight="bold")
    points, _, _ = TextToPath().get_text_width_height_descent(title, font, ismath=False)
    width = max(width, points / 72 / 0.97 + 0.05)
    layout = ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    figure.suptitle(
        title, fontsize=LARGE, fontweight="bold", color=INK, x=0.012, ha="left", parse_math=False
    )
    return figure


def grid_shape(n_panels: int) -> tuple[int, int]:
    """Return columns and rows of a grid of small panels."""
    n_columns = n_panels if n_panels <= 5 else 4 if n_panels in (7, 8) else 5
    n_columns = 3 if n_panels == 6 else n_columns
    return n_columns, -(-n_panels // n_columns)


def point_size(n_cells: int, panel_inches: float) -> float:
    """Return the area of a marker in square points: larger for fewer cells and a larger panel."""
    return float(np.clip(0.16 * (72 * panel_inches) ** 2 / n_cells, 0.6, 26))


def short(name: str, length: int) -> str:
    """Shorten a name in the middle, because beginnings and ends distinguish names."""
    tail = length // 3
    return name if len(name) <= length else f"{name[: length - tail - 1]}…{name[-tail:]}"


def plain(axes: Axes, axis: Any = "both") -> None:
    """Draw only faint axes at the left and the bottom, and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    for side in axes.spines.values():
        side.set_color(LINE)
    axes.tick_params(which="both", labelsize=SMALL, colors=INK, color=LINE)
    axes.grid(True, axis=axis, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def name_axes(axes: Axes, title: str, unit: str, color: str = INK) -> None:
    """Draw simple axes with a heading, and the unit of the vertical axis."""
    plain(axes)
    axes.set_title(title, fontsize=NORMAL, color=INK, loc="left")
    axes.set_ylabel(unit, fontsize=SMALL, color=color)
    if isinstance(axes.yaxis.get_major_formatter(), ScalarFormatter):
        axes.ticklabel_format(axis="y", useOffset=False)


def legend_outside(
    figure: Figure,
    handles: list[Any],
    labels: list[str],
    n_columns: int,
    place: Literal["outside right upper", "outside right center"],
) -> None:
    """Draw a legend to the right of all panels."""
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


def value_bar(
    figure: Figure, mappable: ScalarMappable, axes: Axes | Sequence[Axes], label: str, **place: Any
) -> Colorbar:
    """Draw a colour bar to the right of some axes; `place` is as in `Figure.colorbar`."""
    bar = figure.colorbar(
        mappable, ax=axes, **{"aspect": 18, "pad": 0.02, "panchor": False} | place
    )
    bar.set_label(label, fontsize=SMALL, color=INK, parse_math=False)
    bar.ax.tick_params(labelsize=SMALL, colors=INK)
    cast(Any, bar.outline).set_visible(False)
    return bar


def named_ticks(
    axes: Axes, axis: Literal["x", "y"], names: Sequence[str], colors: Sequence[str]
) -> None:
    """Label the positions 0, 1, 2 … of an axis, each with a square of its colour."""
    places, edge = np.arange(len(names), dtype=float), np.zeros(len(names))
    if axis == "x":
        axes.set_xticks(places, names)
        labels, transform = axes.get_xticklabels(), axes.get_xaxis_transform()
        x, y, inches = places, edge, (0.0, -6 / 72)
    else:
        axes.set_yticks(places, names)
        labels, transform = axes.get_yticklabels(), axes.get_yaxis_transform()
        x, y, inches = edge, places, (-6 / 72, 0.0)
    for label in labels:
        label.set_parse_math(False)
    axes.tick_params(axis=axis, labelsize=SMALL, colors=INK, length=0, pad=11)
    scale = cast(Figure, axes.get_figure()).dpi_scale_trans
    transform = transform + ScaledTranslation(*inches, scale)
    style: dict[str, Any] = {"marker": "s", "s": 36, "linewidths": 0, "clip_on": False}
    axes.scatter(x, y, c=colors, transform=transform, **style).set_gid("squares")


def readable_on(color: Any) -> str:
    """Return the dark or the light text colour, whichever is readable on a colour."""
    luminance = np.dot(np.array(to_rgb(color)) ** 2.2, (0.2126, 0.7152, 0.0722))
    # at 0.19 both have the same contrast (WCAG 2)
    return ON_LIGHT if luminance > 0.19 else ON_DARK


def category_codes(categories: Any) -> tuple[np.ndarray, list[str]]:
    """Return each cell's category as a number (−1: none), and the names of categories."""
    column = pd.Series(categories)
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype("category")
    column = column.cat.remove_unused_categories()
    return column.cat.codes.to_numpy(), [str(name) for name in column.cat.categories]


def _further_colors(n: int, saturation: float) -> list[str]:
    # With more than 30 colours no palette is easy to read; hues by the golden ratio never repeat.
    return [
        to_hex(
            tuple(hsv_to_rgb((0.618034 * i % 1, saturation + 0.3 * (i % 2), 0.6 + 0.13 * (i % 3))))
        )
        for i in range(n)
    ]


@contextmanager
def _settings(values: Mapping[str, Any]) -> Iterator[None]:
    """Set some of matplotlib's global settings while a file is written."""
    # rc_context would also reset changes that other threads made in the meantime.
    settings = cast(dict[str, Any], rcParams)
    with _SETTINGS:
        before = {name: settings[name] for name in values}
        settings.update(values)
        try:
            yield
        finally:
            settings.update(before)


def _for_page(root: ElementTree.Element, name: str) -> None:
    """Convert matplotlib's SVG to a part of a page."""
    for parent in list(root.iter()):
        for child in list(parent):
            # its style sheet would apply to the whole page
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
        if parent.get("id", "").startswith("axes_") and len(parent) and _is_ground(parent[0]):
            parent.remove(parent[0])
    used = {
        reference
        for element in root.iter()
        for value in element.attrib.values()
        for reference in re.findall(r"^#(.+)|url\(#(.+?)\)", value)
    }
    used = {a or b for a, b in used}
    for element in root.iter():
        halo = element.get("id") == "halo"
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            key = key.rpartition("}")[2]  # href does not need a namespace any more
            if key == "id" and value not in used:
                continue
            if key == "id":
                value = f"{name}-{value}"
            elif key == "href":
                value = re.sub("^#", f"#{name}-", value)
            else:
                value = value.replace("url(#", f"url(#{name}-")
                value = re.sub("font-family: [^;]*;? ?", "", value)
                value = re.sub("#[0-9a-f]{6}", lambda ink: THEME.get(ink[0], ink[0]), value)
            element.set(key, value)
        if halo:
            stroke = "paint-order: stroke; stroke: var(--page,#fff); stroke-width: 2.5"
            for text in element:
                text.set("style", f"{text.get('style', '')}; {stroke}")
    width = float(root.attrib.pop("width").removesuffix("pt")) * 96 / 72
    del root.attrib["height"], root.attrib["version"]
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("aria-hidden", "true")  # the page has an alternative text
    root.set("width", "100%")
    style = "white-space:pre;stroke-linejoin:round;stroke-linecap:butt"
    root.set("style", f"max-width:{width:.0f}px;{style}")


def _is_ground(group: ElementTree.Element) -> bool:
    """Return whether this is the white background of a panel."""
    return len(group) == 1 and group[0].get("style", "").startswith("fill: #ffffff")

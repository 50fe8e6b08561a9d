"""Read what a figure shows, and check that all its text is legible."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

LONG = "CD4+/CD45RA+/CD25- naive T cells (peripheral blood, donor A)"
NUMBERS_OF_TOPICS = [1, 2, 10, 30]


def proportions(n_cells: int, n_topics: int, seed: int = 0) -> np.ndarray:
    """Return random topic proportions, cells × topics."""
    return np.random.default_rng(seed).dirichlet(np.full(n_topics, 0.3), n_cells)


def rounded_rows(rows: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(np.round(row, 9)) for row in rows}


def drawn_texts(figure: Figure) -> list[Text]:
    """Return all text that is visible after layout."""
    figure.set_canvas(FigureCanvasAgg(figure))
    figure.canvas.draw()
    hidden = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not (label.get_visible() and tick.get_visible())
        or not min(axis.get_view_interval()) - 1e-9
        <= tick.get_loc()
        <= max(axis.get_view_interval()) + 1e-9
    }
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]


def corners(text: Text) -> np.ndarray:
    """Return x0, y0, x1, y1 of a text; of an annotation without its line."""
    return Text.get_window_extent(text).extents


def assert_legible(figure: Figure, *, overlap: bool = False) -> None:
    """Check that text is large enough, inside the figure, and, without `overlap`, separate."""
    boxes = [(text, corners(text)) for text in drawn_texts(figure)]
    for text, box in boxes:
        assert text.get_fontsize() >= 8, text
        assert (box[:2] >= figure.bbox.extents[:2] - 1).all(), text
        assert (box[2:] <= figure.bbox.extents[2:] + 1).all(), text
    for (a, box_a), (b, box_b) in itertools.combinations(boxes, 2):
        separate = (box_a[2:] < box_b[:2] + 1.5).any() or (box_b[2:] < box_a[:2] + 1.5).any()
        assert overlap or separate, (a, b)


def squares(axes: Axes) -> np.ndarray:
    """Return the values of a drawn matrix."""
    (mesh,) = (artist for artist in axes.collections if isinstance(artist, QuadMesh))
    return np.ma.filled(mesh.get_array(), np.nan)


def dots(axes: Axes) -> list[PathCollection]:
    """Return the points of a panel, without the coloured squares beside its labels."""
    return [
        artist
        for artist in axes.collections
        if isinstance(artist, PathCollection) and artist.get_gid() != "squares"
    ]


def tick_names(axes: Axes) -> tuple[list[str], list[str]]:
    """Return the labels of the rows and of the columns."""
    return tuple(
        [label.get_text() for label in labels]
        for labels in (axes.get_yticklabels(), axes.get_xticklabels())
    )


def swatches(axes: Axes) -> list[list[str]]:
    """Return the colours of the squares beside the labels."""
    return [
        [to_hex(color) for color in artist.get_facecolors()]
        for artist in axes.collections
        if artist.get_gid() == "squares"
    ]


def square_texts(axes: Axes) -> dict[tuple[int, int], str]:
    """Return the texts in the squares of a matrix, by row and column."""
    return {
        (round(text.get_position()[1]), round(text.get_position()[0])): text.get_text()
        for text in axes.texts
    }

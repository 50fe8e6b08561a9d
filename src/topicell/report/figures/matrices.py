"""Matrices of topics × topics, labels or replicates: functions from arrays to a matplotlib figure.

Shape suffixes: N cells, K topics, G genes, R replicates; rows and columns of a matrix are R and C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage

from topicell.report.figures.drawing import (
    DIVERGING,
    INK,
    MISSING,
    NOTHING,
    PROPORTION,
    SMALL,
    Topics,
    category_codes,
    category_colors,
    drawn_topics,
    named_ticks,
    new_figure,
    readable_on,
    short,
    titled,
    topic_colors,
    topic_name,
    value_bar,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = 2
"""Number of lines of the graph, for each topic."""
WEAK = 0.25
"""A correlation below this share of the strongest one has no line in the graph."""
WRITTEN = 12
"""Matrices with up to this number of topics show their values as text."""


def topic_correlation(theta_NK: np.ndarray, topics: Topics = None) -> Figure:
    """Draw Pearson correlations of topic proportions over cells.

    Topics are in the order of a tree (average linkage), so that similar topics are neighbours. The
    diagonal is left out, and so are undefined values: a topic with the same proportion in all cells
    has no correlation. The colours end at the strongest correlation.

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells.
    topics
        Numbers of the topics that are drawn; None draws all.
    """
    numbers, _ = drawn_topics(topics, theta_NK.shape[1])
    theta_NK = theta_NK[:, numbers]
    centred_NK = theta_NK - theta_NK.mean(axis=0)
    norm_K = np.linalg.norm(centred_NK, axis=0)
    # a deviation that is only rounding error counts as constant
    norm_K[norm_K <= 1e-9 * np.sqrt(len(theta_NK))] = np.nan
    value_KK = (centred_NK / norm_K).T @ (centred_NK / norm_K)
    strongest = np.nan_to_num(np.abs(_off_diagonal(value_KK))).max(initial=0.1)
    return _topics_by_topics(
        value_KK,
        numbers,
        topics,
        "Correlation of topics over cells",
        "Pearson correlation",
        DIVERGING,
        Normalize(-strongest, strongest),
    )


def prior_correlation(value_KK: np.ndarray, topics: Topics = None) -> Figure:
    """Draw a graph of topics whose lines are the correlations of a learned prior.

    Topics are on a circle, in the order of a tree, so that correlated topics are neighbours. Only
    the strongest correlations have a line: `LINES` for each topic, and none below `WEAK` of the
    strongest.

    Parameters
    ----------
    value_KK
        Correlations of the topics.
    topics
        Numbers of the topics that are drawn; None draws all.
    """
    numbers, _ = drawn_topics(topics, len(value_KK))
    value_KK = np.asarray(value_KK)[np.ix_(numbers, numbers)]
    order = _order_of_likeness(value_KK)
    value_KK = value_KK[np.ix_(order, order)]
    names, colors = _numbers(np.array(numbers)[order], topics)
    n = len(names)
    figure = new_figure(5.6, 4.6, titled("Correlations of topics in the prior", topics))
    axes = figure.add_subplot()
    angle = np.pi / 2 - 2 * np.pi * np.arange(n) / max(n, 1)
    xy_K2 = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    strongest = max(float(np.abs(_off_diagonal(value_KK)).max(initial=0)), 1e-6)
    norm = Normalize(-strongest, strongest)
    rows, columns = np.triu_indices(n, 1)
    # The strongest lines are drawn last.
    for pair in np.argsort(np.abs(value_KK[rows, columns]))[-LINES * n :]:
        value = value_KK[rows[pair], columns[pair]]
        if abs(value) < WEAK * strongest:
            continue
        ends = xy_K2[[rows[pair], columns[pair]]]
        width = 4 * abs(value) / strongest
        axes.plot(*ends.T, color=DIVERGING(norm(value)), linewidth=width, zorder=1)
    size = max(340 - 6 * n, 150)
    axes.scatter(xy_K2[:, 0], xy_K2[:, 1], s=size, c=colors, zorder=2, edgecolors="white")
    for (x, y), name, color in zip(xy_K2, names, colors, strict=True):
        axes.text(x, y, name, ha="center", va="center", fontsize=SMALL, color=readable_on(color))
    axes.set_xlim(-1.2, 1.2)
    axes.set_ylim(-1.2, 1.2)
    axes.set_aspect("equal")
    axes.set_axis_off()
    mappable = ScalarMappable(norm, DIVERGING)
    value_bar(figure, mappable, axes, "correlation", shrink=0.6)
    return figure


def topic_similarity(beta_KG: np.ndarray, topics: Topics = None) -> Figure:
    """Draw cosine similarities of the gene proportions of topics.

    Drawn like `topic_correlation`; the colours begin at the least similar pair.

    Parameters
    ----------
    beta_KG
        Gene proportions of the topics.
    topics
        Numbers of the topics that are drawn; None draws all.
    """
    numbers, _ = drawn_topics(topics, len(beta_KG))
    beta_KG = beta_KG[numbers]
    unit_KG = beta_KG / np.linalg.norm(beta_KG, axis=1, keepdims=True)
    value_KK = unit_KG @ unit_KG.T
    return _topics_by_topics(
        value_KK,
        numbers,
        topics,
        "Similarity of topics in genes",
        "cosine similarity",
        PROPORTION,
        _from_below(_off_diagonal(value_KK)),
    )


def topic_by_label(
    theta_NK: np.ndarray,
    labels: Sequence[Any],
    title: str = "Topics by label",
    topics: Topics = None,
) -> Figure:
    """Draw the mean proportion of each topic in the cells of each label.

    Labels are in the order of a tree, and topics in the order of the labels in which they are
    highest, so that high values are along the diagonal. Cells without a label are the last row.

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells.
    labels
        Label of each cell; missing ones are allowed.
    title
        Heading of the figure.
    topics
        Numbers of the topics that are drawn; None draws all.
    """
    numbers, _ = drawn_topics(topics, theta_NK.shape[1])
    theta_NK = theta_NK[:, numbers]
    codes_N, names = category_codes(labels)
    means = [theta_NK[codes_N == code].mean(axis=0) for code in range(len(names))]
    mean_LK = np.array(means).reshape(-1, theta_NK.shape[1])
    sizes = np.bincount(codes_N[codes_N >= 0], minlength=len(names))
    rows, columns = _along_diagonal(mean_LK)
    value_RC = mean_LK[rows]
    entries = [f"{short(names[row], 34)} ({sizes[row]:,})" for row in rows]
    label_colors = category_colors(len(names))
    colors = [label_colors[row] for row in rows]
    if (codes_N < 0).any():
        value_RC = np.vstack([value_RC, theta_NK[codes_N < 0].mean(axis=0)])
        entries.append(f"{MISSING} ({(codes_N < 0).sum():,})")
        colors.append(NOTHING)
    return _matrix(
        value_RC[:, columns],
        (entries, colors),
        _numbers(np.array(numbers)[columns], topics),
        titled(title, topics),
        "mean proportion",
        PROPORTION,
        Normalize(0, value_RC.max()),
    )


def stability_matrix(
    cosine_RK: np.ndarray,
    shown: int,
    support_K: Sequence[int] | None = None,
    topics: Topics = None,
) -> Figure:
    """Draw how well the topics of one replicate are found again in each of the others.

    There is one row for each replicate, a row for the mean if there are several, and one column for
    each topic. Numbers below the matrix say how many replicates found each topic; they are bold if
    at most half did.

    Parameters
    ----------
    cosine_RK
        Cosine similarity of each topic of the selected replicate with its match in each replicate.
    shown
        The selected replicate; its own row is left out.
    support_K
        Number of the R replicates that found each topic.
    topics
        Numbers of the topics that are drawn; None draws all.

    Raises
    ------
    ValueError
        There is only one replicate.

    Examples
    --------
    From the gene proportions and the topic proportions of all replicates:

    >>> from topicell.evaluation.stability import consensus, match_topics
    >>> beta_RKG = np.random.default_rng(0).dirichlet(np.ones(50), size=(3, 4))
    >>> theta_RNK = np.random.default_rng(1).dirichlet(np.ones(4), size=(3, 80))
    >>> cosine_RK = np.array([match_topics(beta_RKG[1], beta_KG).cosine for beta_KG in beta_RKG])
    >>> agreed = consensus(beta_RKG, theta_RNK)
    >>> support_K = agreed.support_C[agreed.member_RK[1]]
    >>> figure = stability_matrix(cosine_RK, 1, support_K)
    """
    numbers, _ = drawn_topics(topics, cosine_RK.shape[1])
    cosine_RK = cosine_RK[:, numbers]
    support_K = None if support_K is None else [support_K[topic] for topic in numbers]
    n_replicates, n_topics = cosine_RK.shape
    if n_replicates < 2:
        raise ValueError("cosine_RK has 1 replicate: a comparison needs at least 2")
    others = [replicate for replicate in range(n_replicates) if replicate != shown]
    value_RC = cosine_RK[others]
    entries = [f"Replicate {replicate}" for replicate in others]
    norm = _from_below(value_RC)
    if len(others) > 1:
        value_RC = np.vstack([value_RC, value_RC.mean(axis=0)])
        entries.append("Mean")
    if support_K is not None:
        value_RC = np.vstack([value_RC, np.full(n_topics, np.nan)])
        entries.append(f"Found in, of {n_replicates}")
    figure = _matrix(
        value_RC,
        (entries, None),
        _numbers(numbers, topics),
        titled(f"Topics of replicate {shown} in the others", topics),
        "cosine similarity",
        PROPORTION,
        norm,
    )
    axes = figure.axes[0]
    for row in range(len(others), len(entries)):
        axes.axhline(row - 0.5, color="white", linewidth=5)  # separated from the other rows
    for topic, support in enumerate([] if support_K is None else support_K):
        _write(axes, topic, len(entries) - 1, str(support), INK, bold=2 * support <= n_replicates)
    return figure


def _topics_by_topics(
    value_KK: np.ndarray,
    numbers: Sequence[int],
    topics: Topics,
    title: str,
    unit: str,
    colors: Colormap,
    norm: Normalize,
) -> Figure:
    order = _order_of_likeness(value_KK)
    value_KK = value_KK[np.ix_(order, order)]
    np.fill_diagonal(value_KK, np.nan)
    names, swatches = _numbers(np.array(numbers)[order], topics)
    rows = [f"Topic {name}" for name in names]
    heading = titled(title, topics)
    return _matrix(value_KK, (rows, swatches), (names, swatches), heading, unit, colors, norm)


def _matrix(
    value_RC: np.ndarray,
    rows: tuple[Sequence[str], Sequence[str] | None],
    columns: tuple[Sequence[str], Sequence[str]],
    title: str,
    unit: str,
    colors: Colormap,
    norm: Normalize,
) -> Figure:
    """Draw a matrix of coloured squares, topics in columns, without squares for NaN.

    Rows and columns have names and colours.
    """
    n_rows, n_columns = value_RC.shape
    written = n_columns <= WRITTEN
    side = 0.4 if written else 0.24
    left = 0.6 + 0.075 * max(len(name) for name in rows[0])
    figure = new_figure(
        max(left + side * n_columns + 1.1, 3.7), max(side * n_rows + 1.05, 2.2), title
    )
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(
        np.arange(n_columns + 1) - 0.5,
        np.arange(n_rows + 1) - 0.5,
        np.ma.masked_invalid(value_RC),
        cmap=colors,
        norm=norm,
        edgecolors="white",
        linewidth=0.8,
    )
    if written:
        for (row, column), value in np.ndenumerate(value_RC):
            if np.isfinite(value):
                ink = readable_on(colors(norm(value)))
                _write(axes, column, row, f"{value:.2f}".replace("-", "−"), ink)
    named_ticks(axes, "x", *columns)
    if rows[1] is None:
        axes.set_yticks(np.arange(n_rows), rows[0])
        axes.tick_params(axis="y", labelsize=SMALL, colors=INK, length=0)
    else:
        named_ticks(axes, "y", rows[0], rows[1])
    axes.set_xlabel("topic", fontsize=SMALL, color=INK)
    axes.set_xlim(-0.5, n_columns - 0.5)
    axes.set_ylim(n_rows - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_anchor("W")  # next to its labels, which the layout would otherwise cut off
    axes.spines[:].set_visible(False)
    height = side * n_rows
    value_bar(figure, mesh, axes, unit, shrink=min(1.0, 2.2 / height), aspect=16)
    return figure


def _write(axes: Axes, x: int, y: int, text: str, ink: str, bold: bool = False) -> None:
    weight = "bold" if bold else "normal"
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontweight": weight}
    axes.text(x, y, text, fontsize=SMALL, color=ink, **style)


def _numbers(numbers: Any, topics: Topics) -> tuple[list[str], list[str]]:
    """Return names and colours of topics in a given order."""
    colors = topic_colors(max(numbers, default=-1) + 1)
    return [topic_name(topics, topic) for topic in numbers], [colors[topic] for topic in numbers]


def _off_diagonal(value_KK: np.ndarray) -> np.ndarray:
    off: np.ndarray = value_KK[~np.eye(len(value_KK), dtype=bool)]
    return off


def _from_below(values: np.ndarray) -> Normalize:
    """Return the range from a lower limit in tenths to 1."""
    return Normalize(min(np.floor(10 * values.min(initial=1)) / 10, 0.9), 1)


def _order_of_likeness(value_KK: np.ndarray) -> np.ndarray:
    """Order topics so that similar ones are neighbours; the lowest number is first."""
    n = len(value_KK)
    if n < 3:
        return np.arange(n)
    apart = np.maximum(1 - np.nan_to_num(value_KK), 0)  # rounding errors can make it negative
    pairs = apart[np.triu_indices(n, 1)]
    order: np.ndarray = leaves_list(linkage(pairs, "average", optimal_ordering=True))
    return order if order[0] < order[-1] else order[::-1]


def _along_diagonal(mean_LK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order rows by similarity, and columns by the rows in which they are high."""
    rows = np.arange(len(mean_LK))
    if len(rows) > 2:
        rows = leaves_list(linkage(np.sqrt(mean_LK), "average", optimal_ordering=True))
        rows = rows if rows[0] < rows[-1] else rows[::-1]
    # squared, so that small values in many rows do not move a column to the middle
    weight_RK = mean_LK[rows] ** 2
    middle_K = np.arange(len(rows)) @ weight_RK / np.maximum(weight_RK.sum(axis=0), 1e-300)
    return rows, np.argsort(middle_K, kind="stable")

"""The structure plot: topic proportions of single cells.

Shape suffixes: N cells, K topics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, StepPatch
from scipy.cluster.hierarchy import linkage

from topicell.report.figures.drawing import (
    INK,
    MISSING,
    NOTHING,
    SMALL,
    Topics,
    category_codes,
    drawn_topics,
    legend_outside,
    new_figure,
    short,
    titled,
    topic_name,
)


def structure_plot(
    theta_NK: np.ndarray,
    groups: Sequence[Any] | None,
    seed: int,
    max_cells: int = 2000,
    topics: Topics = None,
) -> Figure:
    """Draw topic proportions of single cells as adjacent stacked bars, by group.

    Inside a group, similar cells are adjacent (leaves of a Ward tree of √θ). The width of a group
    grows with its number of cells, but it is never too narrow to be visible.

    Parameters
    ----------
    theta_NK
        Topic proportions.
    groups
        Group of each cell; None draws all cells as one.
    seed
        Seed of the selection of cells, if there are more than `max_cells`.
    max_cells
        Approximate number of cells that are drawn. Groups keep their shares, but each has at least
        20 cells, or all of its cells.
    topics
        Numbers of the topics that are drawn, the others together in grey; None draws all.
    """
    numbers, colors = drawn_topics(topics, theta_NK.shape[1])
    labels = [f"Topic {topic_name(topics, topic)}" for topic in numbers]
    if len(numbers) < theta_NK.shape[1]:
        others_N = np.delete(theta_NK, numbers, axis=1).sum(axis=1)
        labels.append(f"{theta_NK.shape[1] - len(numbers)} others")
        colors.append(NOTHING)
        theta_NK = np.column_stack([theta_NK[:, numbers], others_N])
    n_cells, n_topics = theta_NK.shape
    codes_N, names = category_codes(["all"] * n_cells if groups is None else groups)
    if (codes_N < 0).any():
        codes_N, names = np.where(codes_N < 0, len(names), codes_N), [*names, MISSING]
    sizes = np.bincount(codes_N, minlength=len(names))

    rng = np.random.default_rng(seed)
    # every group gets a strip of the same width for its name; the rest is divided by size
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
    names = [short(name, 32) for name in names]
    width = 10.5 * max(1, len(names) / 28)
    height = 3.5 if groups is None else 3.7 + 0.058 * max(len(name) for name in names)
    figure = new_figure(width, height, titled("Topic proportions of the cells", topics))
    axes = figure.add_subplot()
    for topic in range(n_topics):
        # As axes.stairs does, but that looks for the limits of the axes in every corner: seconds.
        axes.add_artist(
            StepPatch(
                upper[:, topic],
                edges,
                baseline=cast(Any, lower[:, topic]),
                fill=True,
                facecolor=colors[topic],
                linewidth=0,
                label=labels[topic],
                rasterized=True,
            )
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
    # the legend has the same order from top to bottom as the bars
    legend_outside(figure, handles[::-1], labels[::-1], -(-n_topics // 18), "outside right upper")
    return figure


def _order_of_likeness(theta_NK: np.ndarray) -> np.ndarray:
    """Order cells so that similar ones are adjacent: leaves of a Ward tree of √θ.

    A tree does not determine which branch comes first; here it is the branch with the lower value
    on the first principal component, so that cells are ordered along their largest variation.
    """
    n_cells = len(theta_NK)
    if n_cells < 3:
        return np.arange(n_cells)
    root = np.sqrt(theta_NK) - np.sqrt(theta_NK).mean(axis=0)
    _, vectors = np.linalg.eigh(root.T @ root)
    direction = vectors[:, -1]
    # the sign of an eigenvector is arbitrary; make its largest entry positive
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

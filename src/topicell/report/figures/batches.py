"""Batches: functions from arrays to a matplotlib figure. G genes, S batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from topicell.report.figures.drawing import (
    DIVERGING,
    INK,
    SMALL,
    new_figure,
    short,
    value_bar,
)

MAX_BATCHES = 24
"""Largest number of batches in the figure."""
MAX_GENES = 30
"""Number of genes in the figure."""


def batch_factors(factor_GS: np.ndarray, genes: Sequence[str], batches: Sequence[str]) -> Figure:
    """Draw the factors of the genes in which batches differ most.

    Parameters
    ----------
    factor_GS
        Factor of each gene in each batch.
    genes, batches
        Their names. With more than `MAX_BATCHES`, the batches with the largest factors are drawn.
    """
    log_GS = np.log2(np.asarray(factor_GS, dtype=float))
    shown = np.sort(np.argsort(-np.square(log_GS).mean(0), kind="stable")[:MAX_BATCHES])
    log_GS = log_GS[:, shown]
    leading = np.argsort(-np.abs(log_GS).max(1), kind="stable")[:MAX_GENES]
    # Genes of the same batch are neighbours: those that are higher there first. With two batches,
    # each factor is the inverse of the other, and the first batch decides.
    batch_n = np.zeros(len(leading), dtype=int)
    if len(shown) > 2:
        batch_n = np.abs(log_GS[leading]).argmax(1)
    leading = leading[np.lexsort((-log_GS[leading, batch_n], batch_n))]
    value_Sn = log_GS[leading].T
    n_batches, n_genes = value_Sn.shape
    names = [short(str(batches[s]), 20) for s in shown]
    left = 0.4 + 0.08 * max(map(len, names))
    title = "Genes in which batches differ most"
    figure = new_figure(left + 0.24 * n_genes + 1.2, 1.5 + 0.26 * n_batches, title)
    axes = figure.add_subplot()
    limit = max(float(np.abs(value_Sn).max(initial=0)), 0.1)
    mesh = axes.pcolormesh(
        value_Sn,
        cmap=DIVERGING,
        norm=Normalize(-limit, limit),
        edgecolors="white",
        linewidth=0.8,
    )
    axes.set_yticks(np.arange(n_batches) + 0.5, names)
    axes.set_xticks(np.arange(n_genes) + 0.5, [short(genes[g], 14) for g in leading], rotation=90)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
    axes.tick_params(labelsize=SMALL, colors=INK, length=0)
    axes.set_ylim(n_batches, 0)
    axes.spines[:].set_visible(False)
    value_bar(figure, mesh, axes, "log₂ factor", aspect=8)
    return figure

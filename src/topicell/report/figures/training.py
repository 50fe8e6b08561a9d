"""Figures of the fit: curves by epoch, and the amortization gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from topicell.report.figures.drawing import (
    FAINT,
    INK,
    NORMAL,
    PALETTE,
    SMALL,
    name_axes,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def gap_histogram(gap_N: np.ndarray) -> Figure:
    """Draw the histogram of the amortization gap of cells; the last bar holds the tail.

    Parameters
    ----------
    gap_N
        Amortization gap of each cell, nats; NaN where it was not measured.
    """
    gap = gap_N[np.isfinite(gap_N)]
    end = max(float(np.quantile(gap, 0.99)), 1e-6)
    figure = new_figure(6.4, 2.9, "Amortization gap by cell")
    axes = figure.subplots()
    axes.hist(np.minimum(gap, end), bins=40, range=(0, end), color=PALETTE[0], linewidth=0)
    for value, name, style in ((np.median(gap), "median", "--"), (gap.mean(), "mean", "-")):
        axes.axvline(value, color=INK, lw=1.2, ls=style, label=f"{name} {value:.2f}")
    axes.legend(fontsize=SMALL, frameon=False, labelcolor=INK)
    name_axes(axes, "", f"cells, of {len(gap):,}")
    n_beyond = int((gap > end).sum())
    beyond = f"; the last bar also holds {n_beyond} cells with larger values" if n_beyond else ""
    axes.set_xlabel(f"nats gained by refinement{beyond}", fontsize=SMALL, color=INK)
    axes.set_xlim(0, end)
    return figure


def training_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw four aligned panels over epochs: ELBO, validation perplexity, KL terms, schedules.

    Bands are ± 1 standard deviation over replicates, if the history holds ``<name>_sd``.

    Parameters
    ----------
    history
        One mapping for each epoch, with the metric names of the run and ``epoch``.
    """
    figure = new_figure(8.6, 5.6, "Training")
    (elbo, perplexity), (kl, schedule) = figure.subplots(2, 2, sharex=True)
    blue, orange, green = PALETTE[0], PALETTE[5], PALETTE[2]

    curves = [
        _curve(elbo, history, "train/elbo", "training cells", blue),
        _curve(elbo, history, "valid/elbo", "validation cells", orange),
    ]
    name_axes(elbo, "ELBO (higher is better)", "nats per cell")
    _keep_late_epochs_legible(elbo, curves)

    curves = [_curve(perplexity, history, "valid/perplexity", "validation cells", orange)]
    name_axes(perplexity, "Validation perplexity (lower is better)", "per count")
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
    name_axes(kl, "Divergence from the prior (KL)", "nats per cell")
    _keep_late_epochs_legible(kl, curves)

    _curve(schedule, history, "train/kl_weight", "KL weight", blue)
    name_axes(schedule, "Schedules", "KL weight (solid)", blue)
    rate = schedule.twinx()
    _curve(rate, history, "train/learning_rate", "learning rate", orange, dashed=True)
    name_axes(rate, "", "learning rate (dashed)", orange)
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


def _curve(
    axes: Axes,
    history: Sequence[Mapping[str, float]],
    name: str,
    label: str,
    color: str,
    dashed: bool = False,
) -> list[tuple[float, float]]:
    """Draw one metric with its band; return the drawn (epoch, value) pairs."""
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
    """Leave the first tenth of the epochs outside the panel if it would hide later differences."""
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

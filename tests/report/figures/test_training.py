"""Training curves: the lines are the history, and missing values are skipped."""

from __future__ import annotations

import numpy as np
import pytest
from legibility import assert_legible

from topicell.report import figures


def history(n_epochs: int = 30, valid: bool = True, sd: bool = True) -> list[dict[str, float]]:
    rows = []
    for epoch in range(n_epochs):
        row = {
            "epoch": epoch,
            "train/elbo": -1860 - 500 / (1 + epoch),
            "train/kl_cells": 18.0,
            "train/kl_topics": 50.0 - epoch,
            "train/kl_weight": min(1.0, epoch / 10),
            "train/learning_rate": 0.02,
        }
        if valid:
            row |= {
                "valid/elbo": -1870 - 500 / (1 + epoch),
                "valid/perplexity": 200 + 9 / (1 + epoch),
            }
        if sd:
            row |= {f"{name}_sd": 2.0 for name in tuple(row) if name.endswith("elbo")}
        rows.append(row)
    return rows


def line(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def test_curves_are_the_history():
    rows = history()
    figure = figures.training_curves(rows)
    elbo, perplexity, kl, schedule, rate = figure.axes
    for axes, label, name in (
        (elbo, "training cells", "train/elbo"),
        (elbo, "validation cells", "valid/elbo"),
        (perplexity, "validation cells", "valid/perplexity"),
        (kl, "topic proportions θ", "train/kl_cells"),
        (kl, "topics β", "train/kl_topics"),
        (schedule, "KL weight", "train/kl_weight"),
        (rate, "learning rate", "train/learning_rate"),
    ):
        np.testing.assert_array_equal(line(axes, label).get_xdata(), range(30))
        np.testing.assert_array_equal(line(axes, label).get_ydata(), [row[name] for row in rows])
    band = elbo.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == rows[-1]["train/elbo"] + 2
    assert band[:, 1].min() == rows[0]["train/elbo"] - 2
    assert [len(axes.collections) for axes in (elbo, perplexity, kl)] == [2, 0, 0]
    assert [axes.get_ylabel() for axes in (elbo, perplexity, kl)] == [
        "nats per cell",
        "per count",
        "nats per cell",
    ]
    assert_legible(figure)


def test_first_epochs_are_outside_the_axes_only_if_they_would_flatten_the_rest():
    def notes(rows):
        axes = figures.training_curves(rows).axes[0]
        low, _ = axes.get_ylim()
        return [text.get_text() for text in axes.texts], low

    steep, flat = history(40), history(40)
    for epoch, row in enumerate(steep):
        row["train/elbo"] = row["valid/elbo"] = -5000.0 if epoch == 0 else -1800 + epoch
    for epoch, row in enumerate(flat):
        row["train/elbo"] = row["valid/elbo"] = -1800.0 + epoch
    text, low = notes(steep)
    assert text == ["↓ first epochs off the scale"]
    assert low > -2000
    text, low = notes(flat)
    assert text == []
    assert low < -1800


@pytest.mark.parametrize("n_epochs", [1, 2, 200])
def test_a_history_without_validation_or_replicates_is_drawn(n_epochs):
    figure = figures.training_curves(history(n_epochs, valid=False, sd=False))
    perplexity = figure.axes[1]
    assert not perplexity.lines
    assert [text.get_text() for text in perplexity.texts] == ["no validation cells"]
    assert not figure.axes[0].collections
    assert_legible(figure)


def test_missing_and_infinite_values_are_skipped():
    rows = history(4)
    del rows[1]["valid/elbo"]
    rows[2]["valid/elbo"] = float("nan")
    drawn = line(figures.training_curves(rows).axes[0], "validation cells")
    np.testing.assert_array_equal(drawn.get_xdata(), [0, 3])

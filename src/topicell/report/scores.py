"""Scores as pages show them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from topicell.evaluation.metrics import METRICS, metric


def number(value: float) -> str:
    """Format a value with the digits that matter for its size."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if math.isnan(value):
        return "not defined"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", "−")
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 1
    return f"{value:,.{digits}f}".replace("-", "−")


def score(name: str, value: float) -> dict[str, str]:
    """Return a score with its title and meaning, as templates show it."""
    row = metric(name)
    return {
        "name": name,
        "title": row.title,
        "meaning": row.explanation,
        "value": number(value),
    }


def headlines(names: Iterable[str]) -> list[str]:
    """Select the scores at the top of a page."""
    names = set(names)
    return [name for name, row in METRICS.items() if row.headline and name in names]

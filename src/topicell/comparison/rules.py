"""Decide which scores of two runs can be compared: what must be the same, and whether it is.

The conditions of each metric are in `topicell.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd

from topicell.comparison.runs import StoredRun
from topicell.evaluation.metrics import metric


def what_differs(name: str, runs: Sequence[StoredRun]) -> str:
    """Return the first condition of a metric that the runs do not meet; empty if they meet all."""
    for condition in metric(name).same:
        same = partial(_same, condition, name)
        if condition == "split":
            met = all(same(a, b) for a, b in combinations(runs, 2))
        else:
            met = linked(runs, same)
        if not met:
            return condition
    return ""


def linked(runs: Sequence[StoredRun], same: Callable[[StoredRun, StoredRun], bool]) -> bool:
    """Return whether all runs are the same as one of them.

    Then they are the same as each other, even if for two of them it only follows from a third.
    """
    return not runs or any(all(same(a, b) for b in runs) for a in runs)


def _same(condition: str, score: str, a: StoredRun, b: StoredRun) -> bool:
    """Return whether two runs meet a condition of `Metric.same`."""
    tests: dict[str, Callable[[], bool]] = {
        "counts": lambda: a.prepared == b.prepared,
        "cells": lambda: _same_cells(a, b),
        # The error over several splits includes which cells are held out.
        "split": lambda: (
            same_split(a, b, score) or min(len(a.values[score]), len(b.values[score])) > 1
        ),
        "n_topics": lambda: len(a.beta_KG) == len(b.beta_KG),
        "labels": lambda: (
            a.labels_N is not None
            and b.labels_N is not None
            and pd.Series(a.labels_N, a.cells).equals(pd.Series(b.labels_N, b.cells)[a.cells])
        ),
        "device": lambda: a.device == b.device,
    }
    if condition in tests:
        return tests[condition]()
    return a.config.get(condition) == b.config.get(condition)


def same_source(a: StoredRun, b: StoredRun) -> bool:
    """Return whether cells of the same name are the same cells.

    Names alone do not say so: the same barcodes occur in different data.
    """
    return a.prepared == b.prepared or a.source[1] == b.source[1]


def _same_cells(a: StoredRun, b: StoredRun) -> bool:
    return same_source(a, b) and set(a.cells) == set(b.cells)


def same_split(a: StoredRun, b: StoredRun, score: str) -> bool:
    """Return whether two runs computed a score from the same cells in splits of the same name.

    A split follows from the cells, the shares of the parts and a seed, which is its name. So if
    the first splits of two runs are the same, the further ones are the same too.
    """
    if not (same_source(a, b) and a.cells.equals(b.cells)):
        return False
    for part in ("train", "valid", "test"):
        if score.startswith((f"{part}/", f"fit/{part}")):
            return bool(np.array_equal(a.part_N == part, b.part_N == part))
    return bool(np.array_equal(a.part_N, b.part_N))

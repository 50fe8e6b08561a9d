"""Which scores of which runs may be compared: what must be the same for it, and is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd

from topicell.comparison.runs import StoredRun
from topicell.evaluation.metrics import metric


def what_differs(name: str, runs: Sequence[StoredRun]) -> str:
    """What should be the same for a score to be compared, and is not; empty if all is."""
    for needed in metric(name).same:
        if needed == "split":
            fine = all(_same(needed, name, a, b) for a, b in combinations(runs, 2))
        else:
            fine = linked(runs, partial(_same, needed, name))
        if not fine:
            return needed
    return ""


def linked(runs: Sequence[StoredRun], same: Callable[[StoredRun, StoredRun], bool]) -> bool:
    """Whether all runs are the same as one of them.

    So they are the same as each other, even if of two of them it is not known without the third.
    """
    return not runs or any(all(same(a, b) for b in runs) for a in runs)


def _same(what: str, score: str, a: StoredRun, b: StoredRun) -> bool:
    tests: dict[str, Callable[[], bool]] = {
        "counts": lambda: a.prepared == b.prepared,
        "cells": lambda: _same_cells(a, b),
        # Errors over several splits hold what the choice of the held-out cells does.
        "split": lambda: (
            same_split(a, b, score) or min(len(a.values[score]), len(b.values[score])) > 1
        ),
        "topics": lambda: len(a.beta_KG) == len(b.beta_KG),
        "labels": lambda: (
            a.labels_N is not None
            and b.labels_N is not None
            and pd.Series(a.labels_N, a.cells).equals(pd.Series(b.labels_N, b.cells)[a.cells])
        ),
        "device": lambda: a.device == b.device,
    }
    return tests[what]() if what in tests else a.config.get(what) == b.config.get(what)


def same_source(a: StoredRun, b: StoredRun) -> bool:
    """Whether cells of one name are the same cells: barcodes come again in other data."""
    return a.prepared == b.prepared or a.source[1] == b.source[1]


def _same_cells(a: StoredRun, b: StoredRun) -> bool:
    return same_source(a, b) and set(a.cells) == set(b.cells)


def same_split(a: StoredRun, b: StoredRun, score: str) -> bool:
    """Whether a score is of the same cells in splits of one name.

    Splits follow from the cells, the shares and a seed, which is their name; so if the own
    splits of both runs are the same, the further ones are.
    """
    if not (same_source(a, b) and a.cells.equals(b.cells)):
        return False
    for part in ("train", "valid", "test"):
        if score.startswith((f"{part}/", f"fit/{part}")):
            return bool(np.array_equal(a.part_N == part, b.part_N == part))
    return bool(np.array_equal(a.part_N, b.part_N))

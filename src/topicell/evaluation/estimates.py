"""Means and differences of scores over splits and replicates, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BySplit = Mapping[str, Sequence[float]]
"""The values of a score: by split, one a replicate."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over splits and replicates, and its standard error (NaN of a single value)."""

    mean: float
    se: float


def estimate(by_split: BySplit) -> Estimate:
    """Return the mean over splits of the mean over replicates, and its standard error.

    Over splits where there are several; else over replicates, which leaves out how hard the
    split is.
    """
    means = [float(np.mean(values)) for values in by_split.values()]
    if len(means) > 1:
        return Estimate(float(np.mean(means)), _standard_error(means))
    (values,) = by_split.values()
    return Estimate(means[0], _standard_error(values))


def difference(a: BySplit, b: BySplit, *, paired: bool = True) -> Estimate:
    """Return the mean of a − b on the splits that they share, and its standard error.

    The error is the larger of two: over splits, of the difference of the means over replicates;
    and of the replicates within splits. With few splits the first is small by chance now and
    then, and the second knows nothing of which cells are held out. Without a shared split the
    errors of both means are added in squares.

    Parameters
    ----------
    a, b
        Values of the same score.
    paired
        Whether splits of one name are of the same cells, hard or easy for both; else they share
        none.
    """
    shared = [split for split in a if split in b] if paired else []
    if not shared:
        of_a, of_b = estimate(a), estimate(b)
        return Estimate(of_a.mean - of_b.mean, math.hypot(of_a.se, of_b.se))
    differences = [float(np.mean(a[split])) - float(np.mean(b[split])) for split in shared]
    within = [math.hypot(_standard_error(a[split]), _standard_error(b[split])) for split in shared]
    errors = [_standard_error(differences), float(np.sqrt(np.sum(np.square(within)))) / len(shared)]
    known = [error for error in errors if not math.isnan(error)]
    return Estimate(float(np.mean(differences)), max(known, default=math.nan))


def standard_deviation(values: Sequence[float]) -> float:
    """Return that of a sample; NaN for a single value, and where a value is not finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    return float(np.std(values, ddof=1))


def _standard_error(values: Sequence[float]) -> float:
    return standard_deviation(values) / math.sqrt(len(values))

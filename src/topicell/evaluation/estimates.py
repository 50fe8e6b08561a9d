"""Means and differences of scores over splits and replicates, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BySplit = Mapping[str, Sequence[float]]
"""The values of a score by split, one for each replicate."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over splits and replicates, and its standard error (NaN for a single value)."""

    mean: float
    se: float


def estimate(by_split: BySplit) -> Estimate:
    """Return the mean over splits of the mean over replicates, and its standard error.

    The error is that over splits if there are several, else that over replicates, which does not
    include how hard the split is.
    """
    means = [float(np.mean(values)) for values in by_split.values()]
    if len(means) > 1:
        return Estimate(float(np.mean(means)), _standard_error(means))
    (values,) = by_split.values()
    return Estimate(means[0], _standard_error(values))


def difference(a: BySplit, b: BySplit, *, paired: bool = True) -> Estimate:
    """Return the mean of a − b on their common splits, and its standard error.

    The error is the larger of two: the error over splits of the difference of the means over
    replicates, and the error of the replicates within splits. With few splits, the first can be
    small by chance; the second does not include which cells are held out. Without a common
    split, the square of the error is the sum of the squared errors of both means.

    Parameters
    ----------
    a, b
        Values of the same score.
    paired
        Whether splits of the same name have the same cells; if not, no split is common.
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
    """Return the sample standard deviation; NaN for a single value or if one is not finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    return float(np.std(values, ddof=1))


def _standard_error(values: Sequence[float]) -> float:
    return standard_deviation(values) / math.sqrt(len(values))

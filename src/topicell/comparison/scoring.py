"""Compare the scores of runs: values, differences, and the best run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from topicell.comparison.incompatibilities import in_words
from topicell.comparison.rules import same_split, what_differs
from topicell.comparison.runs import StoredRun
from topicell.comparison.values import Difference, Score, Value
from topicell.evaluation import estimates
from topicell.evaluation.estimates import BySplit, estimate, standard_deviation
from topicell.evaluation.metrics import metric, ordered


def scores(runs: Sequence[StoredRun]) -> Iterator[Score]:
    """Compare every score that a run has: yield its values, their differences and the best run."""
    for name in ordered(name for run in runs for name in run.values):
        having = [run for run in runs if name in run.values]
        condition = what_differs(name, having)
        compared = name in runs[0].values and not condition
        yield Score(
            name,
            tuple(
                summarized(
                    run.values[name],
                    _lead(name, run, runs[0]) if compared and run is not runs[0] else None,
                )
                if name in run.values
                else None
                for run in runs
            ),
            None if condition else _best(name, runs),
            in_words(condition)[0].lower() if condition else "",
        )


def summarized(by_split: BySplit, against_first: Difference | None = None) -> Value:
    """Return the mean over splits and replicates, and its error.

    With several splits, the error is the standard error over splits. With one split there is no
    such error, because it depends more on which cells are held out than on the random start; then
    the standard deviation over replicates is given.
    """
    if len(by_split) > 1:
        of_mean = estimate(by_split)
        means = tuple(float(np.mean(values)) for values in by_split.values())
        return Value(of_mean.mean, of_mean.se, "splits", means, against_first)
    (values,) = by_split.values()
    over = "replicates" if len(values) > 1 else ""
    mean, sd = float(np.mean(values)), standard_deviation(values)
    return Value(mean, sd, over, tuple(values), against_first)


def difference(a: BySplit, b: BySplit, *, paired: bool) -> Difference:
    """Return the mean of a − b and its standard error, paired by split if the splits are common."""
    found = estimates.difference(a, b, paired=paired)
    return Difference(found.mean, found.se, len(a.keys() & b.keys()) if paired else 0)


def _lead(name: str, run: StoredRun, other: StoredRun) -> Difference:
    return difference(run.values[name], other.values[name], paired=same_split(run, other, name))


def _best(name: str, runs: Sequence[StoredRun]) -> int | None:
    """Return the index of the run that is clearly better than every other one, if there is one."""
    sign = metric(name).better
    having = [place for place, run in enumerate(runs) if name in run.values]
    if sign == 0 or len(having) < 2:
        return None
    best = max(having, key=lambda place: sign * estimate(runs[place].values[name]).mean)
    leads = [_lead(name, runs[best], runs[place]) for place in having if place != best]
    return best if all(lead.clear and sign * lead.mean > 0 for lead in leads) else None

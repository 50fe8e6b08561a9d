"""The verdict on the number of topics K, from the trials. Pure arithmetic with numpy alone.

For each K, every measure has a mean and a standard error over splits and replicates. The verdict
follows the one-standard-error rule (Breiman, Friedman, Olshen & Stone 1984, Classification and
Regression Trees, section 3.4.3): the smallest K whose held-out perplexity is within one standard
error of the lowest, among those whose topics are found again by other replicates. The error is that
of the *difference* on the same held-out cells: pairing removes the variation between splits, which
can exceed the difference between two K.

Measures are never rescaled and added: those of one K do not depend on which others were tried, and
a K that is worse than the best does not change the choice.

Failed trials are counted by K. If more than half of the trials, or of the numbers of topics,
failed, no K is chosen: the lowest perplexity of the few others says little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from topicell.evaluation.estimates import BySplit, Estimate, difference, estimate
from topicell.sweep.trials import PERPLEXITY, TOPICS, Sweep, Trial

SUPPORT = "topics/found_again"
MEASURES = (
    PERPLEXITY,
    SUPPORT,
    "topics/coherence_npmi",
    "topics/diversity",
    "topics/used",
)
"""The metrics whose curves over K are shown."""
MOST = 0.5
"""If a larger share of the trials, or of the numbers of topics, failed, no K is chosen."""
WIDE = 0.5
"""A plateau over a larger share of the range (in its logarithm) is no optimum."""
FEW = 3
"""Fewer numbers of topics make no curve."""


class Kind(Enum):
    """The shape of the perplexity over the numbers of topics."""

    optimum = "clear optimum"
    plateau = "plateau"
    edge = "best at the edge of the range"
    none = "no clear optimum"
    failed = "too many trials failed"


@dataclass(frozen=True, slots=True)
class Point:
    """The measures of one number of topics, from its trial of the lowest perplexity.

    `trials` are the numbers of the trials: several if a grid searched the seed.
    """

    n_topics: int
    trials: tuple[int, ...]
    values: Mapping[str, BySplit]

    def estimate(self, measure: str) -> Estimate | None:
        """Return the mean and standard error of a measure; None if it was not measured."""
        return estimate(self.values[measure]) if measure in self.values else None

    @property
    def perplexity(self) -> float:
        """Mean held-out perplexity."""
        return estimate(self.values[PERPLEXITY]).mean

    @property
    def found_again(self) -> float:
        """Share of topics that are found again, mean over splits; NaN for one replicate."""
        return estimate(self.values[SUPPORT]).mean if SUPPORT in self.values else math.nan


@dataclass(frozen=True, slots=True)
class Verdict:
    """The number of topics to take, and why.

    `n_topics` is None if none can be chosen; `within` are the numbers of topics with enough support
    within one standard error of `best`; `trial` is the number of the trial to take.
    """

    kind: Kind
    n_topics: int | None
    best: int | None
    within: tuple[int, ...]
    trial: int | None
    sentence: str
    warnings: tuple[str, ...] = ()


def points(trials: Sequence[Trial]) -> list[Point]:
    """Return the measures of each number of topics, in ascending order.

    Trials that differ in the seed alone are one: their splits are put together. If several
    settings were tried at one number of topics, the one with the most splits counts, then the one
    with the lowest perplexity. A trial whose perplexity is not finite does not count.
    """
    pooled: dict[tuple[int, str], list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.state == "COMPLETE" and _is_finite(trial.values.get(PERPLEXITY, {})):
            key = (trial.n_topics, repr(sorted(trial.others.items())))
            pooled.setdefault(key, []).append(trial)
    of_topics: dict[int, Point] = {}
    for (n_topics, _), alike in pooled.items():
        values: dict[str, dict[str, Sequence[float]]] = {}
        for trial in alike:
            for measure, by_split in trial.values.items():
                for split, value in by_split.items():
                    # The same settings and the same seed are the same run.
                    values.setdefault(measure, {}).setdefault(split, value)
        point = Point(n_topics, tuple(trial.number for trial in alike), values)
        before = of_topics.get(n_topics)
        if before is None or _rank(point) < _rank(before):
            of_topics[n_topics] = point
    return [of_topics[n_topics] for n_topics in sorted(of_topics)]


def outcomes(trials: Sequence[Trial]) -> dict[int, list[bool]]:
    """Return, by number of topics, whether each of the settings that were tried failed.

    The same settings count once: a failed trial that was tried again counts as its last attempt.
    Interrupted trials do not count, and pruned ones did not fail. A perplexity of NaN is a
    failure; an infinite one is not, since topics can give a held-out count probability 0. The
    number of topics is 0 if it is unknown.
    """
    ended: dict[int, dict[str, bool]] = {}
    for trial in trials:
        perplexities = trial.values.get(PERPLEXITY, {}).values()
        failed = trial.failed or any(np.isnan(of_split).any() for of_split in perplexities)
        if failed or trial.state in ("COMPLETE", "PRUNED"):
            # A run that failed before its settings were recorded is unlike any other.
            key = repr(sorted(trial.params.items()) or trial.number)
            of_topics = ended.setdefault(_n_topics(trial), {})
            of_topics[key] = failed and of_topics.get(key, True)
    return {n_topics: list(ended[n_topics].values()) for n_topics in sorted(ended)}


def select(
    trials: Sequence[Trial],
    *,
    bounds: tuple[int, int] | None = None,
    support_floor: float = 0.5,
) -> Verdict:
    """Return the verdict on the number of topics.

    The smallest K with enough support whose perplexity is within one standard error of the lowest
    is chosen; none if most of the trials, or of the numbers of topics, failed.

    Parameters
    ----------
    trials
        All trials.
    bounds
        The smallest and largest number of topics that could be tried; by default, that were.
    support_floor
        A number of topics is not chosen if a smaller share of its topics is found again.
    """
    measured = points(trials)
    ended = outcomes(trials)
    warnings = [_of_failures(ended)] if _n_failed(ended)[0] else []
    if not measured:
        sentence = "No clear optimum: no trial was completed, so there is nothing to choose from."
        return Verdict(Kind.none, None, None, (), None, sentence, tuple(warnings))
    if sentence := _too_many(ended):
        return Verdict(Kind.failed, None, None, (), None, sentence, tuple(warnings))
    splits = _usual_splits(measured)
    comparable = [point for point in measured if splits <= point.values[PERPLEXITY].keys()]
    if len(comparable) < len(measured):
        missing = [point.n_topics for point in measured if point not in comparable]
        warnings.append(f"Not considered, because a split is missing: K = {_listed(missing)}.")
    supported = [point for point in comparable if not point.found_again < support_floor]
    refused = [point.n_topics for point in comparable if point not in supported]
    if not supported:
        sentence = (
            "No clear optimum: for every number of topics, replicates find fewer than "
            f"{100 * support_floor:g} % of the topics again. Fits from other random starts have "
            "other topics, so none of these topics can be relied on."
        )
        return Verdict(Kind.none, None, None, (), None, sentence, tuple(warnings))
    perplexity = {
        point.n_topics: {split: point.values[PERPLEXITY][split] for split in splits}
        for point in supported
    }
    best = min(perplexity, key=lambda k: (estimate(perplexity[k]).mean, k))
    loss = {k: difference(values, perplexity[best]) for k, values in perplexity.items()}
    # Single fits have an error of NaN: then only a tie is within it.
    within = tuple(k for k in loss if k == best or loss[k].mean <= np.nan_to_num(loss[k].se))
    low, high = bounds or (measured[0].n_topics, measured[-1].n_topics)
    lowest = _rounded(estimate(perplexity[best]).mean)
    kind, sentence = _kind_and_sentence(within, best, lowest, (low, high))
    if len(supported) == 1:
        kind = Kind.none
        sentence = (
            f"No clear optimum: only K = {best} (perplexity {lowest}) was measured and has enough "
            "support."
        )
    elif any(math.isnan(of_k.se) for of_k in loss.values()):
        kind = Kind.none
        sentence = (
            f"No clear optimum: K = {best} has the lowest perplexity ({lowest}), but without error "
            "bars, so the difference may be chance."
        )
        warnings.append(
            "There is one fit for each K, so there are no error bars: train.n_replicates=4 or "
            "evaluate.n_splits=3 gives error bars."
        )
    if len(measured) < FEW:
        lost = [n_topics for n_topics, failed in ended.items() if n_topics and all(failed)]
        why = f" (K = {_listed(lost)} failed)" if lost else ""
        warnings.append(f"Numbers of topics measured: {len(measured)}{why}; try more.")
    if any(math.isnan(point.found_again) for point in measured):
        warnings.append(
            "One replicate cannot tell which topics are found again, so sweep.support_floor is not "
            "applied to such fits."
        )
    tried = {_n_topics(trial) for trial in trials} - {0}
    if kind in (Kind.plateau, Kind.none) and within[-1] == high > low:
        warnings.append(
            f"The plateau reaches the edge of the range, K = {high}: a larger K may fit as well."
        )
    elif kind is not Kind.edge and best == max(tried) < high:
        warnings.append(f"No K above {best}, the best, was tried: raise sweep.n_trials.")
    if refused:
        warnings.append(
            f"Not considered, because fewer than {100 * support_floor:g} % of the topics are found "
            f"again: K = {_listed(refused)}."
        )
    trial = next(point.trials[0] for point in supported if point.n_topics == within[0])
    return Verdict(kind, within[0], best, within, trial, sentence, tuple(warnings))


def verdict_of(sweep: Sweep) -> Verdict:
    """Return the verdict on the trials of a sweep, with its range and its floor of support."""
    return select(sweep.trials, bounds=sweep.bounds, support_floor=sweep.support_floor)


def chosen_trials(sweep: Sweep) -> list[Trial]:
    """Return the trials with the chosen number of topics; none if no number was chosen."""
    n_topics = verdict_of(sweep).n_topics
    numbers = [
        n for point in points(sweep.trials) if point.n_topics == n_topics for n in point.trials
    ]
    return [trial for trial in sweep.trials if trial.number in numbers]


def _of_failures(ended: Mapping[int, Sequence[bool]]) -> str:
    """Return how many trials failed, by K."""
    n_failed, n_ended = _n_failed(ended)
    by_topics = ", ".join(
        f"{sum(failed)} of {len(failed)} with {f'K = {n_topics}' if n_topics else 'no known K'}"
        for n_topics, failed in ended.items()
        if any(failed)
    )
    return f"Failed trials: {n_failed} of {n_ended} ({by_topics})."


def _too_many(ended: Mapping[int, Sequence[bool]]) -> str:
    """Return that most of the trials or numbers of topics failed; empty if they did not."""
    n_failed, n_ended = _n_failed(ended)
    if n_failed > MOST * n_ended:
        what = f"{n_failed} of {n_ended} trials failed"
    elif (n_lost := sum(map(all, ended.values()))) > MOST * len(ended):
        what = f"all trials of {n_lost} of {len(ended)} numbers of topics failed"
    else:
        return ""
    return (
        f"No number of topics is chosen: {what}, and too few perplexities are left to choose from. "
        "Find out why the trials failed, then sweep again."
    )


def _n_failed(ended: Mapping[int, Sequence[bool]]) -> tuple[int, int]:
    return sum(map(sum, ended.values())), sum(map(len, ended.values()))


def _n_topics(trial: Trial) -> int:
    """Return the number of topics of a trial; 0 if it is unknown."""
    try:
        return trial.n_topics or int(str(trial.params.get(TOPICS, 0)).strip("'\""))
    except ValueError:
        return 0


def _kind_and_sentence(
    within: Sequence[int], best: int, lowest: str, bounds: tuple[int, int]
) -> tuple[Kind, str]:
    (low, high), k, last = bounds, within[0], within[-1]
    if k != last:
        span = math.log(last / k) / math.log(high / low) if high > low else 0.0
        if span > WIDE:
            return Kind.none, (
                f"No clear optimum: from K = {k} to {last}, most of the range, perplexities are "
                f"within one standard error of the lowest ({lowest} at K = {best}). The held-out "
                f"cells do not distinguish them; K = {k} is the smallest."
            )
        return Kind.plateau, (
            f"Plateau from K = {k} to {last}: the perplexities of K = {_listed(within)} are within "
            f"one standard error of the lowest ({lowest} at K = {best}). Take K = {k}, the "
            "smallest."
        )
    if high > low and (k == high or k == low > 2):
        others, beyond = ("smaller", "beyond") if k == high else ("larger", "below")
        return Kind.edge, (
            f"The lowest perplexity ({lowest}) is at the edge of the range, K = {k}, and {others} "
            f"K are worse. Widen it: the best K may lie {beyond} {k}."
        )
    return Kind.optimum, (
        f"Clear optimum at K = {k}: perplexity {lowest}; every other K that was measured, and has "
        "enough support, is worse by more than one standard error."
    )


def _usual_splits(measured: Sequence[Point]) -> frozenset[str]:
    """Return the splits on which most numbers of topics were measured.

    The mean of a K without a hard split cannot be compared with a mean that includes it.
    """
    sets = [frozenset(point.values[PERPLEXITY]) for point in measured]
    return max(sets, key=lambda splits: (sets.count(splits), len(splits), sorted(splits)))


def _rank(point: Point) -> tuple[int, float, tuple[int, ...]]:
    return -len(point.values[PERPLEXITY]), point.perplexity, point.trials


def _is_finite(by_split: BySplit) -> bool:
    values = [value for of_split in by_split.values() for value in of_split]
    return bool(values) and bool(np.isfinite(values).all())


def _rounded(value: float) -> str:
    return f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))

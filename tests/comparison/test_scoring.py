"""Scores of several runs: means, errors, differences, and the best run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from stored_runs import VALUES, shifted

from topicell.comparison.scoring import difference, scores, summarized


def test_a_value_has_the_error_of_its_splits_or_the_sd_of_its_replicates():
    value = summarized({"0": [1.0, 3.0], "1": [4.0, 6.0]})
    assert (value.mean, value.kind) == (3.5, "standard error over 2 splits")
    assert value.error == pytest.approx(np.std([2, 5], ddof=1) / math.sqrt(2))
    value = summarized({"0": [1.0, 3.0]})
    assert (value.mean, value.kind) == (2.0, "sd of 2 replicates")
    assert value.error == pytest.approx(math.sqrt(2))
    value = summarized({"0": [1.0]})
    assert (value.mean, value.kind) == (1.0, "")
    assert math.isnan(value.error)
    assert math.isnan(summarized({"0": [1.0, math.inf]}).error)


def test_the_error_of_a_difference_is_paired_or_of_both_runs():
    a = {"0": [10.0, 12.0], "1": [20.0, 22.0], "2": [30.0, 32.0]}
    b = {"0": [11.0, 11.0], "1": [22.0, 22.0], "5": [0.0, 0.0]}
    paired = difference(a, b, paired=True)
    assert paired.mean == pytest.approx(np.mean([0, -1]))
    # Within each split the replicates give 1; over splits the error is 0.5.
    assert paired.se == pytest.approx(math.sqrt(1 + 1) / 2)
    assert paired.paired == 2
    unpaired = difference(a, b, paired=False)
    assert unpaired.mean == pytest.approx(21 - 11)
    errors = [np.std(means, ddof=1) / math.sqrt(3) for means in ([11, 21, 31], [11, 22, 0])]
    assert unpaired.se == pytest.approx(math.hypot(*errors))
    assert unpaired.paired == 0
    assert math.isnan(difference({"0": [1.0]}, {"0": [2.0]}, paired=True).se)
    assert not difference({"0": [1.0]}, {"0": [2.0]}, paired=True).clear
    back = difference(b, a, paired=True)
    assert (back.mean, back.se) == (-paired.mean, paired.se)


def test_the_best_run_differs_by_more_than_the_error(stored):
    a = stored()
    of = {}
    for name, by in (("lower", (-1, -1.1)), ("noise", (-1, 1.1)), ("higher", (2, 2))):
        of[name] = {s.name: s for s in scores([a, stored(values=shifted(by))])}
    lower, noise, higher = (of[name]["test/perplexity_folded"] for name in of)
    assert (lower.best, noise.best, higher.best) == (1, None, 0)
    lead = lower.values[1].against_first
    assert (lead.mean, lead.paired) == (pytest.approx(-1.05), 2)
    # The splits differ by 10, which pairing removes.
    assert lead.se < 0.2 < lower.values[0].error
    assert lower.values[0].against_first is None
    assert of["lower"]["labels/nmi"].best is None
    assert of["lower"]["speed/fit_seconds"].best is None


def test_the_best_run_has_the_highest_score_if_more_is_better(stored):
    runs = [stored(), stored(values=shifted((0.4, 0.4), "labels/nmi"))]
    assert {s.name: s.best for s in scores(runs)}["labels/nmi"] == 1


def test_the_best_of_three_runs_is_better_than_both_others(stored):
    runs = [stored(), stored(values=shifted((-1, -1.1))), stored(values=shifted((-1.1, -1)))]
    (perplexity,) = (s for s in scores(runs) if s.name == "test/perplexity_folded")
    assert perplexity.best is None
    runs[2] = stored(values=shifted((-9, -9)))
    (perplexity,) = (s for s in scores(runs) if s.name == "test/perplexity_folded")
    assert perplexity.best == 2


def test_a_missing_score_is_none(stored):
    fewer = {name: values for name, values in VALUES.items() if name != "topics/stability"}
    found = {s.name: s for s in scores([stored(values=fewer), stored()])}
    stability = found["topics/stability"]
    assert (stability.values[0], stability.best) == (None, None)
    assert stability.values[1].mean == pytest.approx(0.85)
    assert stability.values[1].against_first is None
    assert next(iter(found)) == "test/perplexity_folded"

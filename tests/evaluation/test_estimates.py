"""Means and standard errors over splits and replicates, as examples and by their definition."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topicell.evaluation.estimates import Estimate, difference, estimate


def standard_error(values):
    return statistics.stdev(values) / math.sqrt(len(values))


def test_values_of_an_estimate_by_hand():
    # Means 2 and 6 of the splits; their standard deviation is √8.
    assert estimate({"0": [1, 3], "1": [5, 7]}) == Estimate(4.0, pytest.approx(2))
    assert estimate({"0": [1, 3]}) == Estimate(2.0, pytest.approx(1))
    assert estimate({"0": [1], "7": [2], "9": [6]}) == Estimate(
        3.0, pytest.approx(math.sqrt(7 / 3))
    )
    # A split with more replicates has no more weight.
    assert estimate({"0": [1, 1, 1, 1], "1": [3]}).mean == 2
    single = estimate({"0": [5]})
    assert single.mean == 5
    assert math.isnan(single.se)


def test_values_of_a_difference_by_hand():
    # Over splits: 2 and 4, so 1. Within: √(1² + 0²) and √(2² + 1²), so √6 / 2: the larger.
    a = {"0": [10, 12], "1": [20, 24]}
    b = {"0": [9, 9], "1": [17, 19]}
    assert difference(a, b) == Estimate(3.0, pytest.approx(math.sqrt(6) / 2))
    # Over splits: 0 and 10, so 5; within: √(1² + 1²) twice, so 1.
    a = {"0": [10, 12], "1": [30, 32]}
    b = {"0": [10, 12], "1": [20, 22]}
    assert difference(a, b) == Estimate(5.0, pytest.approx(5))
    # One split: only the replicates.
    assert difference({"0": [10, 12]}, {"0": [5, 9]}) == Estimate(4.0, pytest.approx(math.sqrt(5)))
    # One replicate: only the splits.
    paired = difference({"0": [10], "1": [24]}, {"0": [9], "1": [19]})
    assert paired == Estimate(3.0, pytest.approx(2))


def test_a_difference_uses_the_splits_that_both_have():
    a = {"0": [100, 102], "1": [7, 7]}
    b = {"1": [4, 8], "2": [900, 905]}
    assert difference(a, b) == Estimate(1.0, pytest.approx(2))


def test_without_a_shared_split_the_squares_of_both_errors_are_added():
    unpaired = difference({"0": [1, 3]}, {"1": [4, 8]})
    assert unpaired == Estimate(-4.0, pytest.approx(math.sqrt(1 + 4)))
    assert math.isnan(difference({"0": [1, 3]}, {"1": [4]}).se)


def test_a_single_fit_has_no_error():
    loss = difference({"0": [5]}, {"0": [3]})
    assert loss.mean == 2
    assert math.isnan(loss.se)
    # Also a fit compared with itself has none.
    assert math.isnan(difference({"0": [5]}, {"0": [5]}).se)


values_of_a_split = st.lists(st.floats(1, 1e4), min_size=2, max_size=5)


@given(st.lists(st.tuples(values_of_a_split, values_of_a_split), min_size=1, max_size=5))
def test_means_and_errors_are_those_of_the_definition(of_splits):
    a = {str(split): values for split, (values, _) in enumerate(of_splits)}
    b = {str(split): values for split, (_, values) in enumerate(of_splits)}
    means = {split: statistics.fmean(values) for split, values in a.items()}
    expected = standard_error(list(means.values()) if len(a) > 1 else a["0"])
    found = estimate(a)
    assert found.mean == pytest.approx(statistics.fmean(means.values()))
    assert found.se == pytest.approx(expected, abs=1e-8)

    differences = [means[split] - statistics.fmean(b[split]) for split in a]
    within = [math.hypot(standard_error(a[split]), standard_error(b[split])) for split in a]
    expected = math.sqrt(sum(error**2 for error in within)) / len(a)
    if len(a) > 1:
        expected = max(expected, standard_error(differences))
    loss = difference(a, b)
    assert loss.mean == pytest.approx(statistics.fmean(differences), abs=1e-8)
    assert loss.se == pytest.approx(expected, abs=1e-8)
    back = difference(b, a)
    assert back.mean == pytest.approx(-loss.mean, abs=1e-8)
    assert back.se == pytest.approx(loss.se, abs=1e-8)

"""Seeds of splits, and scores that are not finite."""

import numpy as np
import pytest

from topicell.scoring import split_seeds, warn_of_infinite


def test_seeds_of_splits_are_distinct_and_do_not_depend_on_their_number():
    for seed in (0, 1, 2**32 - 1):
        assert split_seeds(seed, 1) == [seed]
        assert split_seeds(seed, 5)[0] == seed
        assert split_seeds(seed, 5)[:3] == split_seeds(seed, 3)
    drawn = [value for seed in range(200) for value in split_seeds(seed, 5)]
    assert len(set(drawn)) == 1000
    assert all(type(value) is int and 0 <= value < 2**32 for value in drawn)


def test_scores_that_are_not_finite_are_named():
    warn_of_infinite({"a": 1.0, "b": 0.0})
    with pytest.warns(UserWarning, match="not finite: a, c, d;"):
        warn_of_infinite({"a": np.nan, "b": 1.0, "c": np.inf, "d": -np.inf})

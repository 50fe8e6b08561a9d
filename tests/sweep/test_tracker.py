"""Epochs that a trial reports to its sweep."""

from topicell.sweep.tracker import is_reported


def test_all_early_epochs_are_reported_and_later_ones_at_doubling_intervals():
    reported = [epoch for epoch in range(3200) if is_reported(epoch)]
    assert reported[:50] == list(range(50))
    for doubling in range(6):
        first, last = 50 * 2**doubling, 100 * 2**doubling
        within = [epoch for epoch in reported if first <= epoch < last]
        assert within == list(range(first, last, 2 ** (doubling + 1)))
        assert len(within) == 25

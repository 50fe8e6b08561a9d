"""What a sweep looks at while its trials run."""

from topicell.sweep.watch import is_looked_at


def test_early_epochs_are_all_looked_at_and_late_ones_ever_more_rarely():
    looked_at = [epoch for epoch in range(3200) if is_looked_at(epoch)]
    assert looked_at[:50] == list(range(50))
    for doubling in range(6):
        first, last = 50 * 2**doubling, 100 * 2**doubling
        within = [epoch for epoch in looked_at if first <= epoch < last]
        assert within == list(range(first, last, 2 ** (doubling + 1)))
        assert len(within) == 25

"""The verdict on the number of topics: by hand, against its definition, and what cannot change it.

Drawn perplexities are whole, and splits and replicates powers of two: sums and means are exact, so
that laws hold to the last digit.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from topicell.evaluation.estimates import Estimate, difference, estimate
from topicell.sweep.selection import STABILITY, Kind, outcomes, points, select
from topicell.sweep.trials import INTERRUPTED, KILLED, PERPLEXITY, TOPICS, Trial

NPMI = "topics/coherence_npmi"
BOUNDS = (2, 40)


def trial(n_topics, perplexity, stability=0.9, *, number=None, state="COMPLETE", **params):
    """A trial of perplexities by split, or of one split; `stability` likewise, None for none."""
    values = {PERPLEXITY: perplexity if isinstance(perplexity, dict) else {"0": perplexity}}
    if isinstance(stability, dict):
        values[STABILITY] = stability
    elif stability is not None:
        values[STABILITY] = {split: [stability] for split in values[PERPLEXITY]}
    return Trial(
        number=n_topics if number is None else number,
        state=state,
        params={TOPICS: n_topics} | params,
        n_topics=n_topics,
        values=values,
    )


def curve(means, error=1.0):
    """Trials of one split and two replicates, of a standard error each."""
    return [trial(k, [mean - error, mean + error]) for k, mean in means.items()]


def failed(n_topics, number, error="NonFiniteError: training stopped", **params):
    """A trial that failed before it measured anything."""
    return Trial(
        number=number,
        state="FAIL",
        params={TOPICS: n_topics} | params,
        n_topics=n_topics,
        error=error,
    )


def standard_error(values):
    return statistics.stdev(values) / math.sqrt(len(values))


def test_values_of_an_estimate():
    # Means 2 and 6 of the splits; their standard deviation is √8.
    assert estimate({"0": [1, 3], "1": [5, 7]}) == Estimate(4.0, pytest.approx(2))
    assert estimate({"0": [1, 3]}) == Estimate(2.0, pytest.approx(1))
    assert estimate({"0": [1], "7": [2], "9": [6]}) == Estimate(
        3.0, pytest.approx(math.sqrt(7 / 3))
    )
    single = estimate({"0": [5]})
    assert single.mean == 5
    assert math.isnan(single.se)


def test_replicates_of_a_split_count_as_one_beside_those_of_others():
    """The mean is over splits: more replicates in one of them lend it no more weight."""
    assert estimate({"0": [1, 1, 1, 1], "1": [3]}).mean == 2


def test_values_of_a_difference():
    # Over splits: 2 and 4, so 1. Within: √(1² + 0²) and √(2² + 1²), so √6 / 2: the larger.
    a = {"0": [10, 12], "1": [20, 24]}
    b = {"0": [9, 9], "1": [17, 19]}
    assert difference(a, b) == Estimate(3.0, pytest.approx(math.sqrt(6) / 2))
    # Over splits: 0 and 10, so 5; within: √(1² + 1²) twice, so 1.
    a = {"0": [10, 12], "1": [30, 32]}
    b = {"0": [10, 12], "1": [20, 22]}
    assert difference(a, b) == Estimate(5.0, pytest.approx(5))
    # One split: of replicates alone.
    assert difference({"0": [10, 12]}, {"0": [5, 9]}) == Estimate(4.0, pytest.approx(math.sqrt(5)))
    # One replicate: over splits alone.
    paired = difference({"0": [10], "1": [24]}, {"0": [9], "1": [19]})
    assert paired == Estimate(3.0, pytest.approx(2))


def test_a_difference_is_of_the_splits_that_both_have():
    a = {"0": [100, 102], "1": [7, 7]}
    b = {"1": [4, 8], "2": [900, 905]}
    assert difference(a, b) == Estimate(1.0, pytest.approx(2))


def test_a_difference_without_a_shared_split_adds_both_errors_in_squares():
    unpaired = difference({"0": [1, 3]}, {"1": [4, 8]})
    assert unpaired == Estimate(-4.0, pytest.approx(math.sqrt(1 + 4)))
    assert math.isnan(difference({"0": [1, 3]}, {"1": [4]}).se)


def test_a_single_fit_has_no_error():
    loss = difference({"0": [5]}, {"0": [3]})
    assert loss.mean == 2
    assert math.isnan(loss.se)
    # Nor has a fit beside itself.
    assert math.isnan(difference({"0": [5]}, {"0": [5]}).se)


values_of_a_split = st.lists(st.floats(1, 1e4), min_size=2, max_size=5)


@given(st.lists(st.tuples(values_of_a_split, values_of_a_split), min_size=1, max_size=5))
def test_errors_are_their_definition(of_splits):
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


def test_no_trial_no_choice():
    verdict = select([])
    assert (verdict.kind, verdict.n_topics, verdict.best, verdict.trial) == (Kind.none, *[None] * 3)
    assert verdict.within == ()
    assert "no trial was completed" in verdict.sentence


def test_a_clear_optimum():
    verdict = select(curve({3: 130, 5: 110, 8: 100, 12: 107, 20: 115}))
    assert (verdict.kind, verdict.n_topics, verdict.best, verdict.trial) == (Kind.optimum, 8, 8, 8)
    assert verdict.within == (8,)
    assert verdict.warnings == ()
    assert "K = 8" in verdict.sentence
    assert "perplexity 100;" in verdict.sentence


def test_a_plateau_takes_its_smallest():
    # Each mean is off by 1, a difference by √2: 8 and 10 are within, 6 is not.
    verdict = select(curve({3: 130, 6: 101.5, 8: 101, 10: 100, 30: 110}))
    assert (verdict.kind, verdict.n_topics, verdict.best, verdict.trial) == (Kind.plateau, 8, 10, 8)
    assert verdict.within == (8, 10)
    assert "from K = 8 to 10" in verdict.sentence
    assert "(100 at K = 10)" in verdict.sentence
    assert "Take K = 8" in verdict.sentence


def test_a_plateau_over_most_of_the_range_is_no_optimum():
    means = {2: 130, 4: 101, 8: 100, 16: 101, 32: 110}
    flat = select(curve(means))
    # From 4 to 16 is log 4 of log 16: half of the range, and no more.
    assert (flat.kind, flat.n_topics) == (Kind.plateau, 4)
    flat = select(curve(means | {17: 101}))
    assert (flat.kind, flat.n_topics, flat.best) == (Kind.none, 4, 8)
    assert flat.within == (4, 8, 16, 17)
    assert "from K = 4 to 17" in flat.sentence
    assert "(100 at K = 8)" in flat.sentence
    assert "K = 4 is the smallest" in flat.sentence
    # The range is what could be tried, where that is known.
    assert select(curve(means | {17: 101}), bounds=(2, 100)).kind is Kind.plateau


def test_the_best_at_an_edge_of_the_range():
    top = select(curve({4: 130, 8: 110, 16: 100}))
    assert (top.kind, top.n_topics, top.within) == (Kind.edge, 16, (16,))
    assert "(100)" in top.sentence
    assert "K = 16" in top.sentence
    assert "beyond 16" in top.sentence
    bottom = select(curve({4: 100, 8: 110, 16: 130}))
    assert (bottom.kind, bottom.n_topics, bottom.within) == (Kind.edge, 4, (4,))
    assert "K = 4" in bottom.sentence
    assert "below 4" in bottom.sentence
    # Neither is one where more could be tried on both sides.
    for means in ({4: 130, 8: 110, 16: 100}, {4: 100, 8: 110, 16: 130}):
        assert select(curve(means), bounds=(2, 30)).kind is Kind.optimum


def test_two_topics_are_no_edge_for_there_is_nothing_below():
    verdict = select(curve({2: 100, 4: 110, 8: 130}))
    assert (verdict.kind, verdict.n_topics) == (Kind.optimum, 2)
    assert select(curve({2: 130, 4: 110, 8: 100})).kind is Kind.edge


def test_a_split_that_is_hard_for_all_hides_no_difference():
    """Means are off by 20 each, over splits; the difference is 2 on every one of them."""
    trials = [
        trial(3, {"0": [85], "1": [125]}),
        trial(5, {"0": [80], "1": [120]}),
        trial(7, {"0": [82], "1": [122]}),
    ]
    assert points(trials)[1].estimate(PERPLEXITY) == Estimate(100.0, pytest.approx(20))
    assert select(trials).within == (5,)


def test_what_is_not_stable_is_not_chosen():
    means = {3: 130, 5: 101, 8: 100, 12: 110}
    trials = curve(means)
    trials[2] = trial(8, [99, 101], 0.69)
    verdict = select(trials, bounds=BOUNDS)
    assert (verdict.kind, verdict.n_topics, verdict.best) == (Kind.optimum, 5, 5)
    assert verdict.warnings == ("Not considered, because their stability is below 0.7: K = 8.",)
    assert "perplexity 101;" in verdict.sentence
    assert select(trials, bounds=BOUNDS, stability_floor=0.69).best == 8
    trials[0] = trial(3, [129, 131], 0.2)
    assert select(trials).warnings == (
        "Not considered, because their stability is below 0.7: K = 3, 8.",
    )
    # The floor itself is enough, and it is the mean over splits that counts.
    of_splits = trial(5, {"0": [9], "1": [9]}, {"0": [0.5], "1": [0.75]})
    assert select([of_splits], stability_floor=0.625).n_topics == 5
    assert select([of_splits], stability_floor=0.626).n_topics is None


def test_nothing_stable_nothing_to_choose():
    verdict = select([trial(k, [99, 101], 0.3) for k in (3, 5, 8)], stability_floor=0.85)
    assert (verdict.kind, verdict.n_topics, verdict.best, verdict.trial) == (Kind.none, *[None] * 3)
    assert verdict.within == ()
    assert "0.85" in verdict.sentence


def test_one_replicate_has_no_stability_and_the_floor_is_not_applied():
    trials = [
        trial(k, {"0": [mean], "1": [mean + 9]}, None) for k, mean in {3: 9, 5: 5, 7: 8}.items()
    ]
    assert math.isnan(points(trials)[0].stability)
    verdict = select(trials, stability_floor=0.99)
    assert (verdict.kind, verdict.n_topics) == (Kind.optimum, 5)
    assert len(verdict.warnings) == 1
    assert "one replicate have no stability" in verdict.warnings[0]


def test_single_fits_are_compared_as_they_are_with_a_warning():
    verdict = select([trial(k, [mean], None) for k, mean in {3: 9, 5: 5, 7: 5, 9: 5.001}.items()])
    assert (verdict.n_topics, verdict.within) == (5, (5, 7))
    assert any("gives error bars" in warning for warning in verdict.warnings)
    assert any("no stability" in warning for warning in verdict.warnings)


def test_few_numbers_of_topics_are_said_to_be_few():
    warnings = {n: select(curve({2: 109, 4: 105, 8: 109})[:n]).warnings for n in (1, 2, 3)}
    assert "measured: 1" in warnings[1][0]
    assert "measured: 2" in warnings[2][0]
    assert warnings[3] == ()


def test_measures_of_a_point():
    tried = trial(5, {"0": [10, 12], "1": [20, 22]}, {"0": [0.8], "1": [0.9]})
    tried = replace(tried, values=tried.values | {NPMI: {"0": [0.1, 0.3], "1": [0.2, 0.4]}})
    (point,) = points([tried])
    assert (point.n_topics, point.trials, point.perplexity) == (5, (5,), 16)
    assert point.stability == pytest.approx(0.85)
    assert point.estimate(NPMI) == Estimate(pytest.approx(0.25), pytest.approx(0.05))
    assert point.estimate("topics/used") is None


def test_trials_that_differ_in_the_seed_alone_are_one():
    seeds = [
        trial(5, {"0": [10, 12]}, number=3, seed=0, lr=0.1),
        trial(5, {"1": [20, 22]}, number=4, seed=1, lr=0.1),
        trial(5, {"2": [30, 32]}, number=7, seed=2, lr=0.1),
    ]
    (point,) = points(seeds)
    (whole,) = points([trial(5, {"0": [10, 12], "1": [20, 22], "2": [30, 32]})])
    assert point.values == whole.values
    assert point.trials == (3, 4, 7)
    assert point.perplexity == 21
    assert select(seeds).trial in point.trials
    # The same run twice is no second split.
    (twice,) = points([seeds[0], replace(seeds[0], number=9)])
    assert twice.estimate(PERPLEXITY) == points(seeds[:1])[0].estimate(PERPLEXITY)


def test_of_several_settings_the_lowest_mean_perplexity_counts():
    tried = [
        trial(5, {"0": [10, 10]}, number=0, seed=0, lr=0.1),
        trial(5, {"1": [30, 30]}, number=1, seed=1, lr=0.1),
        trial(5, {"0": [15, 15]}, number=2, seed=0, lr=0.2),
        trial(5, {"1": [17, 17]}, 0.8, number=3, seed=1, lr=0.2),
        trial(8, {"0": [18, 18], "1": [18, 18]}, number=4, seed=0, lr=0.1),
    ]
    five, eight = points(tried)
    assert (five.n_topics, five.trials, five.perplexity) == (5, (2, 3), 16)
    assert five.stability == pytest.approx(0.85)
    assert (eight.n_topics, eight.trials) == (8, (4,))
    assert select(tried).trial in five.trials


@st.composite
def sweeps(draw, min_size=1, stable=(0.5, 0.7, 0.9)):
    """Trials of different K on the same splits: some stable, some not, some with settings."""
    n_splits, n_replicates = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 4]))
    numbers = draw(st.lists(st.integers(*BOUNDS), min_size=min_size, max_size=6, unique=True))
    return [draw(tries(n_topics, n_splits, n_replicates, stable)) for n_topics in numbers]


@st.composite
def tries(draw, n_topics, n_splits, n_replicates, stable=(0.5, 0.7, 0.9)):
    """A trial of one K."""
    level = draw(st.integers(100, 130))
    noise = st.lists(st.integers(-6, 6), min_size=n_replicates, max_size=n_replicates)
    perplexity = {str(s): [level + v for v in draw(noise)] for s in range(n_splits)}
    stability = draw(st.sampled_from(stable)) if n_replicates > 1 else None
    return trial(n_topics, perplexity, stability)


def shape(tried):
    """Splits and replicates of a trial."""
    by_split = tried.values[PERPLEXITY]
    return len(by_split), len(by_split["0"])


@given(sweeps())
def test_the_choice_is_its_definition(trials):
    """The smallest stable K within one standard error, of the difference, of the stable best."""
    mean, stable = {}, []
    for tried in trials:
        by_split = tried.values[PERPLEXITY].values()
        mean[tried.n_topics] = statistics.fmean(map(statistics.fmean, by_split))
        stability = tried.values.get(STABILITY)
        if stability is None or statistics.fmean(v for (v,) in stability.values()) >= 0.7:
            stable.append(tried)
    verdict = select(trials, bounds=BOUNDS)
    if not stable:
        assert (verdict.kind, verdict.n_topics) == (Kind.none, None)
        return
    best = min(stable, key=lambda tried: (mean[tried.n_topics], tried.n_topics))
    within = []
    for tried in stable:
        loss = difference(tried.values[PERPLEXITY], best.values[PERPLEXITY])
        se = 0 if math.isnan(loss.se) else loss.se
        if mean[tried.n_topics] - mean[best.n_topics] <= se:
            within.append(tried.n_topics)
    assert verdict.best == best.n_topics
    assert verdict.within == tuple(sorted(within))
    assert verdict.n_topics == min(within)


@given(sweeps())
def test_the_choice_is_stable_and_no_larger_than_the_best(trials):
    verdict = select(trials, bounds=BOUNDS)
    assume(verdict.n_topics is not None)
    assert verdict.n_topics <= verdict.best
    assert {verdict.n_topics, verdict.best} <= set(verdict.within)
    of_topics = {point.n_topics: point for point in points(trials)}
    assert all(not of_topics[k].stability < 0.7 for k in verdict.within)
    assert verdict.trial in of_topics[verdict.n_topics].trials
    assert f"K = {verdict.n_topics}" in verdict.sentence
    assert f"{of_topics[verdict.best].perplexity:.4g}" in verdict.sentence


@given(sweeps(min_size=2), st.data())
def test_measures_of_one_number_of_topics_do_not_depend_on_the_others(trials, data):
    kept = data.draw(st.lists(st.sampled_from(trials), min_size=1, unique_by=id))
    together = {point.n_topics: point for point in points(trials)}
    for point in points(kept):
        assert point == together[point.n_topics]
        assert point == points([t for t in trials if t.n_topics == point.n_topics])[0]


@given(sweeps(), st.data())
def test_a_number_of_topics_that_is_worse_changes_nothing(trials, data):
    """Nor does one that is not stable, however low its perplexity."""
    before = select(trials, bounds=BOUNDS)
    # Of one K alone there is no verdict, but a note that nothing was compared.
    assume(sum(not point.stability < 0.7 for point in points(trials)) > 1)
    taken = {tried.n_topics for tried in trials}
    n_topics = data.draw(st.integers(*BOUNDS).filter(lambda k: k not in taken))
    added = data.draw(tries(n_topics, *shape(trials[0])))
    (best,) = (tried for tried in trials if tried.n_topics == before.best)
    loss = difference(added.values[PERPLEXITY], best.values[PERPLEXITY])
    unstable = points([added])[0].stability < 0.7
    assume(unstable or loss.mean > (0 if math.isnan(loss.se) else loss.se))
    after = select([*trials, added], bounds=BOUNDS)
    assert replace(after, warnings=()) == replace(before, warnings=())
    # Without bounds, the words may change and the choice may not.
    before, after = select(trials), select([*trials, added])
    assert (after.n_topics, after.best, after.within, after.trial) == (
        (before.n_topics, before.best, before.within, before.trial)
    )


@given(sweeps(), st.data())
def test_the_order_of_trials_does_not_matter(trials, data):
    shuffled = data.draw(st.permutations(trials))
    assert points(shuffled) == points(trials)
    assert select(shuffled, bounds=BOUNDS) == select(trials, bounds=BOUNDS)


@given(sweeps(), st.data())
def test_the_order_of_seeds_does_not_matter(trials, data):
    """Each split as a trial of its own; which of their numbers is named is another matter."""
    alone = [
        replace(
            tried,
            number=100 * tried.n_topics + int(seed),
            params=tried.params | {"seed": int(seed)},
            values={name: {seed: by_split[seed]} for name, by_split in tried.values.items()},
        )
        for tried in trials
        for seed in tried.values[PERPLEXITY]
    ]
    whole = select(trials, bounds=BOUNDS)
    found = select(data.draw(st.permutations(alone)), bounds=BOUNDS)
    assert replace(found, trial=None) == replace(whole, trial=None)
    if found.trial is not None:
        assert found.trial // 100 == found.n_topics


@given(sweeps(), st.lists(st.integers(-60, 400), min_size=4, max_size=4))
def test_how_hard_a_split_is_changes_neither_choice_nor_differences(trials, hardness):
    def harder(by_split):
        return {s: [v + hardness[int(s)] for v in values] for s, values in by_split.items()}

    moved = [
        replace(t, values=t.values | {PERPLEXITY: harder(t.values[PERPLEXITY])}) for t in trials
    ]
    before, after = select(trials, bounds=BOUNDS), select(moved, bounds=BOUNDS)
    assert replace(after, sentence="") == replace(before, sentence="")
    for a, moved_a in zip(trials, moved, strict=True):
        for b, moved_b in zip(trials, moved, strict=True):
            found = difference(moved_a.values[PERPLEXITY], moved_b.values[PERPLEXITY])
            expected = difference(a.values[PERPLEXITY], b.values[PERPLEXITY])
            assert found.mean == expected.mean
            assert found.se == pytest.approx(expected.se, nan_ok=True)


@given(sweeps(), st.integers(-8, 8))
def test_the_unit_of_perplexity_does_not_matter(trials, power):
    def scaled(by_split):
        return {split: [v * 2.0**power for v in values] for split, values in by_split.items()}

    moved = [
        replace(t, values=t.values | {PERPLEXITY: scaled(t.values[PERPLEXITY])}) for t in trials
    ]
    before, after = select(trials, bounds=BOUNDS), select(moved, bounds=BOUNDS)
    assert replace(after, sentence="") == replace(before, sentence="")


@given(
    sweeps(),
    st.lists(st.sampled_from(["PRUNED", "FAIL", "RUNNING", "WAITING"]), min_size=1, max_size=4),
    st.data(),
)
def test_only_complete_trials_count(trials, states, data):
    """Even where they have values, and the lowest."""
    others = [
        trial(data.draw(st.integers(*BOUNDS)), [1.0, 1.0], 1.0, number=200 + i, state=state)
        for i, state in enumerate(states)
    ]
    everything = data.draw(st.permutations([*trials, *others]))
    assert points(everything) == points(trials)
    # The others may add warnings. Nothing else changes, unless most of the settings failed.
    ended = {t.n_topics for t in everything if t.state in ("COMPLETE", "PRUNED")}
    lost = {t.n_topics for t in others if t.state == "FAIL"} - ended
    verdict = select(everything, bounds=BOUNDS)
    if len(lost) > len(ended):
        assert (verdict.kind, verdict.n_topics) == (Kind.failed, None)
    else:
        without = select(trials, bounds=BOUNDS)
        assert replace(verdict, warnings=()) == replace(without, warnings=())
    assert select(others).kind is Kind.none


def test_a_trial_without_held_out_cells_does_not_count():
    unmeasured = replace(trial(5, [1.0]), values={STABILITY: {"0": [0.9]}})
    assert points([unmeasured]) == []
    assert select([unmeasured]).n_topics is None


def test_the_trial_named_does_not_depend_on_the_order():
    seeds = [trial(5, {str(seed): [9, 11]}, number=seed, seed=seed) for seed in range(3)]
    assert select(seeds).trial == select(seeds[::-1]).trial


def test_a_number_of_topics_that_missed_the_hard_split_is_not_the_better_for_it():
    """A grid over seeds with one failure: on the split that both have, K = 7 is better by 8."""
    verdict = select(
        [
            trial(3, {"0": [140, 141], "1": [170, 171]}),
            trial(5, {"0": [98, 99]}),
            trial(7, {"0": [90, 91], "1": [120, 121]}),
            trial(9, {"0": [110, 111], "1": [140, 141]}),
        ]
    )
    assert (verdict.n_topics, verdict.best) == (7, 7)


def test_a_perplexity_that_is_no_number_is_not_the_lowest():
    verdict = select([trial(3, [math.nan, 9]), *curve({5: 100, 7: 110, 9: 120})])
    assert verdict.best == 5


def test_an_infinite_perplexity_is_worse_than_any():
    """Of topics that give a held-out count probability 0."""
    trials = curve({3: 110, 5: 100, 7: 110})
    verdict = select([*trials, trial(9, [math.inf, math.inf])], bounds=BOUNDS)
    assert verdict == select(trials, bounds=BOUNDS)


def test_a_better_number_of_topics_that_is_not_stable_is_not_said_to_be_worse():
    trials = [*curve({3: 110, 5: 100}), trial(7, [80, 81], 0.5)]
    assert "every other K that was measured is worse" not in select(trials, bounds=BOUNDS).sentence


def test_without_errors_none_is_spoken_of():
    trials = [trial(k, [mean], None) for k, mean in {3: 110, 5: 100, 7: 100.0001}.items()]
    assert "standard error" not in select(trials, bounds=BOUNDS).sentence


def test_failed_trials_are_counted_by_number_of_topics():
    trials = [
        *curve({5: 110, 8: 100, 12: 107, 20: 115}),
        failed(8, 101, lr=0.2),
        failed(30, 102),
        # Of a run that was never composed, the settings tell the number of topics.
        replace(failed(1, 103), n_topics=0),
    ]
    verdict = select(trials)
    assert (verdict.kind, verdict.n_topics) == (Kind.optimum, 8)
    assert verdict.warnings[0] == (
        "Failed trials: 3 of 7 (1 of 1 with K = 1, 1 of 2 with K = 8, 1 of 1 with K = 30)."
    )


@pytest.mark.parametrize("n_failed", range(8))
def test_nothing_is_chosen_where_most_trials_failed(n_failed):
    sizes = [4, 6, 8, 11, 14, 18, 23, 29]
    complete = curve({k: 100 + abs(k - 23) for k in sizes[n_failed:]})
    verdict = select([*complete, *(failed(k, k) for k in sizes[:n_failed])], bounds=(2, 30))
    told = f"Failed trials: {n_failed} of 8" in " ".join(verdict.warnings)
    assert told == (n_failed > 0)
    if n_failed <= 4:
        assert (verdict.kind, verdict.n_topics, verdict.trial) == (Kind.optimum, 23, 23)
    else:
        assert (verdict.kind, verdict.n_topics, verdict.best) == (Kind.failed, None, None)
        assert verdict.trial is None
        assert f"{n_failed} of 8 trials failed" in verdict.sentence


def test_nothing_is_chosen_where_most_of_the_range_failed():
    """Many trials of two numbers of topics say nothing of the five that could not be fitted."""
    complete = [trial(k, [99, 101], number=10 * k + i, lr=i) for k in (2, 3) for i in range(5)]
    lost = [failed(k, k) for k in (5, 8, 12, 20, 30)]
    verdict = select([*complete, *lost])
    assert (verdict.kind, verdict.n_topics) == (Kind.failed, None)
    assert "all trials of 5 of 7 numbers of topics failed" in verdict.sentence


def test_few_measured_numbers_of_topics_are_said_with_those_that_failed():
    verdict = select([*curve({5: 110, 8: 100}), failed(12, 12), failed(20, 20)])
    assert verdict.n_topics == 8
    assert "Numbers of topics measured: 2 (K = 12, 20 failed); try more." in verdict.warnings


def test_what_was_interrupted_pruned_or_tried_again_did_not_fail():
    trials = [
        *curve({5: 110, 8: 100, 12: 107}),
        failed(20, 20, INTERRUPTED),
        failed(21, 21, KILLED),
        replace(trial(25, [1]), state="PRUNED", values={}),
        replace(trial(26, [1]), state="RUNNING", values={}),
        failed(5, 30, "its process was killed by signal 9"),
    ]
    assert outcomes(trials) == {5: [False], 8: [False], 12: [False], 25: [False]}
    assert not any("ailed" in warning for warning in select(trials).warnings)


def test_a_perplexity_that_is_no_number_is_a_failure():
    trials = [*curve({5: 110, 8: 100, 12: 107}), trial(20, [math.nan, 1.0])]
    assert outcomes(trials)[20] == [True]
    assert "Failed trials: 1 of 4 (1 of 1 with K = 20)." in select(trials).warnings


def test_where_all_failed_the_failures_are_counted_too():
    verdict = select([failed(5, 0), failed(8, 1)])
    assert "no trial was completed" in verdict.sentence
    assert verdict.warnings == ("Failed trials: 2 of 2 (1 of 1 with K = 5, 1 of 1 with K = 8).",)

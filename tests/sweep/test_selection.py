"""The verdict on the number of topics: examples, its definition, and its invariances.

Generated perplexities are whole, and numbers of splits and replicates powers of two, so that sums
and means are exact.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from topicell.config import (
    DataConfig,
    ModelConfig,
    PreprocessConfig,
    ReportConfig,
    RunConfig,
    SimulationConfig,
    TrackingConfig,
    TrainConfig,
)
from topicell.data.preprocessing import held_in_memory
from topicell.evaluation.estimates import Estimate, difference
from topicell.run import run
from topicell.sweep.selection import SUPPORT, Kind, outcomes, points, select
from topicell.sweep.trials import INTERRUPTED, KILLED, PERPLEXITY, TOPICS, Trial
from topicell.tracking.runs import open_tracker

NPMI = "topics/coherence_npmi"
BOUNDS = (2, 40)
FEW_AGAIN = "Not considered, because fewer than 50 % of the topics are found again: K = {}."


def trial(n_topics, perplexity, support=0.9, *, number=None, state="COMPLETE", **params):
    """Return a trial with perplexities and shares found again by split, or of one split."""
    values = {PERPLEXITY: perplexity if isinstance(perplexity, dict) else {"0": perplexity}}
    if isinstance(support, dict):
        values[SUPPORT] = support
    elif support is not None:
        values[SUPPORT] = {split: [support] for split in values[PERPLEXITY]}
    return Trial(
        number=n_topics if number is None else number,
        state=state,
        params={TOPICS: n_topics} | params,
        n_topics=n_topics,
        values=values,
    )


def curve(means, error=1.0):
    """Return trials with these means, of one split with two replicates."""
    return [trial(k, [mean - error, mean + error]) for k, mean in means.items()]


def failed(n_topics, number, error="NonFiniteError: training stopped", **params):
    """Return a trial that failed before it had any value."""
    return Trial(
        number=number,
        state="FAIL",
        params={TOPICS: n_topics} | params,
        n_topics=n_topics,
        error=error,
    )


def test_without_trials_there_is_no_choice():
    verdict = select([])
    assert (verdict.kind, verdict.n_topics, verdict.best, verdict.trial) == (Kind.none, *[None] * 3)
    assert verdict.within == ()
    assert "no trial was completed" in verdict.sentence


def test_a_clear_optimum_is_chosen():
    verdict = select(curve({3: 130, 5: 110, 8: 100, 12: 107, 20: 115}))
    assert (verdict.kind, verdict.n_topics, verdict.best, verdict.trial) == (Kind.optimum, 8, 8, 8)
    assert verdict.within == (8,)
    assert verdict.warnings == ()
    assert "K = 8" in verdict.sentence
    assert "perplexity 100;" in verdict.sentence


def test_the_smallest_k_of_a_plateau_is_chosen():
    # A mean has the error 1, a difference √2: 8 and 10 are within it, 6 is not.
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
    # With bounds, these are the range.
    assert select(curve(means | {17: 101}), bounds=(2, 100)).kind is Kind.plateau


def test_a_best_k_at_the_edge_of_the_range_is_said_to_be_there():
    top = select(curve({4: 130, 8: 110, 16: 100}))
    assert (top.kind, top.n_topics, top.within) == (Kind.edge, 16, (16,))
    assert "(100)" in top.sentence
    assert "K = 16" in top.sentence
    assert "beyond 16" in top.sentence
    bottom = select(curve({4: 100, 8: 110, 16: 130}))
    assert (bottom.kind, bottom.n_topics, bottom.within) == (Kind.edge, 4, (4,))
    assert "K = 4" in bottom.sentence
    assert "below 4" in bottom.sentence
    # With bounds beyond them, neither is at an edge.
    for means in ({4: 130, 8: 110, 16: 100}, {4: 100, 8: 110, 16: 130}):
        assert select(curve(means), bounds=(2, 30)).kind is Kind.optimum


def test_two_topics_are_not_an_edge():
    verdict = select(curve({2: 100, 4: 110, 8: 130}))
    assert (verdict.kind, verdict.n_topics) == (Kind.optimum, 2)
    assert select(curve({2: 130, 4: 110, 8: 100})).kind is Kind.edge


def test_differences_are_paired_by_split():
    """Each mean has an error of 20 over splits; the difference is 2 on every split."""
    trials = [
        trial(3, {"0": [85], "1": [125]}),
        trial(5, {"0": [80], "1": [120]}),
        trial(7, {"0": [82], "1": [122]}),
    ]
    assert points(trials)[1].estimate(PERPLEXITY) == Estimate(100.0, pytest.approx(20))
    assert select(trials).within == (5,)


def test_a_k_with_little_support_is_not_chosen():
    means = {3: 130, 5: 101, 8: 100, 12: 110}
    trials = curve(means)
    trials[2] = trial(8, [99, 101], 0.49)
    verdict = select(trials, bounds=BOUNDS)
    assert (verdict.kind, verdict.n_topics, verdict.best) == (Kind.optimum, 5, 5)
    assert verdict.warnings == (FEW_AGAIN.format("8"),)
    assert "perplexity 101;" in verdict.sentence
    assert select(trials, bounds=BOUNDS, support_floor=0.49).best == 8
    trials[0] = trial(3, [129, 131], 0.2)
    assert select(trials).warnings == (FEW_AGAIN.format("3, 8"),)
    # The floor itself is enough, and it is the mean over splits that counts.
    of_splits = trial(5, {"0": [9], "1": [9]}, {"0": [0.5], "1": [0.75]})
    assert select([of_splits], support_floor=0.625).n_topics == 5
    assert select([of_splits], support_floor=0.626).n_topics is None


def test_without_support_for_any_k_there_is_no_choice():
    verdict = select([trial(k, [99, 101], 0.3) for k in (3, 5, 8)], support_floor=0.85)
    assert (verdict.kind, verdict.n_topics, verdict.best, verdict.trial) == (Kind.none, *[None] * 3)
    assert verdict.within == ()
    assert "fewer than 85 % of the topics again" in verdict.sentence


def test_the_floor_does_not_apply_to_one_replicate():
    trials = [
        trial(k, {"0": [mean], "1": [mean + 9]}, None) for k, mean in {3: 9, 5: 5, 7: 8}.items()
    ]
    assert math.isnan(points(trials)[0].found_again)
    verdict = select(trials, support_floor=0.99)
    assert (verdict.kind, verdict.n_topics) == (Kind.optimum, 5)
    assert len(verdict.warnings) == 1
    assert "One replicate cannot tell" in verdict.warnings[0]


def test_single_fits_are_compared_with_a_warning():
    verdict = select([trial(k, [mean], None) for k, mean in {3: 9, 5: 5, 7: 5, 9: 5.001}.items()])
    assert (verdict.n_topics, verdict.within) == (5, (5, 7))
    assert any("gives error bars" in warning for warning in verdict.warnings)
    assert any("One replicate cannot tell" in warning for warning in verdict.warnings)


def test_one_or_two_numbers_of_topics_have_a_warning():
    warnings = {n: select(curve({2: 109, 4: 105, 8: 109})[:n]).warnings for n in (1, 2, 3)}
    assert "measured: 1" in warnings[1][0]
    assert "measured: 2" in warnings[2][0]
    assert warnings[3] == ()


def test_a_point_has_the_estimates_of_its_trial():
    tried = trial(5, {"0": [10, 12], "1": [20, 22]}, {"0": [0.8], "1": [0.9]})
    tried = replace(tried, values=tried.values | {NPMI: {"0": [0.1, 0.3], "1": [0.2, 0.4]}})
    (point,) = points([tried])
    assert (point.n_topics, point.trials, point.perplexity) == (5, (5,), 16)
    assert point.found_again == pytest.approx(0.85)
    assert point.estimate(NPMI) == Estimate(pytest.approx(0.25), pytest.approx(0.05))
    assert point.estimate("topics/used") is None


def test_trials_that_differ_only_in_the_seed_are_one_point():
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
    # The same run twice is not a second split.
    (twice,) = points([seeds[0], replace(seeds[0], number=9)])
    assert twice.estimate(PERPLEXITY) == points(seeds[:1])[0].estimate(PERPLEXITY)


def test_a_point_has_the_settings_with_the_lowest_mean_perplexity():
    tried = [
        trial(5, {"0": [10, 10]}, number=0, seed=0, lr=0.1),
        trial(5, {"1": [30, 30]}, number=1, seed=1, lr=0.1),
        trial(5, {"0": [15, 15]}, number=2, seed=0, lr=0.2),
        trial(5, {"1": [17, 17]}, 0.8, number=3, seed=1, lr=0.2),
        trial(8, {"0": [18, 18], "1": [18, 18]}, number=4, seed=0, lr=0.1),
    ]
    five, eight = points(tried)
    assert (five.n_topics, five.trials, five.perplexity) == (5, (2, 3), 16)
    assert five.found_again == pytest.approx(0.85)
    assert (eight.n_topics, eight.trials) == (8, (4,))
    assert select(tried).trial in five.trials


@st.composite
def sweeps(draw, min_size=1, shares=(0.3, 0.5, 0.9)):
    """Generate trials of different K on the same splits, some with little support."""
    n_splits, n_replicates = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 4]))
    numbers = draw(st.lists(st.integers(*BOUNDS), min_size=min_size, max_size=6, unique=True))
    return [draw(trials_of_one_k(n_topics, n_splits, n_replicates, shares)) for n_topics in numbers]


@st.composite
def trials_of_one_k(draw, n_topics, n_splits, n_replicates, shares=(0.3, 0.5, 0.9)):
    """Generate a trial of one K."""
    level = draw(st.integers(100, 130))
    noise = st.lists(st.integers(-6, 6), min_size=n_replicates, max_size=n_replicates)
    perplexity = {str(s): [level + v for v in draw(noise)] for s in range(n_splits)}
    support = draw(st.sampled_from(shares)) if n_replicates > 1 else None
    return trial(n_topics, perplexity, support)


def shape(tried):
    """Return the numbers of splits and replicates of a trial."""
    by_split = tried.values[PERPLEXITY]
    return len(by_split), len(by_split["0"])


@given(sweeps())
def test_the_choice_is_that_of_the_definition(trials):
    """The smallest K with support whose difference from the best such K is at most its error."""
    mean, supported = {}, []
    for tried in trials:
        by_split = tried.values[PERPLEXITY].values()
        mean[tried.n_topics] = statistics.fmean(map(statistics.fmean, by_split))
        support = tried.values.get(SUPPORT)
        if support is None or statistics.fmean(v for (v,) in support.values()) >= 0.5:
            supported.append(tried)
    verdict = select(trials, bounds=BOUNDS)
    if not supported:
        assert (verdict.kind, verdict.n_topics) == (Kind.none, None)
        return
    best = min(supported, key=lambda tried: (mean[tried.n_topics], tried.n_topics))
    within = []
    for tried in supported:
        loss = difference(tried.values[PERPLEXITY], best.values[PERPLEXITY])
        se = 0 if math.isnan(loss.se) else loss.se
        if mean[tried.n_topics] - mean[best.n_topics] <= se:
            within.append(tried.n_topics)
    assert verdict.best == best.n_topics
    assert verdict.within == tuple(sorted(within))
    assert verdict.n_topics == min(within)
    of_topics = {point.n_topics: point for point in points(trials)}
    assert verdict.trial in of_topics[verdict.n_topics].trials
    assert f"K = {verdict.n_topics}" in verdict.sentence
    assert f"{of_topics[verdict.best].perplexity:.4g}" in verdict.sentence


@given(sweeps(min_size=2), st.data())
def test_estimates_of_one_k_do_not_depend_on_the_others(trials, data):
    kept = data.draw(st.lists(st.sampled_from(trials), min_size=1, unique_by=id))
    together = {point.n_topics: point for point in points(trials)}
    for point in points(kept):
        assert point == together[point.n_topics]
        assert point == points([t for t in trials if t.n_topics == point.n_topics])[0]


@given(sweeps(), st.data())
def test_adding_a_worse_k_changes_nothing(trials, data):
    """The same holds for one with little support, however low its perplexity."""
    before = select(trials, bounds=BOUNDS)
    # With one K there is no verdict.
    assume(sum(not point.found_again < 0.5 for point in points(trials)) > 1)
    taken = {tried.n_topics for tried in trials}
    n_topics = data.draw(st.integers(*BOUNDS).filter(lambda k: k not in taken))
    added = data.draw(trials_of_one_k(n_topics, *shape(trials[0])))
    (best,) = (tried for tried in trials if tried.n_topics == before.best)
    loss = difference(added.values[PERPLEXITY], best.values[PERPLEXITY])
    refused = points([added])[0].found_again < 0.5
    assume(refused or loss.mean > (0 if math.isnan(loss.se) else loss.se))
    after = select([*trials, added], bounds=BOUNDS)
    assert replace(after, warnings=()) == replace(before, warnings=())
    # Without bounds, the words may change, but not the choice.
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
    """Each split is a separate trial here; `verdict.trial` is one of them."""
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
def test_a_constant_added_to_a_split_changes_neither_choice_nor_differences(trials, hardness):
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
    """Other trials do not count even if they have the lowest values."""
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
    unmeasured = replace(trial(5, [1.0]), values={SUPPORT: {"0": [0.9]}})
    assert points([unmeasured]) == []
    assert select([unmeasured]).n_topics is None


def test_the_chosen_trial_does_not_depend_on_the_order():
    seeds = [trial(5, {str(seed): [9, 11]}, number=seed, seed=seed) for seed in range(3)]
    assert select(seeds).trial == select(seeds[::-1]).trial


def test_a_k_without_the_hardest_split_has_no_advantage():
    """In a grid over seeds one run failed; on the split that both K have, K = 7 is better by 8."""
    verdict = select(
        [
            trial(3, {"0": [140, 141], "1": [170, 171]}),
            trial(5, {"0": [98, 99]}),
            trial(7, {"0": [90, 91], "1": [120, 121]}),
            trial(9, {"0": [110, 111], "1": [140, 141]}),
        ]
    )
    assert (verdict.n_topics, verdict.best) == (7, 7)


def test_an_infinite_perplexity_is_worse_than_any():
    """Such topics give a held-out count probability 0."""
    trials = curve({3: 110, 5: 100, 7: 110})
    verdict = select([*trials, trial(9, [math.inf, math.inf])], bounds=BOUNDS)
    assert verdict == select(trials, bounds=BOUNDS)


def test_a_better_k_with_little_support_is_not_called_worse():
    trials = [*curve({3: 110, 5: 100}), trial(7, [80, 81], 0.5)]
    assert "every other K that was measured is worse" not in select(trials, bounds=BOUNDS).sentence


def test_the_verdict_on_single_fits_does_not_mention_errors():
    trials = [trial(k, [mean], None) for k, mean in {3: 110, 5: 100, 7: 100.0001}.items()]
    assert "standard error" not in select(trials, bounds=BOUNDS).sentence


def test_failed_trials_are_counted_by_number_of_topics():
    trials = [
        *curve({5: 110, 8: 100, 12: 107, 20: 115}),
        failed(8, 101, lr=0.2),
        failed(30, 102),
        # The number of topics of a run that did not start is in its settings.
        replace(failed(1, 103), n_topics=0),
    ]
    verdict = select(trials)
    assert (verdict.kind, verdict.n_topics) == (Kind.optimum, 8)
    assert verdict.warnings[0] == (
        "Failed trials: 3 of 7 (1 of 1 with K = 1, 1 of 2 with K = 8, 1 of 1 with K = 30)."
    )


@pytest.mark.parametrize("n_failed", range(8))
def test_nothing_is_chosen_if_most_trials_failed(n_failed):
    sizes = [4, 6, 8, 11, 14, 18, 23, 29]
    complete = curve({k: 100 + abs(k - 23) for k in sizes[n_failed:]})
    verdict = select([*complete, *(failed(k, k) for k in sizes[:n_failed])], bounds=(2, 30))
    is_counted = f"Failed trials: {n_failed} of 8" in " ".join(verdict.warnings)
    assert is_counted == (n_failed > 0)
    if n_failed <= 4:
        assert (verdict.kind, verdict.n_topics, verdict.trial) == (Kind.optimum, 23, 23)
    else:
        assert (verdict.kind, verdict.n_topics, verdict.best) == (Kind.failed, None, None)
        assert verdict.trial is None
        assert f"{n_failed} of 8 trials failed" in verdict.sentence


def test_nothing_is_chosen_if_most_of_the_range_failed():
    """Many trials of two K do not make up for five K that could not be fitted."""
    complete = [trial(k, [99, 101], number=10 * k + i, lr=i) for k in (2, 3) for i in range(5)]
    lost = [failed(k, k) for k in (5, 8, 12, 20, 30)]
    verdict = select([*complete, *lost])
    assert (verdict.kind, verdict.n_topics) == (Kind.failed, None)
    assert "all trials of 5 of 7 numbers of topics failed" in verdict.sentence


def test_the_warning_about_few_k_names_those_that_failed():
    verdict = select([*curve({5: 110, 8: 100}), failed(12, 12), failed(20, 20)])
    assert verdict.n_topics == 8
    assert "Numbers of topics measured: 2 (K = 12, 20 failed); try more." in verdict.warnings


def test_interrupted_pruned_and_repeated_trials_are_not_failures():
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


def test_failures_are_counted_if_all_trials_failed():
    verdict = select([failed(5, 0), failed(8, 1)])
    assert "no trial was completed" in verdict.sentence
    assert verdict.warnings == ("Failed trials: 2 of 2 (1 of 1 with K = 5, 1 of 1 with K = 8).",)


N_PLANTED = 5


def fit(n_topics, folder):
    simulation = SimulationConfig(n_cells=600, n_genes=200, n_topics=N_PLANTED, mean_counts=600)
    config = RunConfig(
        data=DataConfig(name="simulated", simulation=simulation),
        preprocess=PreprocessConfig(n_variable_genes=None, drop_genes=[]),
        model=ModelConfig(n_topics=n_topics),
        train=TrainConfig(n_replicates=2, progress=False),
        tracking=TrackingConfig(enabled=False),
        report=ReportConfig(enabled=False),
    )
    config.evaluate.n_splits = 2
    config.evaluate.differential_expression = False
    result = run(config, open_tracker(config.tracking, folder))
    return Trial(
        number=n_topics - 3,
        state="COMPLETE",
        params={TOPICS: n_topics},
        n_topics=n_topics,
        values=result.values,
    )


@pytest.mark.slow
def test_the_planted_number_of_topics_is_found(tmp_path):
    with held_in_memory():
        trials = [fit(n_topics, tmp_path / str(n_topics)) for n_topics in range(3, 7)]
    verdict = select(trials)
    assert verdict.n_topics == N_PLANTED, verdict
    assert verdict.trial == N_PLANTED - 3
    assert verdict.kind in (Kind.optimum, Kind.plateau)
    # Measured: 54.3, 45.3, 39.1 and 39.1. The difference between 5 and 6 is less than that
    # between splits, and is measured because both are compared on the same cells.
    three, four, five, six = points(trials)
    assert three.perplexity > four.perplexity > 1.1 * five.perplexity
    assert six.perplexity < 1.01 * five.perplexity
    own = five.estimate(PERPLEXITY).se
    assert difference(six.values[PERPLEXITY], five.values[PERPLEXITY]).se < own / 10
    assert five.estimate(SUPPORT).mean > 0.99


def test_a_perplexity_that_is_nan_is_a_failure_and_not_the_lowest():
    trials = [*curve({5: 100, 7: 110, 9: 120}), trial(3, [math.nan, 9])]
    assert outcomes(trials)[3] == [True]
    verdict = select(trials)
    assert verdict.best == 5
    assert "Failed trials: 1 of 4 (1 of 1 with K = 3)." in verdict.warnings

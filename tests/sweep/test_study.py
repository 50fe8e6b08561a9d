"""A study: its budget is exact, proposals are distinct, and it continues after any end."""

from __future__ import annotations

import contextlib
import json
import math
from types import SimpleNamespace

import optuna
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from topicell.config import Pruner, Sampler, SweepConfig
from topicell.errors import InputError
from topicell.sweep import storage as module
from topicell.sweep import study as study_module
from topicell.sweep.storage import close_storage, open_storage
from topicell.sweep.study import (
    MAX_POINTS,
    Study,
    make_pruner,
    make_sampler,
    points_of,
    study_name,
)
from topicell.sweep.trials import KILLED, PERPLEXITY
from topicell.tracking.store import without_password

TOPICS, RATE, FLAG = "model.n_topics", "train.learning_rate", "model.sparse"
FINITE = {TOPICS: IntDistribution(2, 5), FLAG: CategoricalDistribution(["True", "False"])}
INFINITE = {TOPICS: IntDistribution(2, 30), RATE: FloatDistribution(1e-3, 1, log=True)}
N_POINTS = 8

ASKS_AND_WAITS = """
import json, sys
from optuna.distributions import json_to_distribution
from topicell.config import SweepConfig
from topicell.sweep import storage as module
from topicell.sweep.study import Study

arguments = json.loads(sys.argv[1])
module.HEARTBEAT_SECONDS, module.STALE_SECONDS = arguments["seconds"]
space = {name: json_to_distribution(text) for name, text in arguments["space"].items()}
study = Study(SweepConfig(**arguments["settings"]), space, {}, 0)
for i in range(arguments["n_asked"]):
    trial = study.ask()
    study.note(trial.number, run_id=f"run {i}", folder=f"folder {i}", n_topics=3)
    print(json.dumps([trial.number, trial.params]), flush=True)
sys.stdin.readline()
"""

JOINS = """
import json, sys, time
from optuna.distributions import json_to_distribution
from topicell.config import SweepConfig
from topicell.sweep.study import Study

arguments = json.loads(sys.argv[1])
space = {name: json_to_distribution(text) for name, text in arguments["space"].items()}
print("ready", flush=True)
sys.stdin.readline()
study = Study(SweepConfig(**arguments["settings"]), space, {}, 0)
while (trial := study.ask()) is not None:
    time.sleep(0.05)
    study.complete(trial.number, float(trial.number), {})
    print(json.dumps([trial.number, trial.params]), flush=True)
study.close()
"""


@pytest.fixture
def journal(tmp_path):
    """Return the address of a journal: it is created fastest."""
    return address("journal", tmp_path)


def address(kind, folder, name="optuna.db"):
    return f"sqlite:///{folder / name}" if kind == "sqlite" else f"journal:{folder / name}"


def opened(url, space=FINITE, definition=None, seed=0, **settings):
    """Open a study that is closed at the end of a ``with``."""
    settings = {"study": "s", "storage": url, "sampler": Sampler.random} | settings
    return contextlib.closing(Study(SweepConfig(**settings), space, definition or {}, seed))


def bowl(params):
    """Return a value that is lowest at 4 topics and a rate of 0.1."""
    return 100 + (params[TOPICS] - 4) ** 2 + abs(math.log10(params.get(RATE, 0.1)) + 1)


def use_up(study, at_most=1000):
    """Ask for trials and complete them one at a time; return their parameters in order."""
    asked = []
    while len(asked) < at_most and (trial := study.ask()) is not None:
        asked.append(trial.params)
        study.complete(trial.number, bowl(trial.params), {})
    return asked


def lose(study):
    """Leave a study as a killed process does."""
    study._closed.set()
    close_storage(study._storage)
    study._locks.release()


def states(study):
    return [trial.state for trial in study.trials()]


def distinct(asked):
    return len({json.dumps(params, sort_keys=True) for params in asked}) == len(asked)


@pytest.fixture
def start_study(start_program, url):
    """Return a function that starts a program with a study in `url`."""

    def start(script, n_asked=0, seconds=(10, 60), **settings):
        arguments = {
            "settings": {"study": "s", "storage": url} | settings,
            "space": {name: distribution_to_json(one) for name, one in FINITE.items()},
            "n_asked": n_asked,
            "seconds": seconds,
        }
        return start_program(script, json.dumps(arguments))

    return start


@pytest.fixture
def ask_and_be_killed(start_study, until_free, url):
    """Have a process ask for trials, kill it while they run, and return (number, parameters)."""

    def ask(n_asked, **settings):
        program = start_study(ASKS_AND_WAITS, n_asked, **settings)
        asked = [json.loads(program.read_line()) for _ in range(n_asked)]
        program.kill()
        assert settings.get("join") or until_free(url)
        return asked

    return ask


@pytest.fixture
def start_two(start_study):
    """Return a function that opens two studies at once in two processes; the lines of each."""

    def start(*settings):
        both = [start_study(JOINS, **one) for one in settings]
        assert [one.read_line() for one in both] == ["ready"] * 2
        for one in both:
            one.tell()
        lines = [[json.loads(line) for line in one.process.stdout] for one in both]
        assert [one.process.wait(600) for one in both] == [0, 0]
        return lines

    return start


def test_the_budget_counts_every_end_of_a_trial_once(url):
    with opened(url, n_trials=6, n_startup_trials=0) as study:
        for end in (
            lambda t: study.complete(t.number, 1.0, {}),
            lambda t: study.prune(t.number),
            lambda t: study.fail(t.number, "no"),
            lambda t: study.interrupted(t.number),
            lambda t: study.killed(t.number, "signal 9"),
            lambda t: study.complete(t.number, 2.0, {}),
            lambda t: study.complete(t.number, 3.0, {}),
            lambda t: study.complete(t.number, 4.0, {}),
        ):
            end(study.ask())
        assert study.ask() is None
        assert states(study) == ["COMPLETE", "PRUNED"] + ["FAIL"] * 3 + ["COMPLETE"] * 3
        assert study.open_trials == []


def test_trials_that_run_use_up_the_budget(journal):
    with opened(journal, n_trials=3) as study:
        trials = [study.ask() for _ in range(3)]
        assert study.ask() is None
        assert study.open_trials == [trial.number for trial in trials]
        assert study.n_others == 0
        assert distinct([trial.params for trial in trials])


def test_a_larger_budget_goes_on_where_a_smaller_one_ended(journal):
    with opened(journal, n_trials=2) as study:
        first = use_up(study)
    with opened(journal, n_trials=2) as study:
        assert study.ask() is None
    with opened(journal, n_trials=5) as study:
        asked = first + use_up(study)
    assert len(asked) == 5
    assert distinct(asked)


def test_a_reopened_study_has_the_results_of_its_trials(url):
    values = {"valid/perplexity_folded": {"0": [3.0, 4.0], "1": [5.0]}}
    with opened(url) as study:
        done, failed, gone = (study.ask() for _ in range(3))
        study.note(done.number, n_topics=done.params[TOPICS], run_id="ab", folder="/x")
        study.report(done.number, 0, 9.0)
        study.report(done.number, 1, 8.0)
        study.note(done.number, epochs=4)
        study.complete(done.number, 4.0, values)
        study.fail(failed.number, "it diverged")
        study.killed(gone.number, "its process was killed by signal 9")
        study.parent_run = "cd"
    with opened(url) as study:
        a, b, c = study.trials()
        assert study.parent_run == "cd"
    assert (a.state, a.run_id, a.folder, a.epochs) == ("COMPLETE", "ab", "/x", 4)
    assert (a.params, a.n_topics) == (done.params, done.params[TOPICS])
    assert (a.values, a.curve, a.error) == (values, {0: 9.0, 1: 8.0}, "")
    assert a.seconds >= 0
    assert a.ended
    assert (b.state, b.error) == ("FAIL", "it diverged")
    assert (c.state, c.error) == ("FAIL", "its process was killed by signal 9")


@pytest.mark.parametrize("sampler", Sampler)
def test_every_point_of_a_finite_space_is_proposed_once_and_then_nothing(journal, sampler):
    with opened(journal, sampler=sampler, n_trials=50) as study:
        asked = use_up(study)
        assert study.ask() is None
    assert len(asked) == N_POINTS
    assert distinct(asked)


@pytest.mark.parametrize("sampler", Sampler)
def test_trials_that_run_at_the_same_time_are_at_distinct_points(journal, sampler):
    with opened(journal, sampler=sampler, n_trials=50) as study:
        asked = use_up(study, at_most=2)
        trials = [study.ask() for _ in range(N_POINTS - 2)]
        assert study.ask() is None
    assert distinct(asked + [trial.params for trial in trials])


def test_a_reopened_study_proposes_only_the_remaining_points(journal):
    with opened(journal, n_trials=50) as study:
        use_up(study, at_most=5)
    with opened(journal, n_trials=50) as study:
        assert len(use_up(study)) == N_POINTS - 5
    with opened(journal, n_trials=50) as study:
        assert study.ask() is None


def test_a_point_that_failed_or_was_pruned_is_not_proposed_again(journal):
    with opened(journal, n_trials=50) as study:
        asked = []
        while (trial := study.ask()) is not None:
            asked.append(trial.params)
            if trial.number % 2:
                study.fail(trial.number, "no")
            else:
                study.prune(trial.number)
    assert len(asked) == N_POINTS
    assert distinct(asked)


@pytest.mark.parametrize("sampler", [s for s in Sampler if s is not Sampler.grid])
def test_proposals_in_an_infinite_space_are_distinct_and_inside(journal, sampler):
    with opened(journal, INFINITE, sampler=sampler, n_trials=12) as study:
        asked = use_up(study)
    assert len(asked) == 12
    assert distinct(asked)
    for params in asked:
        assert list(params) == [TOPICS, RATE]
        assert type(params[TOPICS]) is int
        assert 2 <= params[TOPICS] <= 30
        assert 1e-3 <= params[RATE] <= 1


def test_a_grid_varies_its_last_setting_fastest(journal):
    space = {
        TOPICS: IntDistribution(2, 8, step=3),
        "model.kind": CategoricalDistribution(["b", "a"]),
    }
    with opened(journal, space, sampler=Sampler.grid) as study:
        asked = use_up(study)
    assert [tuple(p.values()) for p in asked] == [(k, m) for k in (2, 5, 8) for m in ("b", "a")]


@pytest.mark.parametrize(
    ("low", "high", "step", "n"), [(0.0, 0.3, 0.1, 4), (0.1, 0.9, 0.1, 9), (-0.7, 0.7, 0.7, 3)]
)
def test_a_grid_of_floats_is_within_its_bounds(journal, low, high, step, n):
    with opened(
        journal, {RATE: FloatDistribution(low, high, step=step)}, sampler=Sampler.grid
    ) as s:
        asked = []
        while (trial := s.ask()) is not None:
            asked.append(trial.params[RATE])
            s.complete(trial.number, 1.0, {})
    assert asked == pytest.approx([low + i * step for i in range(n)], abs=1e-12)
    assert max(asked) == high


def test_a_grid_of_an_infinite_space_is_refused(journal):
    with pytest.raises(InputError, match=r"sweep\.sampler = 'grid': .* give range"):
        opened(journal, INFINITE, sampler=Sampler.grid)


def test_a_finite_space_with_few_points_is_enumerated():
    assert len(points_of(FINITE)) == N_POINTS
    assert len(points_of({RATE: FloatDistribution(0, 1, step=0.25)})) == 5
    assert points_of({RATE: FloatDistribution(0.5, 0.5)}) == [{RATE: 0.5}]
    assert points_of(INFINITE) is None
    assert len(points_of({"a": IntDistribution(1, MAX_POINTS)})) == MAX_POINTS
    assert points_of({"a": IntDistribution(0, MAX_POINTS)}) is None
    assert points_of({n: IntDistribution(1, 1000) for n in "abcdefgh"}) is None


@pytest.mark.parametrize("sampler", [s for s in Sampler if s is not Sampler.gp])
@pytest.mark.parametrize("sessions", [[5, 7], [1] * 12])
def test_a_study_in_sessions_proposes_what_one_session_does(tmp_path, sampler, sessions):
    space = FINITE if sampler is Sampler.grid else INFINITE
    whole, parts = (address("journal", tmp_path, name) for name in ("whole", "parts"))
    with opened(whole, space, sampler=sampler, n_trials=12) as study:
        expected = use_up(study)
    asked = []
    for at_most in sessions:
        with opened(parts, space, sampler=sampler, n_trials=12) as study:
            asked += use_up(study, at_most)
    assert asked == expected


def test_a_gaussian_process_in_sessions_proposes_what_one_session_does(tmp_path):
    whole, parts = (address("sqlite", tmp_path, name) for name in ("whole", "parts"))
    settings = {"sampler": Sampler.gp, "n_trials": 13}
    with opened(whole, INFINITE, **settings) as study:
        expected = use_up(study)
    with opened(parts, INFINITE, **settings) as study:
        asked = use_up(study, 11)
    with opened(parts, INFINITE, **settings) as study:
        asked += use_up(study)
    assert asked == expected


@pytest.mark.parametrize("sampler", [Sampler.tpe, Sampler.random, Sampler.qmc])
def test_an_interrupted_trial_does_not_change_later_proposals(tmp_path, sampler):
    """A worker or the sweep was killed, or the sweep was interrupted."""
    whole, parts = (address("journal", tmp_path, name) for name in ("whole", "parts"))
    with opened(whole, INFINITE, sampler=sampler, n_trials=14) as study:
        expected = use_up(study)
    with opened(parts, INFINITE, sampler=sampler, n_trials=14) as study:
        asked = use_up(study, 3)
        study.killed(study.ask().number, "signal 9")
        asked += use_up(study, 3)
        study.interrupted(study.ask().number)
    with opened(parts, INFINITE, sampler=sampler, n_trials=14) as study:
        asked += use_up(study, 5)
        study.ask()
        lose(study)
    with opened(parts, INFINITE, sampler=sampler, n_trials=14) as study:
        asked += use_up(study)
    assert asked == expected


@pytest.mark.parametrize("sampler", [s for s in Sampler if s is not Sampler.grid])
def test_the_seed_decides_the_proposals(tmp_path, sampler):
    found = []
    for i, seed in enumerate((0, 0, 1)):
        url = address("journal", tmp_path, str(i))
        with opened(url, INFINITE, seed=seed, sampler=sampler, n_trials=6) as study:
            found.append(use_up(study))
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[0], found[2], strict=True))


def test_proposals_do_not_depend_on_the_storage(tmp_path):
    found = []
    for kind in ("sqlite", "journal"):
        url = address(kind, tmp_path, kind)
        with opened(url, INFINITE, sampler=Sampler.tpe, n_trials=12) as study:
            found.append(use_up(study))
    assert found[0] == found[1]


def test_tpe_finds_lower_values_than_random_search(tmp_path):
    """The function has a known minimum, so that a sampler without the results would fail."""
    best = {}
    for sampler in (Sampler.tpe, Sampler.random):
        runs = []
        for seed in range(3):
            url = address("journal", tmp_path, f"{sampler.value}{seed}")
            with opened(url, INFINITE, seed=seed, sampler=sampler, n_trials=40) as study:
                runs.append(sum(sorted(bowl(params) for params in use_up(study))[:10]))
        best[sampler] = sum(runs)
    assert best[Sampler.tpe] < best[Sampler.random]


def test_the_trial_of_a_killed_worker_is_run_again_once(journal):
    with opened(journal, n_trials=2) as study:
        first = study.ask()
        assert study.killed(first.number, "its process was killed by signal 9")
        again = study.ask()
        assert again.params == first.params
        assert again.number != first.number
        assert not study.killed(again.number, "its process was killed by signal 9")
        other = study.ask()
        assert other.params != first.params
        study.complete(other.number, 1.0, {})
        assert study.ask() is None
        assert states(study) == ["FAIL", "FAIL", "COMPLETE"]


def test_a_waiting_retry_is_run_by_the_next_session(journal):
    with opened(journal, n_trials=1) as study:
        first = study.ask()
        assert study.killed(first.number, "signal 9")
    with opened(journal, n_trials=1) as study:
        assert study.abandoned == []
        again = study.ask()
        assert again.params == first.params
        assert not study.killed(again.number, "signal 9")
        assert study.ask() is None


def test_each_killed_trial_has_its_own_retry(journal):
    with opened(journal, n_trials=4) as study:
        first = [study.ask() for _ in range(4)]
        assert all(study.killed(trial.number, "signal 9") for trial in first)
        again = [study.ask() for _ in range(4)]
        assert [trial.params for trial in again] == [trial.params for trial in first]
        assert not any(study.killed(trial.number, "signal 9") for trial in again)
        assert study.ask() is None


def be_interrupted(study):
    study.interrupted(study.open_trials[0])


@pytest.mark.parametrize("end", [be_interrupted, lose])
def test_a_trial_is_run_again_however_often_its_sweep_is_interrupted_or_killed(journal, end):
    params = []
    for _ in range(3):
        with opened(journal, n_trials=2) as study:
            params.append(study.ask().params)
            end(study)
    with opened(journal, n_trials=2) as study:
        asked = use_up(study)
        assert states(study) == ["FAIL"] * 3 + ["COMPLETE"] * 2
    assert params == [asked[0]] * 3


@pytest.mark.parametrize("end", [be_interrupted, lose])
def test_the_end_of_a_sweep_neither_uses_the_retry_nor_adds_one(journal, end):
    with opened(journal, n_trials=1) as study:
        study.ask()
        end(study)
    with opened(journal, n_trials=1) as study:
        assert study.killed(study.ask().number, "signal 9")
        study.ask()
        end(study)
    with opened(journal, n_trials=1) as study:
        assert not study.killed(study.ask().number, "signal 9")
        assert study.ask() is None


def test_trials_of_a_killed_sweep_are_run_again_and_the_budget_is_exact(ask_and_be_killed, url):
    asked = ask_and_be_killed(2, n_trials=5)
    with opened(url, n_trials=5) as study:
        found = study.abandoned
        assert [(t.number, t.run_id, t.folder, t.n_topics) for t in found] == [
            (0, "run 0", "folder 0", 3),
            (1, "run 1", "folder 1", 3),
        ]
        assert [t.params for t in found] == [params for _, params in asked]
        for trials in (found, study.trials()):
            assert [(t.state, t.error) for t in trials] == [("FAIL", KILLED)] * 2
        assert study.n_others == 0
        again = use_up(study)
        assert again[:2] == [params for _, params in asked]
        assert len(again) == 5
        assert distinct(again)
        assert states(study) == ["FAIL"] * 2 + ["COMPLETE"] * 5
    with opened(url, n_trials=5) as study:
        assert study.abandoned == []


def test_a_second_process_is_refused_until_the_first_has_ended(url):
    with opened(url) as study:
        study.ask()
        for join in (False, True):
            with pytest.raises(
                InputError, match=r"another process works on this study; .*join=true"
            ):
                opened(url, join=join)
        assert states(study) == ["RUNNING"]
    with opened(url) as study:
        assert len(study.abandoned) == 1


def test_a_joining_process_does_not_take_the_running_trials_of_others(url):
    with opened(url, n_trials=3, join=True) as one, opened(url, n_trials=3, join=True) as two:
        assert two.abandoned == []
        a, b, c = one.ask(), two.ask(), one.ask()
        assert two.ask() is None
        assert (one.n_others, two.n_others) == (1, 2)
        assert distinct([trial.params for trial in (a, b, c)])
        one.complete(a.number, 1.0, {})
        two.complete(b.number, 1.0, {})
        assert two.ask() is None
        one.interrupted(c.number)
        again = two.ask()
        assert again.params == c.params
        two.complete(again.number, 1.0, {})
        assert one.ask() is None
        assert (one.n_others, two.n_others) == (0, 0)


def test_two_processes_that_start_at_once_use_one_budget(start_two, url):
    """They create the tables, the study and its trials together."""
    settings = {"n_trials": 7, "join": True}
    asked = [one for lines in start_two(settings, settings) for one in lines]
    assert sorted(number for number, _ in asked) == list(range(7))
    assert distinct([params for _, params in asked])
    with opened(url, n_trials=7) as study:
        assert states(study) == ["COMPLETE"] * 7
        assert study.ask() is None


@pytest.mark.extras("psycopg")
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_two_studies_can_start_at_once_in_an_empty_database(start_two):
    lines = start_two({"study": "one", "n_trials": 1}, {"study": "two", "n_trials": 1})
    assert [len(of_one) for of_one in lines] == [1, 1]


@pytest.mark.extras("psycopg")
def test_a_closed_study_leaves_no_connection(database, soon):
    """A server has a hundred; a process may open studies one after another."""
    import psycopg

    for _ in range(3):
        with opened(database) as study:
            study.ask()
    with psycopg.connect(database.replace("+psycopg", "")) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        assert soon(lambda: connection.execute(query).fetchone()[0] == 1)


@pytest.mark.parametrize(
    "url",
    ["sqlite", pytest.param("postgresql", marks=pytest.mark.extras("psycopg", "postgresql"))],
    indirect=True,
)
def test_trials_of_a_killed_process_that_joined_are_taken_over(
    ask_and_be_killed, soon, url, monkeypatch
):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(module, "STALE_SECONDS", 3)
    settings = {"n_trials": 3, "join": True}
    abandoned = []

    def is_taken_over():
        with opened(url, **settings) as late:
            abandoned.extend(late.abandoned)
        return abandoned

    with opened(url, **settings) as holder:
        kept = holder.ask()
        ((number, params),) = ask_and_be_killed(1, seconds=(1, 3), **settings)
        assert soon(is_taken_over)
        assert [(t.number, t.run_id, t.state) for t in abandoned] == [(number, "run 0", "FAIL")]
        with opened(url, **settings) as late:
            again = late.ask()
            assert again.params == params
            late.complete(again.number, 1.0, {})
            holder.complete(kept.number, 1.0, {})
            assert len(use_up(late)) == 1
            assert holder.ask() is None
        assert states(holder) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_no_trial_is_started_after_the_timeout_of_all_sessions(journal, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(study_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with opened(journal, timeout=10.0) as study:
        running = study.ask()
        clock.now += 6
        study.complete(running.number, 1.0, {})
        assert study.seconds == pytest.approx(6)
    clock.now += 500
    with opened(journal, timeout=10.0) as study:
        assert study.seconds == pytest.approx(6)
        clock.now += 3.5
        running = study.ask()
        assert running is not None
        clock.now += 0.5
        assert study.ask() is None
        study.killed(running.number, "signal 9")
        assert study.ask() is None
    with opened(journal, timeout=10.0) as study:
        assert study.ask() is None
    with opened(journal, timeout=30.0) as study:
        assert study.seconds == pytest.approx(10)
        assert study.ask().params == running.params


def test_without_a_timeout_time_is_only_counted(journal, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(study_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with opened(journal) as study:
        clock.now += 1e6
        assert study.ask() is not None
        assert study.seconds == pytest.approx(1e6)


def test_a_study_with_other_settings_is_refused_and_the_settings_named(url):
    before = {"model.n_hidden": 100, "seed": 0, "train.epochs": 50}
    with opened(url, definition=before) as study:
        use_up(study, 1)
    with pytest.raises(InputError) as refused:
        opened(url, definition=before | {"train.epochs": 80})
    message = str(refused.value)
    assert "sweep.study = 's'" in message
    assert "train.epochs was 50, is 80" in message
    assert "choose another name" in message
    assert "n_hidden" not in message
    assert "shown" not in message  # the password of a database
    with pytest.raises(InputError, match=r"model\.depth was None, is 3"):
        opened(url, definition=before | {"model.depth": 3})
    with opened(url, definition=dict(reversed(before.items()))) as study:
        assert states(study) == ["COMPLETE"]


def test_an_optuna_study_of_another_program_is_refused(url):
    storage = open_storage(url)
    foreign = optuna.create_study(storage=storage, study_name="s")
    foreign.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(InputError, match=r"'s' in .* was not made by topicell; choose another"):
        opened(url)
    with opened(url, study="t") as study:
        assert study.name == "t"
        assert study.trials() == []
    assert len(foreign.trials) == 1
    assert foreign.user_attrs == {}
    close_storage(storage)


def test_studies_in_one_storage_are_independent(url):
    with opened(url, study="a", n_trials=2) as a, opened(url, study="b", n_trials=2) as b:
        assert use_up(a) == use_up(b)
        assert len(a.trials()) == len(b.trials()) == 2


def test_the_name_of_a_study_depends_only_on_its_definition():
    definition = {"model.kind": "amortized_lda", "seed": 0, "data": "ab" * 32}
    name = study_name("pbmc", definition)
    assert name == study_name("pbmc", dict(reversed(definition.items())))
    assert name.startswith("pbmc-")
    assert SweepConfig(study=name).study == name
    others = [study_name("pbmc", definition | changed) for changed in ({"seed": 1}, {"x": None})]
    assert len({name, *others, study_name("facs", definition)}) == 4
    assert study_name("pbmc", {"seed": 0}) == "pbmc-de7d7744"


def completed(study, *curve, values=None):
    """Complete a trial with this perplexity after each epoch."""
    trial = study.ask()
    for epoch, value in enumerate(curve):
        study.report(trial.number, epoch, value)
    study.complete(trial.number, 1.0, values or {})


@pytest.mark.parametrize("url", ["sqlite", "journal"], indirect=True)
@pytest.mark.parametrize(
    ("value", "ends"), [(99.0, False), (100.9, False), (101.1, True), (math.nan, True)]
)
def test_a_trial_within_the_margin_of_the_best_is_never_pruned(url, value, ends):
    settings = {"n_startup_trials": 1, "pruning_warmup": 0.5}
    with opened(url, **settings) as study:
        completed(study, *[100.0] * 6)
        trial = study.ask()
        pruned = [study.report(trial.number, epoch, value) for epoch in range(6)]
    # No trial is pruned in the first half of the six epochs.
    assert pruned == [False, False, ends, ends, ends, ends]
    with opened(url, **settings) as study:
        trial = study.ask()
        assert study.report(trial.number, 4, value) == ends


def test_the_margin_is_relative_to_the_best_at_the_same_epoch(journal):
    with opened(journal, n_startup_trials=2, pruning_warmup=0.0, pruning_margin=0.1) as study:
        completed(study, 200.0, 100.0)
        completed(study, 190.0, 120.0)
        trial = study.ask()
        # Worse than the median, and within a tenth of 190; then beyond a tenth of 100.
        assert not study.report(trial.number, 0, 208.0)
        assert study.report(trial.number, 1, 111.0)


def test_a_trial_better_than_the_median_is_not_pruned(journal):
    with opened(journal, n_startup_trials=3, pruning_warmup=0.0) as study:
        for value in (100.0, 200.0, 300.0):
            completed(study, value)
        assert not study.report(study.ask().number, 0, 199.0)
        assert study.report(study.ask().number, 0, 201.0)


def test_no_trial_is_pruned_after_the_last_epoch_of_the_complete_ones(journal):
    with opened(journal, n_startup_trials=1, pruning_warmup=0.0) as study:
        completed(study, 100.0, 90.0)
        trial = study.ask()
        assert [study.report(trial.number, epoch, 500.0) for epoch in (1, 2)] == [True, False]


def test_nothing_is_pruned_before_enough_trials_are_complete(journal):
    with opened(journal, n_startup_trials=3, pruning_warmup=0.0) as study:
        for _ in range(2):
            completed(study, 100.0, 100.0)
        trial = study.ask()
        assert not study.report(trial.number, 1, 1e6)
        study.complete(trial.number, 1e6, {})
        assert study.report(study.ask().number, 1, 2e6)


def test_a_patient_pruner_waits_for_an_improvement(journal):
    settings = {
        "n_startup_trials": 1,
        "pruning_warmup": 0.0,
        "pruner": Pruner.patient,
        "patience": 3,
    }
    with opened(journal, **settings) as study:
        completed(study, *[100.0] * 8)
        trial = study.ask()
        pruned = [study.report(trial.number, epoch, 200.0 + epoch) for epoch in range(6)]
        assert pruned == [False] * 4 + [True] * 2
        gains = study.ask()
        assert not any(study.report(gains.number, epoch, 200.0 - epoch) for epoch in range(6))


def test_without_a_pruner_no_trial_is_pruned(journal):
    settings = {"n_startup_trials": 0, "pruning_warmup": 0.0, "pruner": Pruner.none}
    with opened(journal, **settings) as study:
        completed(study, *[100.0] * 6, values=splits([100.0], [100.0]))
        trial = study.ask()
        assert not any(study.report(trial.number, epoch, 1e9) for epoch in range(6))
        assert not study.report_split(trial.number, "0", [1e9, 1e9 + 1])


@pytest.mark.parametrize("pruner", Pruner)
def test_every_pruner_works_over_sessions(journal, pruner):
    settings = {"pruner": pruner, "n_startup_trials": 1, "pruning_warmup": 0.1}
    n_epochs = 0
    for n_trials in (4, 8):
        with opened(journal, INFINITE, **settings | {"n_trials": n_trials}) as study:
            while (trial := study.ask()) is not None:
                # Each trial is worse than the one before, and gets worse.
                for epoch in range(9):
                    n_epochs += 1
                    if study.report(trial.number, epoch, 200.0 + 10 * trial.number + epoch):
                        study.prune(trial.number)
                        break
                else:
                    study.complete(trial.number, 200.0 + 10 * trial.number, {})
            found = states(study)
            lengths = [trial.epochs for trial in study.trials()]
    assert found[0] == "COMPLETE"
    assert set(found) <= {"COMPLETE", "PRUNED"}
    assert ("PRUNED" in found) == (pruner is not Pruner.none)
    assert all((n < 9) == (state == "PRUNED") for n, state in zip(lengths, found, strict=True))
    assert sum(lengths) == n_epochs


def splits(*values):
    return {PERPLEXITY: {str(seed): list(one) for seed, one in enumerate(values)}}


@pytest.mark.parametrize(
    ("values", "ends"),
    [([98.0, 100.0], False), ([102.0, 104.0], False), ([110.0, 112.0], True)],
)
def test_a_trial_worse_by_more_than_its_errors_is_stopped_between_splits(journal, values, ends):
    """Two values that differ by 2 have an error of 1, and two such means of √2."""
    settings = {"n_startup_trials": 1, "racing_errors": 2.0}
    with opened(journal, **settings) as study:
        completed(study, values=splits([140.0, 142.0], [140.0, 142.0], [140.0, 142.0]))
        completed(study, values=splits([100.0, 102.0], [100.0, 102.0], [100.0, 102.0]))
        assert study.report_split(study.ask().number, "0", values) == ends
    with opened(journal, **settings) as study:
        trial = study.ask()
        assert not study.report_split(trial.number, "0", [101.0, 103.0])
        # After the last split nothing can be saved.
        assert not study.report_split(trial.number, "1", [101.0, 103.0])
        assert not study.report_split(trial.number, "2", [900.0, 902.0])


def test_the_race_uses_all_splits_so_far(journal):
    with opened(journal, n_startup_trials=1) as study:
        completed(study, values=splits(*[[100.0, 102.0]] * 4))
        trial = study.ask()
        assert not study.report_split(trial.number, "0", [102.0, 104.0])
        assert not study.report_split(trial.number, "1", [102.0, 104.0])
        # The mean of three lags of 2 has an error of √2 / √3.
        assert study.report_split(trial.number, "2", [102.0, 104.0])


def test_the_race_needs_a_complete_trial_on_the_same_splits_and_an_error(journal):
    # n_startup_trials does not apply: the other trial has the same cells.
    with opened(journal, n_startup_trials=9, n_trials=9) as study:
        assert not study.report_split(study.ask().number, "0", [900.0, 902.0])
        completed(study, values=splits([100.0, 102.0], [100.0, 102.0]))
        assert study.report_split(study.ask().number, "0", [900.0, 902.0])
        assert not study.report_split(study.ask().number, "7", [900.0, 902.0])
    with opened(journal, study="one replicate", n_startup_trials=1) as study:
        completed(study, values=splits([100.0], [101.0], [100.0]))
        trial = study.ask()
        assert not study.report_split(trial.number, "0", [900.0])
        assert study.report_split(trial.number, "1", [901.0])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Sampler.tpe, "TPESampler"),
        (Sampler.gp, "GPSampler"),
        (Sampler.random, "RandomSampler"),
        (Sampler.qmc, "QMCSampler"),
        (Pruner.median, "MedianPruner"),
        (Pruner.hyperband, "HyperbandPruner"),
        (Pruner.patient, "PatientPruner"),
        (Pruner.none, "NopPruner"),
    ],
)
def test_names_of_samplers_and_pruners_are_those_of_optuna(kind, name):
    if isinstance(kind, Sampler):
        made = make_sampler(kind, 0, 0)
    else:
        made = make_pruner(SweepConfig(pruner=kind))
    assert type(made).__name__ == name


def test_importances_sum_to_one_and_are_highest_for_the_setting_with_an_effect(journal):
    with opened(journal, INFINITE, n_trials=40) as study:
        assert study.importance() == {}
        while (trial := study.ask()) is not None:
            study.complete(trial.number, float(trial.params[TOPICS]), {})
            if trial.number == 0:
                assert study.importance() == {}
        found = study.importance()
    assert set(found) == set(INFINITE)
    assert sum(found.values()) == pytest.approx(1)
    assert found[TOPICS] > found[RATE] >= 0


def test_a_setting_that_did_not_vary_has_no_importance(journal):
    space = {TOPICS: IntDistribution(2, 9), RATE: FloatDistribution(0.1, 0.1)}
    with opened(journal, space, n_trials=5) as study:
        use_up(study)
        assert study.importance() == {TOPICS: 1.0}


def test_the_importance_does_not_depend_on_pruned_and_failed_trials(journal):
    with opened(journal, INFINITE, n_trials=30) as study:
        for _ in range(20):
            trial = study.ask()
            study.complete(trial.number, bowl(trial.params), {})
        before = study.importance()
        for _ in range(5):
            study.fail(study.ask().number, "no")
            study.prune(study.ask().number)
        assert study.importance() == pytest.approx(before)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:////data/optuna.db", "sqlite:////data/optuna.db"),
        ("journal:optuna.log", "journal:optuna.log"),
        ("postgresql+psycopg://me@host:5432/d", "postgresql+psycopg://me@host:5432/d"),
        ("postgresql+psycopg://me:pw@host/d", "postgresql+psycopg://me:***@host/d"),
        ("postgresql+psycopg://me:p@w:@host/d", "postgresql+psycopg://me:***@host/d"),
    ],
)
def test_an_address_is_printed_without_its_password(url, expected):
    assert without_password(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me@host/d?password=secret",
        "postgresql+psycopg:///d?host=/run&password=secret&sslmode=require",
        "postgresql+psycopg://me:secret@host/d?application_name=a@b",
    ],
)
def test_a_password_in_the_query_of_an_address_is_not_printed(url):
    assert "secret" not in without_password(url)


@pytest.mark.parametrize("url", ["sqlite", "journal"], indirect=True)
def test_the_folders_of_a_storage_are_created(url):
    scheme, _, path = url.rpartition(":")
    with opened(f"{scheme}:{path.replace('optuna.db', 'a/b/optuna.db')}") as study:
        assert study.ask() is not None


def test_without_an_address_the_storage_is_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with opened(None) as study:
        assert study.url == study.address == "sqlite:///optuna.db"
    assert (tmp_path / "optuna.db").is_file()


def test_a_refused_study_leaves_no_lock(url):
    with opened(url, definition={"a": 1}):
        pass
    for _ in range(2):
        with pytest.raises(InputError, match="a was 1, is 2"):
            opened(url, definition={"a": 2})
    with opened(url, definition={"a": 1}) as study:
        assert study.ask() is not None

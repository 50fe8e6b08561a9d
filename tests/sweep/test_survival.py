"""A sweep continues after kills, interrupts and failures; Optuna and MLflow agree about its trials.

Every command runs in its own process. All its children are found by a mark in their environment or
by their standard error, also after their parent has ended.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import time
import uuid
from collections import Counter
from pathlib import Path

import optuna
import pytest
import yaml
from faults import mlflow_server
from optuna.trial import TrialState

from topicell.config import TrackingConfig, dotted
from topicell.sweep.storage import open_storage
from topicell.sweep.study import RETRY_OF
from topicell.sweep.trials import KILLED
from topicell.tracking.store import client, create_store, experiment_id

pytestmark = pytest.mark.slow

SECONDS = 600
"""Longer than any step takes on a busy machine."""
EPOCHS = 40
"""Epochs of a fit; `hold` stops trials in the first half of them."""
N_TRIALS = 4
MARK = "TOPICELL_TEST_MARK"
HOLD = "hold"
CORPUS = [
    "data=simulated",
    "data.simulation.n_cells=120",
    "data.simulation.n_genes=60",
    "data.simulation.n_topics=3",
    "model.n_hidden=8",
    "train.n_replicates=1",
    "evaluate.n_coherence_genes=5",
]
SWEEP = [
    "-m",
    "sweep=topics",
    *CORPUS,
    "evaluate.n_splits=1",
    "sweep.pruner=none",
    "sweep.register=null",
    f"sweep.n_trials={N_TRIALS}",
]
LONG = [
    *SWEEP,
    "model.n_topics=range(2,10)",
    f"train.epochs={EPOCHS}",
    "train.early_stopping.enabled=false",
]
SHORT = [*SWEEP, "train.epochs=3"]


class Command:
    """``topicell train`` in a folder, with all processes that it starts."""

    def __init__(self, start_process, folder, *arguments, **settings):
        self.mark = uuid.uuid4().hex
        self.folder = folder
        environment = {MARK: self.mark, "TOPICELL_TEST_HOLD": str(folder / HOLD)}
        self.process = start_process(
            "train", *arguments, cwd=folder, env=environment, draft=True, **settings
        )

    @property
    def out(self):
        return self.process.stdout

    @property
    def err(self):
        return self.process.stderr

    def wait(self, seconds=SECONDS):
        """The exit code."""
        return self.process.wait(seconds)

    def processes(self):
        """Return the ids of the processes that still run."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and self._has(folder):
                    found.append(int(folder.name))
        return found

    def _has(self, folder):
        # The environment of a forked process is only in its memory, not in /proc.
        if (folder / "fd" / "2").readlink() == self.process.err_path:
            return True
        return self.mark in (folder / "environ").read_text("latin-1")

    def end(self):
        """End all processes."""
        while left := self.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.process.end()


@pytest.fixture
def start(start_process, folder):
    """Return a function that starts a command; all are ended after the test."""
    started = []

    def begin(*arguments, quick_workers=True):
        settings = {"quick_workers": quick_workers}
        started.append(Command(start_process, folder, *arguments, **settings))
        return started[-1]

    try:
        yield begin
    finally:
        for command in started:
            command.end()


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Create empty stores of MLflow and Optuna once: their tables take seconds."""
    folder = tmp_path_factory.mktemp("stores")
    create_store(folder / "mlflow.db")
    open_storage(f"sqlite:///{folder / 'optuna.db'}").engine.dispose()
    return folder


@pytest.fixture
def folder(stores, tmp_path):
    """Return a folder with empty stores."""
    for name in ("mlflow.db", "optuna.db"):
        shutil.copy(stores / name, tmp_path)
    return tmp_path


def eventually(condition, *commands, seconds=SECONDS):
    """Wait for a condition while commands run, and return its value."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        for command in commands:
            assert command.process.poll() is None, command.err
        time.sleep(0.05)
    raise AssertionError(
        "\n".join(["the condition did not become true", *(c.err for c in commands)])
    )


def hold(folder, first=0):
    """Make the trials from a number on wait in their tenth epoch (needs quick workers)."""
    (folder / HOLD).write_text(str(first))


def release(folder):
    """Let waiting trials continue."""
    (folder / HOLD).unlink()


def beside_progress(err):
    """Return the lines of standard error that are not about the study or a trial."""
    return [line for line in err.splitlines() if not line.startswith(("study ", "trial "))]


def tracking(folder):
    return TrackingConfig(uri=f"sqlite:///{folder / 'mlflow.db'}")


def recorded(config):
    """Return the parent run of the sweep or grid, and its nested runs."""
    store = client(config)
    runs = store.search_runs([experiment_id(store, config)], max_results=1000)
    (parent,) = (run for run in runs if "topicell.kind" in run.data.tags)
    nested = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} <= {parent.info.run_id}
    return parent, nested


def by_trial(nested):
    """Return runs by the number of their trial."""
    assert len({run.data.tags["topicell.trial"] for run in nested}) == len(nested)
    return {int(run.data.tags["topicell.trial"]): run for run in nested}


def trials_in(folder):
    """Return Optuna's trials without waiting ones."""
    url = f"sqlite:///{folder / 'optuna.db'}"
    found = []
    for name in optuna.get_all_study_names(url):
        found += optuna.load_study(study_name=name, storage=url).get_trials()
    return [trial for trial in found if trial.state is not TrialState.WAITING]


def in_state(folder, *states):
    return {trial.number for trial in trials_in(folder) if trial.state in states}


def epochs_of(folder):
    """Return the number of recorded epochs of each trial."""
    paths = folder.glob("sweeps/*/*/metrics.jsonl")
    return {int(path.parent.name): path.read_text().count('"epoch"') for path in paths}


def at_work(folder):
    """Return the trials in the first half of their epochs."""
    return {number for number, n in epochs_of(folder).items() if 0 < n < EPOCHS / 2}


def running_in_mlflow(folder, numbers):
    """Return the trials of `numbers` whose runs are RUNNING in MLflow."""
    runs = by_trial(recorded(tracking(folder))[1])
    return {n for n in numbers if n in runs and runs[n].info.status == "RUNNING"}


def worker_of(command, number):
    """Return the id of the worker that has the log of a trial open."""
    for pid in command.processes():
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                target = descriptor.readlink()
                if target.name == "topicell.log" and target.parent.name == str(number):
                    status = Path(f"/proc/{pid}/status").read_text()
                    assert f"PPid:\t{command.process.pid}\n" in status
                    return pid
    raise AssertionError(f"no worker has trial {number}")


def require_no_loss(folder):
    """Check that no run stopped its delivery to MLflow."""
    logs = {path: path.read_text() for path in folder.glob("sweeps/*/*/topicell.log")}
    assert not [text for text in logs.values() if "MLflow at" in text]


def require_complete_sweep(folder, n_trials=N_TRIALS):
    """Check that a sweep has completed exactly its budget, in Optuna as in MLflow."""
    trials = trials_in(folder)
    repeated = Counter(
        trial.user_attrs[RETRY_OF] for trial in trials if RETRY_OF in trial.user_attrs
    )
    assert set(repeated.values()) <= {1}
    counted = [trial for trial in trials if trial.number not in repeated]
    assert [trial.state for trial in counted] == [TrialState.COMPLETE] * n_trials
    assert len({json.dumps(trial.params) for trial in counted}) == n_trials
    assert all(trials[number].state is TrialState.FAIL for number in repeated)
    for trial in trials:
        if RETRY_OF in trial.user_attrs:
            assert trial.params == trials[trial.user_attrs[RETRY_OF]].params

    require_no_loss(folder)
    parent, nested = recorded(tracking(folder))
    assert parent.info.status == "FINISHED"
    runs = by_trial(nested)
    for trial in counted:
        assert runs[trial.number].info.status == "FINISHED"
        assert runs[trial.number].info.run_id == trial.user_attrs["run_id"]
        assert runs[trial.number].data.params["model.n_topics"] == str(
            trial.params["model.n_topics"]
        )
    # A run may be FINISHED if it ended just before its sweep was killed.
    ended = {run.info.status for number, run in runs.items() if number in repeated}
    assert ended <= {"FAILED", "KILLED", "FINISHED"}
    assert runs.keys() <= {trial.number for trial in trials}


def test_the_trial_of_a_killed_worker_is_repeated_once(folder, start):
    hold(folder)
    sweep = start(*LONG)
    number = min(
        eventually(lambda: (at := at_work(folder)) and running_in_mlflow(folder, at), sweep)
    )
    os.kill(worker_of(sweep, number), signal.SIGKILL)
    release(folder)
    assert sweep.wait() == 0, sweep.err
    require_complete_sweep(folder)

    trials = trials_in(folder)
    assert len(trials) == N_TRIALS + 1
    assert trials[number].state is TrialState.FAIL
    (again,) = (trial for trial in trials if trial.user_attrs.get(RETRY_OF) == number)
    assert again.params == trials[number].params
    assert again.state is TrialState.COMPLETE

    runs = by_trial(recorded(tracking(folder))[1])
    assert len(runs) == N_TRIALS + 1
    assert runs[number].info.status == "FAILED"
    assert runs[number].info.run_id == trials[number].user_attrs["run_id"]
    error = runs[number].data.tags["topicell.error"]
    assert error.startswith("its process was killed by signal 9, which often means that memory")
    assert runs[number].data.tags["topicell.trial_state"] == "FAIL"
    assert f"trial {number:3d}" in sweep.err
    assert "preprocess.n_variable_genes; it is repeated" in sweep.err
    assert "Traceback" not in sweep.err


def some_done_and_some_at_work(folder):
    """Return trials in the middle if others are complete and none is near its end."""
    if not (at_work(folder) and in_state(folder, TrialState.COMPLETE)):
        return set()
    caught = running_in_mlflow(folder, at_work(folder)) & at_work(folder)
    late = {number for number, n in epochs_of(folder).items() if n > 0.8 * EPOCHS}
    return set() if late & in_state(folder, TrialState.RUNNING) else caught


def require_continuation(folder, start):
    """Check that the same command completes stopped trials and keeps complete ones."""
    before = {
        trial.number: trial.user_attrs["run_id"]
        for trial in trials_in(folder)
        if trial.state is TrialState.COMPLETE
    }
    parent = recorded(tracking(folder))[0].info.run_id
    assert before
    release(folder)
    again = start(*LONG)
    assert again.wait() == 0, again.err
    require_complete_sweep(folder)
    after = {trial.number: trial.user_attrs.get("run_id") for trial in trials_in(folder)}
    assert before.items() <= after.items()
    assert recorded(tracking(folder))[0].info.run_id == parent
    assert f"{len(before)} of {N_TRIALS} trials so far" in again.err


def interrupt(sweep, number):
    """Send SIGINT to all processes like a terminal, or SIGTERM to the first like a scheduler."""
    if number == signal.SIGINT:
        os.killpg(sweep.process.pid, number)
    else:
        sweep.process.send_signal(number)


def require_interrupted(sweep):
    """Check that a sweep ended in the way of an interrupt."""
    assert sweep.wait(600) == 130, sweep.err
    # The resource tracker of multiprocessing ends a little later.
    eventually(lambda: not sweep.processes())
    said = beside_progress(sweep.err)
    expected = ["interrupted; run the same command again to continue", "topicell: interrupted"]
    assert said == expected, sweep.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_same_command_continues_an_interrupted_sweep(number, folder, start):
    hold(folder, first=2)
    sweep = start(*LONG)
    caught = eventually(lambda: some_done_and_some_at_work(folder), sweep)
    interrupt(sweep, number)
    require_interrupted(sweep)
    stopped = in_state(folder, TrialState.FAIL)
    assert caught <= stopped
    assert not in_state(folder, TrialState.RUNNING)
    parent, nested = recorded(tracking(folder))
    assert parent.info.status == "KILLED"
    states = {n: run.info.status for n, run in by_trial(nested).items()}
    assert states == {n: "KILLED" if n in stopped else "FINISHED" for n in states}
    assert caught <= states.keys()
    require_continuation(folder, start)
    assert {trial.user_attrs.get(RETRY_OF) for trial in trials_in(folder)} == {None, *stopped}


def importing(sweep):
    """Return whether both workers have started, and are still importing."""
    workers = []
    for pid in sweep.processes():
        with contextlib.suppress(OSError):
            if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
                workers.append(Path(f"/proc/{pid}/maps").read_text())
    begun = list(sweep.folder.glob("sweeps/*/*/topicell.log"))
    return len(workers) == 2 and not begun and any("_multiarray_umath" in maps for maps in workers)


def test_an_interrupt_while_workers_start_ends_all_processes(folder, start):
    sweep = start(*LONG, quick_workers=False)
    eventually(lambda: importing(sweep), sweep)
    interrupt(sweep, signal.SIGINT)
    require_interrupted(sweep)
    assert {trial.state for trial in trials_in(folder)} == {TrialState.FAIL}
    parent, nested = recorded(tracking(folder))
    assert {run.info.status for run in (parent, *nested)} == {"KILLED"}


def test_the_same_command_continues_a_killed_sweep(folder, start):
    hold(folder, first=2)
    sweep = start(*LONG)
    caught = eventually(lambda: some_done_and_some_at_work(folder), sweep)
    sweep.process.kill()
    sweep.wait()
    # Its workers end by themselves.
    eventually(lambda: not sweep.processes())
    stopped = in_state(folder, TrialState.RUNNING)
    assert caught <= stopped
    parent, nested = recorded(tracking(folder))
    assert parent.info.status == "RUNNING"
    runs = by_trial(nested)
    assert {runs[number].info.status for number in caught} <= {"KILLED", "RUNNING", "FINISHED"}
    require_continuation(folder, start)
    trials = trials_in(folder)
    assert {trial.user_attrs.get(RETRY_OF) for trial in trials} == {None, *stopped}
    runs = by_trial(recorded(tracking(folder))[1])
    for number in stopped:
        assert trials[number].state is TrialState.FAIL
        assert trials[number].user_attrs["error"] == KILLED
    assert {runs[number].info.status for number in caught} <= {"KILLED", "FINISHED"}


def test_a_kill_while_workers_start_leaves_no_run_open(folder, start):
    command = [*SHORT, "model.n_topics=range(2,10)", "sweep.n_trials=2"]
    sweep = start(*command, quick_workers=False)
    eventually(lambda: importing(sweep), sweep)
    sweep.process.kill()
    sweep.wait()
    eventually(lambda: not sweep.processes())
    assert "Traceback" not in sweep.err
    again = start(*command)
    assert again.wait() == 0, again.err
    require_complete_sweep(folder, 2)


def test_a_second_sweep_is_refused_unless_both_join(folder, start):
    hold(folder)
    sweep = start(*LONG)
    eventually(lambda: in_state(folder, TrialState.RUNNING), sweep)
    for other in ([], ["sweep.join=true"]):
        refused = start(*LONG, *other)
        assert refused.wait() == 2, refused.err
        (line,) = refused.err.splitlines()
        assert line.startswith("topicell: ")
        assert "sweep.join=true" in line
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.wait() == 130, sweep.err

    # After its end two sweeps may share the study.
    before = len(in_state(folder, TrialState.COMPLETE))
    n_trials = before + 4
    together = [start(*LONG, "sweep.join=true", f"sweep.n_trials={n_trials}") for _ in range(2)]
    # Each has two workers, and all trials wait, so that both sweeps get trials.
    running = TrialState.RUNNING
    eventually(lambda: len(at_work(folder) & in_state(folder, running)) == 4, *together)
    release(folder)
    assert [one.wait() for one in together] == [0, 0], "\n".join(one.err for one in together)
    require_complete_sweep(folder, n_trials)
    reported = [
        {line for line in one.err.splitlines() if "  perplexity " in line} for one in together
    ]
    assert all(reported), reported
    assert sum(map(len, reported)) == 4
    # The verdict is printed whichever of them ended last.
    assert any("K = " in one.out for one in together)


def test_failed_trials_are_recorded_and_the_sweep_continues(folder, start):
    crashes = [*SHORT, "model.n_topics=choice(3,500,4)", "sweep.sampler=grid", "sweep.n_jobs=1"]
    strict = start(*crashes, "sweep.max_failure_rate=0")
    assert strict.wait() == 1, strict.err
    (line,) = beside_progress(strict.err)
    assert line.startswith("topicell: ")
    assert "1 of 4 trials failed" in line
    assert "sweep.max_failure_rate = 0" in line
    assert "500" in line
    assert recorded(tracking(folder))[0].info.status == "FAILED"
    assert not in_state(folder, TrialState.RUNNING)

    lenient = start(*crashes)
    assert lenient.wait() == 0, lenient.err
    assert not beside_progress(lenient.err)
    (failed,) = (trial for trial in trials_in(folder) if trial.state is TrialState.FAIL)
    parent, nested = recorded(tracking(folder))
    assert parent.info.status == "FINISHED"
    assert Counter(run.info.status for run in nested) == {"FINISHED": 2, "FAILED": 1}
    run = by_trial(nested)[failed.number]
    assert run.info.status == "FAILED"
    assert run.data.params["model.n_topics"] == "500"
    assert "500" in run.data.tags["topicell.error"]
    assert run.data.tags["topicell.error"] == failed.user_attrs["error"]


@pytest.mark.parametrize(
    ("settings", "words", "parents"),
    [
        (["data=file", "data.path=absent.h5ad"], "absent.h5ad", 0),
        (["model.n_topics=choice(500,600,700)"], "training cells", 1),
    ],
    ids=["data", "trials"],
)
def test_a_sweep_without_any_valid_trial_ends_with_code_2(settings, words, parents, folder, start):
    sweep = start(*(SHORT if parents else ["-m", "sweep=topics"]), *settings)
    assert sweep.wait() == 2, sweep.err
    (line,) = beside_progress(sweep.err)
    assert line.startswith("topicell: ")
    assert words in line
    # The resource tracker of multiprocessing ends a little later.
    eventually(lambda: not sweep.processes())
    assert not in_state(folder, TrialState.RUNNING)
    if parents:
        parent, nested = recorded(tracking(folder))
        assert {run.info.status for run in (parent, *nested)} == {"FAILED"}
        assert all(words in run.data.tags["topicell.error"] for run in nested)
    else:
        assert not trials_in(folder)


@pytest.fixture
def server(folder):
    """Start MLflow's tracking server on the store of the folder."""
    with mlflow_server(folder) as port:
        yield TrackingConfig(uri=f"http://127.0.0.1:{port}")


def test_a_tracking_server_receives_every_metric_of_every_epoch(folder, server, start):
    epochs = 60
    settings = [f"tracking.uri={server.uri}", "sweep.n_jobs=4", "sweep.n_trials=6"]
    sweep = start(*LONG, *settings, f"train.epochs={epochs}")
    assert sweep.wait(2 * SECONDS) == 0, sweep.err
    assert not beside_progress(sweep.err)
    require_no_loss(folder)
    parent, nested = recorded(server)
    assert {run.info.status for run in (parent, *nested)} == {"FINISHED"}
    assert len(nested) == 6
    store = client(server)
    assert len(store.get_metric_history(parent.info.run_id, "sweep/perplexity")) == 6
    for number, run in by_trial(nested).items():
        (own,) = folder.glob(f"sweeps/*/{number}")
        points = Counter()
        for line in (own / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            del record["time"]
            if not {"dataset", "split", "status"} & record.keys():
                step = record.pop("epoch", record.pop("step", 0))
                points.update((name, step, repr(float(v))) for name, v in record.items())
        assert {step for name, step, _ in points if name == "train/elbo"} == set(range(epochs))
        there = Counter(
            (name, metric.step, repr(metric.value))
            for name in run.data.metrics
            for metric in store.get_metric_history(run.info.run_id, name)
        )
        assert there == points
        settings = dotted(yaml.safe_load((own / "config.yaml").read_text()))
        assert run.data.params == {name: str(value) for name, value in settings.items()}


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(
            name, marks=pytest.mark.extras(f"hydra_plugins.hydra_{name.partition('_')[0]}_launcher")
        )
        for name in ("submitit_local", "joblib")
    ],
)
def test_a_grid_runs_with_another_launcher(launcher, folder, start):
    settings = ["train.epochs=3", "train.progress=false", "report=off", "model.n_topics=2,3"]
    grid = start("-m", f"hydra/launcher={launcher}", *CORPUS, *settings)
    assert grid.wait() == 0, grid.err
    assert "Traceback" not in grid.err
    parent, nested = recorded(tracking(folder))
    assert parent.data.tags["topicell.kind"] == "multirun"
    assert {run.info.status for run in (parent, *nested)} == {"FINISHED"}
    assert {run.data.params["model.n_topics"] for run in nested} == {"2", "3"}
    assert len(nested) == 2
    verdict, *others = itertools.dropwhile(lambda line: "K = " not in line, grid.out.splitlines())
    assert verdict in parent.data.tags["mlflow.note.content"]
    assert others[-1].startswith("report      multiruns/")

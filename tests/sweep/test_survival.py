"""A sweep as a user runs it: what it survives, and what is then in Optuna and in MLflow.

Every command runs in a process of its own. Its children inherit a mark in their environment and
its standard error: by these they are found however they were started, whoever is their parent now.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections import Counter
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from topicell.config import TrackingConfig, dotted
from topicell.sweep.storage import open_storage
from topicell.sweep.study import RETRY_OF
from topicell.sweep.trials import KILLED
from topicell.tracking.store import client, create_store, experiment_id

pytestmark = pytest.mark.slow

SECONDS = 600
"""Longer than anything takes on a machine that is shared."""
EPOCHS = 40
"""A fit; a trial that is held stays in the first half of it, see `hold`."""
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
    """``topicell train`` in a folder, and all the processes that come of it."""

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
        """Ids of those that are left."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and self._has(folder):
                    found.append(int(folder.name))
        return found

    def _has(self, folder):
        # A process that was forked, and not begun anew, has the mark in its memory alone.
        if (folder / "fd" / "2").readlink() == self.process.err_path:
            return True
        return self.mark in (folder / "environ").read_text("latin-1")

    def end(self):
        """Leave no process behind."""
        while left := self.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.process.end()


@pytest.fixture
def start(start_process, folder):
    """Starts a command; none outlives the test. Its workers need no time to import anything."""
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
    """Empty stores of MLflow and Optuna: their tables take seconds."""
    folder = tmp_path_factory.mktemp("stores")
    create_store(folder / "mlflow.db")
    open_storage(f"sqlite:///{folder / 'optuna.db'}").engine.dispose()
    return folder


@pytest.fixture
def folder(stores, tmp_path):
    """A current folder for commands."""
    for name in ("mlflow.db", "optuna.db"):
        shutil.copy(stores / name, tmp_path)
    return tmp_path


def eventually(condition, *commands, seconds=SECONDS):
    """What a condition gives once it holds, while commands run."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        for command in commands:
            assert command.process.poll() is None, command.err
        time.sleep(0.05)
    raise AssertionError("\n".join(["it did not come about", *(c.err for c in commands)]))


def hold(folder, first=0):
    """Have the trials of sweeps with quick workers, from a number on, wait in their tenth epoch."""
    (folder / HOLD).write_text(str(first))


def release(folder):
    """Let those that wait go on."""
    (folder / HOLD).unlink()


def beside_progress(err):
    """Lines of standard error that do not tell of the study or of a trial."""
    return [line for line in err.splitlines() if not line.startswith(("study ", "trial "))]


def tracking(folder):
    return TrackingConfig(uri=f"sqlite:///{folder / 'mlflow.db'}")


def recorded(config):
    """The parent run of the sweep or grid, and the runs that are nested under it."""
    store = client(config)
    runs = store.search_runs([experiment_id(store, config)], max_results=1000)
    (parent,) = (run for run in runs if "topicell.kind" in run.data.tags)
    nested = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} <= {parent.info.run_id}
    return parent, nested


def by_trial(nested):
    """Runs by the number of their trial."""
    assert len({run.data.tags["topicell.trial"] for run in nested}) == len(nested)
    return {int(run.data.tags["topicell.trial"]): run for run in nested}


def trials_in(folder):
    """Optuna's trials, without those that wait."""
    url = f"sqlite:///{folder / 'optuna.db'}"
    found = []
    for name in optuna.get_all_study_names(url):
        found += optuna.load_study(study_name=name, storage=url).get_trials()
    return [trial for trial in found if trial.state is not TrialState.WAITING]


def in_state(folder, *states):
    return {trial.number for trial in trials_in(folder) if trial.state in states}


def epochs_of(folder):
    """How many epochs each trial has recorded."""
    paths = folder.glob("sweeps/*/*/metrics.jsonl")
    return {int(path.parent.name): path.read_text().count('"epoch"') for path in paths}


def at_work(folder):
    """The trials that are in the first half of their epochs."""
    return {number for number, n in epochs_of(folder).items() if 0 < n < EPOCHS / 2}


def running_in_mlflow(folder, numbers):
    """Those trials whose runs are RUNNING."""
    runs = by_trial(recorded(tracking(folder))[1])
    return {n for n in numbers if n in runs and runs[n].info.status == "RUNNING"}


def worker_of(command, number):
    """The child of a sweep that has the log of a trial open."""
    for pid in command.processes():
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                target = descriptor.readlink()
                if target.name == "topicell.log" and target.parent.name == str(number):
                    status = Path(f"/proc/{pid}/status").read_text()
                    assert f"PPid:\t{command.process.pid}\n" in status
                    return pid
    raise AssertionError(f"nobody works on trial {number}")


def require_no_loss(folder):
    """No run gave MLflow up."""
    logs = {path: path.read_text() for path in folder.glob("sweeps/*/*/topicell.log")}
    assert not [text for text in logs.values() if "MLflow at" in text]


def require_whole(folder, n_trials=N_TRIALS):
    """A sweep has ended well: exactly its budget, and the same in Optuna as in MLflow."""
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
    # One that ended just as its sweep was killed is done, though nobody heard of it.
    ended = {run.info.status for number, run in runs.items() if number in repeated}
    assert ended <= {"FAILED", "KILLED", "FINISHED"}
    assert runs.keys() <= {trial.number for trial in trials}


def test_the_trial_of_a_killed_worker_is_tried_again_once(folder, start):
    hold(folder)
    sweep = start(*LONG)
    number = min(
        eventually(lambda: (at := at_work(folder)) and running_in_mlflow(folder, at), sweep)
    )
    os.kill(worker_of(sweep, number), signal.SIGKILL)
    release(folder)
    assert sweep.wait() == 0, sweep.err
    require_whole(folder)

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
    """Trials in the middle, once others have ended and while none is about to."""
    if not (at_work(folder) and in_state(folder, TrialState.COMPLETE)):
        return set()
    caught = running_in_mlflow(folder, at_work(folder)) & at_work(folder)
    late = {number for number, n in epochs_of(folder).items() if n > 0.8 * EPOCHS}
    return set() if late & in_state(folder, TrialState.RUNNING) else caught


def goes_on(folder, start):
    """The same command ends what was stopped; what was done stays."""
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
    require_whole(folder)
    after = {trial.number: trial.user_attrs.get("run_id") for trial in trials_in(folder)}
    assert before.items() <= after.items()
    assert recorded(tracking(folder))[0].info.run_id == parent
    assert f"{len(before)} of {N_TRIALS} trials so far" in again.err


def interrupt(sweep, number):
    """Ctrl-C goes to all processes of a terminal, a scheduler's SIGTERM to the first."""
    if number == signal.SIGINT:
        os.killpg(sweep.process.pid, number)
    else:
        sweep.process.send_signal(number)


def require_interrupted(sweep):
    """A sweep ended as it should after an interrupt."""
    assert sweep.wait(600) == 130, sweep.err
    # Python's own helper, which looks after semaphores, ends when it hears of it.
    eventually(lambda: not sweep.processes())
    said = beside_progress(sweep.err)
    expected = ["interrupted; run the same command again to continue", "topicell: interrupted"]
    assert said == expected, sweep.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_goes_on(number, folder, start):
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
    goes_on(folder, start)
    assert {trial.user_attrs.get(RETRY_OF) for trial in trials_in(folder)} == {None, *stopped}


def importing(sweep):
    """Whether a worker has its first trial waiting, and is still importing what it needs."""
    workers = []
    for pid in sweep.processes():
        with contextlib.suppress(OSError):
            if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
                workers.append(Path(f"/proc/{pid}/maps").read_text())
    begun = list(sweep.folder.glob("sweeps/*/*/topicell.log"))
    return len(workers) == 2 and not begun and any("_multiarray_umath" in maps for maps in workers)


def test_a_sweep_is_interrupted_while_its_workers_start(folder, start):
    sweep = start(*LONG, quick_workers=False)
    eventually(lambda: importing(sweep), sweep)
    interrupt(sweep, signal.SIGINT)
    require_interrupted(sweep)
    assert {trial.state for trial in trials_in(folder)} == {TrialState.FAIL}
    parent, nested = recorded(tracking(folder))
    assert {run.info.status for run in (parent, *nested)} == {"KILLED"}


def test_a_killed_sweep_goes_on(folder, start):
    hold(folder, first=2)
    sweep = start(*LONG)
    caught = eventually(lambda: some_done_and_some_at_work(folder), sweep)
    sweep.process.kill()
    sweep.wait()
    # Its workers hear of it, and end by themselves.
    eventually(lambda: not sweep.processes())
    stopped = in_state(folder, TrialState.RUNNING)
    assert caught <= stopped
    parent, nested = recorded(tracking(folder))
    assert parent.info.status == "RUNNING"
    runs = by_trial(nested)
    assert {runs[number].info.status for number in caught} <= {"KILLED", "RUNNING", "FINISHED"}
    goes_on(folder, start)
    trials = trials_in(folder)
    assert {trial.user_attrs.get(RETRY_OF) for trial in trials} == {None, *stopped}
    runs = by_trial(recorded(tracking(folder))[1])
    for number in stopped:
        assert trials[number].state is TrialState.FAIL
        assert trials[number].user_attrs["error"] == KILLED
    assert {runs[number].info.status for number in caught} <= {"KILLED", "FINISHED"}


def test_a_sweep_that_is_killed_while_its_workers_start_leaves_no_run_open(folder, start):
    command = [*SHORT, "model.n_topics=range(2,10)", "sweep.n_trials=2"]
    sweep = start(*command, quick_workers=False)
    eventually(lambda: importing(sweep), sweep)
    sweep.process.kill()
    sweep.wait()
    eventually(lambda: not sweep.processes())
    assert "Traceback" not in sweep.err
    again = start(*command)
    assert again.wait() == 0, again.err
    require_whole(folder, 2)


def test_one_sweep_at_a_time_unless_they_share(folder, start):
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

    # Both work from its end on.
    before = len(in_state(folder, TrialState.COMPLETE))
    n_trials = before + 4
    together = [start(*LONG, "sweep.join=true", f"sweep.n_trials={n_trials}") for _ in range(2)]
    # Each has two workers, so that both have trials before any trial ends.
    running = TrialState.RUNNING
    eventually(lambda: len(at_work(folder) & in_state(folder, running)) == 4, *together)
    release(folder)
    assert [one.wait() for one in together] == [0, 0], "\n".join(one.err for one in together)
    require_whole(folder, n_trials)
    told = [{line for line in one.err.splitlines() if "  perplexity " in line} for one in together]
    assert all(told), told
    assert sum(map(len, told)) == 4
    # One of them found the other at work, or both found all done; the verdict is said in any case.
    assert any("K = " in one.out for one in together)


def test_trials_that_fail_are_recorded_and_the_sweep_goes_on(folder, start):
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
        (["model.n_topics=choice(500,600,700)"], "more topics than", 1),
    ],
    ids=["data", "trials"],
)
def test_where_everything_is_refused_the_input_is_bad(settings, words, parents, folder, start):
    sweep = start(*(SHORT if parents else ["-m", "sweep=topics"]), *settings)
    assert sweep.wait() == 2, sweep.err
    (line,) = beside_progress(sweep.err)
    assert line.startswith("topicell: ")
    assert words in line
    # Python's own helper, which looks after semaphores, ends when it hears of it.
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
    """MLflow's tracking server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    light = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(
        [*command, "--artifacts-destination", str(folder / "artifacts")],
        env=os.environ | light,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers():
        assert process.poll() is None, "the server did not start"
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return True
        except OSError:
            return False

    try:
        eventually(answers)
        yield TrackingConfig(uri=address)
    finally:
        process.terminate()
        process.wait(600)


def test_a_tracking_server_receives_every_point(folder, server, start):
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
                step = record.pop("epoch", 0)
                points.update((name, step, repr(float(v))) for name, v in record.items())
        assert {step for _, step, _ in points} == set(range(epochs))
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
def test_a_grid_with_another_launcher(launcher, folder, start):
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

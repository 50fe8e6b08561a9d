"""A run that was killed and resumed has the same results as a run that was not killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time

import pytest

from topicell.config import TrackingConfig
from topicell.tracking.store import client, create_store, experiment_id

EPOCHS = 20
RUN = (
    *("train", "data=simulated", "data.simulation.n_cells=240", "data.simulation.n_genes=60"),
    *("data.simulation.n_topics=3", "model.n_topics=3", "model.n_hidden=16"),
    *("train.n_replicates=2", f"train.epochs={EPOCHS}", "train.batch_size=32"),
    *("train.early_stopping.enabled=false", "train.checkpoint_every=1", "evaluate.n_splits=2"),
    *("evaluate.n_samples=16", "report=off"),
)
SAME = (
    "cells/cell_topics.csv",
    "topics/gene_topics.csv",
    "topics/top_genes.csv",
    "model/weights.safetensors",
    "scores.csv",
)
TIMED = ("speed/", "memory/")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a new folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def reference(tmp_path_factory, topicell):
    """Run without interruption: return the folder, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("reference")
    began = time.monotonic()
    done = topicell(*RUN, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, time.monotonic() - began


def run_folder(folder):
    (found,) = (path.parent for path in folder.glob("runs/*/*/run.json"))
    return found


def stored(folder):
    """Return the store in a folder, its only run, and the points of each metric."""
    config = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
    store = client(config)
    (run,) = store.search_runs([experiment_id(store, config)])
    return store, run, points(store, run.info.run_id)


def points(store, run_id):
    """Return the points of each metric, with values 0 where they are times or memory.

    Those of the system, which differ from run to run, are left out.
    """
    known = store.get_run(run_id).data.metrics
    names = [name for name in known if not name.startswith("system/")]
    return {
        name: [
            (point.step, 0.0 if name.startswith(TIMED) else point.value)
            for point in store.get_metric_history(run_id, name)
        ]
        for name in names
    }


def paths(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def assert_same_as_uninterrupted(folder, reference):
    mine, other = run_folder(folder), run_folder(reference)
    for name in SAME:
        assert (mine / name).read_bytes() == (other / name).read_bytes(), name
    _, run, curves = stored(folder)
    _, _, expected = stored(reference)
    assert run.info.status == "FINISHED"
    assert {n: sorted(c) for n, c in curves.items()} == {n: sorted(c) for n, c in expected.items()}
    assert len(curves["train/elbo"]) == EPOCHS
    lines = [json.loads(line) for line in (mine / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "epoch" in line] == list(range(EPOCHS))
    uploaded = {path.name for path in (folder / "mlartifacts").rglob("*") if path.is_file()}
    assert {path.rpartition("/")[2] for path in SAME} <= uploaded
    # No unfinished file is left.
    assert paths(mine) == paths(other)
    assert json.loads((mine / "run.json").read_text())["delivered"]


KILLS, INTERRUPTS = (signal.SIGKILL,), (signal.SIGINT, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("numbers", "seed"), [(KILLS, 0), (INTERRUPTS, 3)])
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(
    numbers, seed, folder, reference, started
):
    """The signals arrive eight times, anywhere between start and end of a run."""
    seconds = reference[1]
    generator = random.Random(seed)
    n_signals = 0
    command = [*RUN, "hydra.run.dir=runs/by/name", "resume=true"]
    while n_signals < 8:
        process = started(*command)
        # Early, so that few attempts reach the end.
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert process.wait(generator.uniform(0.1, 0.75) * seconds) == 0, process.stderr
            break
        number = generator.choice(numbers)
        process.send_signal(number)
        # -number: before the handlers are installed, or after the run ended.
        assert process.wait(600) in (-number, 130, 0), process.stderr
        n_signals += 1
    last = started(*command)
    assert last.wait(600) == 0, last.stderr
    assert_same_as_uninterrupted(folder, reference[0])


KILL = """
import os, signal, sys
from topicell.cli import main
left = int(sys.argv.pop(1))
def deadly(function, before=True):
    def call(*arguments, **keywords):
        global left
        left -= 1
        if left == 0 and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **keywords)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
{patch}
main(sys.argv[1:])
"""
MOMENTS = {
    "when half of a checkpoint is written": (
        "import safetensors.torch as st\n"
        "from topicell.model import checkpoints\n"
        "save = st.save\n"
        "def half(*a):\n"
        "    global left\n"
        "    left -= 1\n"
        "    data = save(*a)\n"
        "    if left: return data\n"
        "    import pathlib, time, threading\n"
        "    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGKILL]).start()\n"
        "    checkpoints.os.fsync = lambda _: time.sleep(9)\n"
        "    return data[:len(data)//2]\n"
        "st.save = half",
        9,
    ),
    "when the run is created and its id not yet known": (
        "from mlflow import MlflowClient\n"
        "MlflowClient.create_run = deadly(MlflowClient.create_run, before=False)",
        1,
    ),
    "when metrics are sent": (
        "from mlflow import MlflowClient\n"
        "MlflowClient.log_batch = deadly(MlflowClient.log_batch, before=False)",
        2,
    ),
    "before an artifact is uploaded": (
        "from mlflow import MlflowClient\n"
        "MlflowClient.log_artifact = deadly(MlflowClient.log_artifact)",
        4,
    ),
    "before the run is ended": (
        "from mlflow import MlflowClient\n"
        "MlflowClient.set_terminated = deadly(MlflowClient.set_terminated)",
        1,
    ),
    "when half of the model is saved": (
        "import safetensors.torch as st\nst.save_file = deadly(st.save_file, before=False)",
        1,
    ),
    "while the record is written": (
        "from pathlib import Path\n"
        "kept, dies = Path.replace, deadly(Path.replace)\n"
        "Path.replace = lambda p, q: (dies if q.name == 'run.json' else kept)(p, q)",
        3,
    ),
    "before the checkpoints are removed": (
        "from topicell.tracking import runs\nruns.clear = deadly(runs.clear)",
        1,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_a_critical_moment_ends_with_the_same_bytes(
    moment, folder, reference, started
):
    patch, n = MOMENTS[moment]
    program = KILL.replace("{patch}", patch)
    process = started(n, *RUN, program=program)
    assert process.wait(600) == -signal.SIGKILL, process.stderr
    again = started(*RUN, "resume=true")
    assert again.wait(600) == 0, again.stderr
    assert "resuming runs/" in again.stderr
    assert_same_as_uninterrupted(folder, reference[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "by"),
    [
        (signal.SIGINT, "true"),
        (signal.SIGINT, "id"),
        (signal.SIGTERM, "folder"),
    ],
)
def test_an_interrupted_run_is_recorded_as_killed_and_resumed(
    number, by, folder, reference, started
):
    process = started(*RUN)
    until(lambda: len(lines(folder)) > 5)
    os.killpg(process.pid, number)
    # experiments/robustness measures how soon.
    assert process.wait(600) == 130
    assert process.stderr.splitlines()[-1] == "topicell: interrupted"
    run = run_folder(folder)
    kept = sorted((run / "checkpoint").rglob("*"))
    assert len([path for path in kept if path.suffix == ".safetensors"]) == 2
    _, in_mlflow, _ = stored(folder)
    assert in_mlflow.info.status == "KILLED"
    value = {"true": "true", "id": in_mlflow.info.run_id, "folder": run}[by]
    again = started(*RUN, f"resume={value}")
    assert again.wait(600) == 0, again.stderr
    assert_same_as_uninterrupted(folder, reference[0])
    _, after, _ = stored(folder)
    assert after.info.run_id == in_mlflow.info.run_id
    assert after.data.tags["topicell.resumed"] == "1"


def lines(folder):
    found = list(folder.glob("runs/*/*/metrics.jsonl"))
    return found[0].read_text().splitlines() if found else []


def until(condition):
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_run_that_cannot_be_resumed_is_refused(folder, reference, run_here, started):
    ended = run_folder(reference[0])
    before = {path: path.read_bytes() for path in ended.rglob("*") if path.is_file()}
    code, _, err = run_here(*RUN, f"resume={ended}")
    assert code == 2
    assert "has already ended" in err
    create_store(folder / "mlflow.db")
    code, _, err = run_here(*RUN, "resume=0123456789abcdef0123456789abcdef")
    assert code == 2
    assert "neither a run folder nor a run" in err
    (folder / "empty").mkdir()
    code, _, err = run_here(*RUN, "resume=empty")
    assert code == 2
    assert "has no run.json" in err
    assert {path: path.read_bytes() for path in ended.rglob("*") if path.is_file()} == before

    # A run that was killed: still alive, with other settings, with other data.
    mine = [*RUN, "hydra.run.dir=runs/by/mine", "tracking=off"]
    process = started(*mine)
    until(lambda: len(lines(folder)) > 3)
    process.send_signal(signal.SIGSTOP)  # so that it cannot end first
    code, _, err = run_here(*mine, "resume=true")
    assert code == 2
    assert "in use by another process" in err
    process.kill()
    process.wait(600)
    kept = lines(folder)
    code, _, err = run_here(*mine, "resume=true", "model.n_topics=4")
    assert code == 2
    assert "model.n_topics = 4, and the run in" in err
    assert "has 3: resume it with its own settings" in err
    assert lines(folder) == kept
    path = run_folder(folder) / "run.json"
    record = json.loads(path.read_text())
    record["tags"]["topicell.prepared_digest"] = "0"
    path.write_text(json.dumps(record))
    code, _, err = run_here(*mine, "resume=true")
    assert code == 2
    assert "the data differ from those" in err


def test_resume_without_an_unfinished_run_begins_a_new_one(folder, run_here):
    quick = [*RUN, "train.epochs=2", "evaluate.n_splits=1", "tracking=off", "resume=true"]
    code, out, err = run_here(*quick)
    assert code == 0
    assert "no interrupted run" in err
    assert "run folder" in out
    # Leftovers of a run that was killed just before it removed them.
    made = paths(run_folder(folder))
    (run_folder(folder) / "checkpoint" / "0").mkdir(parents=True)
    (run_folder(folder) / ".run.json-1").touch()
    code, out, _ = run_here(*quick, f"hydra.run.dir={run_folder(folder)}")
    assert code == 0
    assert "had already ended" in out
    assert paths(run_folder(folder)) == made
    assert len(list(folder.glob("runs/*/*"))) == 1
    code, _, err = run_here(*quick, f"hydra.run.dir={run_folder(folder)}", "model.n_topics=2")
    assert code == 2
    assert "model.n_topics = 2, and the run in" in err
    code, _, err = run_here(*quick, "resume=False")
    assert code == 0
    assert len(list(folder.glob("runs/*/*"))) == 2


@pytest.mark.slow
def test_a_killed_grid_is_resumed(folder, started):
    grid = [*(a for a in RUN if "n_topics=3" not in a or "data" in a), "-m"]
    grid += ["model.n_topics=2,3", "seed=0,1", "evaluate.n_splits=1"]
    process = started(*grid, draft=True)
    until(lambda: len(list(folder.glob("multiruns/*/*/[0-9]/run.json"))) == 3)
    process.kill()
    process.wait(600)
    again = started(*grid, "resume=true", draft=True)
    assert again.wait(600) == 0, again.stderr
    (grid_folder,) = folder.glob("multiruns/*/*")
    assert len(list(grid_folder.glob("[0-9]/run.json"))) == 4
    config = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
    store = client(config)
    runs = store.search_runs([experiment_id(store, config)])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    nested = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}
    assert len(nested) == 4
    assert sum("topicell.resumed" in run.data.tags for run in nested) == 1
    for run in nested:
        assert len(points(store, run.info.run_id)["train/elbo"]) == EPOCHS
    assert (grid_folder / "report.html").exists()

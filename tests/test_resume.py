"""A run that is killed, wherever, and gone on with, ends as one that never was."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from topicell.config import TrackingConfig
from topicell.tracking.store import client, create_store, experiment_id

EPOCHS = 20
RUN = (
    "train",
    "data=simulated",
    "data.simulation.n_cells=240",
    "data.simulation.n_genes=60",
    "data.simulation.n_topics=3",
    "model.n_topics=3",
    "model.n_hidden=16",
    "train.n_replicates=2",
    f"train.epochs={EPOCHS}",
    "train.batch_size=32",
    "train.early_stopping.enabled=false",
    "train.checkpoint_every=1",
    "evaluate.n_splits=2",
    "evaluate.n_samples=16",
    "report=off",
)
SAME = (
    "cells/cell_topics.csv",
    "topics/gene_topics.csv",
    "topics/top_genes.csv",
    "model/weights.safetensors",
    "scores.csv",
)
TIMED = ("speed/", "memory/")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """An empty store, whose tables take seconds."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    create_store(path)
    return path


@pytest.fixture
def place(template, tmp_path, monkeypatch):
    """A folder with an empty store, and the current one."""
    shutil.copy(template, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(template, tmp_path_factory, topicell):
    """The run that nothing befell, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(template, folder / "mlflow.db")
    began = time.monotonic()
    done = topicell(*RUN, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, time.monotonic() - began


def the_run(folder):
    (found,) = (path.parent for path in folder.glob("runs/*/*/run.json"))
    return found


def stored(folder):
    """What MLflow has: (run, the points of each metric without those that time or memory made)."""
    config = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
    store = client(config)
    (run,) = store.search_runs([experiment_id(store, config)])
    return store, run, points(store, run.info.run_id)


def points(store, run_id):
    names = store.get_run(run_id).data.metrics
    return {
        name: [
            (point.step, 0.0 if name.startswith(TIMED) else point.value)
            for point in store.get_metric_history(run_id, name)
        ]
        for name in names
    }


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def assert_as_if_nothing_befell(folder, whole):
    mine, other = the_run(folder), the_run(whole)
    for name in SAME:
        assert (mine / name).read_bytes() == (other / name).read_bytes(), name
    _, run, curves = stored(folder)
    _, _, expected = stored(whole)
    assert run.info.status == "FINISHED"
    assert {n: sorted(c) for n, c in curves.items()} == {n: sorted(c) for n, c in expected.items()}
    assert len(curves["train/elbo"]) == EPOCHS
    lines = [json.loads(line) for line in (mine / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "epoch" in line] == list(range(EPOCHS))
    uploaded = {path.name for path in (folder / "mlartifacts").rglob("*") if path.is_file()}
    assert {path.rpartition("/")[2] for path in SAME} <= uploaded
    # Nor is anything left of what it was killed over.
    assert files(mine) == files(other)
    assert json.loads((mine / "run.json").read_text())["delivered"]


KILLS, INTERRUPTS = (signal.SIGKILL,), (signal.SIGINT, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("numbers", "seed"), [(KILLS, 0), (INTERRUPTS, 3)])
def test_struck_at_random_moments_it_ends_with_the_same_bytes(numbers, seed, place, whole, started):
    """Eight times each, at moments that are spread over the whole of a run."""
    folder, seconds = whole
    generator = random.Random(seed)
    n_struck = 0
    command = [*RUN, "hydra.run.dir=runs/by/name", "resume=true"]
    while n_struck < 8:
        process = started(*command)
        # Early enough that most attempts do not come to their end.
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert process.wait(generator.uniform(0.1, 0.75) * seconds) == 0, process.stderr
            break
        number = generator.choice(numbers)
        process.send_signal(number)
        # By the signal before the command hears any or once the run has ended; or it ended first.
        assert process.wait(600) in (-number, 130, 0), process.stderr
        n_struck += 1
    last = started(*command)
    assert last.wait(600) == 0, last.stderr
    assert_as_if_nothing_befell(place, folder)


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
PLACES = {
    "as a checkpoint is flushed": (
        "from topicell.model import checkpoints\n"
        "class Slow:\n"
        "    def __getattr__(self, name): return getattr(os, name)\n"
        "checkpoints.os = Slow(); Slow.fsync = staticmethod(deadly(os.fsync))",
        5,
    ),
    "as half of a checkpoint is written": (
        "import safetensors.torch as st\n"
        "from topicell.model import checkpoints\n"
        "save = st.save\n"
        "def half(*a):\n"
        "    global left\n"
        "    left -= 1\n"
        "    whole = save(*a)\n"
        "    if left: return whole\n"
        "    import pathlib, time, threading\n"
        "    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGKILL]).start()\n"
        "    checkpoints.os.fsync = lambda _: time.sleep(9)\n"
        "    return whole[:len(whole)//2]\n"
        "st.save = half",
        9,
    ),
    "as the run is created, before its id is known": (
        "from mlflow import MlflowClient\n"
        "MlflowClient.create_run = deadly(MlflowClient.create_run, before=False)",
        1,
    ),
    "as metrics are sent": (
        "from mlflow import MlflowClient\n"
        "MlflowClient.log_batch = deadly(MlflowClient.log_batch, before=False)",
        2,
    ),
    "as an artifact is uploaded": (
        "from mlflow import MlflowClient\n"
        "MlflowClient.log_artifact = deadly(MlflowClient.log_artifact)",
        4,
    ),
    "before the run is ended": (
        "from mlflow import MlflowClient\n"
        "MlflowClient.set_terminated = deadly(MlflowClient.set_terminated)",
        1,
    ),
    "as half of the model is saved": (
        "import safetensors.torch as st\nst.save_file = deadly(st.save_file, before=False)",
        1,
    ),
    "as the record is written": (
        "from pathlib import Path\n"
        "kept, dies = Path.replace, deadly(Path.replace)\n"
        "Path.replace = lambda p, q: (dies if q.name == 'run.json' else kept)(p, q)",
        3,
    ),
    "before the checkpoints are removed": (
        "from topicell.tracking import runs\nruns.clear = deadly(runs.clear)",
        1,
    ),
    "as the model is saved": (
        "from topicell.model.fit import TopicFit\n"
        "TopicFit.save = deadly(TopicFit.save, before=False)",
        1,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", PLACES)
def test_killed_in_the_worst_places_it_ends_with_the_same_bytes(where, place, whole, started):
    patch, n = PLACES[where]
    program = KILL.replace("{patch}", patch)
    process = started(n, *RUN, program=program)
    assert process.wait(600) == -signal.SIGKILL, process.stderr
    again = started(*RUN, "resume=true")
    assert again.wait(600) == 0, again.stderr
    assert "resuming runs/" in again.stderr
    assert_as_if_nothing_befell(place, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "by"),
    [
        (signal.SIGINT, "true"),
        (signal.SIGINT, "id"),
        (signal.SIGTERM, "folder"),
    ],
)
def test_an_interrupted_run_is_marked_and_gone_on_with(number, by, place, whole, started):
    process = started(*RUN)
    until(lambda: len(lines(place)) > 5)
    os.killpg(process.pid, number)
    # How soon is measured in experiments/robustness.
    assert process.wait(600) == 130
    assert process.stderr.splitlines()[-1] == "topicell: interrupted"
    run = the_run(place)
    kept = sorted((run / "checkpoint").rglob("*"))
    assert len([path for path in kept if path.suffix == ".safetensors"]) == 2
    _, in_mlflow, _ = stored(place)
    assert in_mlflow.info.status == "KILLED"
    value = {"true": "true", "id": in_mlflow.info.run_id, "folder": run}[by]
    again = started(*RUN, f"resume={value}")
    assert again.wait(600) == 0, again.stderr
    assert_as_if_nothing_befell(place, whole[0])
    _, after, _ = stored(place)
    assert after.info.run_id == in_mlflow.info.run_id
    assert after.data.tags["topicell.resumed"] == "1"


def lines(folder):
    found = list(folder.glob("runs/*/*/metrics.jsonl"))
    return found[0].read_text().splitlines() if found else []


def until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_cannot_be_gone_on_with_is_refused(place, whole, run_here, started):
    folder, _ = whole
    ended = the_run(folder)
    before = {path: path.read_bytes() for path in ended.rglob("*") if path.is_file()}
    code, _, err = run_here(*RUN, f"resume={ended}")
    assert code == 2
    assert "has already ended" in err
    code, _, err = run_here(*RUN, "resume=0123456789abcdef0123456789abcdef")
    assert code == 2
    assert "neither a run folder nor a run" in err
    (place / "empty").mkdir()
    code, _, err = run_here(*RUN, "resume=empty")
    assert code == 2
    assert "it has no run.json" in err
    assert {path: path.read_bytes() for path in ended.rglob("*") if path.is_file()} == before

    # Of a run that was cut off: other settings, other data, a process that is still at work.
    process = started(*RUN, "hydra.run.dir=mine", "tracking=off")
    until(lambda: Path("mine/metrics.jsonl").exists() and lines_of("mine") > 3)
    code, _, err = run_here(*RUN, "hydra.run.dir=mine", "tracking=off", "resume=true")
    assert code == 2
    assert "in use by another process" in err
    process.kill()
    process.wait(600)
    kept = Path("mine/metrics.jsonl").read_bytes()
    code, _, err = run_here(
        *RUN, "hydra.run.dir=mine", "tracking=off", "resume=true", "model.n_topics=4"
    )
    assert code == 2
    assert "model.n_topics = 4, and the run in" in err
    assert "has 3: resume it with its own settings" in err
    assert Path("mine/metrics.jsonl").read_bytes() == kept
    record = json.loads(Path("mine/run.json").read_text())
    record["tags"]["topicell.prepared_digest"] = "0"
    Path("mine/run.json").write_text(json.dumps(record))
    code, _, err = run_here(*RUN, "hydra.run.dir=mine", "tracking=off", "resume=true")
    assert code == 2
    assert "the data differ from those" in err


def lines_of(folder):
    return len(Path(folder, "metrics.jsonl").read_text().splitlines())


def test_with_nothing_to_go_on_with_a_run_begins(place, run_here):
    quick = [*RUN, "train.epochs=2", "evaluate.n_splits=1", "tracking=off", "resume=true"]
    code, out, err = run_here(*quick)
    assert code == 0
    assert "no interrupted run" in err
    assert "run folder" in out
    # As of one that was killed just before it took them away.
    made = files(the_run(place))
    (the_run(place) / "checkpoint" / "0").mkdir(parents=True)
    (the_run(place) / ".run.json-1").touch()
    code, out, _ = run_here(*quick, f"hydra.run.dir={the_run(place)}")
    assert code == 0
    assert "had already ended" in out
    assert files(the_run(place)) == made
    assert len(list(place.glob("runs/*/*"))) == 1
    code, _, err = run_here(*quick, f"hydra.run.dir={the_run(place)}", "model.n_topics=2")
    assert code == 2
    assert "model.n_topics = 2, and the run in" in err
    code, _, err = run_here(*quick, "resume=False")
    assert code == 0
    assert len(list(place.glob("runs/*/*"))) == 2


@pytest.mark.slow
def test_a_grid_goes_on_where_it_was_cut_off(place, whole, started):
    grid = [*(a for a in RUN if "n_topics=3" not in a or "data" in a), "-m"]
    grid += ["model.n_topics=2,3", "seed=0,1", "evaluate.n_splits=1"]
    process = started(*grid, draft=True)
    until(lambda: len(list(place.glob("multiruns/*/*/[0-9]/run.json"))) == 3)
    process.kill()
    process.wait(600)
    again = started(*grid, "resume=true", draft=True)
    assert again.wait(600) == 0, again.stderr
    (folder,) = place.glob("multiruns/*/*")
    assert len(list(folder.glob("[0-9]/run.json"))) == 4
    config = TrackingConfig(uri=f"sqlite:///{place}/mlflow.db")
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
    assert (folder / "report.html").exists()
